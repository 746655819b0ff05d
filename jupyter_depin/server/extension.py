"""The extension's application: routes, the event schema, and the crossing from the consumer's thread.

Statuses reach the browser as Jupyter events (`/api/events/subscribe`), the stream it holds open anyway. Rejected: a
websocket of our own, and polling, which would show a meter that is late by its period.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jupyter_events import EventLogger
from jupyter_server.extension.application import ExtensionApp
from jupyter_server.serverapp import ServerApp
from traitlets import Callable as CallableTrait

from jupyter_depin.protocol.status import RentalStatus
from jupyter_depin.server.handlers import routes
from jupyter_depin.server.source import Rentals, runtime_rentals
from jupyter_depin.server.taking_up import put_back
from jupyter_depin.server.wire import status_to_json

RENTAL_SCHEMA = "https://schema.jupyter-depin.org/rental/v1"
"""The event that carries a rental's full status, on every change and tick. Its schema: `events/rental.yaml`."""


class DepinExtension(ExtensionApp):
    """Shows the rentals of this server's kernels. Loaded by Jupyter Server through `etc/jupyter_depin.json`."""

    name = "jupyter_depin"

    open_rentals = CallableTrait(
        runtime_rentals,
        config=True,
        help="Returns the rentals to show. Called once, at the first request. Demos and tests give their own.",
    )

    def initialize_settings(self) -> None:
        """Register the event. Called by Jupyter Server when the extension is loaded."""
        self._rentals: Rentals | None = None
        self._unsubscribe: Callable[[], None] | None = None
        self.putting_back: asyncio.Task[None] | None = None
        self._events.register_event_schema(Path(__file__).parent / "events" / "rental.yaml")

    def initialize_handlers(self) -> None:
        """Add the routes. Called by Jupyter Server when the extension is loaded."""
        self.handlers.extend(routes(self))

    async def _start_jupyter_server_extension(self, serverapp: ServerApp) -> None:
        """Put back what an earlier server of this folder left running. Called once the server's loop runs."""
        self.putting_back = asyncio.create_task(put_back(serverapp))

    def rentals(self) -> Rentals:
        """The rentals, from the first call on also listened to. Called by the handlers, on the server's loop."""
        if self._rentals is None:
            loop = asyncio.get_running_loop()
            self._rentals = self.open_rentals()
            self._unsubscribe = self._rentals.subscribe(
                lambda status: _cross(loop, self._emit, status),
            )
        return self._rentals

    async def stop_extension(self) -> None:
        """Stop listening. Called by Jupyter Server when it shuts down; settling is the provisioner's part."""
        if self.putting_back is not None:
            self.putting_back.cancel()
        if self._unsubscribe is not None:
            self._unsubscribe()
            self._unsubscribe = None

    @property
    def _events(self) -> EventLogger:
        assert self.serverapp is not None
        assert self.serverapp.event_logger is not None
        return self.serverapp.event_logger

    def _emit(self, status: RentalStatus) -> None:
        self._events.emit(schema_id=RENTAL_SCHEMA, data=status_to_json(status))


def _cross(
    loop: asyncio.AbstractEventLoop, call: Callable[[RentalStatus], Any], status: RentalStatus
) -> None:
    """Hand a status over to the server's loop, from whatever thread the meter runs on."""
    try:
        loop.call_soon_threadsafe(call, status)
    except RuntimeError:
        # The server's loop is closed: nobody is left to watch, and the meter must not stumble over that.
        return
