"""One process's ledger, used by others on this machine: how the loopback mode's two sides see the same books.

The agent serves its in-memory ledger on a port of the loopback interface; whoever knows the secret, which the agent
prints to its parent, may call it. Rejected: a replica on each side (nobody would notice that the two disagree); the
embedded chain (seconds to start, for money that does not exist).
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import anyio
import msgspec
from anyio.abc import SocketStream, TaskStatus

from jupyter_depin.chain import ChannelState, Closing, Ledger, ProviderRecord
from jupyter_depin.errors import ChainUnreachable, DepinError
from jupyter_depin.protocol.frames import MessageDecoder, encode_message
from jupyter_depin.protocol.identity import Address, NodeId, Signer
from jupyter_depin.protocol.market import Asset, Opening, Terms
from jupyter_depin.protocol.money import Amount
from jupyter_depin.protocol.voucher import Claim

_READ = 1 << 16
_ANSWER_S = 30


class LedgerAddress(msgspec.Struct, frozen=True):
    """Where a shared ledger is found, what it counts, and the secret that opens it."""

    port: int
    secret: str
    asset: Asset


class _Call(msgspec.Struct, frozen=True, tag="call"):
    secret: str
    method: str
    arguments: msgspec.Raw


class _Result(msgspec.Struct, frozen=True, tag="result"):
    value: msgspec.Raw


class _Failure(msgspec.Struct, frozen=True, tag="failure"):
    code: str
    facts: dict[str, str]


@dataclass(frozen=True)
class _Caller:
    """Stands for a wallet on the serving side: the caller knew the secret, so its word is taken for the address."""

    address: Address

    def sign(self, digest: bytes) -> bytes:
        raise NotImplementedError


# Per method: the types of its arguments (a wallet travels as its address) and of its result.
_METHODS: dict[str, tuple[Any, Any]] = {
    "check": (tuple[()], None),
    "now": (tuple[()], int),
    "balance": (tuple[bytes], int),
    "escrow": (tuple[bytes], int),
    "deposit": (tuple[bytes, int], str),
    "withdraw": (tuple[bytes, int], str),
    "open": (tuple[bytes, Terms, Opening], str),
    "channel": (tuple[bytes], ChannelState | None),
    "closing": (tuple[bytes], Closing | None),
    "settle": (tuple[bytes, list[Claim], bool], str),
    "request_close": (tuple[bytes, Terms, bytes], str),
    "finalize": (tuple[bytes, Terms], str),
    "provider": (tuple[bytes], ProviderRecord | None),
    "register": (tuple[bytes, bytes, int], str),
}
_SIGNED = frozenset({"deposit", "withdraw", "open", "settle", "request_close", "finalize", "register"})


async def serve(ledger: Ledger, secret: str, *, task_status: TaskStatus[LedgerAddress]) -> None:
    """Serve `ledger` on a free port of 127.0.0.1 until cancelled. Called by the agent in loopback mode."""
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=0)
    port = int(listener.extra(anyio.abc.SocketAttribute.local_port))
    task_status.started(LedgerAddress(port, secret, ledger.asset))

    async def handle(stream: SocketStream) -> None:
        decoder: MessageDecoder[_Call] = MessageDecoder(_Call)
        async with stream:
            try:
                while True:
                    for call in decoder.feed(await stream.receive(_READ)):
                        await stream.send(encode_message(await _answer(ledger, secret, call)))
            except (anyio.EndOfStream, anyio.BrokenResourceError, DepinError):
                return

    async with listener:
        await listener.serve(handle)


async def _answer(ledger: Ledger, secret: str, call: _Call) -> _Result | _Failure:
    if not hmac.compare_digest(call.secret.encode(), secret.encode()) or call.method not in _METHODS:
        return _Failure(ChainUnreachable.code, {"url": "this ledger"})
    try:
        arguments = list(msgspec.json.decode(call.arguments, type=_METHODS[call.method][0]))
        if call.method in _SIGNED:
            arguments[0] = _Caller(Address(arguments[0]))
        if call.method == "settle":
            value = await ledger.settle(arguments[0], arguments[1], close=arguments[2])
        else:
            value = await getattr(ledger, call.method)(*arguments)
    except DepinError as error:
        return _Failure(error.code, error.facts)
    return _Result(msgspec.Raw(msgspec.json.encode(value)))


class SharedLedger:
    """The ledger that another process serves. Implements the `Ledger` port."""

    def __init__(self, address: LedgerAddress) -> None:
        self._address = address
        self._stream: SocketStream | None = None
        self._decoder: MessageDecoder[_Result | _Failure] = MessageDecoder(_Result | _Failure)
        self._turn = anyio.Lock()

    @property
    def asset(self) -> Asset:
        """What the ledger counts."""
        return self._address.asset

    async def check(self) -> None:
        """See the port."""
        await self._call("check")

    async def now(self) -> int:
        """See the port."""
        return int(await self._call("now"))

    async def balance(self, owner: Address) -> Amount:
        """See the port."""
        return Amount(await self._call("balance", owner))

    async def escrow(self, payer: Address) -> Amount:
        """See the port."""
        return Amount(await self._call("escrow", payer))

    async def deposit(self, wallet: Signer, amount: Amount) -> str:
        """See the port."""
        return str(await self._call("deposit", wallet.address, amount))

    async def withdraw(self, wallet: Signer, amount: Amount) -> str:
        """See the port."""
        return str(await self._call("withdraw", wallet.address, amount))

    async def open(self, relayer: Signer, terms: Terms, opening: Opening) -> str:
        """See the port."""
        return str(await self._call("open", relayer.address, terms, opening))

    async def channel(self, channel_id: bytes) -> ChannelState | None:
        """See the port."""
        state: ChannelState | None = await self._call("channel", channel_id)
        return state

    async def closing(self, channel_id: bytes) -> Closing | None:
        """See the port."""
        closing: Closing | None = await self._call("closing", channel_id)
        return closing

    async def settle(self, relayer: Signer, claims: Sequence[Claim], *, close: bool) -> str:
        """See the port."""
        return str(await self._call("settle", relayer.address, list(claims), close))

    async def request_close(self, relayer: Signer, terms: Terms, signature: bytes) -> str:
        """See the port."""
        return str(await self._call("request_close", relayer.address, terms, signature))

    async def finalize(self, relayer: Signer, terms: Terms) -> str:
        """See the port."""
        return str(await self._call("finalize", relayer.address, terms))

    async def provider(self, address: Address) -> ProviderRecord | None:
        """See the port."""
        record: ProviderRecord | None = await self._call("provider", address)
        return record

    async def register(self, wallet: Signer, node: NodeId, stake: Amount) -> str:
        """See the port."""
        return str(await self._call("register", wallet.address, node, stake))

    async def close(self) -> None:
        """See the port."""
        if self._stream is not None:
            await self._stream.aclose()
            self._stream = None

    async def _hang_up(self) -> None:
        # A call that was given up leaves its answer, or half of it, behind; the next call must not read it.
        stream, self._stream = self._stream, None
        self._decoder = MessageDecoder(_Result | _Failure)
        if stream is not None:
            await anyio.aclose_forcefully(stream)

    async def _call(self, method: str, *arguments: object) -> Any:
        call = _Call(self._address.secret, method, msgspec.Raw(msgspec.json.encode(arguments)))
        async with self._turn:
            try:
                answers: list[_Result | _Failure] = []
                with anyio.fail_after(_ANSWER_S):
                    if self._stream is None:
                        self._stream = await anyio.connect_tcp("127.0.0.1", self._address.port)
                    await self._stream.send(encode_message(call))
                    while not answers:
                        answers = self._decoder.feed(await self._stream.receive(_READ))
            except (OSError, TimeoutError, anyio.EndOfStream, anyio.BrokenResourceError) as error:
                await self._hang_up()
                raise ChainUnreachable(url=f"127.0.0.1:{self._address.port}") from error
            except BaseException:
                await self._hang_up()
                raise
        answer = answers[0]
        if isinstance(answer, _Failure):
            raise DepinError.from_wire(answer.code, answer.facts)
        return msgspec.json.decode(answer.value, type=_METHODS[method][1])
