// SPDX-License-Identifier: BSD-3-Clause
pragma solidity ^0.8.28;

import {IERC20Errors} from "@openzeppelin/contracts/interfaces/draft-IERC6093.sol";
import {ISessionVault} from "src/interfaces/ISessionVault.sol";
import {Base} from "./Base.sol";
import {ReenteringToken, TakingToken} from "./doubles/Tokens.sol";

contract EscrowTest is Base {
    bytes32 private constant PERMIT =
        keccak256("Permit(address owner,address spender,uint256 value,uint256 nonce,uint256 deadline)");

    // it credits the named payer and holds the tokens
    function test_deposit() external {
        address other = address(0x1234);
        token.mint(payer, 500);
        vm.prank(payer);
        vault.deposit(address(token), other, 500);
        eq(free(other), 500, "credit");
        eq(token.balanceOf(address(vault)), ESCROW + 500, "held");
        eq(vault.totalHeld(address(token)), ESCROW + 500, "books");
    }

    // it reverts
    function test_deposit_nothing() external {
        vm.expectRevert(abi.encodeWithSelector(ISessionVault.SessionVault_BadAmount.selector, 0));
        vm.prank(payer);
        vault.deposit(address(token), payer, 0);
    }

    // it reverts
    function test_deposit_takingToken() external {
        TakingToken taking = new TakingToken();
        taking.mint(payer, 1000);
        vm.startPrank(payer);
        taking.approve(address(vault), 1000);
        vm.expectRevert(abi.encodeWithSelector(ISessionVault.SessionVault_InexactTransfer.selector, 1000, 990));
        vault.deposit(address(taking), payer, 1000);
        vm.stopPrank();
    }

    // it credits the payer
    function test_permit() external {
        (address who, uint8 v, bytes32 r, bytes32 s) = permitted(STUDENT, 700);
        vm.prank(who);
        vault.depositWithPermit(address(token), 700, type(uint256).max, v, r, s);
        eq(free(who), 700, "credit");
    }

    // it still credits the payer
    function test_permit_frontRun() external {
        (address who, uint8 v, bytes32 r, bytes32 s) = permitted(STUDENT, 700);
        token.permit(who, address(vault), 700, type(uint256).max, v, r, s);
        vm.prank(who);
        vault.depositWithPermit(address(token), 700, type(uint256).max, v, r, s);
        eq(free(who), 700, "credit");
    }

    // it reverts
    function test_permit_forged() external {
        (address who, uint8 v, bytes32 r, bytes32 s) = permitted(STUDENT, 700);
        vm.expectRevert(
            abi.encodeWithSelector(IERC20Errors.ERC20InsufficientAllowance.selector, address(vault), 0, 700)
        );
        vm.prank(who);
        vault.depositWithPermit(address(token), 700, type(uint256).max, v, s, r);
    }

    function permitted(uint256 key, uint256 amount) private returns (address who, uint8 v, bytes32 r, bytes32 s) {
        who = vm.addr(key);
        token.mint(who, amount);
        bytes32 hashed = keccak256(abi.encode(PERMIT, who, address(vault), amount, 0, type(uint256).max));
        (v, r, s) = vm.sign(key, keccak256(abi.encodePacked(hex"1901", token.DOMAIN_SEPARATOR(), hashed)));
    }

    // it sends the tokens at once
    function testFuzz_withdraw(uint256 amount) external {
        amount = amount % ESCROW + 1;
        vm.prank(payer);
        vault.withdraw(address(token), amount, address(0x99));
        eq(token.balanceOf(address(0x99)), amount, "sent");
        eq(free(payer), ESCROW - amount, "rest");
        eq(vault.totalHeld(address(token)), ESCROW - amount, "books");
    }

    // it reverts
    function test_withdraw_tooMuch() external {
        vm.expectRevert(
            abi.encodeWithSelector(ISessionVault.SessionVault_InsufficientEscrow.selector, ESCROW, ESCROW + 1)
        );
        vm.prank(payer);
        vault.withdraw(address(token), ESCROW + 1, payer);
        vm.expectRevert(abi.encodeWithSelector(ISessionVault.SessionVault_BadAmount.selector, 0));
        vm.prank(payer);
        vault.withdraw(address(token), 0, payer);
    }

    // it lets the payer withdraw all the same
    function test_withdraw_dust() external {
        address stranger = vm.addr(STRANGER);
        token.mint(stranger, 1);
        vm.startPrank(stranger);
        token.approve(address(vault), 1);
        vault.deposit(address(token), payer, 1);
        vm.stopPrank();
        vm.prank(payer);
        vault.withdraw(address(token), ESCROW + 1, payer);
        eq(free(payer), 0, "rest");
    }

    // it refuses the second entry and keeps the books
    function test_withdraw_reentered() external {
        ReenteringToken evil = new ReenteringToken();
        evil.mint(payer, 1000);
        vm.startPrank(payer);
        evil.approve(address(vault), 1000);
        vault.deposit(address(evil), payer, 500);
        vault.deposit(address(evil), address(evil), 500); // so that the second entry would find money
        evil.arm(address(vault), abi.encodeCall(vault.withdraw, (address(evil), 500, address(evil))));
        vault.withdraw(address(evil), 400, payer);
        vm.stopPrank();
        require(evil.called() && !evil.succeeded(), "entered twice");
        eq(vault.totalHeld(address(evil)), evil.balanceOf(address(vault)), "books");
    }
}
