// SPDX-License-Identifier: BSD-3-Clause
pragma solidity ^0.8.28;

/// @title Escrow for leases that are paid by cumulative vouchers
/// @notice A payer deposits once; every lease locks part of that escrow in a channel of one storage slot. The lease's
/// voucher key signs growing totals off chain, and the provider redeems the newest one, many leases at a time.
///
/// Nobody owns this contract: no proxy, no pause, no fee. A provider can get at most what was signed, at most
/// `openFee + rate × elapsed time`, and at most the deposit.
///
/// Amounts are base units of `token`; a rate is base units per hour; times are Unix seconds. Every signature is EIP-712
/// under the domain ("jupyter-depin SessionVault", "1", chain id, this contract).
interface ISessionVault {
    /// @notice What the vault knows of a lease. Its EIP-712 digest is the channel id, so it is never stored.
    /// @param payer who funds the lease: a key, an ERC-1271 account, or the owner of a course
    /// @param signer the voucher key: always a plain key, so that a voucher can be checked without asking a chain
    /// @param provider who is paid
    /// @param token what is paid with: an ERC-20 that moves exact amounts
    /// @param openFee owed as soon as the channel is open, without a voucher: it pays for a renter that vanishes
    /// @param rate the most that an hour of service may cost
    /// @param maxSeconds the length of the lease
    /// @param grantId the grant that pays, or 0 when the payer itself signs the opening
    /// @param leaseHash the provider's signed promise; new for each lease, and so the salt of the channel id
    struct Terms {
        address payer;
        address signer;
        address provider;
        address token;
        uint88 openFee;
        uint88 rate;
        uint32 maxSeconds;
        bytes32 grantId;
        bytes32 leaseHash;
    }

    /// @notice A payer's signed allowance for a key, e.g. a student's. It costs no transaction to give.
    /// @param payer whose escrow is spent, and who signs the grant
    /// @param token what is spent
    /// @param key who may open channels under this grant
    /// @param policy an `IProviderPolicy` that says which providers may be paid, or 0 for all
    /// @param cap the most that the grant's open channels may lock and its closed ones may have spent, in all
    /// @param maxRate the most that an hour may cost
    /// @param validUntil no channel opens after this time
    /// @param salt makes two otherwise equal grants different
    struct Grant {
        address payer;
        address token;
        address key;
        address policy;
        uint88 cap;
        uint88 maxRate;
        uint40 validUntil;
        bytes32 salt;
    }

    /// @notice A lease's money; exactly one slot.
    /// @param deposit what was locked
    /// @param settled what the provider got so far; it never falls, and it stays when the channel is closed
    /// @param openedAt when the channel was opened; 0 if it never was
    /// @param closeAt 0 while nobody asked for the end, the largest uint40 once closed, else when anybody may finalize
    struct Channel {
        uint88 deposit;
        uint88 settled;
        uint40 openedAt;
        uint40 closeAt;
    }

    /// @notice What was used of a grant.
    /// @param committed locked by its open channels plus spent by its closed ones
    /// @param verified whether the payer's signature was checked once
    /// @param revoked whether the payer took it back
    struct GrantState {
        uint88 committed;
        bool verified;
        bool revoked;
    }

    /// @notice One row of a settlement.
    /// @param terms the lease
    /// @param amount the voucher's total; up to `openFee` no signature is needed
    /// @param r first half of the voucher key's signature
    /// @param vs second half, compact as in EIP-2098
    struct Claim {
        Terms terms;
        uint88 amount;
        bytes32 r;
        bytes32 vs;
    }

    /// @notice Why a row of a settlement moved no money.
    enum SkipReason {
        NotOpen,
        BadSignature,
        NothingNew
    }

    event Deposited(address indexed payer, address indexed token, uint256 amount);
    event Withdrawn(address indexed payer, address indexed token, uint256 amount, address to);
    event Opened(
        bytes32 indexed channelId, address indexed payer, address indexed provider, Terms terms, uint88 deposit
    );
    /// @param total what the provider got from this channel so far
    event Settled(bytes32 indexed channelId, uint88 total);
    event Paid(address indexed provider, address indexed token, uint256 amount);
    event Skipped(bytes32 indexed channelId, SkipReason reason);
    event CloseRequested(bytes32 indexed channelId, uint40 closeAt);
    event Closed(bytes32 indexed channelId, uint88 settled, uint88 refunded);
    event GrantRevoked(bytes32 indexed grantId);

