// SPDX-License-Identifier: BSD-3-Clause
pragma solidity ^0.8.28;

import {ERC20} from "@openzeppelin/contracts/token/ERC20/ERC20.sol";

/// Keeps a hundredth of each transfer.
contract TakingToken is ERC20("Taking", "TAKE") {
    function mint(address to, uint256 amount) external {
        _mint(to, amount);
    }

    function _update(address from, address to, uint256 amount) internal override {
        if (from != address(0) && to != address(0)) {
            super._update(from, address(0xdead), amount / 100);
            amount -= amount / 100;
        }
        super._update(from, to, amount);
    }
}

/// Calls back into whoever sends it on.
contract ReenteringToken is ERC20("Reentering", "RE") {
    address public target;
    bytes public data;
    bool public called;
    bool public succeeded;

    function mint(address to, uint256 amount) external {
        _mint(to, amount);
    }

    function arm(address target_, bytes calldata data_) external {
        (target, data, called) = (target_, data_, false);
    }

    function _update(address from, address to, uint256 amount) internal override {
        super._update(from, to, amount);
        if (target != address(0) && !called && from == target) {
            called = true;
            (succeeded,) = target.call(data);
        }
    }
}
