"""The REST interface under `<base_url>jupyter-depin/api/`. Every verb is authenticated and authorized.

    GET  rentals              {"rentals": [rental, …]}
    GET  rentals/<id>         rental
    POST rentals/<id>/settle  rental, ended, with its receipt

A `DepinError` becomes an HTTP status and `{code, message, facts, retryable}`; no traceback ever leaves the server.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, cast

from jupyter_server.auth.decorator import authorized
from jupyter_server.base.handlers import APIHandler
from tornado import web

from jupyter_depin.errors import DepinError, RentalNotFound
from jupyter_depin.server.wire import error_to_json, http_status, status_to_json

if TYPE_CHECKING:
    from jupyter_depin.server.extension import DepinExtension


class DepinHandler(APIHandler):
    """What the handlers share: the resource to authorize, the extension, and how errors are told."""

    auth_resource = "depin"

    def initialize(self, extension: DepinExtension) -> None:
        """Take the extension from the route. Called by Tornado before each request."""
        self.extension = extension

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Tell a `DepinError` with its own status, and anything else as Jupyter Server tells it."""
        error = kwargs.get("exc_info", (None, None))[1]
        if not isinstance(error, DepinError):
            super().write_error(status_code, **kwargs)
            return
        self.set_status(http_status(error))
        self.finish(json.dumps(error_to_json(error)))

    def log_exception(self, *exc_info: Any) -> None:
        """Log a `DepinError` as one line: it is an answer, not a fault of the server."""
        if isinstance(exc_info[1], DepinError):
            self.log.info("jupyter-depin: %s", exc_info[1])
        else:
            super().log_exception(*exc_info)


class RentalsHandler(DepinHandler):
    """All rentals of this server's kernels."""

    # Front ends ask by themselves, so asking is no sign that anybody is there: idle servers must be found idle.
    _track_activity = False

    @web.authenticated
    @authorized
    def get(self) -> None:
        """List the rentals. Called by the front end when it loads or comes back."""
        rentals = self.extension.rentals().snapshot()
        self.finish(json.dumps({"rentals": [status_to_json(status) for status in rentals]}))


class RentalHandler(DepinHandler):
    """One rental."""

    @web.authenticated
    @authorized
    def get(self, rental_id: str) -> None:
        """Show one rental. Raises `RentalNotFound`."""
        for status in self.extension.rentals().snapshot():
            if status.id == rental_id:
                self.finish(json.dumps(status_to_json(status)))
                return
        raise RentalNotFound(rental=rental_id)


class SettleHandler(DepinHandler):
    """The end of one rental."""

    @web.authenticated
    @authorized
    async def post(self, rental_id: str) -> None:
        """Stop and settle. Called by the front end after the user confirmed it."""
        status = await self.extension.rentals().settle(rental_id)
        self.finish(json.dumps(status_to_json(status)))


def routes(extension: DepinExtension) -> list[tuple[str, type[DepinHandler], dict[str, Any]]]:
    """All routes, below the server's base URL. Called by the extension when it is loaded."""
    given = {"extension": extension}
    api = r"/jupyter-depin/api/rentals"
    return cast(
        "list[tuple[str, type[DepinHandler], dict[str, Any]]]",
        [
            (api, RentalsHandler, given),
            (api + r"/([^/]+)", RentalHandler, given),
            (api + r"/([^/]+)/settle", SettleHandler, given),
        ],
    )
