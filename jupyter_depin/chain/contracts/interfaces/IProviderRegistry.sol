// SPDX-License-Identifier: BSD-3-Clause
pragma solidity ^0.8.28;

import {IProviderPolicy} from "./IProviderPolicy.sol";

/// @title Who lends machines, through which node, with what at stake
/// @notice A provider is a wallet with a stake that names the node (the 32-byte key that consumers dial) which acts for
/// it. Stake leaves only after a thaw. As a policy, the registry allows every active provider.
///
/// A node belongs to one provider at a time. The node's own consent is not checked here, for ed25519 costs too much on
/// chain; whoever dials checks it. Taking a stranger's node id costs the taker a stake and the stranger a new node key.
interface IProviderRegistry is IProviderPolicy {
    event Registered(address indexed provider, bytes32 indexed node);
    event NodeChanged(address indexed provider, bytes32 indexed node);
    event StakeChanged(address indexed provider, uint256 stake);
    /// @param thawing all that is leaving now
    event Thawing(address indexed provider, uint256 thawing, uint256 until);
    event Left(address indexed provider, bytes32 indexed node);

    /// @notice A node id of zero, which means "none".
    error ProviderRegistry_NoNode();
    /// @notice This node acts for another provider.
    error ProviderRegistry_NodeTaken(bytes32 node, address holder);
    /// @notice The caller is registered already.
    error ProviderRegistry_AlreadyRegistered(address provider);
    /// @notice The caller is not registered.
    error ProviderRegistry_NotRegistered(address provider);
    /// @notice The stake that would stay is below the minimum.
    error ProviderRegistry_StakeTooLow(uint256 stake, uint256 minimum);
    /// @notice An amount of zero, or more than is staked.
    error ProviderRegistry_BadAmount(uint256 amount);
    /// @notice Nothing is thawing.
    error ProviderRegistry_NothingThawing(address provider);
    /// @notice The stake thaws until `until`.
    error ProviderRegistry_StillThawing(uint256 until);
    /// @notice The token moved another amount than it was asked to.
    error ProviderRegistry_InexactTransfer(uint256 expected, uint256 received);

    /// @notice Register the caller with its node and a first stake, which it approved before.
    function register(bytes32 node, uint96 amount) external;

    /// @notice Let another node act for the caller.
    function setNode(bytes32 node) external;

    /// @notice Add to the caller's stake; this also makes a provider active again whose whole stake thaws.
    function addStake(uint96 amount) external;

    /// @notice Start to take stake out: all of it, or so much that the minimum stays. A second request adds to the
    /// first and starts the time again.
    function requestThaw(uint96 amount) external;

    /// @notice Take out what has thawed. A provider whose whole stake leaves is no longer registered.
    function withdrawThawed() external;

    /// @notice What is staked: the token that leases are paid with, so that no price is needed to compare them.
    function STAKE_TOKEN() external view returns (address);

    /// @notice The least stake of an active provider.
    function MIN_STAKE() external view returns (uint96);

    /// @notice How long stake thaws, in seconds.
    function THAW_PERIOD() external view returns (uint40);

    /// @notice A provider's record; `stake` includes what is thawing.
    function providers(address provider)
        external
        view
        returns (bytes32 node, uint96 stake, uint96 thawing, uint40 thawedAt);

    /// @notice The provider that a node acts for, or 0.
    function providerOf(bytes32 node) external view returns (address);
}
