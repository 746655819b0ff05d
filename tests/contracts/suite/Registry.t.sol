// SPDX-License-Identifier: BSD-3-Clause
pragma solidity ^0.8.28;

import {IProviderRegistry} from "src/interfaces/IProviderRegistry.sol";
import {Base} from "./Base.sol";
import {TakingToken} from "./doubles/Tokens.sol";

contract RegistryTest is Base {
    uint96 private constant MIN = 1000;
    uint40 private constant THAW = 21 days;
    bytes32 private constant NODE = bytes32("node");

    IProviderRegistry private registry;
    address private other = address(0xCAFE);

    function setUp() public override {
        super.setUp();
        registry = IProviderRegistry(deploy("ProviderRegistry", abi.encode(address(token), MIN, THAW)));
        for (uint256 i; i < 2; ++i) {
            address who = i == 0 ? provider : other;
            token.mint(who, 10_000);
            vm.prank(who);
            token.approve(address(registry), type(uint256).max);
        }
    }

    // it is allowed and the node acts for it
    function test_register() external {
        require(!registry.isAllowed(provider), "allowed before");
        register(provider, NODE, MIN);
        require(registry.isAllowed(provider), "not allowed");
        require(registry.providerOf(NODE) == provider, "node");
        stakeIs(MIN, 0);
        eq(token.balanceOf(address(registry)), MIN, "held");
    }

    // it reverts for the stake
    function test_register_low() external {
        vm.expectRevert(abi.encodeWithSelector(IProviderRegistry.ProviderRegistry_StakeTooLow.selector, MIN - 1, MIN));
        register(provider, NODE, MIN - 1);
    }

    // it reverts for the node
    function test_register_node() external {
        vm.expectRevert(abi.encodeWithSelector(IProviderRegistry.ProviderRegistry_NoNode.selector));
        register(provider, 0, MIN);
        register(provider, NODE, MIN);
        vm.expectRevert(abi.encodeWithSelector(IProviderRegistry.ProviderRegistry_NodeTaken.selector, NODE, provider));
        register(other, NODE, MIN);
    }

    // it reverts for the caller
    function test_unregistered() external {
        bytes memory refusal = abi.encodeWithSelector(IProviderRegistry.ProviderRegistry_NotRegistered.selector, other);
        vm.startPrank(other);
        vm.expectRevert(refusal);
        registry.setNode(NODE);
        vm.expectRevert(refusal);
        registry.addStake(MIN);
        vm.expectRevert(refusal);
        registry.requestThaw(MIN);
        vm.expectRevert(refusal);
        registry.withdrawThawed();
        vm.stopPrank();
    }

    // it reverts for the second registration
    function test_register_twice() external {
        register(provider, NODE, MIN);
        vm.expectRevert(
            abi.encodeWithSelector(IProviderRegistry.ProviderRegistry_AlreadyRegistered.selector, provider)
        );
        register(provider, bytes32("two"), MIN);
    }

    // it frees the old one and binds the new one
    function test_setNode() external {
        register(provider, NODE, MIN);
        vm.prank(provider);
        registry.setNode(bytes32("two"));
        require(registry.providerOf(bytes32("two")) == provider, "new");
        require(registry.providerOf(NODE) == address(0), "old");
        register(other, NODE, MIN);
        vm.expectRevert(abi.encodeWithSelector(IProviderRegistry.ProviderRegistry_NodeTaken.selector, NODE, other));
        vm.prank(provider);
        registry.setNode(NODE);
    }

    // it counts it
    function test_addStake() external {
        register(provider, NODE, MIN);
        vm.startPrank(provider);
        registry.addStake(500);
        vm.expectRevert(abi.encodeWithSelector(IProviderRegistry.ProviderRegistry_BadAmount.selector, 0));
        registry.addStake(0);
        vm.stopPrank();
        stakeIs(MIN + 500, 0);
    }

    // it reverts for the rest
    function testFuzz_thaw_rest(uint96 amount) external {
        register(provider, NODE, 3 * MIN);
        amount = 2 * MIN + 1 + amount % (MIN - 1);
        vm.expectRevert(
            abi.encodeWithSelector(IProviderRegistry.ProviderRegistry_StakeTooLow.selector, 3 * MIN - amount, MIN)
        );
        vm.prank(provider);
        registry.requestThaw(amount);
    }

    // it reverts for the amount
    function test_thaw_amount() external {
        register(provider, NODE, MIN);
        vm.startPrank(provider);
        vm.expectRevert(abi.encodeWithSelector(IProviderRegistry.ProviderRegistry_BadAmount.selector, MIN + 1));
        registry.requestThaw(MIN + 1);
        vm.expectRevert(abi.encodeWithSelector(IProviderRegistry.ProviderRegistry_BadAmount.selector, 0));
        registry.requestThaw(0);
        vm.expectRevert(abi.encodeWithSelector(IProviderRegistry.ProviderRegistry_NothingThawing.selector, provider));
        registry.withdrawThawed();
        vm.stopPrank();
    }

    // it reverts for the transfer
    function test_takingToken() external {
        TakingToken taking = new TakingToken();
        registry = IProviderRegistry(deploy("ProviderRegistry", abi.encode(address(taking), MIN, THAW)));
        taking.mint(provider, MIN);
        vm.startPrank(provider);
        taking.approve(address(registry), MIN);
        vm.expectRevert(
            abi.encodeWithSelector(IProviderRegistry.ProviderRegistry_InexactTransfer.selector, MIN, MIN - MIN / 100)
        );
        registry.register(NODE, MIN);
        vm.stopPrank();
    }

    // it stays allowed and cannot take it out
    function test_withdraw_early() external {
        register(provider, NODE, 2 * MIN);
        thaw(MIN);
        require(registry.isAllowed(provider), "not allowed");
        skip(THAW - 1);
        vm.expectRevert(abi.encodeWithSelector(IProviderRegistry.ProviderRegistry_StillThawing.selector, time() + 1));
        vm.prank(provider);
        registry.withdrawThawed();
    }

    // it starts the time again for all of it
    function test_thaw_again() external {
        register(provider, NODE, 3 * MIN);
        thaw(MIN);
        skip(THAW - 1);
        thaw(MIN);
        skip(1);
        vm.expectRevert(
            abi.encodeWithSelector(IProviderRegistry.ProviderRegistry_StillThawing.selector, time() + THAW - 1)
        );
        vm.prank(provider);
        registry.withdrawThawed();
        stakeIs(3 * MIN, 2 * MIN);
    }

    // it takes out that part once
    function test_withdraw() external {
        register(provider, NODE, 2 * MIN);
        thaw(MIN);
        skip(THAW);
        vm.startPrank(provider);
        registry.withdrawThawed();
        vm.expectRevert(abi.encodeWithSelector(IProviderRegistry.ProviderRegistry_NothingThawing.selector, provider));
        registry.withdrawThawed();
        vm.stopPrank();
        eq(token.balanceOf(provider), 10_000 - MIN, "paid out");
        stakeIs(MIN, 0);
        require(registry.isAllowed(provider), "not allowed");
    }

    // it is allowed again
    function test_addStake_thawing() external {
        register(provider, NODE, MIN);
        thaw(MIN);
        require(!registry.isAllowed(provider), "allowed without stake");
        vm.prank(provider);
        registry.addStake(MIN);
        require(registry.isAllowed(provider), "not allowed");
    }

    // it is gone and its node is free
    function test_leave() external {
        register(provider, NODE, MIN);
        thaw(MIN);
        skip(THAW);
        vm.prank(provider);
        registry.withdrawThawed();
        eq(token.balanceOf(provider), 10_000, "paid out");
        stakeIs(0, 0);
        require(registry.providerOf(NODE) == address(0), "node");
        register(other, NODE, MIN);
        register(provider, bytes32("two"), MIN);
    }

    function register(address who, bytes32 node, uint96 amount) private {
        vm.prank(who);
        registry.register(node, amount);
    }

    function thaw(uint96 amount) private {
        vm.prank(provider);
        registry.requestThaw(amount);
    }

    function stakeIs(uint256 stake, uint256 thawing) private view {
        (, uint96 staked, uint96 leaving,) = registry.providers(provider);
        eq(staked, stake, "stake");
        eq(leaving, thawing, "thawing");
    }
}
