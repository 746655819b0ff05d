"""The words of the two sides beside the kernel's own messages.

Handshake words travel on the control stream before a tunnel is attached, each request with one answer. Lease and
payment words travel on lanes of the tunnel, so that a cut loses and repeats none of them.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from jupyter_depin.errors import ConfigError
from jupyter_depin.protocol.frames import decode_checked
from jupyter_depin.protocol.identity import Address, address
from jupyter_depin.protocol.market import Lease, Offer, Opening, Terms
from jupyter_depin.protocol.money import Amount

MOST_OFFERS = 4
"""Offers in one answer: each costs whoever asks a look at a signature, and whoever answers many bytes for a few."""
MAX_REQUEST = 1 << 14
"""Bytes of a request: its sender is nobody yet."""
_LONGEST_ID = 200


def _transaction(name: str) -> None:
    """Check a transaction's id: it goes into journals and receipts, and people copy it into other programs."""
    if len(name) > _LONGEST_ID or not (name.isascii() and name.isprintable()):
        raise ConfigError(detail=f"a transaction with an id of {len(name)} characters")


Wish = Literal["auto", "on", "off"]
"""Whether bytes are to be spared: as the link needs it, always, never."""

# -- handshake


class AskOffers(msgspec.Struct, frozen=True, tag="ask-offers"):
    """What do you offer? `version` is `frames.VERSION`."""

    version: int


class SignedOffer(msgspec.Struct, frozen=True):
    """An offer with the provider wallet's signature over its digest (which names the node that answers)."""

    offer: Offer
    signature: bytes


class OffersGiven(msgspec.Struct, frozen=True, tag="offers"):
    """At most `MOST_OFFERS`, each for one slot; where there are more, those of free slots."""

    offers: tuple[SignedOffer, ...]

    def __post_init__(self) -> None:
        if len(self.offers) > MOST_OFFERS:
            raise ConfigError(detail=f"{len(self.offers)} offers at once, above {MOST_OFFERS}")


class AskLease(msgspec.Struct, frozen=True, tag="ask-lease"):
    """Promise me a slot. `offer` is the offer's digest; `consumer` the address of the key that will sign vouchers."""

    offer: bytes
    consumer: Address
    max_seconds: int
    salt: bytes

    def __post_init__(self) -> None:
        address(self.consumer)
        if not 0 < self.max_seconds < 1 << 32:
            raise ConfigError(detail=f"a rental of {self.max_seconds} seconds")


class LeaseGiven(msgspec.Struct, frozen=True, tag="lease"):
    """The provider's signed promise."""

    lease: Lease
    signature: bytes


class OpenLease(msgspec.Struct, frozen=True, tag="open-lease"):
    """Money is ready: open the channel. The provider relays it to the ledger."""

    terms: Terms
    opening: Opening


class LeaseOpened(msgspec.Struct, frozen=True, tag="opened"):
    """The channel is open; `transaction` says where."""

    transaction: str

    def __post_init__(self) -> None:
        _transaction(self.transaction)


class AttachTunnel(msgspec.Struct, frozen=True, tag="attach"):
    """Join this connection to the lease's tunnel. `signature`: the voucher key's over `attach_digest`.

    `memory` names what the consumer's process remembers of the tunnel, and is the same in all its requests. After
    another one's the consumer has restarted and knows no sequence numbers: the tunnel begins anew, and what the provider
    still holds for the consumer is sent again.
    """

    channel_id: bytes
    signature: bytes
    memory: bytes = b""


class Attached(msgspec.Struct, frozen=True, tag="attached"):
    """From here on this connection carries the tunnel."""


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    """No, and why: the code and facts of a `DepinError`. The consumer may ask again on the same connection."""

    code: str
    facts: dict[str, str]


Request = AskOffers | AskLease | OpenLease | AttachTunnel
Answer = OffersGiven | LeaseGiven | LeaseOpened | Attached | Refused

# -- the lease lane, to the provider


class Launch(msgspec.Struct, frozen=True, tag="launch"):
    """Start a kernel, ending the one that runs. `epoch` counts launches; `key` signs the kernel's messages.

    `argv` and `cwd` are followed only by an agent that serves its own user (loopback).
    """

    epoch: int
    key: bytes
    signature_scheme: str
    env: dict[str, str] = {}
    argv: tuple[str, ...] | None = None
    cwd: str | None = None


class Signal(msgspec.Struct, frozen=True, tag="signal"):
    """Send a POSIX signal to the kernel of an epoch."""

    epoch: int
    signum: int


class Spare(msgspec.Struct, frozen=True, tag="spare"):
    """Spare bytes on the way to the consumer, whose link is metered; or don't, or only where the link needs it."""

    wish: Wish


class End(msgspec.Struct, frozen=True, tag="end"):
    """End the lease: stop the kernel and the meter, and say what was served. `reason` is an `EndReason` code."""

    reason: str


LeaseOrder = Launch | Signal | Spare | End

# -- the lease lane, to the consumer


class Launched(msgspec.Struct, frozen=True, tag="launched"):
    """The kernel of an epoch runs; from the first one on, time is paid."""

    epoch: int


