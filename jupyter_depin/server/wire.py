"""What crosses to the browser: rentals as JSON, errors as code and facts. Amounts are decimal strings.

JavaScript's numbers are exact to 2^53 only, so everything that counts money or nanoseconds crosses as text.
"""

from __future__ import annotations

import time
from typing import Any

from jupyter_depin.errors import (
    ConfigError,
    DepinError,
    LeaseError,
    PaymentError,
    ProtocolError,
    RentalNotFound,
    SandboxError,
    TransportError,
    UnknownLease,
)
from jupyter_depin.protocol.status import RentalStatus

HTTP_STATUS: dict[type[DepinError], int] = {
    RentalNotFound: 404,
    UnknownLease: 404,
    LeaseError: 409,
    PaymentError: 402,
    TransportError: 503,
    ProtocolError: 502,
    SandboxError: 502,
    ConfigError: 500,
    DepinError: 500,
}
"""The nearest class decides; a retryable payment error is 503, for nothing is owed, only late."""


def http_status(error: DepinError) -> int:
    """The HTTP status that fits `error`. Called by the handlers."""
    if isinstance(error, PaymentError) and error.retryable:
        return 503
    return next(HTTP_STATUS[kind] for kind in type(error).__mro__ if kind in HTTP_STATUS)


def error_to_json(error: DepinError) -> dict[str, Any]:
    """An error as `{code, message, facts, retryable}`. The front end writes its own sentence where it knows the code."""
    return {
        "code": error.code,
        "message": str(error),
        "facts": error.facts,
        "retryable": error.retryable,
    }


def status_to_json(status: RentalStatus) -> dict[str, Any]:
    """A rental as the REST replies and the events carry it. `state_age_s` is counted on the server's clock."""
    age = None if status.since is None else max(0.0, time.time() - status.since)
    return {
        "id": status.id,
        "kernel_id": status.kernel_id,
        "state": status.state,
        "state_age_s": age,
        "reason": None
        if status.reason is None
        else {"code": status.reason[0], "facts": dict(status.reason[1])},
        "provider": status.provider,
        "node": status.node,
        "title": status.title,
        "rate_per_hour": str(status.rate_per_hour),
        "symbol": status.symbol,
        "decimals": status.decimals,
        "served_ns": str(status.served_ns),
        "spent": str(status.spent),
        "cap": str(status.cap),
        "bytes_up": status.bytes_up,
        "bytes_down": status.bytes_down,
        "spared": status.spared,
        "saving": status.saving,
        "rtt_ms": status.rtt_ms,
        "relayed": status.relayed,
        "via": status.via,
        "receipt": None
        if status.receipt is None
        else {name: value if value is None else str(value) for name, value in status.receipt.items()},
    }
