"""A consumer's end written from docs/protocol.md alone: what it says is enough to attach, be answered, and pay.

Nothing of our own tunnel, frames or words is imported here, and no JSON is built by anything but `json`. The provider's end
is the real agent with a lease that is open already; in place of a kernel something on its channels answers.
"""

from __future__ import annotations

import ast
import base64
import json
import struct
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import anyio
import coincurve
from Crypto.Hash import keccak

from tests.consumer.world import world

__all__ = ["world"]

LEASE, PAYMENT, CONTROL, STDIN, SHELL, IOPUB = range(6)


def keccak256(data: bytes) -> bytes:
    return keccak.new(digest_bits=256, data=data).digest()


class Other:
    """Section by section: 2 (encodings), 3 (handshake), 4 (streams), 5 (frames), 6 (control words)."""

    def __init__(self, connection, secret: bytes, chain_id: int, vault: bytes) -> None:
        self.connection, self.key = connection, coincurve.PrivateKey(secret)
        self.chain_id, self.vault = chain_id, vault
        self.taken = [0] * 6
        self.sent = [0] * 6
        self.buffer = b""

    # -- 2. and 3.

    async def say(self, **word: object) -> None:
        body = json.dumps(word).encode()
        await self.control.write(len(body).to_bytes(4, "big") + body)

    async def hear(self) -> dict:
        while len(self.buffer) < 4 or len(self.buffer) < 4 + int.from_bytes(self.buffer[:4], "big"):
            data = await self.control.read(4096)
            assert data, "the control stream ended"
            self.buffer += data
        end = 4 + int.from_bytes(self.buffer[:4], "big")
        word, self.buffer = json.loads(self.buffer[4:end]), self.buffer[end:]
        return word

    def signed(self, kind: str, *members: bytes) -> str:
        """10.: the EIP-712 digest of static members, signed."""
        domain = keccak256(
            keccak256(b"EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)")
            + keccak256(b"jupyter-depin SessionVault") + keccak256(b"1")
            + self.chain_id.to_bytes(32, "big") + self.vault.rjust(32, b"\0")
        )  # fmt: skip
        struct_hash = keccak256(keccak256(kind.encode()) + b"".join(m.rjust(32, b"\0") for m in members))
        signature = self.key.sign_recoverable(keccak256(b"\x19\x01" + domain + struct_hash), hasher=None)
        return base64.b64encode(signature[:64] + bytes([signature[64] + 27])).decode()

    async def attach(self, channel_id: bytes, node: bytes) -> None:
        self.control = await self.connection.open_stream()
        await self.say(type="ask-offers", version=2)
        assert (await self.hear())["type"] == "offers"
        signature = self.signed("Attach(bytes32 channelId,bytes32 node)", channel_id, node)
        await self.say(
            type="attach", channel_id=base64.b64encode(channel_id).decode(), signature=signature,
            memory=base64.b64encode(bytes(range(16))).decode(),
        )  # fmt: skip
        assert await self.hear() == {"type": "attached"}

    # -- 4. to 6.

    async def open(self) -> None:
        await self.say(type="resume", received={})
        self.lanes = []
        for lane in range(6):
            self.lanes.append(await self.connection.open_stream())
            await self.lanes[lane].write(bytes([lane]))
        assert (await self.hear())["type"] == "resume"

    async def send(self, lane: int, *parts: bytes) -> None:
        head = struct.pack(">QH", self.sent[lane], len(parts)) + b"".join(
            struct.pack(">I", len(p)) for p in parts
        )
        self.sent[lane] += 1
        await self.lanes[lane].write(head + b"".join(parts))

    async def messages(self, lane: int) -> AsyncIterator[Sequence[bytes]]:
        data = b""

        async def exactly(count: int) -> bytes:
            nonlocal data
            while len(data) < count:
                piece = await self.lanes[lane].read(1 << 16)
                assert piece, "the lane ended"
                data += piece
            taken, data = data[:count], data[count:]
            return taken

        while True:
            seq, count = struct.unpack(">QH", await exactly(10))
            assert seq == self.taken[lane], "plain frames, in order"
            lengths = struct.unpack(f">{count}I", await exactly(4 * count))
            parts = [await exactly(length) for length in lengths]
            self.taken[lane] += 1
            await self.say(type="ack", received={str(lane): self.taken[lane]})
            yield parts

    async def word(self, lane: int) -> dict:
        async for (part,) in self.messages(lane):
            return json.loads(part)
        raise AssertionError


