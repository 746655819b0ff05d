// SPDX-License-Identifier: BSD-3-Clause
pragma solidity ^0.8.28;

import {ISessionVault} from "src/interfaces/ISessionVault.sol";
import {Base} from "./Base.sol";

contract SettleTest is Base {
    uint256 private constant ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141;

    // it pays the provider the whole total once
    function test_settle() external {
        (ISessionVault.Terms memory terms, bytes32 id) = opened();
        vault.settle(claim(terms, 150_000));
        paid(150_000);
        eq(channel(id).settled, 150_000, "settled");
        eq(vault.totalHeld(address(token)), ESCROW - 150_000, "books");
    }

    // it pays the difference
    function test_settle_newer() external {
        (ISessionVault.Terms memory terms,) = opened();
        vault.settle(claim(terms, 150_000));
        vault.settle(claim(terms, 190_000));
        paid(190_000);
    }

    // it pays nothing
    function test_settle_older() external {
        (ISessionVault.Terms memory terms, bytes32 id) = opened();
        vault.settle(claim(terms, 190_000));
        vault.settle(claim(terms, 150_000));
        paid(190_000);
        eq(channel(id).settled, 190_000, "settled");
    }

    // it pays once
    function test_settle_twiceInOneBatch() external {
        (ISessionVault.Terms memory terms,) = opened();
        vault.settle(both(claim(terms, 150_000), claim(terms, 150_000)));
        paid(150_000);
    }

    // it pays what the time allows, and the rest later
    function testFuzz_settle_clampedByTime(uint32 elapsed, uint88 rate, uint88 amount) external {
        elapsed %= 3 days;
        rate %= 1e11;
        amount = amount % uint88(ESCROW) + FEE + 1;
        ISessionVault.Terms memory terms = newTerms();
        terms.rate = rate;
        bytes32 id = open(terms, uint88(ESCROW));
        skip(elapsed);
        vault.settle(claim(terms, amount));
        uint256 served = elapsed > LENGTH ? LENGTH : elapsed;
        uint256 ceiling = FEE + uint256(rate) * (served + SLACK) / 3600;
        uint256 expected = amount < ceiling ? amount : ceiling;
        if (expected > ESCROW) expected = ESCROW;
        paid(expected);
        skip(LENGTH);
        vault.settle(claim(terms, amount));
        ceiling = FEE + uint256(rate) * (LENGTH + SLACK) / 3600;
        expected = amount < ceiling ? amount : ceiling;
        eq(channel(id).settled, expected > ESCROW ? ESCROW : expected, "later");
    }

    // it pays the deposit
    function test_settle_clampedByDeposit() external {
        (ISessionVault.Terms memory terms,) = opened();
        skip(LENGTH);
        vault.settle(claim(terms, type(uint88).max));
        paid(DEPOSIT);
    }

    // it pays the opening fee
    function test_settle_fee() external {
        (ISessionVault.Terms memory terms,) = opened();
        ISessionVault.Claim[] memory rows = claim(terms, FEE);
        (rows[0].amount, rows[0].r, rows[0].vs) = (0, 0, 0);
        vault.settle(rows);
        paid(FEE);
    }

    // it pays nothing
    function testFuzz_settle_otherKey(uint256 key, uint88 amount) external {
        key = key % (ORDER - 1) + 1;
        if (key == KEY) key++;
        (ISessionVault.Terms memory terms,) = opened();
        vault.settle(claimBy(key, terms, amount % DEPOSIT + FEE + 1));
        paid(0);
    }

    // it pays nothing there
    function test_settle_elsewhere() external {
        (ISessionVault.Terms memory terms,) = opened();
        ISessionVault.Claim[] memory rows = claim(terms, 150_000);
        vm.chainId(999);
        vault.settle(rows);
        paid(0);
        vm.chainId(31337);
        (ISessionVault.Terms memory other,) = opened();
        rows[0].terms = other;
        vault.settle(rows);
        paid(0);
        ISessionVault home = vault;
        vault = ISessionVault(deploy("SessionVault", abi.encode(CHALLENGE, WINDOW)));
        fund(payer, ESCROW);
        open(terms, DEPOSIT);
        rows[0].terms = terms;
        vault.settle(rows);
        paid(0);
        home.settle(rows);
        paid(150_000);
    }

    // it pays nothing for a high s or for zeros
    function test_settle_bent() external {
        (ISessionVault.Terms memory terms,) = opened();
        ISessionVault.Claim[] memory rows = claim(terms, 150_000);
        uint256 s = uint256(rows[0].vs) & (type(uint256).max >> 1);
        uint256 parity = uint256(rows[0].vs) >> 255;
        rows[0].vs = bytes32((ORDER - s) | ((parity ^ 1) << 255));
        vault.settle(rows);
        (rows[0].r, rows[0].vs) = (0, 0);
        vault.settle(rows);
        paid(0);
    }

    // it pays that provider nothing
    function test_settle_redirected() external {
        (ISessionVault.Terms memory terms,) = opened();
        ISessionVault.Claim[] memory rows = claim(terms, 150_000);
        rows[0].terms.provider = vm.addr(STRANGER);
        vault.settle(rows);
        eq(token.balanceOf(vm.addr(STRANGER)), 0, "stranger");
        paid(0);
    }

    // it skips it and pays the others
    function test_settle_badRow() external {
        (ISessionVault.Terms memory good,) = opened();
        (ISessionVault.Terms memory bad,) = opened();
        vault.settle(both(claimBy(STRANGER, bad, 150_000), claim(good, 170_000)));
        paid(170_000);
        vault.settle(both(claim(newTerms(), 150_000), claim(good, 180_000)));
        paid(180_000);
    }

    // it reverts
    function test_settle_mixed() external {
        bytes memory refusal = abi.encodeWithSelector(ISessionVault.SessionVault_MixedBatch.selector);
        (ISessionVault.Terms memory one,) = opened();
        ISessionVault.Terms memory two = newTerms();
        two.provider = address(0xCAFE);
        open(two, DEPOSIT);
        ISessionVault.Claim[] memory rows = both(claim(one, 1e5), claim(two, 1e5));
        vm.expectRevert(refusal);
        vault.settle(rows);
        two = newTerms();
        two.token = address(0x70);
        rows = both(claim(one, 1e5), claim(two, 1e5));
        vm.expectRevert(refusal);
        vault.settle(rows);
        rows = new ISessionVault.Claim[](0);
        vm.expectRevert(refusal);
        vault.settle(rows);
        vm.expectRevert(refusal);
        vault.settleAndClose(rows);
    }

    // it pays, refunds and ends the lease
    function testFuzz_settleAndClose(uint88 amount) external {
        amount %= 200_000;
        (ISessionVault.Terms memory terms, bytes32 id) = opened();
        close(claim(terms, amount));
        uint256 got = amount < FEE ? FEE : amount;
        paid(got);
        eq(free(payer), ESCROW - got, "refund");
        ISessionVault.Channel memory c = channel(id);
        eq(c.closeAt, CLOSED, "closed");
        eq(c.settled, got, "settled stays");
    }

    // it reverts for the caller
    function test_settleAndClose_stranger() external {
        (ISessionVault.Terms memory terms,) = opened();
        ISessionVault.Claim[] memory rows = claim(terms, 150_000);
        vm.expectRevert(abi.encodeWithSelector(ISessionVault.SessionVault_NotAllowed.selector, payer, provider));
        vm.prank(payer);
        vault.settleAndClose(rows);
    }

    // it pays nothing more
    function test_settle_closed() external {
        (ISessionVault.Terms memory terms,) = opened();
        close(claim(terms, 100_000));
        vault.settle(claim(terms, 150_000));
        close(claim(terms, 150_000));
        paid(100_000);
        eq(free(payer), ESCROW - 100_000, "refunded once");
    }

    function paid(uint256 expected) private view {
        eq(token.balanceOf(provider), expected, "paid");
    }
}
