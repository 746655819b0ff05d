// SPDX-License-Identifier: BSD-3-Clause
pragma solidity ^0.8.28;

import {ERC20} from "@openzeppelin/contracts/token/ERC20/ERC20.sol";
import {ERC20Permit} from "@openzeppelin/contracts/token/ERC20/extensions/ERC20Permit.sol";

/// @title DemoToken
/// @notice Test money: anybody mints as much as they want, at most `MINT_CAP` per call. Six decimals, as USDC has.
contract DemoToken is ERC20, ERC20Permit {
    /// @notice The most base units of one `mint`: a slip of the hand cannot overflow what a lease can count.
    uint256 public constant MINT_CAP = 1_000_000e6;

    /// @notice More than `MINT_CAP`.
    error DemoToken_MintTooLarge(uint256 amount, uint256 cap);

    constructor() ERC20("jupyter-depin demo money", "DEMO") ERC20Permit("jupyter-depin demo money") {}

    /// @notice Make `amount` base units for `to`.
    function mint(address to, uint256 amount) external {
        if (amount > MINT_CAP) revert DemoToken_MintTooLarge(amount, MINT_CAP);
        _mint(to, amount);
    }

    /// @inheritdoc ERC20
    function decimals() public pure override returns (uint8) {
        return 6;
    }
}
