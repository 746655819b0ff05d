"""The renter's last steps: a receipt that the ledger confirms, or the reason why there is none yet."""

from __future__ import annotations

import logging

import anyio

from jupyter_depin.chain import Ledger
from jupyter_depin.drivers.settlement import confirm
from jupyter_depin.errors import DepinError, LeaseEnded, SettlementPending
from jupyter_depin.journal import Journal
from jupyter_depin.lifecycle import EndReason, Lifecycle
from jupyter_depin.protocol.reason import SENTENCES
from jupyter_depin.protocol.receipt import Receipt

log = logging.getLogger(__name__)

_LOOK_AGAIN_S = 0.5

QUIET = frozenset({EndReason.STOPPED_BY_USER, EndReason.KERNEL_SHUTDOWN})
"""Ends that the user knows of: nothing is said about them in a cell's output."""


async def confirmed(channel_id: bytes, ledger: Ledger, journal: Journal, *, patient: bool) -> Receipt:
    """The receipt. Called by the rental, which gives up after a while; `patient`: the provider is about to collect.

    Raises what `confirm` raises; `SettlementPending` only where there is nothing to wait for.
    """
    while True:
        try:
            return await confirm(channel_id, ledger=ledger, journal=journal)
        except SettlementPending:
            if not patient:
                raise
        await anyio.sleep(_LOOK_AGAIN_S)


def why_pending(channel_id: bytes, error: Exception) -> DepinError:
    """What the user is told of a settlement that failed. An error that nobody foresaw goes to the log."""
    if isinstance(error, DepinError):
        log.warning("rental=%s is not settled yet: %s", channel_id.hex(), error)
        return error
    log.error("rental=%s is not settled yet", channel_id.hex(), exc_info=error)
    return SettlementPending(reason="of an unexpected error, which is in the log")


def ended_error(lifecycle: Lifecycle) -> LeaseEnded:
    """What whoever still waits for a rental that is over is told."""
    return LeaseEnded(reason=SENTENCES[lifecycle.reason or EndReason.STOPPED_BY_USER])
