"""Runs the two meters: clock, keys, journal and payment lane meet here. The machines decide.

Money is in the journal before it is acknowledged: the payer writes a voucher before it sends it, the payee before it
says that it has it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import anyio

from jupyter_depin.drivers.clock import steady_ns, unix_ns
from jupyter_depin.errors import DepinError, VoucherRefused, printed
from jupyter_depin.journal import Journal
from jupyter_depin.keys import Wallet, verify_voucher
from jupyter_depin.meter.events import (
    CapReached,
    ClaimTooHigh,
    EndLease,
    PauseKernel,
    PayeeEvent,
    SignVoucher,
    TickDue,
    UnpauseKernel,
    VoucherAccepted,
    VoucherStale,
)
from jupyter_depin.meter.payee import Payee
from jupyter_depin.meter.payee import State as PayeeState
from jupyter_depin.meter.payer import Payer
from jupyter_depin.protocol.eip712 import Domain
from jupyter_depin.protocol.market import Offer, Terms
from jupyter_depin.protocol.messages import ServedClaim, ToPayer, VoucherGiven, VoucherNotTaken, VoucherTaken
from jupyter_depin.protocol.money import NS_PER_SECOND, Amount, owed
from jupyter_depin.protocol.reason import EndReason
from jupyter_depin.protocol.voucher import SignedVoucher, VerifiedVoucher, Voucher

log = logging.getLogger(__name__)

_FIRST_KERNEL_NS = 180 * NS_PER_SECOND
"""How long a lease may be without its first kernel: three failed starts of the longest kind."""
_NEWS_NS = NS_PER_SECOND
"""How late the news of another kernel may be. The meter's own tolerance is for the first: were it for all of them, each
restart would use some of it up, and an honest provider would stand in arrears for good."""


class PayeeDriver:
    """The provider's meter in motion; made by the tenancy. The callbacks are called from the loop."""

    def __init__(
        self,
        *,
        offer: Offer,
        terms: Terms,
        deposit: Amount,
        channel_id: bytes,
        journal: Journal,
        send: Callable[[ToPayer], None],
        on_pause: Callable[[], None],
        on_unpause: Callable[[], None],
        on_end: Callable[[EndReason], None],
    ) -> None:
        self._terms, self._channel_id, self._domain = terms, channel_id, offer.asset.domain
        self._journal, self._send = journal, send
        self._on_pause, self._on_unpause, self._on_end = on_pause, on_unpause, on_end
        self._payee = Payee(
            terms.rate,
            offer.tick_s * NS_PER_SECOND,
            offer.arrears_s * NS_PER_SECOND,
            offer.grace_s * NS_PER_SECOND,
            deposit,
            max_ns=terms.max_seconds * NS_PER_SECOND,
            channel_id=channel_id,
        )
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._all_paid = anyio.Event()
        self._unwritten: VerifiedVoucher | None = None
        self._payee.open(steady_ns(), _FIRST_KERNEL_NS)
        self._arm()

    def start(self) -> None:
        """A kernel is ready: the clock runs. Called at each launch."""
        if self._payee.state is PayeeState.IDLE:
            self._journal.start(self._channel_id, unix_ns())
        self._payee.start(steady_ns())
        self._pump_soon()

    def rest(self) -> None:
        """There is no kernel: the clock stands. Called at a kernel's exit and before the next one is launched."""
        self._payee.rest(steady_ns())
        self._pump_soon()

    def receive(self, given: VoucherGiven) -> None:
        """A voucher came: check it, journal it, say so."""
        signed = SignedVoucher(Voucher(self._channel_id, given.amount), given.signature)
        try:
            if given.amount:
                self._payee.receive(verify_voucher(signed, self._terms.signer, self._domain), steady_ns())
        except DepinError as error:
            self._send(VoucherNotTaken(given.amount, error.facts.get("reason", str(error))))
        self._pump()
        if given.final or self._paid_up():
            self._all_paid.set()

    def stop(self) -> int:
        """Stop the clock, claim a last time, and return what was served, in ns."""
        now = steady_ns()
        self._payee.stop(now)
        try:
            self._write()
        except DepinError as error:
            # The last voucher is worth as much, and is asked for now.
            log.warning("lease=%s %s", self._channel_id.hex(), error)
        self._pump()
        served_ns = self._payee.served_ns(now)
        self._send(ServedClaim(served_ns, final=True))
        if self._paid_up():
            self._all_paid.set()
        return served_ns

    async def final_voucher(self) -> None:
        """Wait until everything is paid, or the consumer says that this is all."""
        await self._all_paid.wait()

    def _paid_up(self) -> bool:
        ended = self._payee.state is PayeeState.ENDED
        return ended and self._payee.paid >= owed(self._terms.rate, self._payee.served_ns(steady_ns()))

    def _pump_soon(self) -> None:
        # From the loop, as the timer does: a journal that fails for a while must not fail a launch.
        self._loop.call_soon(self._pump_alone)

    def _pump(self) -> None:
        failure: DepinError | None = None
        while (event := self._payee.next_event()) is not None:
            try:
                self._handle(event)
            except DepinError as error:
                # The journal failed: a pause or an end that was due all the same must not be lost with it.
                failure = failure or error
        self._arm()
        if failure is not None:
            raise failure

    def _handle(self, event: PayeeEvent) -> None:
        match event:
            case TickDue():
                self._journal.save_served(self._channel_id, event.served_ns)
                self._send(ServedClaim(event.served_ns))
            case VoucherAccepted():
                self._unwritten = event.voucher
                self._write()
                self._send(VoucherTaken(event.voucher.voucher.amount))
            case VoucherStale():
                self._write()
                self._send(VoucherTaken(event.paid))
            case PauseKernel():
                self._on_pause()
            case UnpauseKernel():
                self._on_unpause()
            case EndLease():
                self._on_end(event.reason)

    def _write(self) -> None:
        """Write down the newest voucher, if the journal failed when it came: until then nobody may be told."""
        if self._unwritten is not None:
            self._journal.save_voucher(self._unwritten)
            self._unwritten = None

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        due = self._payee.get_timer()
        if due is not None:
            self._timer = self._loop.call_later(max(0, due - steady_ns()) / 1e9, self._ring)

    def _ring(self) -> None:
        self._timer = None
        self._payee.handle_timer(steady_ns())
        self._pump_alone()

    def _pump_alone(self) -> None:
        """Handle what is due where nobody waits for the outcome: the journal may fail for a while."""
        try:
            self._pump()
        except DepinError as error:
            log.warning("lease=%s %s", self._channel_id.hex(), error)


