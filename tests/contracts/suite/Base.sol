// SPDX-License-Identifier: BSD-3-Clause
pragma solidity ^0.8.28;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {IERC20Permit} from "@openzeppelin/contracts/token/ERC20/extensions/IERC20Permit.sol";
import {IProviderRegistry} from "src/interfaces/IProviderRegistry.sol";
import {ISessionVault} from "src/interfaces/ISessionVault.sol";

/// The few of forge's cheatcodes that are used here.
interface Vm {
    function addr(uint256 key) external pure returns (address);
    function chainId(uint256 id) external;
    function expectRevert(bytes calldata data) external;
    function getBlockTimestamp() external view returns (uint256);
    function keyExistsJson(string calldata json, string calldata key) external view returns (bool);
    function parseJsonBytes(string calldata json, string calldata key) external pure returns (bytes memory);
    function parseJsonString(string calldata json, string calldata key) external pure returns (string memory);
    function parseUint(string calldata text) external pure returns (uint256);
    function prank(address sender) external;
    function readFile(string calldata path) external view returns (string memory);
    function sign(uint256 key, bytes32 digest) external pure returns (uint8 v, bytes32 r, bytes32 s);
    function startPrank(address sender) external;
    function stopPrank() external;
    function warp(uint256 time) external;
}

interface IDemoToken is IERC20, IERC20Permit {
    function mint(address to, uint256 amount) external;
    function MINT_CAP() external view returns (uint256);
}

