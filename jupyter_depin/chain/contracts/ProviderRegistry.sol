// SPDX-License-Identifier: BSD-3-Clause
pragma solidity ^0.8.28;

import {IERC20, SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";
import {ReentrancyGuardTransient} from "@openzeppelin/contracts/utils/ReentrancyGuardTransient.sol";
import {IProviderPolicy} from "./interfaces/IProviderPolicy.sol";
import {IProviderRegistry} from "./interfaces/IProviderRegistry.sol";

/// @title ProviderRegistry
/// @notice The registry that `IProviderRegistry` describes.
contract ProviderRegistry is IProviderRegistry, ReentrancyGuardTransient {
    using SafeERC20 for IERC20;

    struct Provider {
        bytes32 node;
        uint96 stake;
        uint96 thawing;
        uint40 thawedAt;
    }

    /// @inheritdoc IProviderRegistry
    address public immutable STAKE_TOKEN;
    /// @inheritdoc IProviderRegistry
    uint96 public immutable MIN_STAKE;
    /// @inheritdoc IProviderRegistry
    uint40 public immutable THAW_PERIOD;

    /// @inheritdoc IProviderRegistry
    mapping(address provider => Provider) public providers;
    /// @inheritdoc IProviderRegistry
    mapping(bytes32 node => address provider) public providerOf;

    constructor(address stakeToken, uint96 minStake, uint40 thawPeriod) {
        STAKE_TOKEN = stakeToken;
        MIN_STAKE = minStake;
        THAW_PERIOD = thawPeriod;
    }

    /// @inheritdoc IProviderRegistry
    function register(bytes32 node, uint96 amount) external nonReentrant {
        Provider storage record = providers[msg.sender];
        if (record.node != 0) revert ProviderRegistry_AlreadyRegistered(msg.sender);
        if (amount < MIN_STAKE) revert ProviderRegistry_StakeTooLow(amount, MIN_STAKE);
        _bind(record, node);
        emit Registered(msg.sender, node);
        if (amount != 0) _add(record, amount);
    }

    /// @inheritdoc IProviderRegistry
    function setNode(bytes32 node) external {
        Provider storage record = _registered();
        delete providerOf[record.node];
        _bind(record, node);
        emit NodeChanged(msg.sender, node);
    }

    /// @inheritdoc IProviderRegistry
    function addStake(uint96 amount) external nonReentrant {
        Provider storage record = _registered();
        if (amount == 0) revert ProviderRegistry_BadAmount(amount);
        _add(record, amount);
    }

    /// @inheritdoc IProviderRegistry
    function requestThaw(uint96 amount) external {
        Provider storage record = _registered();
        uint96 staying = record.stake - record.thawing;
        if (amount == 0 || amount > staying) revert ProviderRegistry_BadAmount(amount);
        staying -= amount;
        if (staying != 0 && staying < MIN_STAKE) revert ProviderRegistry_StakeTooLow(staying, MIN_STAKE);
        record.thawing += amount;
        record.thawedAt = uint40(block.timestamp) + THAW_PERIOD;
        emit Thawing(msg.sender, record.thawing, record.thawedAt);
    }

    /// @inheritdoc IProviderRegistry
    function withdrawThawed() external nonReentrant {
        Provider storage record = _registered();
        uint96 amount = record.thawing;
        if (amount == 0) revert ProviderRegistry_NothingThawing(msg.sender);
        if (block.timestamp < record.thawedAt) revert ProviderRegistry_StillThawing(record.thawedAt);
        record.thawing = 0;
        record.stake -= amount;
        emit StakeChanged(msg.sender, record.stake);
        if (record.stake == 0) {
            emit Left(msg.sender, record.node);
            delete providerOf[record.node];
            delete providers[msg.sender];
        }
        IERC20(STAKE_TOKEN).safeTransfer(msg.sender, amount);
    }

    /// @inheritdoc IProviderPolicy
    function isAllowed(address provider) external view returns (bool) {
        Provider storage record = providers[provider];
        return record.node != 0 && record.stake - record.thawing >= MIN_STAKE;
    }

    function _registered() private view returns (Provider storage record) {
        record = providers[msg.sender];
        if (record.node == 0) revert ProviderRegistry_NotRegistered(msg.sender);
    }

    function _bind(Provider storage record, bytes32 node) private {
        if (node == 0) revert ProviderRegistry_NoNode();
        address holder = providerOf[node];
        if (holder != address(0)) revert ProviderRegistry_NodeTaken(node, holder);
        record.node = node;
        providerOf[node] = msg.sender;
    }

    function _add(Provider storage record, uint96 amount) private {
        record.stake += amount;
        emit StakeChanged(msg.sender, record.stake);
        uint256 held = IERC20(STAKE_TOKEN).balanceOf(address(this));
        IERC20(STAKE_TOKEN).safeTransferFrom(msg.sender, address(this), amount);
        uint256 received = IERC20(STAKE_TOKEN).balanceOf(address(this)) - held;
        if (received != amount) revert ProviderRegistry_InexactTransfer(amount, received);
    }
}