async def test_what_the_document_says_is_enough(world):
    async with world() as w:
        agent = await w.start_agent()
        # The money's way is another matter: the lease was opened, and its voucher key is known.
        opened = await w.open()
        await opened.link[0].close()
        connection = await w.endpoint.connect(agent.ticket.address)
        asset = opened.offer.asset
        other = Other(connection, opened.key.secret, asset.chain_id, asset.vault)
        with anyio.fail_after(3600):
            await other.attach(opened.channel_id, w.endpoint.node)
            await other.open()
            key = base64.b64encode(b"secret").decode()
            order = {"type": "launch", "epoch": 1, "key": key, "signature_scheme": "hmac-sha256"}
            await other.send(LEASE, json.dumps(order).encode())
            assert await other.word(LEASE) == {"type": "launched", "epoch": 1}
            # A kernel that says back what it is asked, behind the client's identity.
            (tenancy,) = agent._tenancies.values()
            asked = []

            class Channels:
                def deliver(self, lane, parts):
                    asked.append([bytes(part) for part in parts])
                    tenancy.driver.send(lane, *parts[:1], b"<IDS|MSG>", b"sig", b"execute_reply")
                    tenancy.driver.send(type(lane).IOPUB, b"stream.stdout", b"<IDS|MSG>", b"sig", b"hello")

                def pending(self):
                    return False

                def close(self):
                    pass

            tenancy._channels.close()
            tenancy._channels = Channels()
            request = [b"client", b"<IDS|MSG>", b"sig", b"execute_request", b"", b"{}", b"{}"]
            await other.send(SHELL, (1).to_bytes(4, "big"), *request)
            async for reply in other.messages(SHELL):
                assert reply == [b"client", b"<IDS|MSG>", b"sig", b"execute_reply"]
                break
            async for output in other.messages(IOPUB):
                assert output == [b"stream.stdout", b"<IDS|MSG>", b"sig", b"hello"]
                break
            assert asked == [request]
            await w.clock.turns()
            assert tenancy.driver.tunnel.held == 0, "all of it is acknowledged"
            # It is asked and answers; it pays, and is told so.
            await other.say(type="ping", nonce=1)
            while (word := await other.hear())["type"] != "pong":
                assert word["type"] == "ack"
            assert word["nonce"] == 1
            await w.clock.wait(5)
            claim = await other.word(PAYMENT)
            assert claim["type"] == "served"
            amount = opened.offer.rate * claim["served_ns"] // 3_600_000_000_000
            signature = other.signed(
                "Voucher(bytes32 channelId,uint128 maxClaimableAmount)",
                opened.channel_id,
                amount.to_bytes(16, "big"),
            )
            await other.send(
                PAYMENT, json.dumps({"type": "voucher", "amount": amount, "signature": signature}).encode()
            )
            assert await other.word(PAYMENT) == {"type": "taken", "amount": amount}
            assert tenancy.driver.attached
            assert amount == 5000


def test_nothing_of_our_own_end_is_used_here():
    tree = ast.parse(Path(__file__).read_text("utf-8"))
    used = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    used |= {each.name for node in ast.walk(tree) if isinstance(node, ast.Import) for each in node.names}
    assert not {name for name in used if name and name.startswith(("jupyter_depin", "provider_kernel"))}
