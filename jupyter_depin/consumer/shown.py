"""What people see of a rental, drawn from its parts: codes and figures, no sentences."""

from __future__ import annotations

import logging

from jupyter_depin.consumer.opening import OpenedLease
from jupyter_depin.drivers.meter import PayerDriver
from jupyter_depin.drivers.tunnel import TunnelDriver
from jupyter_depin.errors import DepinError
from jupyter_depin.journal import Journal
from jupyter_depin.lifecycle import Lifecycle
from jupyter_depin.protocol.identity import checksummed
from jupyter_depin.protocol.receipt import Receipt
from jupyter_depin.protocol.status import RentalStatus, settled

log = logging.getLogger(__name__)

_MB = 10**6


class PathNote:
    """Writes down how a rental's provider is reached and what went that way, for `jupyter depin rentals`.

    A change of the way is written, and each megabyte, not every round trip.
    """

    def __init__(self, channel_id: bytes, journal: Journal) -> None:
        self._channel_id, self._journal = channel_id, journal
        self._noted: tuple[object, ...] = ()

    def take(self, driver: TunnelDriver) -> None:
        """Look at the way. Called by the rental on every change. Never raises."""
        path = driver.connection.path() if driver.connection is not None else None
        if path is None:
            return
        up, down = driver.bytes_up, driver.bytes_down
        whole = up + down + driver.spared
        noted = (path.relayed, path.remote, driver.spares, whole // _MB)
        if self._noted == noted:
            return
        self._noted = noted
        way = "through the relay" if path.relayed else "direct to"
        note = f"{way} {path.remote}, {path.rtt_ms:.0f} ms, {up / _MB:.1f} MB up, {down / _MB:.1f} MB down"
        if driver.spares or driver.spared:
            saving = "saving data" if driver.spares else "saved data"
            note += f", {saving}: {100 * driver.spared // max(1, whole)} % spared"
        try:
            self._journal.save_path(self._channel_id, note)
        except DepinError as error:
            log.info("rental=%s the path was not written down: %s", self._channel_id.hex(), error)


def shown(
    opened: OpenedLease,
    lifecycle: Lifecycle,
    meter: PayerDriver,
    driver: TunnelDriver,
    *,
    kernel_id: str,
    since_ns: int,
    unpaid: str,
    receipt: Receipt | None,
    failure: DepinError | None,
) -> RentalStatus:
    """One rental's status. Called by the rental on every change.

    `unpaid`: why the kernel is paused ("arrears", or what was wrong with the last voucher), or nothing; `failure`: why
    it is not settled yet.
    """
    offer = opened.offer
    path = driver.connection.path() if driver.connection is not None else None
    reason: tuple[str, dict[str, str]] | None = None
    if lifecycle.reason:
        reason = (lifecycle.reason.value, {"pending": str(failure)} if failure is not None else {})
    elif unpaid:
        reason = ("arrears", {}) if unpaid == "arrears" else ("VoucherRefused", {"reason": unpaid})
    return RentalStatus(
        id=opened.channel_id.hex(),
        kernel_id=kernel_id,
        state=lifecycle.state.value,
        reason=reason,
        provider=checksummed(offer.provider),
        node=offer.node.hex(),
        title=offer.title,
        rate_per_hour=offer.rate,
        symbol=offer.asset.symbol,
        decimals=offer.asset.decimals,
        served_ns=meter.served_ns,
        spent=meter.paid,
        cap=opened.deposit,
        bytes_up=driver.bytes_up,
        bytes_down=driver.bytes_down,
        spared=driver.spared,
        saving=driver.spares,
        rtt_ms=path.rtt_ms if path else None,
        relayed=path.relayed if path else None,
        via=path.remote if path else None,
        receipt=None if receipt is None else settled(receipt),
        since=since_ns / 1e9,
    )