/// A payer with escrow, a provider, and the shortest ways to open, sign and settle.
abstract contract World {
    Vm internal constant vm = Vm(0x7109709ECfa91a80626fF3989D68f67F5b1DD12D);

    uint256 internal constant PAYER = 0xA11CE;
    uint256 internal constant KEY = 0x5E55;
    uint256 internal constant STUDENT = 0x57;
    uint256 internal constant STRANGER = 0xBAD;
    uint40 internal constant CHALLENGE = 1 days;
    uint40 internal constant WINDOW = 2 days;
    uint32 internal constant LENGTH = 2 hours;
    uint88 internal constant FEE = 1000;
    uint88 internal constant RATE = 7_200_000; // 2000 a second
    uint88 internal constant DEPOSIT = 5e6;
    uint256 internal constant ESCROW = 1e9;
    uint256 internal constant SLACK = 120;
    uint40 internal constant CLOSED = type(uint40).max;

    ISessionVault internal vault;
    IDemoToken internal token;
    address internal payer = vm.addr(PAYER);
    address internal provider = address(0xBEEF);
    uint256 private _salt;

    function begin() internal {
        vm.warp(1_800_000_000);
        token = IDemoToken(deploy("DemoToken", ""));
        vault = ISessionVault(deploy("SessionVault", abi.encode(CHALLENGE, WINDOW)));
        fund(payer, ESCROW);
    }

    /// The committed bytes, not a compilation of our own.
    function deploy(string memory name, bytes memory arguments) internal returns (address made) {
        string memory file = vm.readFile(string.concat("abi/", name, ".json"));
        bytes memory code = abi.encodePacked(vm.parseJsonBytes(file, ".bytecode"), arguments);
        assembly {
            made := create(0, add(code, 0x20), mload(code))
        }
        require(made != address(0), "deployment failed");
    }

    function fund(address who, uint256 amount) internal {
        token.mint(who, amount);
        vm.startPrank(who);
        token.approve(address(vault), type(uint256).max);
        vault.deposit(address(token), who, amount);
        vm.stopPrank();
    }

    // Forge's warp is invisible to a compiler that keeps block.timestamp in a register, so time is asked of forge.
    function time() internal view returns (uint256) {
        return vm.getBlockTimestamp();
    }

    function skip(uint256 seconds_) internal {
        vm.warp(time() + seconds_);
    }

    function free(address who) internal view returns (uint256) {
        return vault.balanceOf(who, address(token));
    }

    function channel(bytes32 id) internal view returns (ISessionVault.Channel memory c) {
        (c.deposit, c.settled, c.openedAt, c.closeAt) = vault.channels(id);
    }

    // -- signing

    function signature(uint256 key, bytes32 digest) internal pure returns (bytes memory) {
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(key, digest);
        return abi.encodePacked(r, s, v);
    }

    function compact(uint256 key, bytes32 digest) internal pure returns (bytes32 r, bytes32 vs) {
        uint8 v;
        (v, r, vs) = vm.sign(key, digest);
        vs |= bytes32(uint256(v - 27) << 255);
    }

    // -- leases

    function newTerms() internal returns (ISessionVault.Terms memory) {
        return ISessionVault.Terms({
            payer: payer,
            signer: vm.addr(KEY),
            provider: provider,
            token: address(token),
            openFee: FEE,
            rate: RATE,
            maxSeconds: LENGTH,
            grantId: 0,
            leaseHash: keccak256(abi.encode("lease", ++_salt))
        });
    }

    function opened() internal returns (ISessionVault.Terms memory terms, bytes32 id) {
        terms = newTerms();
        id = open(terms, DEPOSIT);
    }

    function open(ISessionVault.Terms memory terms, uint88 amount) internal returns (bytes32 id) {
        id = vault.channelId(terms);
        uint40 openBy = uint40(time() + 600);
        vault.open(terms, amount, openBy, signature(PAYER, vault.openDigest(id, amount, openBy)));
    }

    function claim(ISessionVault.Terms memory terms, uint88 amount)
        internal
        view
        returns (ISessionVault.Claim[] memory rows)
    {
        return claimBy(KEY, terms, amount);
    }

    function claimBy(uint256 key, ISessionVault.Terms memory terms, uint88 amount)
        internal
        view
        returns (ISessionVault.Claim[] memory rows)
    {
        rows = new ISessionVault.Claim[](1);
        (bytes32 r, bytes32 vs) = compact(key, vault.voucherDigest(vault.channelId(terms), amount));
        rows[0] = ISessionVault.Claim(terms, amount, r, vs);
    }

    function both(ISessionVault.Claim[] memory a, ISessionVault.Claim[] memory b)
        internal
        pure
        returns (ISessionVault.Claim[] memory rows)
    {
        rows = new ISessionVault.Claim[](2);
        (rows[0], rows[1]) = (a[0], b[0]);
    }

    function close(ISessionVault.Claim[] memory rows) internal {
        vm.prank(provider);
        vault.settleAndClose(rows);
    }

    // -- grants

    function newGrant(address policy, uint88 cap) internal returns (ISessionVault.Grant memory) {
        return ISessionVault.Grant({
            payer: payer,
            token: address(token),
            key: vm.addr(STUDENT),
            policy: policy,
            cap: cap,
            maxRate: RATE,
            validUntil: uint40(time() + 30 days),
            salt: bytes32(++_salt)
        });
    }

    function grantTerms(ISessionVault.Grant memory grant) internal returns (ISessionVault.Terms memory terms) {
        terms = newTerms();
        terms.grantId = vault.grantId(grant);
    }

    function openGranted(ISessionVault.Terms memory terms, uint88 amount, ISessionVault.Grant memory grant) internal {
        openGrantedWith(STUDENT, terms, amount, grant, signature(PAYER, vault.grantId(grant)), "");
    }

    /// `refusal` empty where it should succeed. All views are asked before forge waits for the revert.
    function openGrantedWith(
        uint256 key,
        ISessionVault.Terms memory terms,
        uint88 amount,
        ISessionVault.Grant memory grant,
        bytes memory grantSignature,
        bytes memory refusal
    ) internal {
        uint40 openBy = uint40(time() + 600);
        (bytes32 r, bytes32 vs) = compact(key, vault.openDigest(vault.channelId(terms), amount, openBy));
        if (refusal.length > 0) vm.expectRevert(refusal);
        vault.openWithGrant(terms, amount, openBy, r, vs, grant, grantSignature);
    }

    // -- checks

    function eq(uint256 found, uint256 expected, string memory what) internal pure {
        require(found == expected, string.concat(what, ": ", text(found), " is not ", text(expected)));
    }

    function text(uint256 value) internal pure returns (string memory) {
        if (value == 0) return "0";
        bytes memory digits;
        for (; value > 0; value /= 10) digits = abi.encodePacked(uint8(48 + value % 10), digits);
        return string(digits);
    }
}

/// A world that is new for each test.
abstract contract Base is World {
    function setUp() public virtual {
        begin();
    }
}
