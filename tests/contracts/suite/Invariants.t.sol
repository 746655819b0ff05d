// SPDX-License-Identifier: BSD-3-Clause
pragma solidity ^0.8.28;

import {ISessionVault} from "src/interfaces/ISessionVault.sol";
import {World} from "./Base.sol";

/// Everybody who touches the vault, honest or not, in any order.
contract Crowd is World {
    struct Lease {
        ISessionVault.Terms terms;
        uint256 key;
        uint88 deposit;
        uint88 signed; // the highest total that the voucher key signed
        uint256 got; // what had been paid when it closed, and whether it did
        bool closed;
    }

    uint88 public constant CAP = 5e7;
    Lease[] private leases;
    ISessionVault.Grant private grant;
    bytes32 public grantId;
    bool public fell;
    bool public paidWhenClosed;
    bool public forgeryPaid;

    constructor() {
        begin();
        grant = newGrant(address(0), CAP);
        grantId = vault.grantId(grant);
    }

    function open(uint88 amount, bool granted) external {
        amount = amount % 1e7 + FEE;
        (uint88 committed,,) = vault.grants(grantId);
        if (free(payer) < amount || (granted && uint256(committed) + amount > CAP)) return;
        Lease storage lease = leases.push();
        lease.terms = newTerms();
        lease.key = KEY;
        lease.deposit = amount;
        lease.signed = FEE;
        if (granted) {
            lease.terms.grantId = grantId;
            openGranted(lease.terms, amount, grant);
        } else {
            open(lease.terms, amount);
        }
    }

    function settle(uint256 i, uint256 j, uint88 amount, bool ends) external watched {
        if (leases.length == 0) return;
        Lease storage one = leases[i % leases.length];
        Lease storage two = leases[j % leases.length];
        amount %= 2e7;
        if (amount > one.signed) one.signed = amount;
        ISessionVault.Claim[] memory rows = both(claim(one.terms, amount), claim(two.terms, two.signed));
        if (ends) close(rows);
        else vault.settle(rows);
    }

    function settleForged(uint256 i, uint256 key, uint88 amount) external watched {
        if (leases.length == 0) return;
        key = key % 1e30 + 1e6;
        uint256 before = token.balanceOf(provider);
        vault.settle(claimBy(key, leases[i % leases.length].terms, amount % 2e7 + FEE + 1));
        if (token.balanceOf(provider) != before) forgeryPaid = true;
    }

    function requestClose(uint256 i) external watched {
        if (leases.length == 0) return;
        vm.prank(payer);
        try vault.requestClose(leases[i % leases.length].terms, 0, 0) {} catch {}
    }

    function finalize(uint256 i) external watched {
        if (leases.length == 0) return;
        try vault.finalize(leases[i % leases.length].terms) {} catch {}
    }

    function wait_(uint32 seconds_) external {
        skip(seconds_ % 40_000);
    }

    function deposit(uint88 amount) external {
        amount = amount % 1e8 + 1;
        token.mint(payer, amount);
        vm.prank(payer);
        vault.deposit(address(token), payer, amount);
    }

    function withdraw(uint88 amount) external {
        uint256 most = free(payer);
        if (most == 0) return;
        vm.prank(payer);
        vault.withdraw(address(token), amount % most + 1, payer);
    }

    /// Compares each lease before and after.
    modifier watched() {
        uint256[] memory before = new uint256[](leases.length);
        for (uint256 i; i < leases.length; ++i) before[i] = state(i).settled;
        _;
        for (uint256 i; i < leases.length; ++i) {
            ISessionVault.Channel memory c = state(i);
            if (c.settled < before[i]) fell = true;
            if (leases[i].closed && c.settled != leases[i].got) paidWhenClosed = true;
            if (c.closeAt == CLOSED && !leases[i].closed) (leases[i].closed, leases[i].got) = (true, c.settled);
        }
    }

    function state(uint256 i) public view returns (ISessionVault.Channel memory) {
        return channel(vault.channelId(leases[i].terms));
    }

    function count() external view returns (uint256) {
        return leases.length;
    }

    function limits(uint256 i) external view returns (uint88 amount, uint88 signed) {
        return (leases[i].deposit, leases[i].signed);
    }

    function money()
        external
        view
        returns (uint256 escrows, uint256 held, uint256 books, uint256 provided, uint256 committed)
    {
        escrows = free(payer) + free(provider);
        held = token.balanceOf(address(vault));
        books = vault.totalHeld(address(token));
        provided = token.balanceOf(provider) + free(provider);
        (uint88 used,,) = vault.grants(grantId);
        committed = used;
    }
}

/// What holds whatever the crowd does.
contract InvariantsTest is World {
    Crowd private crowd;

    function setUp() external {
        crowd = new Crowd();
    }

    function targetContracts() external view returns (address[] memory targets) {
        targets = new address[](1);
        targets[0] = address(crowd);
    }

    /// Free escrow and locked money are together what the vault holds and what its books say.
    function invariant_booksAreTokens() external view {
        (uint256 escrows, uint256 held, uint256 books,,) = crowd.money();
        uint256 locked;
        for (uint256 i; i < crowd.count(); ++i) {
            ISessionVault.Channel memory c = crowd.state(i);
            if (c.closeAt != CLOSED) locked += c.deposit - c.settled;
        }
        eq(held, books, "held");
        eq(escrows + locked, books, "escrows and locks");
    }

    /// A lease collects at most its deposit, and the provider at most what was signed for it.
    function invariant_collectedWithinLimits() external view {
        uint256 collected;
        uint256 signedInAll;
        for (uint256 i; i < crowd.count(); ++i) {
            (uint88 amount, uint88 signed) = crowd.limits(i);
            uint88 settled = crowd.state(i).settled;
            require(settled <= amount, "more than the deposit");
            require(settled <= signed, "more than was signed");
            collected += settled;
            signedInAll += signed;
        }
        (,,, uint256 provided,) = crowd.money();
        eq(provided, collected, "provided");
        require(provided <= signedInAll, "more than was signed in all");
    }

    /// What was settled never falls.
    function invariant_settledNeverFalls() external view {
        require(!crowd.fell(), "settled fell");
    }

    /// A closed lease pays nothing.
    function invariant_closedPaysNothing() external view {
        require(!crowd.paidWhenClosed(), "a closed lease paid");
    }

    /// What the voucher key did not sign pays nothing.
    function invariant_forgeriesPayNothing() external view {
        require(!crowd.forgeryPaid(), "a forgery paid");
    }

    /// A grant is never overdrawn.
    function invariant_grantWithinCap() external view {
        (,,,, uint256 committed) = crowd.money();
        require(committed <= crowd.CAP(), "more than the cap");
    }
}
