// SPDX-License-Identifier: BSD-3-Clause
pragma solidity ^0.8.28;

import {ISessionVault} from "src/interfaces/ISessionVault.sol";
import {Base} from "./Base.sol";

contract CloseTest is Base {
    // it starts the challenge window
    function test_request() external {
        (ISessionVault.Terms memory terms, bytes32 id) = opened();
        request(KEY, terms);
        eq(channel(id).closeAt, time() + CHALLENGE, "closeAt");
    }

    // it needs no signature
    function test_request_payer() external {
        (ISessionVault.Terms memory terms, bytes32 id) = opened();
        vm.prank(payer);
        vault.requestClose(terms, 0, 0);
        eq(channel(id).closeAt, time() + CHALLENGE, "closeAt");
    }

    // it reverts
    function test_request_stranger() external {
        (ISessionVault.Terms memory terms, bytes32 id) = opened();
        bytes memory refusal = abi.encodeWithSelector(ISessionVault.SessionVault_BadSignature.selector, terms.signer);
        (bytes32 r, bytes32 vs) = compact(STRANGER, vault.closeDigest(id));
        vm.expectRevert(refusal);
        vault.requestClose(terms, r, vs);
        vm.expectRevert(refusal);
        vm.prank(provider);
        vault.requestClose(terms, 0, 0);
    }

    // it reverts and keeps the first window
    function test_request_twice() external {
        (ISessionVault.Terms memory terms, bytes32 id) = opened();
        request(KEY, terms);
        uint40 first = channel(id).closeAt;
        skip(60);
        vm.expectRevert(abi.encodeWithSelector(ISessionVault.SessionVault_AlreadyClosing.selector, id));
        vm.prank(payer);
        vault.requestClose(terms, 0, 0);
        eq(channel(id).closeAt, first, "closeAt");
    }

    // it ends with the settlement window
    function test_request_late() external {
        (ISessionVault.Terms memory terms, bytes32 id) = opened();
        uint256 end = time() + LENGTH + WINDOW;
        vm.warp(end - 60);
        request(KEY, terms);
        eq(channel(id).closeAt, end, "closeAt");
    }

    // it pays newer vouchers and refuses to finalize
    function test_finalize_early() external {
        (ISessionVault.Terms memory terms, bytes32 id) = opened();
        vault.settle(claim(terms, 100_000));
        request(KEY, terms);
        skip(CHALLENGE - 1);
        vault.settle(claim(terms, 150_000));
        eq(token.balanceOf(provider), 150_000, "paid");
        vm.expectRevert(
            abi.encodeWithSelector(ISessionVault.SessionVault_TooEarly.selector, channel(id).closeAt)
        );
        vault.finalize(terms);
    }

    // it lets anybody finalize and refunds the payer
    function test_finalize() external {
        (ISessionVault.Terms memory terms, bytes32 id) = opened();
        vault.settle(claim(terms, 100_000));
        request(KEY, terms);
        skip(CHALLENGE);
        vm.prank(vm.addr(STRANGER));
        vault.finalize(terms);
        eq(free(payer), ESCROW - 100_000, "refund");
        eq(channel(id).closeAt, CLOSED, "closed");
        vault.settle(claim(terms, 150_000));
        eq(token.balanceOf(provider), 100_000, "paid");
    }

    // it refuses to finalize
    function test_finalize_window() external {
        (ISessionVault.Terms memory terms,) = opened();
        uint256 end = time() + LENGTH + WINDOW;
        vm.warp(end - 1);
        vm.expectRevert(abi.encodeWithSelector(ISessionVault.SessionVault_TooEarly.selector, end));
        vault.finalize(terms);
    }

    // it credits the opening fee and refunds the rest
    function test_finalize_abandoned() external {
        (ISessionVault.Terms memory terms, bytes32 id) = opened();
        skip(LENGTH + WINDOW);
        vault.finalize(terms);
        eq(free(provider), FEE, "fee");
        eq(free(payer), ESCROW - FEE, "refund");
        eq(channel(id).settled, FEE, "settled");
        vm.prank(provider);
        vault.withdraw(address(token), FEE, provider);
        eq(token.balanceOf(provider), FEE, "withdrawn");
    }

    // it can neither be closed nor finalized again
    function test_close_closed() external {
        (ISessionVault.Terms memory terms,) = opened();
        close(claim(terms, 0));
        skip(LENGTH + WINDOW);
        refused(terms);
        eq(free(payer), ESCROW - FEE, "refunded once");
    }

    // it can neither be closed nor finalized
    function test_close_unopened() external {
        refused(newTerms());
    }

    function request(uint256 key, ISessionVault.Terms memory terms) private {
        (bytes32 r, bytes32 vs) = compact(key, vault.closeDigest(vault.channelId(terms)));
        vault.requestClose(terms, r, vs);
    }

    function refused(ISessionVault.Terms memory terms) private {
        bytes memory refusal =
            abi.encodeWithSelector(ISessionVault.SessionVault_NotOpen.selector, vault.channelId(terms));
        vm.expectRevert(refusal);
        vm.prank(payer);
        vault.requestClose(terms, 0, 0);
        vm.expectRevert(refusal);
        vault.finalize(terms);
    }
}