    /// @notice The amount is zero, or a deposit is smaller than the opening fee.
    error SessionVault_BadAmount(uint256 amount);
    /// @notice The signature is not that of `expected`.
    error SessionVault_BadSignature(address expected);
    /// @notice The signed order was valid until `validUntil`.
    error SessionVault_Expired(uint256 validUntil);
    /// @notice The channel was opened before; a closed channel cannot be opened again either.
    error SessionVault_ChannelExists(bytes32 channelId);
    /// @notice There is no open channel of this id.
    error SessionVault_NotOpen(bytes32 channelId);
    /// @notice Somebody asked for this channel's end before.
    error SessionVault_AlreadyClosing(bytes32 channelId);
    /// @notice The payer's free escrow does not suffice.
    error SessionVault_InsufficientEscrow(uint256 available, uint256 needed);
    /// @notice The windows of the channel are open until `until`.
    error SessionVault_TooEarly(uint256 until);
    /// @notice The token moved another amount than it was asked to.
    error SessionVault_InexactTransfer(uint256 expected, uint256 received);
    /// @notice Only `allowed` may call this.
    error SessionVault_NotAllowed(address caller, address allowed);
    /// @notice A channel needs a length, a provider and a voucher key, and its provider may not be its payer.
    error SessionVault_BadTerms();
    /// @notice There are no rows, or they do not share one provider and one token.
    error SessionVault_MixedBatch();
    /// @notice The terms name another grant, payer or token than the grant that was given.
    error SessionVault_WrongGrant(bytes32 expected, bytes32 given);
    /// @notice The payer took this grant back.
    error SessionVault_GrantRevoked(bytes32 grantId);
    /// @notice The grant's policy does not allow this provider.
    error SessionVault_ProviderRefused(address provider);
    /// @notice The rate is above the grant's.
    error SessionVault_RateAboveGrant(uint256 rate, uint256 maxRate);
    /// @notice The grant's cap would be exceeded.
    error SessionVault_GrantUsedUp(uint256 committed, uint256 cap);

    /// @notice Move tokens from the caller into the escrow of `payer`. The caller approved them before.
    function deposit(address token, address payer, uint256 amount) external;

    /// @notice Deposit for the caller with an EIP-2612 signature in place of an approval.
    /// @dev A permit that somebody else already submitted left the allowance behind, so its failure is ignored.
    function depositWithPermit(address token, uint256 amount, uint256 deadline, uint8 v, bytes32 r, bytes32 s)
        external;

    /// @notice Move free escrow of the caller to `to`. There is no waiting time: leases lock their own money.
    function withdraw(address token, uint256 amount, address to) external;

    /// @notice Open a channel that the payer signed for, or that the payer itself sends. Anybody may relay it.
    /// @param amount what is locked; at least the opening fee
    /// @param openBy the order's last second
    /// @param payerSignature over `openDigest`; not read when the payer is the sender
    function open(Terms calldata terms, uint88 amount, uint40 openBy, bytes calldata payerSignature) external;

    /// @notice Open a channel under a grant. Anybody may relay it.
    /// @param r first half of the grant key's signature over `openDigest`
    /// @param vs its second half (EIP-2098)
    /// @param grantSignature the payer's, over `grantId`; read only when the grant is used for the first time, so that
    /// a key that the payer's account drops later cannot take back what was granted
    function openWithGrant(
        Terms calldata terms,
        uint88 amount,
        uint40 openBy,
        bytes32 r,
        bytes32 vs,
        Grant calldata grant,
        bytes calldata grantSignature
    ) external;

    /// @notice Redeem the newest vouchers of many channels of one provider and one token. Anybody may send it, since
    /// money goes only to the provider.
    /// @dev A row that does not hold is skipped with an event: one bad row must not block the batch.
    function settle(Claim[] calldata claims) external;

    /// @notice `settle`, and close each channel: the rest returns to the payer's escrow. Only for the provider.
    function settleAndClose(Claim[] calldata claims) external;

    /// @notice Start the end of a channel without the provider, who keeps `CHALLENGE` seconds to redeem its newest
    /// voucher. Sent by the payer, or by anybody with the voucher key's signature over `closeDigest`.
    function requestClose(Terms calldata terms, bytes32 r, bytes32 vs) external;

    /// @notice Close a channel whose window after `requestClose`, or after the lease's end, is over. Anybody may send
    /// it. What the provider is still owed of the opening fee is added to its escrow here.
    function finalize(Terms calldata terms) external;

    /// @notice Take a grant back. Channels that are open already go on.
    function revokeGrant(Grant calldata grant) external;

    /// @notice How long a provider can answer `requestClose`, in seconds.
    function CHALLENGE() external view returns (uint40);

    /// @notice How long after a lease's longest end vouchers can still be redeemed, in seconds.
    function SETTLE_WINDOW() external view returns (uint40);

    /// @notice Free escrow of `payer`.
    function balanceOf(address payer, address token) external view returns (uint256);

    /// @notice A channel as it stands.
    function channels(bytes32 channelId)
        external
        view
        returns (uint88 deposit, uint88 settled, uint40 openedAt, uint40 closeAt);

    /// @notice What was used of a grant.
    function grants(bytes32 grantId) external view returns (uint88 committed, bool verified, bool revoked);

    /// @notice All escrow and all locked money of one token. Never more than what the vault holds.
    function totalHeld(address token) external view returns (uint256);

    /// @notice The channel id of these terms.
    function channelId(Terms calldata terms) external view returns (bytes32);

    /// @notice The id of a grant, which is also what its payer signs.
    function grantId(Grant calldata grant) external view returns (bytes32);

    /// @notice What the payer, or the grant's key, signs to open a channel.
    function openDigest(bytes32 id, uint88 amount, uint40 openBy) external view returns (bytes32);

    /// @notice What the voucher key signs for a total.
    function voucherDigest(bytes32 id, uint128 maxClaimableAmount) external view returns (bytes32);

    /// @notice What the voucher key signs to ask for the end.
    function closeDigest(bytes32 id) external view returns (bytes32);
}
