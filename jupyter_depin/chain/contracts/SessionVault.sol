// SPDX-License-Identifier: BSD-3-Clause
pragma solidity ^0.8.28;

import {IERC20Permit} from "@openzeppelin/contracts/token/ERC20/extensions/IERC20Permit.sol";
import {IERC20, SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";
import {ReentrancyGuardTransient} from "@openzeppelin/contracts/utils/ReentrancyGuardTransient.sol";
import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";
import {EIP712} from "@openzeppelin/contracts/utils/cryptography/EIP712.sol";
import {SignatureChecker} from "@openzeppelin/contracts/utils/cryptography/SignatureChecker.sol";
import {Hourly} from "./Hourly.sol";
import {IProviderPolicy} from "./interfaces/IProviderPolicy.sol";
import {ISessionVault} from "./interfaces/ISessionVault.sol";

/// @title SessionVault
/// @notice The escrow that `ISessionVault` describes.
contract SessionVault is ISessionVault, EIP712, ReentrancyGuardTransient {
    using SafeERC20 for IERC20;

    bytes32 private constant TERMS_TYPE = keccak256(
        "Terms(address payer,address signer,address provider,address token,uint88 openFee,uint88 rate,uint32 maxSeconds,bytes32 grantId,bytes32 leaseHash)"
    );
    bytes32 private constant GRANT_TYPE = keccak256(
        "Grant(address payer,address token,address key,address policy,uint88 cap,uint88 maxRate,uint40 validUntil,bytes32 salt)"
    );
    bytes32 private constant OPEN_TYPE = keccak256("Open(bytes32 channelId,uint88 deposit,uint40 openBy)");
    bytes32 private constant VOUCHER_TYPE = keccak256("Voucher(bytes32 channelId,uint128 maxClaimableAmount)");
    bytes32 private constant CLOSE_TYPE = keccak256("RequestClose(bytes32 channelId)");

    /// @dev `Channel.closeAt` of a channel that ended. The slot stays, so that no signed opening works twice.
    uint40 private constant CLOSED = type(uint40).max;
    /// @dev Seconds by which a voucher may run ahead of this chain's clock: the prepaid tick, and a late sequencer.
    uint256 private constant SLACK = 120;

    /// @inheritdoc ISessionVault
    uint40 public immutable CHALLENGE;
    /// @inheritdoc ISessionVault
    uint40 public immutable SETTLE_WINDOW;

    /// @inheritdoc ISessionVault
    mapping(address payer => mapping(address token => uint256 free)) public balanceOf;
    /// @inheritdoc ISessionVault
    mapping(bytes32 id => Channel) public channels;
    /// @inheritdoc ISessionVault
    mapping(bytes32 id => GrantState) public grants;
    /// @inheritdoc ISessionVault
    mapping(address token => uint256 held) public totalHeld;

    constructor(uint40 challenge, uint40 settleWindow) EIP712("jupyter-depin SessionVault", "1") {
        CHALLENGE = challenge;
        SETTLE_WINDOW = settleWindow;
    }

    // ------------------------------------------------------------------------------------------------ escrow

    /// @inheritdoc ISessionVault
    function deposit(address token, address payer, uint256 amount) external nonReentrant {
        _pull(token, payer, amount);
    }

    /// @inheritdoc ISessionVault
    function depositWithPermit(address token, uint256 amount, uint256 deadline, uint8 v, bytes32 r, bytes32 s)
        external
        nonReentrant
    {
        try IERC20Permit(token).permit(msg.sender, address(this), amount, deadline, v, r, s) {} catch {}
        _pull(token, msg.sender, amount);
    }

    /// @inheritdoc ISessionVault
    function withdraw(address token, uint256 amount, address to) external nonReentrant {
        if (amount == 0) revert SessionVault_BadAmount(amount);
        uint256 free = balanceOf[msg.sender][token];
        if (amount > free) revert SessionVault_InsufficientEscrow(free, amount);
        unchecked {
            balanceOf[msg.sender][token] = free - amount;
        }
        totalHeld[token] -= amount;
        emit Withdrawn(msg.sender, token, amount, to);
        IERC20(token).safeTransfer(to, amount);
    }

    function _pull(address token, address payer, uint256 amount) private {
        if (amount == 0) revert SessionVault_BadAmount(amount);
        uint256 held = IERC20(token).balanceOf(address(this));
        IERC20(token).safeTransferFrom(msg.sender, address(this), amount);
        uint256 received = IERC20(token).balanceOf(address(this)) - held;
        // A token that keeps a part of each transfer would let one payer spend another's escrow.
        if (received != amount) revert SessionVault_InexactTransfer(amount, received);
        balanceOf[payer][token] += amount;
        totalHeld[token] += amount;
        emit Deposited(payer, token, amount);
    }

    // ------------------------------------------------------------------------------------------------ opening

    /// @inheritdoc ISessionVault
    function open(Terms calldata terms, uint88 amount, uint40 openBy, bytes calldata payerSignature)
        external
        nonReentrant
    {
        if (terms.grantId != 0) revert SessionVault_WrongGrant(terms.grantId, 0);
        bytes32 id = channelId(terms);
        if (
            msg.sender != terms.payer
                && !SignatureChecker.isValidSignatureNow(terms.payer, openDigest(id, amount, openBy), payerSignature)
        ) revert SessionVault_BadSignature(terms.payer);
        _open(id, terms, amount, openBy);
    }

    /// @inheritdoc ISessionVault
    function openWithGrant(
        Terms calldata terms,
        uint88 amount,
        uint40 openBy,
        bytes32 r,
        bytes32 vs,
        Grant calldata grant,
        bytes calldata grantSignature
    ) external nonReentrant {
        bytes32 id = channelId(terms);
        _useGrant(terms, amount, grant, grantSignature);
        if (!_signed(grant.key, openDigest(id, amount, openBy), r, vs)) revert SessionVault_BadSignature(grant.key);
        _open(id, terms, amount, openBy);
    }

    /// @inheritdoc ISessionVault
    function revokeGrant(Grant calldata grant) external {
        if (msg.sender != grant.payer) revert SessionVault_NotAllowed(msg.sender, grant.payer);
        bytes32 id = grantId(grant);
        grants[id].revoked = true;
        emit GrantRevoked(id);
    }

    function _useGrant(Terms calldata terms, uint88 amount, Grant calldata grant, bytes calldata signature) private {
        bytes32 id = grantId(grant);
        if (terms.grantId != id || terms.payer != grant.payer || terms.token != grant.token) {
            revert SessionVault_WrongGrant(terms.grantId, id);
        }
        if (block.timestamp > grant.validUntil) revert SessionVault_Expired(grant.validUntil);
        if (terms.rate > grant.maxRate) revert SessionVault_RateAboveGrant(terms.rate, grant.maxRate);
        if (grant.policy != address(0) && !IProviderPolicy(grant.policy).isAllowed(terms.provider)) {
            revert SessionVault_ProviderRefused(terms.provider);
        }
        GrantState storage state = grants[id];
        if (state.revoked) revert SessionVault_GrantRevoked(id);
        if (!state.verified) {
            if (!SignatureChecker.isValidSignatureNow(grant.payer, id, signature)) {
                revert SessionVault_BadSignature(grant.payer);
            }
            state.verified = true;
        }
        uint256 committed = uint256(state.committed) + amount;
        if (committed > grant.cap) revert SessionVault_GrantUsedUp(committed, grant.cap);
        state.committed = uint88(committed);
    }

    /// @dev The event encodes all of `terms`, which rejects calldata with dirty upper bits; hence every hash of terms
    /// that has a channel is that of clean words, and `_termsHash` may copy them unread.
    function _open(bytes32 id, Terms calldata terms, uint88 amount, uint40 openBy) private {
        if (block.timestamp > openBy) revert SessionVault_Expired(openBy);
        if (
            terms.provider == address(0) || terms.signer == address(0) || terms.provider == terms.payer
                || terms.maxSeconds == 0
        ) revert SessionVault_BadTerms();
        if (amount == 0 || amount < terms.openFee) revert SessionVault_BadAmount(amount);
        if (channels[id].openedAt != 0) revert SessionVault_ChannelExists(id);
        uint256 free = balanceOf[terms.payer][terms.token];
        if (amount > free) revert SessionVault_InsufficientEscrow(free, amount);
        unchecked {
            balanceOf[terms.payer][terms.token] = free - amount;
        }
        channels[id] = Channel({deposit: amount, settled: 0, openedAt: uint40(block.timestamp), closeAt: 0});
        emit Opened(id, terms.payer, terms.provider, terms, amount);
    }

    // ------------------------------------------------------------------------------------------------ settling

    /// @inheritdoc ISessionVault
    function settle(Claim[] calldata claims) external nonReentrant {
        if (claims.length == 0) revert SessionVault_MixedBatch();
        _settleAll(claims, claims[0].terms.provider, false);
    }

    /// @inheritdoc ISessionVault
    function settleAndClose(Claim[] calldata claims) external nonReentrant {
        if (claims.length == 0) revert SessionVault_MixedBatch();
        address provider = claims[0].terms.provider;
        if (msg.sender != provider) revert SessionVault_NotAllowed(msg.sender, provider);
        _settleAll(claims, provider, true);
    }

    function _settleAll(Claim[] calldata claims, address provider, bool close) private {
        address token = claims[0].terms.token;
        bytes32 separator = _domainSeparatorV4();
        uint256 total;
        for (uint256 i; i < claims.length; ++i) {
            Claim calldata claim = claims[i];
            if (claim.terms.provider != provider || claim.terms.token != token) revert SessionVault_MixedBatch();
            total += _settleOne(claim, claim.terms, separator, close);
        }
        if (total != 0) {
            totalHeld[token] -= total;
            emit Paid(provider, token, total);
            IERC20(token).safeTransfer(provider, total);
        }
    }

    function _settleOne(Claim calldata claim, Terms calldata terms, bytes32 separator, bool close)
        private
        returns (uint256 pay)
    {
        bytes32 id = _digest(separator, _termsHash(terms));
        Channel memory channel = channels[id];
        if (channel.openedAt == 0 || channel.closeAt == CLOSED) {
            emit Skipped(id, SkipReason.NotOpen);
            return 0;
        }
        uint256 amount = claim.amount;
        if (amount <= terms.openFee) {
            amount = terms.openFee;
        } else {
            if (!_signed(terms.signer, _digest(separator, _voucherHash(id, amount)), claim.r, claim.vs)) {
                emit Skipped(id, SkipReason.BadSignature);
                return 0;
            }
            uint256 elapsed = block.timestamp - channel.openedAt;
            if (elapsed > terms.maxSeconds) elapsed = terms.maxSeconds;
            uint256 ceiling = terms.openFee + Hourly.owed(terms.rate, elapsed + SLACK);
            if (amount > ceiling) amount = ceiling;
            if (amount > channel.deposit) amount = channel.deposit;
        }
        if (amount > channel.settled) {
            unchecked {
                pay = amount - channel.settled;
            }
            channel.settled = uint88(amount); // at most the deposit
            emit Settled(id, uint88(amount));
        } else if (!close) {
            emit Skipped(id, SkipReason.NothingNew);
            return 0;
        }
        if (close) _close(id, terms, channel);
        else channels[id] = channel;
    }

    // ------------------------------------------------------------------------------------------------ closing

    /// @inheritdoc ISessionVault
    function requestClose(Terms calldata terms, bytes32 r, bytes32 vs) external {
        bytes32 id = channelId(terms);
        Channel storage channel = channels[id];
        uint40 closeAt = channel.closeAt;
        if (channel.openedAt == 0 || closeAt == CLOSED) revert SessionVault_NotOpen(id);
        if (closeAt != 0) revert SessionVault_AlreadyClosing(id);
        if (msg.sender != terms.payer && !_signed(terms.signer, closeDigest(id), r, vs)) {
            revert SessionVault_BadSignature(terms.signer);
        }
        uint256 end = block.timestamp + CHALLENGE;
        uint256 last = uint256(channel.openedAt) + terms.maxSeconds + SETTLE_WINDOW;
        if (end > last) end = last;
        channel.closeAt = uint40(end);
        emit CloseRequested(id, uint40(end));
    }

    /// @inheritdoc ISessionVault
    function finalize(Terms calldata terms) external nonReentrant {
        bytes32 id = channelId(terms);
        Channel memory channel = channels[id];
        if (channel.openedAt == 0 || channel.closeAt == CLOSED) revert SessionVault_NotOpen(id);
        // A requested close is never later than the end of the settlement window.
        uint256 end = channel.closeAt;
        if (end == 0) end = uint256(channel.openedAt) + terms.maxSeconds + SETTLE_WINDOW;
        if (block.timestamp < end) revert SessionVault_TooEarly(end);
        if (terms.openFee > channel.settled) {
            // Credited, not sent: a token that refuses the provider must not lock the payer's rest.
            balanceOf[terms.provider][terms.token] += terms.openFee - channel.settled;
            channel.settled = terms.openFee;
            emit Settled(id, terms.openFee);
        }
        _close(id, terms, channel);
    }

    /// @dev The refund is credited, not sent: a payer that a token refuses cannot block the provider's batch, and a
    /// course gets its unspent money back without a transaction.
    function _close(bytes32 id, Terms calldata terms, Channel memory channel) private {
        uint88 refund = channel.deposit - channel.settled;
        if (refund != 0) {
            balanceOf[terms.payer][terms.token] += refund;
            if (terms.grantId != 0) grants[terms.grantId].committed -= refund;
        }
        channel.closeAt = CLOSED;
        channels[id] = channel;
        emit Closed(id, channel.settled, refund);
    }

    // ------------------------------------------------------------------------------------------------ hashing

    /// @inheritdoc ISessionVault
    function channelId(Terms calldata terms) public view returns (bytes32) {
        return _hashTypedDataV4(_termsHash(terms));
    }

    /// @inheritdoc ISessionVault
    function grantId(Grant calldata grant) public view returns (bytes32) {
        return _hashTypedDataV4(keccak256(abi.encode(GRANT_TYPE, grant)));
    }

    /// @inheritdoc ISessionVault
    function openDigest(bytes32 id, uint88 amount, uint40 openBy) public view returns (bytes32) {
        return _hashTypedDataV4(keccak256(abi.encode(OPEN_TYPE, id, amount, openBy)));
    }

    /// @inheritdoc ISessionVault
    function voucherDigest(bytes32 id, uint128 maxClaimableAmount) external view returns (bytes32) {
        return _hashTypedDataV4(_voucherHash(id, maxClaimableAmount));
    }

    /// @inheritdoc ISessionVault
    function closeDigest(bytes32 id) public view returns (bytes32) {
        return _hashTypedDataV4(keccak256(abi.encode(CLOSE_TYPE, id)));
    }

    /// @dev Copied, where `abi.encode` would clean and store each of the nine words for each row of a batch.
    function _termsHash(Terms calldata terms) private pure returns (bytes32 hashed) {
        bytes32 typeHash = TERMS_TYPE;
        assembly ("memory-safe") {
            let free := mload(0x40)
            mstore(free, typeHash)
            calldatacopy(add(free, 0x20), terms, 0x120) // nine static words
            hashed := keccak256(free, 0x140)
        }
    }

    function _voucherHash(bytes32 id, uint256 amount) private pure returns (bytes32 hashed) {
        bytes32 typeHash = VOUCHER_TYPE;
        assembly ("memory-safe") {
            let free := mload(0x40)
            mstore(free, typeHash)
            mstore(add(free, 0x20), id)
            mstore(add(free, 0x40), amount)
            hashed := keccak256(free, 0x60)
        }
    }

    /// @dev `_hashTypedDataV4` with the separator read once per batch.
    function _digest(bytes32 separator, bytes32 structHash) private pure returns (bytes32 digest) {
        assembly ("memory-safe") {
            let free := mload(0x40)
            mstore(free, hex"1901")
            mstore(add(free, 0x02), separator)
            mstore(add(free, 0x22), structHash)
            digest := keccak256(free, 0x42)
        }
    }

    /// @dev Only plain keys, only low s: one voucher has one signature. What recovers to address 0 is an error there.
    function _signed(address key, bytes32 digest, bytes32 r, bytes32 vs) private pure returns (bool) {
        (address signer, ECDSA.RecoverError failure,) = ECDSA.tryRecover(digest, r, vs);
        return failure == ECDSA.RecoverError.NoError && signer == key;
    }
}
