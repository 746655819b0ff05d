"""Keeps one rental's tunnel on a connection: attaches it, and dials again when it is cut or doubtful.

QUIC comes back from an outage when its doubled wait is over, which may be a minute after the network did. So while a
connection is doubtful others are dialled beside it, one every half second, and the first that attaches takes over: on
both sides the newest connection carries the tunnel, and the tunnel knows what the other side lacks. If the old one is
heard first, those dials are given up. While there is no connection at all the pace stays the same: whoever waits for
ten minutes expects to go on at once when the network is back. A dial's first packet goes out when it begins, its next
ones a second and three seconds later; so the age of the newest dial, and no wait of QUIC's, decides how soon after
the mending one gets through. That holds for a long way too: the first dial that is answered ends the others.

What an hour of that costs (measured on loopback; 7200 dials): half a minute of one core, and up to 54 MB where the packets
leave the machine, that is, where not this end of the network is down but the other. So after a quarter of an hour a
lease for which nobody waits is dialled every five seconds: three seconds of one core and up to 5.4 MB an hour. An
order of the user's, or a machine that wakes, brings the quick pace back.

A cut is no end: only the provider's refusal to go on with the lease ends the keeping. How long a tunnel may stay
without a connection is the lease's affair, and the tunnel's own clock knows it.

Rejected: one dial after the other (each may hang for seconds after the network is back), ending the doubtful connection
first (on a slow link the answer is under way), longer and longer pauses between the dials, dials as far apart as a round
trip is long (on a long way that alone took longer than a second).
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable

import anyio

from jupyter_depin.consumer.opening import OpenedLease
from jupyter_depin.drivers.clock import steady_ns
from jupyter_depin.drivers.handshake import hear
from jupyter_depin.drivers.tunnel import TunnelDriver
from jupyter_depin.errors import ConnectionLost, DepinError, RemoteProtocolError, TransportError
from jupyter_depin.protocol.frames import Lane, encode_message
from jupyter_depin.protocol.messages import Attached
from jupyter_depin.protocol.money import NS_PER_SECOND
from jupyter_depin.transport import Connection, Endpoint, Stream
from jupyter_depin.tunnel.events import Doubtful, Event, Heard
from jupyter_depin.tunnel.pulse import LATE_NS

log = logging.getLogger(__name__)

_DIAL_S = 4.0
_ATTACH_S = 4.0
_PACE_NS = NS_PER_SECOND // 2
"""The time between two dials."""
_IDLE_PACE_NS = 5 * NS_PER_SECOND
"""The same after a long outage, while nobody waits."""
_LONG_NS = 900 * NS_PER_SECOND
"""So long an outage is a long one."""


class Link:
    """The way to the provider of one lease. Made by its rental, which passes the tunnel's events on to `notice`.

    `on_cut` is called whenever there is no connection any more. `cut_ns`: when the last one ended (steady clock).
    `reached`: whether the provider ever attached this process to the lease.
    """

    def __init__(
        self, opened: OpenedLease, endpoint: Endpoint, driver: TunnelDriver, *, on_cut: Callable[[], None]
    ) -> None:
        self._opened, self._endpoint, self._driver = opened, endpoint, driver
        self._on_cut = on_cut
        # This process's knowledge of the tunnel begins with this object; a later one's is another.
        self._memory = secrets.token_bytes(16)
        self._carrying: Connection | None = None
        self._doubted = False
        self._dials: set[anyio.CancelScope] = set()
        self._refusal: DepinError | None = None
        self._news = anyio.Event()
        self._down_ns = steady_ns()
        self.cut_ns = 0
        self.reached = False

    def notice(self, event: Event) -> None:
        """An event of the tunnel. Called by the rental."""
        if isinstance(event, Doubtful):
            self._doubted = True
            self._tell()
        elif isinstance(event, Heard):
            self._trust()

    def came(self) -> int | None:
        """The bytes that came over the link so far, or None while there is none."""
        return self._driver.bytes_down if self._driver.connection is not None else None

    async def keep(self) -> DepinError:
        """Dial and carry until the provider refuses the lease; returns why it does. Run by the rental."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._attempt, self._opened.link)
            dialled = steady_ns()
            while self._refusal is None:
                wait = dialled + self._pace_ns - steady_ns()
                if self._carrying is not None and not self._doubted:
                    await self._news.wait()
                elif wait > 0:
                    await self._rest(min(wait, _PACE_NS))
                else:
                    tasks.start_soon(self._attempt, None)
                    dialled = steady_ns()
            tasks.cancel_scope.cancel()
        assert self._refusal is not None
        return self._refusal

    @property
    def _pace_ns(self) -> int:
        """The time from the last dial to the next one, as things stand."""
        if self._carrying is not None or steady_ns() - self._down_ns < _LONG_NS:
            return _PACE_NS
        tunnel = self._driver.tunnel
        # The meter speaks by itself; any other word that is not answered means that somebody waits.
        waited_for = any(not tunnel.drained(lane) for lane in Lane if lane is not Lane.PAYMENT)
        return _PACE_NS if waited_for else _IDLE_PACE_NS

    async def _rest(self, wait_ns: int) -> None:
        """Wait for news, but not for long: somebody may begin to wait for an answer, which is no news here."""
        until = steady_ns() + wait_ns
        with anyio.move_on_after(wait_ns / NS_PER_SECOND):
            await self._news.wait()
        if steady_ns() - until > LATE_NS:
            # The machine slept, and whoever woke it is about to work.
            self._down_ns = steady_ns()

    async def _attempt(self, ready: tuple[Connection, Stream] | None) -> None:
        try:
            link = ready or await self._dialled()
            if link is None:
                return
            connection, control = link
            try:
                # The tunnel's greeting follows at once: to wait for the answer first would cost a round trip.
                request = self._opened.attach(self._endpoint.node, memory=self._memory)
                await control.write(encode_message(request))
                await self._carry(connection, control)
            finally:
                with anyio.CancelScope(shield=True):
                    await connection.close("done")
        except (TransportError, RemoteProtocolError, TimeoutError) as error:
            log.debug("rental=%s no link: %s", self._opened.channel_id.hex(), error)

    async def _admitted(self, control: Stream) -> None:
        """Wait for the provider's word that it carries the lease. Raises what ends this connection."""
        try:
            with anyio.fail_after(_ATTACH_S):
                await hear(control, Attached)
        except TimeoutError as error:
            raise ConnectionLost(detail="the provider does not answer") from error
        except (TransportError, RemoteProtocolError):
            raise
        except DepinError as error:
            # Whatever it calls its refusal, it does not carry this lease any more.
            log.warning("rental=%s %s", self._opened.channel_id.hex(), error)
            self._refusal = error
            raise
        self.reached = True

    async def _dialled(self) -> tuple[Connection, Stream] | None:
        """A new connection and its control stream; None when it was given up. Raises why there is none."""
        with anyio.CancelScope() as scope:
            self._dials.add(scope)
            try:
                with anyio.fail_after(_DIAL_S):
                    connection = await self._endpoint.connect(self._opened.address)
                    try:
                        return connection, await connection.open_stream()
                    except BaseException:
                        with anyio.CancelScope(shield=True):
                            await connection.close("no stream")
                        raise
            finally:
                self._dials.discard(scope)
        return None

    async def _carry(self, connection: Connection, control: Stream) -> None:
        self._carrying = connection
        self._trust()
        reason = await self._driver.carry(connection, control, admitted=self._admitted)
        log.info("rental=%s link ended: %s", self._opened.channel_id.hex(), reason)
        self.cut_ns = self._down_ns = steady_ns()
        if self._carrying is connection:
            self._carrying, self._doubted = None, False
            self._on_cut()
            self._tell()

    def _trust(self) -> None:
        """The present connection is a good one: give up those that are being dialled beside it."""
        self._doubted = False
        for scope in self._dials:
            scope.cancel()

    def _tell(self) -> None:
        self._news.set()
        self._news = anyio.Event()