class LaunchFailed(msgspec.Struct, frozen=True, tag="launch-failed"):
    """The kernel of an epoch could not be started."""

    epoch: int
    code: str
    facts: dict[str, str]


class KernelExited(msgspec.Struct, frozen=True, tag="exited"):
    """The kernel of an epoch ended: exit status (negative: a signal) and the end of its standard error."""

    epoch: int
    status: int
    stderr: str


class Paused(msgspec.Struct, frozen=True, tag="paused"):
    """The kernel stands still and is not paid for."""

    reason: str


class Unpaused(msgspec.Struct, frozen=True, tag="unpaused"):
    """The kernel goes on."""


class Standing(msgspec.Struct, frozen=True, tag="standing"):
    """How the kernel stands, for a consumer whose memory is fresh. Said after everything that it may have missed.

    `runs`: whether the kernel of this epoch has neither ended nor is still being started.
    """

    epoch: int
    runs: bool
    paused: bool


class LeftOut(msgspec.Struct, frozen=True, tag="left-out"):
    """The kernel said something that is too big for the tunnel: so many bytes, in so many parts."""

    size: int
    parts: int


class Joined(msgspec.Struct, frozen=True, tag="joined"):
    """Output was joined before it was sent: so many bytes fewer since the last such word."""

    spared: int

    def __post_init__(self) -> None:
        if not 0 <= self.spared < 1 << 48:
            raise ConfigError(detail=f"{self.spared} bytes spared")


class Ended(msgspec.Struct, frozen=True, tag="ended"):
    """The lease is over; `served_ns` is the last claim. A final voucher is still taken."""

    reason: str
    served_ns: int


class Settled(msgspec.Struct, frozen=True, tag="settled"):
    """The provider collected `amount` in all, by `transaction`; the rest went back."""

    amount: Amount
    transaction: str

    def __post_init__(self) -> None:
        _transaction(self.transaction)


class SettleFailed(msgspec.Struct, frozen=True, tag="settle-failed"):
    """Collecting failed for now; the provider goes on trying. Code and facts of a `DepinError`."""

    code: str
    facts: dict[str, str]


LeaseFact = (
    Launched
    | LaunchFailed
    | KernelExited
    | Paused
    | Unpaused
    | Standing
    | LeftOut
    | Joined
    | Ended
    | Settled
    | SettleFailed
)

# -- the payment lane


class ServedClaim(msgspec.Struct, frozen=True, tag="served"):
    """Provider: so many ns were served until now."""

    served_ns: int
    final: bool = False


class VoucherGiven(msgspec.Struct, frozen=True, tag="voucher"):
    """Consumer: a voucher for `amount` in total, signed."""

    amount: Amount
    signature: bytes
    final: bool = False


class VoucherTaken(msgspec.Struct, frozen=True, tag="taken"):
    """Provider: the voucher is in the journal."""

    amount: Amount


class VoucherNotTaken(msgspec.Struct, frozen=True, tag="not-taken"):
    """Provider: the voucher does not hold, and why."""

    amount: Amount
    reason: str


ToPayer = ServedClaim | VoucherTaken | VoucherNotTaken

# -- the iopub lane, between the kernel's own messages: a word of ours is a message of one part, which theirs never are


class OutputMissing(msgspec.Struct, frozen=True, tag="output-missing"):
    """In the place of messages that the kernel said while the consumer was away, and that could not be kept.

    `restarted`: they were given up because another kernel took its place.
    """

    messages: int
    size: int
    restarted: bool = False


_encode = msgspec.json.Encoder().encode
_order = msgspec.json.Decoder(LeaseOrder).decode
_fact = msgspec.json.Decoder(LeaseFact).decode
_output = msgspec.json.Decoder(OutputMissing).decode
_payer = msgspec.json.Decoder(ToPayer).decode
_payee = msgspec.json.Decoder(VoucherGiven).decode


def encode(word: LeaseOrder | LeaseFact | ToPayer | VoucherGiven | OutputMissing) -> bytes:
    """A word as the one part of a lane's message."""
    return _encode(word)


def decode_order(data: bytes) -> LeaseOrder:
    """What the consumer says on the lease lane. Raises `RemoteProtocolError`."""
    word: LeaseOrder = decode_checked(_order, data)
    return word


def decode_fact(data: bytes) -> LeaseFact:
    """What the provider says on the lease lane. Raises `RemoteProtocolError`."""
    word: LeaseFact = decode_checked(_fact, data)
    return word


def decode_output(data: bytes) -> OutputMissing:
    """What the provider says on the iopub lane. Raises `RemoteProtocolError`."""
    word: OutputMissing = decode_checked(_output, data)
    return word


def decode_to_payer(data: bytes) -> ToPayer:
    """What the provider says on the payment lane. Raises `RemoteProtocolError`."""
    word: ToPayer = decode_checked(_payer, data)
    return word


def decode_to_payee(data: bytes) -> VoucherGiven:
    """What the consumer says on the payment lane. Raises `RemoteProtocolError`."""
    return decode_checked(_payee, data)
