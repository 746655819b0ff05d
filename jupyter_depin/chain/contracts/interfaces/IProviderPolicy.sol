// SPDX-License-Identifier: BSD-3-Clause
pragma solidity ^0.8.28;

/// @title Which providers a grant may pay
/// @notice Named by a grant's `policy`. Without one, whoever holds the grant's key could name itself as the provider
/// and cash the grant out.
interface IProviderPolicy {
    /// @param provider the wallet that would be paid
    /// @return whether a lease with this provider may be opened now
    function isAllowed(address provider) external view returns (bool);
}
