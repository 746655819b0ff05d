"""JSON-RPC over HTTP to any EVM node: web3's provider with its errors translated, and the next address when one fails.

Only web3's transport is used. Its contract and account layers want a private key in the process, and ours may lie in
a `Signer` of any kind.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from typing import Any

import aiohttp
from eth_abi.exceptions import DecodingError
from web3 import AsyncHTTPProvider
from web3.types import RPCEndpoint

from jupyter_depin.errors import ChainUnreachable

log = logging.getLogger(__name__)


class RpcRefused(Exception):
    """A node answered with an error; `data` is what a revert carried. Translated before it leaves this layer."""

    def __init__(self, code: int, message: str, data: bytes) -> None:
        super().__init__(message)
        self.code = code
        self.data = data


class Rpc:
    """One node, or several equal ones: a call goes to the one that answered last, and on failure to the others."""

    def __init__(self, urls: Sequence[str], timeout_s: float) -> None:
        request = {"timeout": aiohttp.ClientTimeout(timeout_s)}
        self._nodes = [AsyncHTTPProvider(url, request, exception_retry_configuration=None) for url in urls]

    @property
    def url(self) -> str:
        """The node that is asked first."""
        return str(self._nodes[0].endpoint_uri)

    async def call(self, method: str, *params: Any) -> Any:
        """One request. Raises `RpcRefused`, `ChainUnreachable`."""
        for node in list(self._nodes):
            try:
                response: object = await node.make_request(RPCEndpoint(method), list(params))
            except Exception as error:
                # Not only the network's errors: an answer may be any JSON, and at the interpreter's exit aiohttp
                # raises RuntimeError. To the caller each of them is a node that does not answer.
                log.debug("%s: %r", method, error)
                continue
            if not isinstance(response, dict):
                continue
            if node is not self._nodes[0]:
                self._nodes.remove(node)
                self._nodes.insert(0, node)
            if response.get("error"):
                raise _refused(response["error"])
            return response.get("result")
        raise ChainUnreachable(url=self.url)

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Around whatever takes an answer apart: one that lacks something, or is null, is `ChainUnreachable`."""
        try:
            yield
        except (AttributeError, DecodingError, LookupError, OverflowError, TypeError, ValueError) as error:
            raise ChainUnreachable(url=self.url) from error

    async def number(self, method: str, *params: Any) -> int:
        """One request whose answer is a number. Raises as `call` does."""
        answer = await self.call(method, *params)
        with self.reading():
            return quantity(answer)

    async def data(self, method: str, *params: Any) -> bytes:
        """One request whose answer is bytes. Raises as `call` does."""
        answer = await self.call(method, *params)
        with self.reading():
            return bytes.fromhex(answer.removeprefix("0x"))

    async def close(self) -> None:
        """Close the connections. Never raises."""
        for node in self._nodes:
            with contextlib.suppress(Exception):
                await node.disconnect()


def quantity(answer: Any) -> int:
    """A number as nodes write it, in hex. Raises `TypeError` and `ValueError`, for `Rpc.reading`."""
    value = int(answer, 16)
    if value < 0:
        raise ValueError(answer)
    return value


def _refused(error: Any) -> RpcRefused:
    if not isinstance(error, dict):
        return RpcRefused(0, str(error), b"")
    data = error.get("data")
    if isinstance(data, dict):  # some nodes wrap it
        data = data.get("data")
    try:
        raw = bytes.fromhex(data.removeprefix("0x")) if isinstance(data, str) else b""
    except ValueError:
        raw = b""
    code = error.get("code")
    return RpcRefused(code if isinstance(code, int) else 0, str(error.get("message", "")), raw)
