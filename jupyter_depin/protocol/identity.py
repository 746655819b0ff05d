"""Who is who: nodes, wallets, and the signed binding between them. Bytes inside, hex at the edge."""

from __future__ import annotations

import base64
import binascii
import ipaddress
from dataclasses import dataclass
from typing import NewType, Protocol

import msgspec

from jupyter_depin.errors import BadTicket, ConfigError
from jupyter_depin.protocol.eip712 import Domain, keccak256, struct_hash

NodeId = NewType("NodeId", bytes)
"""A node's ed25519 public key, 32 bytes: what is dialled."""

Address = NewType("Address", bytes)
"""A wallet or contract on an EVM chain, 20 bytes."""

NO_ADDRESS = Address(bytes(20))


def node_id(raw: bytes) -> NodeId:
    """Check a node id at the door. Raises `ConfigError` unless it is 32 bytes."""
    if len(raw) != 32:
        raise ConfigError(detail=f"a node id has 32 bytes, not {len(raw)}")
    return NodeId(bytes(raw))


def address(raw: bytes) -> Address:
    """Check an address at the door. Raises `ConfigError` unless it is 20 bytes."""
    if len(raw) != 20:
        raise ConfigError(detail=f"an address has 20 bytes, not {len(raw)}")
    return Address(bytes(raw))


def checksummed(value: Address) -> str:
    """EIP-55 text of an address, for edges."""
    plain = value.hex()
    nibbles = keccak256(plain.encode()).hex()
    return "0x" + "".join(c.upper() if int(n, 16) > 7 else c for c, n in zip(plain, nibbles, strict=False))


def parse_address(text: str) -> Address:
    """An address from text. Raises `ConfigError` on anything else; a mixed-case text must have a right checksum."""
    try:
        raw = address(bytes.fromhex(text.removeprefix("0x")))
    except ValueError as error:
        raise ConfigError(detail=f"{text!r} is not an address") from error
    body = text.removeprefix("0x")
    if body not in (body.lower(), body.upper()) and "0x" + body != checksummed(raw):
        raise ConfigError(detail=f"{text!r} is mistyped: its checksum is wrong")
    return raw


class Signer(Protocol):
    """Something that signs for one wallet. `keys.Wallet` is the real one."""

    @property
    def address(self) -> Address:
        """The wallet it signs for."""

    def sign(self, digest: bytes) -> bytes:
        """65 bytes r ‖ s ‖ v (v is 27 or 28, s low) over a 32-byte digest."""


_BINDING_TYPE = keccak256(b"Binding(address wallet,bytes32 node,uint40 validUntil)")


@dataclass(frozen=True, slots=True)
class Binding:
    """A wallet's statement that a node acts for it until `valid_until` (Unix seconds)."""

    wallet: Address
    node: NodeId
    valid_until: int

    def digest(self, domain: Domain) -> bytes:
        """What the wallet signs."""
        return domain.digest(struct_hash(_BINDING_TYPE, self.wallet, self.node, self.valid_until))


@dataclass(frozen=True, slots=True)
class NodeAddress:
    """Where a node can be found: its id, the relays it is at home on, and `ip:port` addresses to try first.

    The addresses are those of the node's first home, so they go with the first relay (`transport/homes.py`).
    """

    node: NodeId
    relays: tuple[str, ...] = ()
    direct: tuple[str, ...] = ()


def socket_address(text: str) -> str:
    """`ip:port` in one spelling, with IPv6 in brackets. Raises `ConfigError`, also for a name: nobody would look it up."""
    ip, _, port = text.strip().rpartition(":")
    try:
        found = ipaddress.ip_address(ip.removeprefix("[").removesuffix("]"))
        v6 = found.version == 6
        if not (port.isascii() and port.isdigit() and 0 < int(port) < 1 << 16):
            raise ValueError(port)
        if "%" in ip or v6 != ip.startswith("["):
            raise ValueError(ip)
    except ValueError as error:
        raise ConfigError(detail=f"{text!r} is no address of the form ip:port") from error
    return f"[{found}]:{int(port)}" if v6 else f"{found}:{int(port)}"


def observer_text(address: NodeAddress) -> str:
    """A node that tells others how it sees them, in one word for settings: `<64 hex digits>@ip:port[,ip:port…]`."""
    return f"{address.node.hex()}@{','.join(address.direct)}"


def parse_observer(text: str) -> NodeAddress:
    """The node that `observer_text` names. Raises `ConfigError`."""
    name, _, places = text.strip().partition("@")
    try:
        return NodeAddress(node_id(bytes.fromhex(name)), (), tuple(map(socket_address, places.split(","))))
    except (ValueError, ConfigError) as error:
        raise ConfigError(
            detail=f"{text!r} is no observer of the form node@ip:port, as `provider-kernel observe` prints it"
        ) from error


_PREFIX = "depin1"
_CHECK = 4
"""Bytes of the checksum at a ticket's end: it is copied by hand, from chats and slides."""

_MOST = 32

_Place = tuple[bytes, tuple[str, ...], tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Ticket:
    """Everything that is needed to reach one provider, in one line that can be copied: node address and wallet.

    `observers`: nodes that the provider knows to tell others how they are seen.
    """

    address: NodeAddress
    provider: Address
    observers: tuple[NodeAddress, ...] = ()

    def __str__(self) -> str:
        places = [(each.node, each.relays, each.direct) for each in (self.address, *self.observers)]
        raw = msgspec.msgpack.encode((self.provider, places))
        return _PREFIX + base64.urlsafe_b64encode(raw + keccak256(raw)[:_CHECK]).decode().rstrip("=")

    @classmethod
    def parse(cls, text: str) -> Ticket:
        """The ticket that `str(ticket)` made. Raises `BadTicket`."""
        text = text.strip()
        if not text.startswith(_PREFIX):
            raise BadTicket(reason=f"it does not begin with {_PREFIX}")
        body = text.removeprefix(_PREFIX)
        try:
            whole = base64.b64decode(body + "=" * (-len(body) % 4), altchars=b"-_", validate=True)
            raw, check = whole[:-_CHECK], whole[-_CHECK:]
            if check != keccak256(raw)[:_CHECK]:
                raise BadTicket(reason="it is damaged")
            wallet, places = msgspec.msgpack.decode(raw, type=tuple[bytes, list[_Place]])
            found, *observers = [NodeAddress(node_id(node), *where) for node, *where in places]
            ticket = cls(found, address(wallet), tuple(observers))
        except (ValueError, binascii.Error, msgspec.MsgspecError, ConfigError) as error:
            raise BadTicket(reason="it is damaged") from error
        if any(len(names) > _MOST for names in (found.relays, found.direct, observers)):
            # Whoever reads it would knock at all of these doors.
            raise BadTicket(reason=f"it names more than {_MOST} places of a kind")
        return ticket
