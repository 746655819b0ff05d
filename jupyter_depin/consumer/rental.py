"""One rented kernel, from the lease to the receipt. Owns its tasks; `runtime` owns it.

The local channels outlive what is behind them: a cut link, a restarted kernel and a lost provider look to a Jupyter
client like a slow, a restarted and a dead kernel. Everything that a caller waits for ends: with the answer, with the
rental, or with the caller's own patience; nothing waits for the network alone.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Sequence

import anyio

from jupyter_depin.chain import Ledger
from jupyter_depin.consumer.clients import Clients
from jupyter_depin.consumer.config import ConsumerConfig
from jupyter_depin.consumer.ending import QUIET, confirmed, ended_error, why_pending
from jupyter_depin.consumer.launching import Launching
from jupyter_depin.consumer.link import Link
from jupyter_depin.consumer.opening import OpenedLease
from jupyter_depin.consumer.place import Place
from jupyter_depin.consumer.shown import PathNote, shown
from jupyter_depin.drivers.clock import steady_ns, unix_ns
from jupyter_depin.drivers.meter import PayerDriver
from jupyter_depin.drivers.tunnel import TunnelDriver
from jupyter_depin.errors import (
    DepinError,
    KernelStartFailed,
    MessageTooBig,
    SettlementPending,
)
from jupyter_depin.journal import Journal
from jupyter_depin.lifecycle import EndReason, Lifecycle, State
from jupyter_depin.protocol.frames import Lane, Part, too_big
from jupyter_depin.protocol.local import LocalInfo
from jupyter_depin.protocol.messages import (
    End,
    Ended,
    Joined,
    KernelExited,
    Launch,
    Launched,
    LaunchFailed,
    LeaseFact,
    LeftOut,
    Paused,
    Settled,
    SettleFailed,
    Signal,
    Spare,
    Standing,
    Unpaused,
    decode_fact,
    decode_to_payer,
    encode,
)
from jupyter_depin.protocol.money import NS_PER_SECOND
from jupyter_depin.protocol.receipt import Receipt
from jupyter_depin.protocol.record import NOWHERE, LaunchedKernel, Where
from jupyter_depin.protocol.status import RentalStatus
from jupyter_depin.transport import Endpoint
from jupyter_depin.tunnel.events import Closed, Event, LaneDrained, LaneFull, Opened
from jupyter_depin.tunnel.machine import Tunnel

log = logging.getLogger(__name__)

_PING_NS = 3 * NS_PER_SECOND


class Rental:
    """The consumer's live object for one lease. All methods run on the runtime's loop.

    `on_change(rental)` is called whenever something that is shown has moved. `recovered`: the lease was opened by a
    process that is gone; it is taken up again to be ended, or `resume`d. `stands`: the provider has said how the kernel
    of one taken up stands, or it is over. `left`: it was let go without being ended.
    """

    def __init__(
        self,
        *,
        opened: OpenedLease,
        config: ConsumerConfig,
        endpoint: Endpoint,
        ledger: Ledger,
        journal: Journal,
        kernel_id: str,
        on_change: Callable[[Rental], None],
        recovered: bool = False,
    ) -> None:
        self._opened, self._config = opened, config
        self._ledger, self._journal = ledger, journal
        self._on_change = on_change
        self.channel_id, self.kernel_id = opened.channel_id, kernel_id
        offer = opened.offer
        self._lifecycle = Lifecycle(steady_ns(), State.RECONNECTING if recovered else State.STARTING)
        self._since_ns = unix_ns()
        self._path_note = PathNote(self.channel_id, journal)
        self._driver = TunnelDriver(
            Tunnel(grace_ns=offer.grace_s * NS_PER_SECOND, now=steady_ns(), ping_ns=_PING_NS),
            opens=True,
            on_message=self._received,
            on_event=self._tunnel_event,
            thrift=config.thrift,
        )
        self._link = Link(opened, endpoint, self._driver, on_cut=self._cut_off)
        self._meter = PayerDriver(
            offer=offer,
            cap=opened.deposit,
            channel_id=self.channel_id,
            key=opened.key,
            journal=journal,
            send=lambda word: self._driver.send(Lane.PAYMENT, encode(word)),
            on_change=self._changed,
        )
        if recovered:
            self._meter.restore(opened.paid, opened.served_ns, opened.elapsed_ns)
        self._clients = Clients(self._from_client, self._driver.hold, self._driver.later, self._link.came)
        self._epoch = 0
        self._launching: Launching | None = None
        self._exited = anyio.Event()
        self._exit_status: int | None = 0
        self._paused = False
        self._place = Place(journal, self.channel_id, noted=recovered, tell=self._clients.tell)
        self.stands = anyio.Event()
        self.left = False
        self._over = anyio.Event()
        self._provider_ended = anyio.Event()
        self._provider_settled = anyio.Event()
        self._collected = False
        self._finished = anyio.Event()
        self.receipt: Receipt | None = None
        self.failure: DepinError | None = None

    # -- what the provisioner asks; poll reads memory only

    @property
    def reached(self) -> bool:
        """Whether the provider ever attached this process to the lease. Asked at recovery."""
        return self._link.reached

    @property
    def over(self) -> bool:
        """Whether the lease is ending or has ended."""
        return self._over.is_set()

    @property
    def reason(self) -> EndReason | None:
        """Why it is over."""
        return self._lifecycle.reason

    def poll(self) -> int | None:
        """The kernel's exit status, or None while it runs as far as is known. A cut link is no death."""
        return self._exit_status

    async def wait_exit(self) -> int:
        """Wait for the kernel's end."""
        await self._exited.wait()
        return self._exit_status or 0

    async def launch(
        self,
        local: LocalInfo,
        *,
        env: dict[str, str],
        argv: tuple[str, ...] | None,
        cwd: str | None,
        where: Where = NOWHERE,
    ) -> None:
        """Start a kernel, for the first time or again in the same lease. Raises why it could not be started."""
        if self._over.is_set():
            raise ended_error(self._lifecycle)
        self._clients.serve(local)
        self._epoch += 1
        self._exited, self._exit_status = anyio.Event(), None
        if self._launching is not None:
            self._launching.failed(KernelStartFailed(reason="it was started again meanwhile"))
        launching = self._launching = Launching()
        self._driver.send(Lane.LEASE, encode(Spare(self._config.thrift)))
        order = Launch(self._epoch, local.key, local.signature_scheme, env, argv, cwd)
        self._place.ordered(LaunchedKernel(self._epoch, local.key, local.signature_scheme, where))
        self._driver.send(Lane.LEASE, encode(order))
        error = await launching.outcome()
        if error is not None:
            self._kernel_gone(1)
            raise error

    def signal(self, signum: int) -> None:
        """Pass a signal on. One that ends the kernel counts as done here at once: a dead link must not hold it up."""
        if self._exit_status is None:
            self._driver.send(Lane.LEASE, encode(Signal(self._epoch, signum)))
            if signum == getattr(signal, "SIGKILL", 9):
                self._kernel_gone(-signum)

    def resume(self, local: LocalInfo, kernel: LaunchedKernel) -> None:
        """Serve the kernel that an earlier process launched. Called before `run`. Raises `PortInUse`."""
        self._clients.serve(local)
        self._clients.attend()
        self._epoch, self._exit_status = kernel.epoch, None

    def forget(self) -> None:
        """It was never run: another object will stand for the lease."""
        self._clients.close()
        self._driver.close()

    async def leave(self) -> None:
        """Let go of the lease without ending it: its kernel goes on until it is in arrears, for whoever takes it up."""
        if not self._over.is_set():
            self.left = True
            self._over.set()
        await self._finished.wait()

    async def settle(self, reason: EndReason) -> None:
        """End the lease and return when it is settled, or known to be pending (`failure` says why)."""
        self._end(reason)
        await self._finished.wait()

    # -- its life

    async def run(self) -> None:
        """Keep the link, the meter and the channels until the lease is over, then settle. Started by the runtime."""
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._keep_link)
                await self._over.wait()
                if not self.left:
                    with anyio.move_on_after(self._config.settle_wait_s):
                        await self._say_goodbye()
                tasks.cancel_scope.cancel()
        finally:
            self._end(EndReason.STOPPED_BY_USER)
            try:
                if not self.left:
                    with anyio.move_on_after(self._config.settle_wait_s, shield=True):
                        await self._conclude()
            except Exception as error:
                self.failure = why_pending(self.channel_id, error)
            finally:
                self._driver.close()
                self._clients.close()
                self._finished.set()
                if not self.left:
                    self._move(State.ENDED)
                    self._changed()

    async def _say_goodbye(self) -> None:
        if not self._provider_ended.is_set():
            self._driver.send(Lane.LEASE, encode(End(str(self._lifecycle.reason))))
            await self._provider_ended.wait()
        await self._provider_settled.wait()

    async def _conclude(self) -> None:
        # Who has just come back collects within moments; of what was collected our node may hear later than its own.
        lost = self.reason is EndReason.PROVIDER_LOST_KERNEL
        patient = lost or self._collected or self.failure is not None
        slow = "the provider has not collected yet" if patient else "the payment network is slow"
        self.failure = SettlementPending(reason=slow)
        reason = (self.reason or EndReason.STOPPED_BY_USER).value
        self._journal.end(self.channel_id, reason, self._meter.served_ns)
        self.receipt = await confirmed(self.channel_id, self._ledger, self._journal, patient=patient)
        self.failure = None

    async def _keep_link(self) -> None:
        await self._link.keep()
        # It was refused.
        self._end(EndReason.PROVIDER_LOST_KERNEL)
        self._provider_ended.set()
        self._provider_settled.set()

    def _cut_off(self) -> None:
        if not self._over.is_set():
            self._move(State.RECONNECTING)

    # -- what arrives

    def _from_client(self, lane: Lane, parts: list[Part]) -> None:
        try:
            self._driver.send(lane, self._epoch.to_bytes(4, "big"), *parts)
        except MessageTooBig as error:
            self._clients.tell(error)

    def _received(self, lane: Lane, parts: Sequence[Part]) -> None:
        if lane is Lane.PAYMENT:
            self._meter.receive(decode_to_payer(bytes(parts[0])))
        elif lane is Lane.LEASE:
            self._clients.in_turn(decode_fact(bytes(parts[0])), self._fact)
        else:
            self._clients.deliver(lane, parts)

    def _fact(self, fact: LeaseFact) -> None:
        match fact:
            case Launched(epoch=epoch):
                if epoch == self._epoch and self._launching is not None:
                    # The news may have waited for a cut link; the kernel may be ready since then.
                    cut_ns = self._link.cut_ns
                    since_ns = cut_ns if cut_ns > self._launching.since_ns else steady_ns()
                    self._clients.attend()
                    self._place.launched(self._meter, since_ns)
                    self._launching.succeeded()
                    self._move(State.RUNNING)
            case LaunchFailed(epoch=epoch) as failed:
                if epoch == self._epoch and self._launching is not None:
                    self._meter.rest()
                    self._launching.failed(DepinError.from_wire(failed.code, failed.facts))
            case KernelExited(epoch=epoch, status=status):
                if epoch == self._epoch:
                    self._meter.rest()
                    self._kernel_gone(status)
            case Paused() | Unpaused() as word:
                self._paused = isinstance(word, Paused)
                self._move(State.PAUSED if self._paused else State.RUNNING)
            case Standing(epoch=epoch, runs=runs, paused=paused):
                if epoch != self._epoch or not runs:
                    self._end(EndReason.KERNEL_SHUTDOWN)
                self._paused = paused
                self._move(State.PAUSED if paused else State.RUNNING)
                self.stands.set()
            case Joined(spared=spared):
                self._driver.joined += spared
            case LeftOut() as left:
                self._clients.tell(too_big(left.size, left.parts, Lane.IOPUB))
            case Ended(reason=reason):
                self._provider_ended.set()
                self._end(EndReason(reason) if reason in set(EndReason) else EndReason.PROVIDER_STOPPED)
            case Settled() | SettleFailed() as outcome:
                self._collected = isinstance(outcome, Settled)
                if isinstance(outcome, SettleFailed):
                    self.failure = DepinError.from_wire(outcome.code, outcome.facts)
                self._provider_settled.set()
        self._changed()

    def _tunnel_event(self, event: Event) -> None:
        self._link.notice(event)
        match event:
            case Opened(kept=kept):
                self._clients.expect(kept, self._launching)
                if self._lifecycle.state is State.RECONNECTING:
                    self._move(State.PAUSED if self._paused else State.RUNNING)
            case Closed(expired=True):
                self._end(EndReason.UNREACHABLE)
                self._provider_ended.set()
                self._provider_settled.set()
            case LaneFull(lane=lane) | LaneDrained(lane=lane):
                self._clients.pause(lane, isinstance(event, LaneFull))
            case _:
                pass

    # -- its end

    def _end(self, reason: EndReason) -> None:
        if not self._over.is_set():
            self._move(State.ENDING, reason)
            self._over.set()
            self._clients.hurry()
            if self._exit_status is None and reason not in QUIET:
                self._clients.tell(ended_error(self._lifecycle))
            if self._launching is not None:
                self._launching.failed(ended_error(self._lifecycle))
            self._kernel_gone(1)
            self.stands.set()

    def _kernel_gone(self, status: int) -> None:
        if self._exit_status is None:
            self._exit_status = status
            self._exited.set()
            self._place.gone()
            self._clients.kernel_gone()

    # -- what is shown

    def _move(self, state: State, reason: EndReason | None = None) -> None:
        if self._lifecycle.state is not state and self._lifecycle.may(state):
            self._lifecycle.to(state, reason, steady_ns())
            self._since_ns = unix_ns()
            self._changed()

    def _changed(self) -> None:
        self._path_note.take(self._driver)
        self._place.catch_up()
        self._on_change(self)

    def status(self) -> RentalStatus:
        """How it stands, for every edge."""
        paused = "" if not self._paused else self._meter.refused or "arrears"
        return shown(
            self._opened,
            self._lifecycle,
            self._meter,
            self._driver,
            kernel_id=self.kernel_id,
            since_ns=self._since_ns,
            unpaid=paused,
            receipt=self.receipt,
            failure=self.failure,
        )
