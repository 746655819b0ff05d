"""Brings in what leases earned, again and again until the ledger has answered for each: also after a crash."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

import anyio

from jupyter_depin.chain import Ledger
from jupyter_depin.drivers.settlement import collect
from jupyter_depin.errors import DepinError
from jupyter_depin.journal import Journal
from jupyter_depin.keys import Wallet
from jupyter_depin.lifecycle import EndReason
from jupyter_depin.protocol.receipt import Receipt
from provider_kernel.tenancy import Tenancy

log = logging.getLogger(__name__)

_RETRY_S = (1, 5, 15, 60, 300)
"""Waits between attempts to collect while the ledger does not answer."""


class Collector:
    """The agent's cashier. `tenancies`: the agent's own, by channel id; those still serving are let be.

    `serves`: whether the agent has something to do with a lease that has not ended. One that it knows nothing of was
    left behind by a journal that failed.
    """

    def __init__(
        self,
        ledger: Ledger,
        wallet: Wallet,
        journal: Journal,
        tenancies: Mapping[bytes, Tenancy],
        serves: Callable[[bytes], bool],
    ) -> None:
        self._ledger, self._wallet, self._journal, self._tenancies = ledger, wallet, journal, tenancies
        self._serves = serves
        self._uncollected = anyio.Event()

    def wake(self) -> None:
        """Something was left behind: look soon."""
        self._uncollected.set()

    async def collect(self, channel_id: bytes) -> Receipt:
        """Collect a lease now. Called by its tenancy. Raises why it could not be; it is then tried again."""
        try:
            return await collect(channel_id, ledger=self._ledger, wallet=self._wallet, journal=self._journal)
        except Exception:
            self.wake()
            raise

    async def run(self) -> None:
        """Collect what an earlier attempt, or an earlier life of this agent, left behind. Started by the agent."""
        attempt = 0
        while True:
            try:
                for record in self._journal.open_leases("payee"):
                    if not self._serves(record.channel_id):
                        self._journal.end(
                            record.channel_id, EndReason.PROVIDER_STOPPED.value, record.served_ns
                        )
                for record in self._journal.unsettled("payee"):
                    await self._collect_later(record.channel_id)
                left = bool(self._journal.unsettled("payee"))
            except DepinError as error:
                log.warning("the journal does not say what is left to collect: %s", error)
                left = True
            if left:
                await anyio.sleep(_RETRY_S[min(attempt, len(_RETRY_S) - 1)])
                attempt += 1
            else:
                attempt = 0
                self._uncollected = anyio.Event()
                await self._uncollected.wait()

    async def _collect_later(self, channel_id: bytes) -> None:
        tenancy = self._tenancies.get(channel_id)
        if tenancy is not None and not tenancy.finished.is_set():
            # Its last voucher may still come.
            return
        try:
            receipt = await self.collect(channel_id)
            if tenancy is not None:
                tenancy.settled(receipt)
        except DepinError as error:
            log.warning("lease=%s is not collected yet: %s", channel_id.hex(), error)
        except Exception:
            # Other people's kernels run here: one lease's trouble ends neither them nor the attempts for the others.
            log.exception("lease=%s is not collected yet", channel_id.hex())
