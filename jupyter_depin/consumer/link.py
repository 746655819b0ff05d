"""Keeps one rental's tunnel on a connection: attaches it, and dials again whenever it is cut.

A cut is no end: only the provider's refusal to go on with the lease ends the keeping. How long a tunnel may stay
without a connection is the lease's affair, and the tunnel's own clock knows it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import anyio

from jupyter_depin.consumer.opening import OpenedLease
from jupyter_depin.drivers.clock import steady_ns
from jupyter_depin.drivers.handshake import ask
from jupyter_depin.drivers.tunnel import TunnelDriver
from jupyter_depin.errors import DepinError, RemoteProtocolError, TransportError
from jupyter_depin.protocol.messages import Attached
from jupyter_depin.transport import Endpoint, Stream

log = logging.getLogger(__name__)

_DIAL_S = 4.0
_REDIAL_S = (0.05, 0.2, 0.5, 1.0, 2.0)


class Link:
    """The way to the provider of one lease. Made by its rental.

    `fresh`: this process knows nothing of what the tunnel carried before. `on_cut` is called whenever there is no
    connection.
    """

    def __init__(
        self,
        opened: OpenedLease,
        endpoint: Endpoint,
        driver: TunnelDriver,
        *,
        fresh: bool,
        on_cut: Callable[[], None],
    ) -> None:
        self._opened, self._endpoint, self._driver = opened, endpoint, driver
        self._fresh, self._on_cut = fresh, on_cut
        self.cut_ns = 0

    @property
    def reached(self) -> bool:
        """Whether the provider ever attached this process to the lease."""
        return not self._fresh

    async def keep(self) -> DepinError:
        """Dial and carry until the provider refuses the lease; returns why it does. Run by the rental."""
        attempt = 0
        first = self._opened.link
        control: Stream | None
        while True:
            try:
                if first is not None:
                    (connection, control), first = first, None
                else:
                    with anyio.fail_after(_DIAL_S):
                        connection, control = await self._endpoint.connect(self._opened.address), None
                try:
                    with anyio.fail_after(_DIAL_S):
                        control = control or await connection.open_stream()
                        await ask(
                            control, self._opened.attach(self._endpoint.node, fresh=self._fresh), Attached
                        )
                    self._fresh, attempt = False, 0
                    reason = await self._driver.carry(connection, control)
                    self.cut_ns = steady_ns()
                    log.info("rental=%s link ended: %s", self._opened.channel_id.hex(), reason)
                finally:
                    with anyio.CancelScope(shield=True):
                        await connection.close("done")
            except (TransportError, RemoteProtocolError, TimeoutError) as error:
                log.debug("rental=%s no link: %s", self._opened.channel_id.hex(), error)
            except DepinError as error:
                # Whatever it calls its refusal, it does not carry this lease any more.
                log.warning("rental=%s %s", self._opened.channel_id.hex(), error)
                return error
            self._on_cut()
            await anyio.sleep(_REDIAL_S[min(attempt, len(_REDIAL_S) - 1)])
            attempt += 1
