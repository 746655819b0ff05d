"""The server's side of the CURVE mechanism (RFC 25 and 26: ZMTP-CURVE, CurveZMQ), without I/O: bodies of frames in and out.

Names are the RFC's: S and C are the long-term keys of server and client, S' and C' those of one connection, s and s'
the secret halves. As with libzmq where no ZAP handler runs, whoever knows S may in, under any C; its vouch is checked.

Stricter than libzmq where the RFC is: the zeros of HELLO are looked at, a vouch must name S, INITIATE's nonce must be
above HELLO's, and reserved flags are refused. Between HELLO and INITIATE nothing is kept of the client's but its nonce;
s' is in the cookie alone.

Rejected: PyNaCl's `Box` (a layer of checks and classes around the same calls), and for messages its functions in NaCl's
own form, which pad and copy: a third more time for a megabyte.
"""

from __future__ import annotations

import struct
from secrets import token_bytes

from nacl import bindings as sodium
from nacl.exceptions import CryptoError
from zmq.utils import z85

from jupyter_depin.errors import LocalProtocolError, RemoteProtocolError
from jupyter_depin.protocol.frames import Part

_HELLO, _WELCOME, _INITIATE, _READY = b"\x05HELLO", b"\x07WELCOME", b"\x08INITIATE", b"\x05READY"
_MESSAGE = b"\x07MESSAGE"
_HELLO_BODY = struct.Struct("2s 72s 32s 8s 80s")
"""Version, padding, C', short nonce, box of zeros (C' → S)."""
_INITIATE_HEAD = struct.Struct("16s 80s 8s")
"""The cookie's nonce and box, short nonce; behind them the box of C, vouch and metadata (C' → S')."""
_VOUCH = struct.Struct("32s 16s 80s")
"""C, the vouch's nonce, and its box of C' and S (C → S')."""
_MAC, _HEAD = 16, 16
"""Bytes in front of what is in a box, and bytes of a MESSAGE in front of its box."""
_FLAGS = 0b11


def _raw(key: bytes) -> bytes:
    try:
        raw = z85.decode(key) if len(key) == 40 else key
    except (KeyError, struct.error):
        raw = b""
    if len(raw) != 32:
        raise ValueError("a CURVE key is 40 characters of Z85, or 32 bytes")
    return raw


