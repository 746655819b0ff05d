// SPDX-License-Identifier: BSD-3-Clause
pragma solidity ^0.8.28;

/// @title The one rounding rule
/// @notice The same as `owed` in protocol/money.py, on whole seconds; tests/vectors/owed.json binds the two.
library Hourly {
    /// @param rate base units per hour; below 2^88 no product of it with a time in seconds overflows
    /// @return what `elapsed` seconds cost, rounded down
    function owed(uint256 rate, uint256 elapsed) internal pure returns (uint256) {
        return rate * elapsed / 1 hours;
    }
}