class PayerDriver:
    """The consumer's meter in motion; made by the rental. `on_change`: something that is shown has moved."""

    def __init__(
        self,
        *,
        offer: Offer,
        cap: Amount,
        channel_id: bytes,
        key: Wallet,
        journal: Journal,
        send: Callable[[VoucherGiven], None],
        on_change: Callable[[], None],
    ) -> None:
        self._payer = Payer(
            offer.rate, offer.tick_s * NS_PER_SECOND, cap, arrears_ns=offer.arrears_s * NS_PER_SECOND
        )
        self._domain: Domain = offer.asset.domain
        self._channel_id, self._key, self._journal, self._send = channel_id, key, journal, send
        self._on_change = on_change
        self._started = self._resting = False
        self._newest: VerifiedVoucher | None = None
        self._told_too_high = self._told_refused = False
        self.served_ns = 0
        self.refused = ""

    @property
    def paid(self) -> Amount:
        """What was signed in all."""
        return self._payer.paid

    def restore(self, paid: Amount, served_ns: int, elapsed_ns: int) -> None:
        """Go on from the journal: `elapsed_ns` have passed since the kernel became ready."""
        self._payer.restore(paid)
        self.served_ns = served_ns
        self._started = True
        self._payer.start(steady_ns() - elapsed_ns)

    def start(self, since_ns: int) -> None:
        """The kernel is ready, since `since_ns` at the earliest. Called at each launch; starts the clock if it stands.

        When that was is for the caller to write down: a full disk must not keep the clock from running.
        """
        if not self._started:
            self._started = True
            self._payer.start(since_ns)
        elif self._resting:
            self._payer.start(since_ns - _NEWS_NS)
        self._resting = False

    def rest(self) -> None:
        """The provider says that there is no kernel: its clock stands, and so does this one."""
        self._resting = True
        self._payer.rest(steady_ns())

    def receive(self, word: ToPayer) -> None:
        """The provider said something on the payment lane."""
        before = self.paid, self.served_ns, self.refused
        match word:
            case ServedClaim():
                (self._payer.final if word.final else self._payer.receive)(word.served_ns, steady_ns())
                self._pump(word)
            case VoucherTaken():
                self.refused = ""
            case VoucherNotTaken():
                self.refused = printed(word.reason)
                self._tell_refused()
        if before != (self.paid, self.served_ns, self.refused):
            self._on_change()

    def _pump(self, claim: ServedClaim) -> None:
        self.served_ns = max(self.served_ns, claim.served_ns)
        signed = None
        while (event := self._payer.next_event()) is not None:
            match event:
                case SignVoucher():
                    signed = self._sign(event.amount)
                case ClaimTooHigh():
                    self.served_ns = min(self.served_ns, event.allowed_ns)
                    self._tell_too_high(event)
                case CapReached():
                    # The provider ends the lease at the same moment, and says so.
                    log.info("rental=%s has used up its deposit", self._channel_id.hex())
        if signed is not None:
            self._send(VoucherGiven(signed.voucher.amount, signed.signature, claim.final))
        elif claim.final:
            # Nothing is owed; an empty voucher says that nothing more will come.
            self._send(VoucherGiven(Amount(0), b"", final=True))

    def _tell_too_high(self, event: ClaimTooHigh) -> None:
        # Once is enough: whoever lies may do so a thousand times a second.
        if not self._told_too_high:
            self._told_too_high = True
            log.warning(
                "rental=%s the provider claims %d ns where %d are possible",
                self._channel_id.hex(), event.claimed_ns, event.allowed_ns,
            )  # fmt: skip

    def _tell_refused(self) -> None:
        if not self._told_refused:
            self._told_refused = True
            log.warning("rental=%s %s", self._channel_id.hex(), VoucherRefused(reason=self.refused))

    def _sign(self, amount: Amount) -> VerifiedVoucher:
        # The same claim again costs neither a signature nor a write.
        if self._newest is not None and self._newest.voucher.amount == amount:
            return self._newest
        voucher = Voucher(self._channel_id, amount)
        signed = verify_voucher(
            SignedVoucher(voucher, self._key.sign(voucher.digest(self._domain))),
            self._key.address,
            self._domain,
        )
        self._journal.save_voucher(signed, self.served_ns)
        self._newest = signed
        return signed
