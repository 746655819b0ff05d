"""What a party writes down of a lease when it is agreed, and how far the lease has come. Kept by the journal."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, Protocol

from jupyter_depin.protocol.identity import NodeAddress, NodeId
from jupyter_depin.protocol.market import Asset, Offer, Terms
from jupyter_depin.protocol.money import Amount
from jupyter_depin.protocol.reason import EndReason

Role = Literal["payer", "payee"]
"""Which side of the lease this party is."""


class HasSecret(Protocol):
    """A key whose secret may be kept: `keys.Wallet`."""

    @property
    def secret(self) -> bytes:
        """32 bytes."""


@dataclass(frozen=True, slots=True)
class LeaseRecord:
    """One lease as it was agreed, and how far it has come.

    `address`: where the provider's node is dialled (payer), or the consumer's node (payee). `voucher_key` (payer):
    the secret that signs vouchers and attaches, wiped once the receipt is written. Times are Unix ns; `ready_ns`: when
    the kernel became ready, None before. `open_by` (Unix seconds, of the ledger): how long the payer's signed order to
    open holds; before that has passed, nobody can say that the lease was never opened. `reason` is set once it has ended.
    """

    channel_id: bytes
    role: Role
    terms: Terms
    offer: Offer
    deposit: Amount
    address: NodeAddress
    kernel_id: str
    voucher_key: bytes = field(repr=False)
    opened_ns: int
    open_by: int
    ready_ns: int | None = None
    ended_ns: int | None = None
    reason: EndReason | None = None
    served_ns: int = 0

    @classmethod
    def of_payer(
        cls,
        channel_id: bytes,
        terms: Terms,
        offer: Offer,
        deposit: Amount,
        address: NodeAddress,
        key: HasSecret,
        kernel_id: str,
        opened_ns: int,
        open_by: int,
    ) -> LeaseRecord:
        """What the consumer writes down before it asks the provider to open."""
        return cls(
            channel_id, "payer", terms, offer, deposit, address, kernel_id, key.secret, opened_ns, open_by
        )

    @classmethod
    def of_payee(
        cls,
        channel_id: bytes,
        terms: Terms,
        offer: Offer,
        deposit: Amount,
        peer: NodeId,
        opened_ns: int,
        open_by: int,
    ) -> LeaseRecord:
        """What the provider writes down before it opens the channel."""
        return cls(channel_id, "payee", terms, offer, deposit, NodeAddress(peer), "", b"", opened_ns, open_by)

    @property
    def title(self) -> str:
        """What the offer called the machine."""
        return self.offer.title

    @property
    def asset(self) -> Asset:
        """What is paid with."""
        return self.offer.asset

    @property
    def node(self) -> NodeId:
        """The provider's node."""
        return self.offer.node

    @property
    def started_ns(self) -> int:
        """When the kernel became ready; for one that never did, when the lease was agreed."""
        return self.opened_ns if self.ready_ns is None else self.ready_ns

    @property
    def ended(self) -> bool:
        """Whether it is over; settlement may still be pending."""
        return self.reason is not None


@dataclass(frozen=True, slots=True)
class Where:
    """Who uses a kernel, as far as Jupyter says: enough for a later process to put it back in its place.

    `kernel_name`: the kernel spec; `root`: the folder that a Jupyter server serves, empty for any other program;
    `document`: the path of the notebook or console that the kernel was started for.
    """

    kernel_name: str = ""
    root: str = ""
    document: str = ""


NOWHERE = Where()


@dataclass(frozen=True, slots=True)
class LaunchedKernel:
    """What the process that launched a kernel knows of it and nobody else does.

    `key` signs the kernel's messages from end to end, so whoever takes the kernel up must go on with it.
    """

    epoch: int
    key: bytes = field(repr=False)
    signature_scheme: str
    where: Where = NOWHERE


@dataclass(frozen=True, slots=True)
class RunningKernel:
    """An open lease whose kernel runs, as far as is known here. `held`: a living process keeps it."""

    lease: LeaseRecord
    kernel: LaunchedKernel
    held: bool