class CurveServer:
    """One client's connection: `take` until `ready`, then `box` and `open`. Close the connection after any error.

    `public` and `secret` are S and s, as Z85 (a connection file's form) or raw. Raises `ValueError` if they are neither.
    """

    NAME = b"CURVE"
    """The mechanism's name in the greeting."""
    ready: bool
    """The handshake is over."""

    def __init__(self, public: bytes, secret: bytes) -> None:
        self._public, self._secret = _raw(public), _raw(secret)
        self._expected = _HELLO
        self._cookie_key = self._key = b""
        self._said, self._heard = 0, -1
        self.ready = False

    def take(self, command: bytes, metadata: bytes) -> tuple[bytes, bytes | None]:
        """Answer the body of a command frame of the handshake; called by the connection until `ready`.

        HELLO gives a WELCOME; INITIATE gives a READY with our `metadata`, and the client's own, still encoded. Raises
        `RemoteProtocolError` for all that is not right, and from then on for everything.
        """
        expected, self._expected = self._expected, b""
        if not expected or not command.startswith(expected):
            raise RemoteProtocolError(detail=f"an unexpected CURVE command, {command[:9]!r}")
        try:
            if expected == _HELLO:
                welcome = self._greeted(command)
                self._expected = _INITIATE
                return welcome, None
            theirs = self._initiated(command)
        except (CryptoError, struct.error) as error:  # PyNaCl's errors about sizes are CryptoErrors, too
            raise RemoteProtocolError(detail=f"a wrong CURVE {expected[1:].decode()} ({error})") from error
        self.ready = True
        nonce = self._next_nonce()
        box = sodium.crypto_box_easy_afternm(metadata, b"CurveZMQREADY---" + nonce, self._key)
        return _READY + nonce + box, theirs

    def box(self, flags: int, part: Part) -> bytes:
        """The body of the frame that carries `part`; `flags`: 1 more parts follow, 2 a command. Called for every part.

        They are told inside the box only: libzmq reads the frame's own as well, so that must have neither.
        """
        if not self.ready:
            raise LocalProtocolError(detail="a message before the end of CURVE's handshake")
        nonce = self._next_nonce()
        plain = b"".join((bytes((flags,)), part))
        return b"".join(
            (_MESSAGE, nonce, sodium.crypto_box_easy_afternm(plain, b"CurveZMQMESSAGES" + nonce, self._key))
        )

    def open(self, body: Part) -> tuple[int, bytes]:
        """The flags and the part in a frame's body. Called for every frame once `ready`. Raises `RemoteProtocolError`."""
        view = memoryview(body)
        if not self.ready or len(view) <= _HEAD + _MAC or view[: len(_MESSAGE)] != _MESSAGE:
            raise RemoteProtocolError(detail="a frame that is no CURVE message")
        nonce = bytes(view[len(_MESSAGE) : _HEAD])
        number = self._newer(nonce)
        try:
            plain = sodium.crypto_box_open_easy_afternm(
                bytes(view[_HEAD:]), b"CurveZMQMESSAGEC" + nonce, self._key
            )
        except CryptoError as error:
            raise RemoteProtocolError(detail="a CURVE message under a wrong key") from error
        if plain[0] > _FLAGS:
            raise RemoteProtocolError(detail=f"a CURVE message with flags {plain[0]}")
        self._heard = number
        return plain[0], plain[1:]

    def _greeted(self, hello: bytes) -> bytes:
        version, padding, client, nonce, box = _HELLO_BODY.unpack(hello[len(_HELLO) :])
        if version != b"\1\0" or any(padding):
            raise RemoteProtocolError(detail="a CURVE HELLO of an unknown version")
        key = sodium.crypto_box_beforenm(client, self._secret)
        if any(sodium.crypto_box_open_easy_afternm(box, b"CurveZMQHELLO---" + nonce, key)):
            raise RemoteProtocolError(detail="a CURVE HELLO that signs something else")
        self._heard = self._newer(nonce)
        public, secret = sodium.crypto_box_keypair()
        self._cookie_key, sealed = token_bytes(32), token_bytes(16)
        cookie = sealed + sodium.crypto_secretbox(client + secret, b"COOKIE--" + sealed, self._cookie_key)
        long_nonce = token_bytes(16)
        welcome = sodium.crypto_box_easy_afternm(public + cookie, b"WELCOME-" + long_nonce, key)
        return _WELCOME + long_nonce + welcome

    def _initiated(self, initiate: bytes) -> bytes:
        """Set the connection's key, and return the client's metadata."""
        at = len(_INITIATE) + _INITIATE_HEAD.size
        sealed, cookie, nonce = _INITIATE_HEAD.unpack_from(initiate, len(_INITIATE))
        opened = sodium.crypto_secretbox_open(cookie, b"COOKIE--" + sealed, self._cookie_key)
        client, secret = opened[:32], opened[32:]
        self._cookie_key = b""
        number = self._newer(nonce)
        self._key = sodium.crypto_box_beforenm(client, secret)
        plain = sodium.crypto_box_open_easy_afternm(initiate[at:], b"CurveZMQINITIATE" + nonce, self._key)
        who, long_nonce, vouch = _VOUCH.unpack_from(plain)
        # Only C's owner can have made this box, for this connection and no other server's.
        if sodium.crypto_box_open(vouch, b"VOUCH---" + long_nonce, who, secret) != client + self._public:
            raise RemoteProtocolError(detail="a CURVE INITIATE whose vouch is for something else")
        self._heard = number
        return plain[_VOUCH.size :]

    def _newer(self, nonce: bytes) -> int:
        """A short nonce as a number. Raises `RemoteProtocolError` if it is not above all before it."""
        number = int.from_bytes(nonce, "big")
        if number <= self._heard:
            raise RemoteProtocolError(detail="a CURVE command that was sent before")
        return number

    def _next_nonce(self) -> bytes:
        self._said += 1
        return self._said.to_bytes(8, "big")
