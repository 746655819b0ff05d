// SPDX-License-Identifier: BSD-3-Clause
pragma solidity ^0.8.28;

import {ISessionVault} from "src/interfaces/ISessionVault.sol";
import {Base} from "./Base.sol";
import {Account} from "./doubles/Account.sol";

contract OpenTest is Base {
    // it locks the deposit from the payer's escrow
    function test_open() external {
        (, bytes32 id) = opened();
        ISessionVault.Channel memory c = channel(id);
        eq(c.deposit, DEPOSIT, "deposit");
        eq(c.settled, 0, "settled");
        eq(c.openedAt, time(), "openedAt");
        eq(c.closeAt, 0, "closeAt");
        eq(free(payer), ESCROW - DEPOSIT, "escrow");
        eq(vault.totalHeld(address(token)), ESCROW, "books");
    }

    // it reverts
    function test_open_twice() external {
        (ISessionVault.Terms memory terms, bytes32 id) = opened();
        refused(terms, DEPOSIT, abi.encodeWithSelector(ISessionVault.SessionVault_ChannelExists.selector, id));
    }

    // it reverts
    function test_open_afterClose() external {
        (ISessionVault.Terms memory terms, bytes32 id) = opened();
        close(claim(terms, 0));
        refused(terms, DEPOSIT, abi.encodeWithSelector(ISessionVault.SessionVault_ChannelExists.selector, id));
    }

    // it reverts
    function test_open_late() external {
        ISessionVault.Terms memory terms = newTerms();
        uint40 openBy = uint40(time() - 1);
        bytes memory signed = signature(PAYER, vault.openDigest(vault.channelId(terms), DEPOSIT, openBy));
        vm.expectRevert(abi.encodeWithSelector(ISessionVault.SessionVault_Expired.selector, openBy));
        vault.open(terms, DEPOSIT, openBy, signed);
    }

    // it reverts
    function test_open_poor() external {
        refused(
            newTerms(),
            uint88(ESCROW + 1),
            abi.encodeWithSelector(ISessionVault.SessionVault_InsufficientEscrow.selector, ESCROW, ESCROW + 1)
        );
    }

    // it needs no signature
    function test_open_byPayer() external {
        ISessionVault.Terms memory terms = newTerms();
        vm.prank(payer);
        vault.open(terms, DEPOSIT, uint40(time()), "");
        eq(channel(vault.channelId(terms)).deposit, DEPOSIT, "deposit");
    }

    // it reverts
    function test_open_forged() external {
        ISessionVault.Terms memory terms = newTerms();
        bytes32 id = vault.channelId(terms);
        uint40 openBy = uint40(time() + 600);
        bytes memory refusal = abi.encodeWithSelector(ISessionVault.SessionVault_BadSignature.selector, payer);
        bytes memory signed = signature(STRANGER, vault.openDigest(id, DEPOSIT, openBy));
        vm.expectRevert(refusal);
        vault.open(terms, DEPOSIT, openBy, signed);
        signed = signature(PAYER, vault.openDigest(id, DEPOSIT, openBy));
        vm.expectRevert(refusal);
        vault.open(terms, DEPOSIT + 1, openBy, signed);
        vm.expectRevert(refusal);
        vault.open(terms, DEPOSIT, openBy + 1, signed);
    }

    // it locks the deposit
    function test_open_account() external {
        (Account account, ISessionVault.Terms memory terms) = accountTerms();
        open(terms, DEPOSIT);
        eq(free(address(account)), ESCROW - DEPOSIT, "escrow");
    }

    // it reverts, and what is open goes on
    function test_open_accountChanged() external {
        (Account account, ISessionVault.Terms memory running) = accountTerms();
        open(running, DEPOSIT);
        account.setOwner(vm.addr(STRANGER));
        ISessionVault.Terms memory later = newTerms();
        later.payer = address(account);
        refused(
            later, DEPOSIT, abi.encodeWithSelector(ISessionVault.SessionVault_BadSignature.selector, address(account))
        );
        vault.settle(claim(running, 100_000));
        eq(token.balanceOf(provider), 100_000, "paid");
    }

    function accountTerms() private returns (Account account, ISessionVault.Terms memory terms) {
        account = new Account(payer);
        fund(address(account), ESCROW);
        terms = newTerms();
        terms.payer = address(account);
    }

    // it reverts
    function test_open_badTerms() external {
        bytes memory refusal = abi.encodeWithSelector(ISessionVault.SessionVault_BadTerms.selector);
        ISessionVault.Terms memory terms = newTerms();
        terms.maxSeconds = 0;
        refused(terms, DEPOSIT, refusal);
        terms = newTerms();
        terms.provider = address(0);
        refused(terms, DEPOSIT, refusal);
        terms = newTerms();
        terms.signer = address(0);
        refused(terms, DEPOSIT, refusal);
        terms = newTerms();
        terms.provider = payer;
        refused(terms, DEPOSIT, refusal);
    }

    // it reverts
    function test_open_badDeposit() external {
        refused(newTerms(), FEE - 1, abi.encodeWithSelector(ISessionVault.SessionVault_BadAmount.selector, FEE - 1));
        ISessionVault.Terms memory terms = newTerms();
        terms.openFee = 0;
        refused(terms, 0, abi.encodeWithSelector(ISessionVault.SessionVault_BadAmount.selector, 0));
    }

    // it reverts
    function test_open_ofGrant() external {
        ISessionVault.Terms memory terms = newTerms();
        terms.grantId = bytes32(uint256(1));
        refused(terms, DEPOSIT, abi.encodeWithSelector(ISessionVault.SessionVault_WrongGrant.selector, 1, 0));
    }

    // it reverts
    function testFuzz_open_dirtyWords(uint256 which, uint256 dirt) external {
        // Upper bits of `signer`, `openFee`, `rate`, `maxSeconds`: words that opening has no other use for.
        uint256[4] memory word = [uint256(1), 4, 5, 6];
        uint256[4] memory width = [uint256(160), 88, 88, 32];
        which %= 4;
        dirt = (dirt | 1) << width[which];
        if (dirt == 0) dirt = 1 << 255;
        ISessionVault.Terms memory terms = newTerms();
        bytes memory data = abi.encodeCall(vault.open, (terms, DEPOSIT, uint40(time()), ""));
        assembly {
            let at := add(data, add(0x24, mul(0x20, mload(add(word, mul(0x20, which))))))
            mstore(at, or(mload(at), dirt))
        }
        vm.prank(payer);
        (bool done,) = address(vault).call(data);
        require(!done, "dirty terms were opened");
    }

    function refused(ISessionVault.Terms memory terms, uint88 amount, bytes memory refusal) private {
        uint40 openBy = uint40(time() + 600);
        bytes memory signed = signature(PAYER, vault.openDigest(vault.channelId(terms), amount, openBy));
        vm.expectRevert(refusal);
        vault.open(terms, amount, openBy, signed);
    }
}
