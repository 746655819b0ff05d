// SPDX-License-Identifier: BSD-3-Clause
pragma solidity ^0.8.28;

import {Hourly} from "src/Hourly.sol";
import {Base} from "./Base.sol";

/// The rounding rule against the file that Python and TypeScript read too. The contract counts whole seconds.
contract VectorsTest is Base {
    function test_owed() external view {
        string memory file = vm.readFile("vectors/owed.json");
        uint256 compared;
        for (uint256 i; vm.keyExistsJson(file, row(i, "")); ++i) {
            uint256 ns = number(file, row(i, ".served_ns"));
            if (ns % 1e9 != 0) continue;
            eq(Hourly.owed(number(file, row(i, ".rate")), ns / 1e9), number(file, row(i, ".owed")), "owed");
            ++compared;
        }
        require(compared > 80, "too few vectors");
    }

    function row(uint256 i, string memory name) private pure returns (string memory) {
        return string.concat("$[", text(i), "]", name);
    }

    function number(string memory file, string memory key) private pure returns (uint256) {
        return vm.parseUint(vm.parseJsonString(file, key));
    }
}
