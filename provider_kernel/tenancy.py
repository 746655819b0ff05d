"""One hosted kernel, from the opened lease to the collected voucher. Owns its tasks; the agent owns it.

It lives on after the kernel's end, until the consumer has heard how the lease was settled or the grace is over, so
that a consumer who was cut off at the last moment still learns it.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import anyio
import anyio.lowlevel
from anyio.abc import TaskGroup
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from jupyter_depin.channels import KernelSide
from jupyter_depin.drivers.clock import steady_ns
from jupyter_depin.drivers.handshake import not_launched, unsettled
from jupyter_depin.drivers.meter import PayeeDriver
from jupyter_depin.drivers.tunnel import TunnelDriver
from jupyter_depin.errors import DepinError, LeaseEnded, RemoteProtocolError
from jupyter_depin.journal import Journal
from jupyter_depin.lifecycle import EndReason
from jupyter_depin.protocol.frames import Lane, Part
from jupyter_depin.protocol.market import Offer, Terms
from jupyter_depin.protocol.messages import (
    End,
    Ended,
    Joined,
    KernelExited,
    Launch,
    Launched,
    LaunchFailed,
    LeaseOrder,
    Paused,
    Settled,
    Signal,
    Spare,
    Standing,
    Unpaused,
    Wish,
    decode_order,
    decode_to_payee,
)
from jupyter_depin.protocol.money import NS_PER_SECOND, Amount
from jupyter_depin.protocol.receipt import Receipt
from jupyter_depin.transport import Connection, Stream
from jupyter_depin.tunnel.backlog import Backlog
from jupyter_depin.tunnel.events import CaughtUp, Closed, Event, LaneDrained, LaneFull
from jupyter_depin.tunnel.machine import Tunnel
from provider_kernel.answers import Answers
from provider_kernel.joining import Joining
from provider_kernel.output import LANE_LIMIT, Output
from provider_kernel.prelude import Prelude
from provider_kernel.sandbox import KernelCommand, Limits, Sandbox, SandboxedKernel, remove

log = logging.getLogger(__name__)

_FINAL_VOUCHER_S = 10
"""How long an ended lease waits for the last voucher before it is settled with the newest one."""
_LAST_S = 2
"""How long a consumer has to hear of the end without all the output before it."""
_CONTINUE = getattr(signal, "SIGCONT", 0)

Collect = Callable[[bytes], Awaitable[Receipt]]


class Tenancy:
    """The provider's live object for one lease.

    `trusted`: the consumer is the owner, who may choose the command. `collect` settles on the ledger. `backlog` keeps
    output while the consumer is away.
    """

    def __init__(
        self,
        *,
        channel_id: bytes,
        terms: Terms,
        deposit: Amount,
        offer: Offer,
        sandbox: Sandbox,
        limits: Limits,
        folder: Path,
        journal: Journal,
        collect: Collect,
        trusted: bool,
        backlog: Backlog,
        thrift: Wish,
    ) -> None:
        self.channel_id, self.terms, self.offer = channel_id, terms, offer
        self._sandbox, self._limits, self._folder = sandbox, limits, folder
        self._journal, self._collect, self._trusted = journal, collect, trusted
        self.driver = TunnelDriver(
            Tunnel(
                grace_ns=offer.grace_s * NS_PER_SECOND,
                now=steady_ns(),
                limit=LANE_LIMIT,
                backlogs={Lane.IOPUB: backlog},
            ),
            opens=False,
            on_message=self._received,
            on_event=self._tunnel_event,
            thrift=thrift,
        )
        self._answers = Answers(self.driver)
        self._output = Output(
            self.driver, backlog, lambda stop: self._stop_for("output", stop and not self.ended)
        )
        self._meter = PayeeDriver(
            offer=offer,
            terms=terms,
            deposit=deposit,
            channel_id=channel_id,
            journal=journal,
            send=self._answers.bill,
            on_pause=lambda: self._stop_for("arrears", True),
            on_unpause=lambda: self._stop_for("arrears", False),
            on_end=self.end,
        )
        self._orders_in: MemoryObjectSendStream[Launch]
        self._orders: MemoryObjectReceiveStream[Launch]
        self._orders_in, self._orders = anyio.create_memory_object_stream[Launch](64)
        self._kernel: SandboxedKernel | None = None
        self._channels: KernelSide | None = None
        self._prelude: Prelude | None = None
        self._epoch = self._ordered_epoch = 0
        self._runs = False
        self._memory: bytes | None = None
        self._stopped_for: set[str] = set()
        self._signals: dict[int, None] = {}
        self._over = anyio.Event()
        self._reason: EndReason | None = None
        self.slot_free = anyio.Event()
        self.finished = anyio.Event()

    @property
    def ended(self) -> bool:
        """Whether the lease is over, though its settlement may not be."""
        return self._over.is_set()

    def end(self, reason: EndReason) -> None:
        """End the lease. Called by the meter, the tunnel, the consumer's order and the agent; the first reason counts."""
        if self._reason is None:
            self._reason = reason
            self._over.set()

    async def run(self) -> None:
        """Serve until the lease is over, then settle. Started by the agent in its own task group."""
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._launches, tasks)
                await self._over.wait()
                tasks.cancel_scope.cancel()
        finally:
            with anyio.CancelScope(shield=True):
                try:
                    await self._finish()
                finally:
                    self.slot_free.set()
                    self.finished.set()
                    await remove(self._folder)

    # -- the end

    async def _finish(self) -> None:
        # Unless somebody gave a reason, something failed here.
        self.end(EndReason.PROVIDER_STOPPED)
        reason = self._reason or EndReason.PROVIDER_STOPPED
        # A full disk, say, fails one step; the kernel must not run on for that, nor the money stay uncollected.
        served_ns = 0
        with self._despite("its last claim was not written down"):
            served_ns = self._stopped_meter()
        with self._despite("its kernel is not destroyed"):
            await self._destroy_kernel()
        with self._despite("its end was not written down"):
            self._journal.end(self.channel_id, reason.value, served_ns)
        self._output.last(Ended(reason.value, served_ns))
        self.slot_free.set()
        with anyio.move_on_after(_FINAL_VOUCHER_S):
            await self._meter.final_voucher()
        try:
            receipt = await self._collect(self.channel_id)
        except DepinError as error:
            log.warning("lease=%s is not settled yet: %s", self.channel_id.hex(), error)
            self._output.last(unsettled(error))
        else:
            self.settled(receipt)

    def _stopped_meter(self) -> int:
        try:
            return self._meter.stop()
        except Exception:
            log.exception("lease=%s: its last claim was not written down", self.channel_id.hex())
            # What could not be written down is given up; the clock stands by now, and the last claim is due.
            return self._meter.stop()

    @contextmanager
    def _despite(self, failure: str) -> Iterator[None]:
        """A step of the end after which the others happen, whatever becomes of it."""
        try:
            yield
        except Exception:
            log.exception("lease=%s: %s", self.channel_id.hex(), failure)

    async def heard(self, patience_s: float) -> None:
        """Wait until the consumer has taken everything that was said to it. Called by the agent after `run`."""
        with anyio.move_on_after(patience_s):
            await self.driver.taken(Lane.IOPUB)
            await self.driver.taken(Lane.LEASE)
        if self._output.hurry():
            with anyio.move_on_after(_LAST_S):
                await self.driver.taken(Lane.LEASE)

    async def carry(self, connection: Connection, control: Stream, memory: bytes) -> None:
        """Carry the tunnel over a consumer's connection until that ends. Called by the agent.

        A process that remembers nothing of the one before it hears how the kernel stands, after all that it has missed.
        """
        if self._memory not in (None, memory):
            self._answers.say_once(self._standing)
        self._memory = memory
        await self.driver.carry(connection, control, memory=memory)

    def _standing(self) -> Standing:
        return Standing(self._epoch, self._runs, "arrears" in self._stopped_for)

    def settled(self, receipt: Receipt) -> None:
        """Tell the consumer. Called also by the agent, when a later attempt to collect came through."""
        transaction = receipt.transactions[-1].id if receipt.transactions else ""
        self._output.last(Settled(receipt.collected_on_chain, transaction))

    # -- the kernel

    async def _launches(self, tasks: TaskGroup) -> None:
        async for order in self._orders:
            self._meter.rest()
            await self._destroy_kernel()
            self._output.restarted()
            self._epoch = order.epoch
            try:
                await self._start_kernel(order)
            except DepinError as error:
                log.warning("lease=%s %s", self.channel_id.hex(), error)
                failed = LaunchFailed(order.epoch, error.code, error.facts)
                self._answers.say(failed if self._trusted else not_launched(order.epoch, error))
                continue
            self._meter.start()
            self._runs = True
            self._answers.say(Launched(order.epoch))
            assert self._kernel is not None
            tasks.start_soon(self._watch, self._kernel, order.epoch)

    async def _start_kernel(self, order: Launch) -> None:
        command = KernelCommand(
            key=order.key,
            signature_scheme=order.signature_scheme,
            argv=order.argv if self._trusted else None,
            env=order.env,
            cwd=order.cwd if self._trusted else None,
        )
        folder = self._folder / str(order.epoch)
        try:
            folder.mkdir(mode=0o700, parents=True)
            self._kernel = kernel = await self._sandbox.start(command, folder=folder, limits=self._limits)
            sockets = kernel.sockets
            endpoints = {name: getattr(sockets, name) for name in ("shell", "iopub", "stdin", "control")}
            try:
                joining = Joining(
                    self.driver,
                    self._output.said,
                    order.key,
                    order.signature_scheme,
                    tell=lambda spared: self._answers.say(Joined(spared)),
                )
                self._prelude = Prelude(joining.said, joining.flush)
            except ValueError:
                # A scheme that only its kernel knows: nobody else can sign for it.
                self._prelude = Prelude(self._output.said)
            said, hold = self._prelude.said, self.driver.hold
            self._channels = KernelSide(endpoints, said, hold, self._output.left_out)
        except BaseException:
            # Nobody would ever use it, pay for it, or stop it.
            with anyio.CancelScope(shield=True):
                await self._destroy_kernel()
                await remove(folder)
            raise
        if self._stopped_for:
            kernel.pause()

    async def _watch(self, kernel: SandboxedKernel, epoch: int) -> None:
        status = await kernel.wait()
        if epoch == self._epoch:
            self._runs = False
            self._meter.rest()
        # The last output is read before the end is told.
        while self._channels is not None and epoch == self._epoch and self._channels.pending():
            await anyio.lowlevel.checkpoint()
        if self._prelude is not None and epoch == self._epoch:
            self._prelude.flush()
        self._output.last(KernelExited(epoch, status, kernel.stderr_tail()))

    async def _destroy_kernel(self) -> None:
        self._runs = False
        self._signals.clear()
        try:
            if self._kernel is not None:
                await self._kernel.destroy()
        finally:
            if self._channels is not None:
                self._channels.close()
            if self._prelude is not None:
                self._prelude.flush()
            self._kernel = self._channels = self._prelude = None

    def _stop_for(self, cause: str, stop: bool) -> None:
        """Stop the kernel while there is any cause to; SIGSTOP loses nothing and can be taken back."""
        before = bool(self._stopped_for)
        (self._stopped_for.add if stop else self._stopped_for.discard)(cause)
        if self._kernel is not None and before != bool(self._stopped_for):
            (self._kernel.pause if stop else self._kernel.unpause)()
        if cause == "arrears":
            self._answers.say(Paused(cause) if stop else Unpaused())

    # -- what arrives

    def _received(self, lane: Lane, parts: Sequence[Part]) -> None:
        if lane is Lane.LEASE:
            self._ordered(decode_order(bytes(parts[0])))
        elif lane is Lane.PAYMENT:
            self._meter.receive(decode_to_payee(bytes(parts[0])))
        elif self._channels is not None and int.from_bytes(parts[0], "big") == self._epoch and len(parts) > 2:
            if lane is Lane.CONTROL:
                self._output.let_through()
            self._channels.deliver(lane, parts[1:])

    def _ordered(self, order: LeaseOrder) -> None:
        match order:
            case Launch():
                if not self._ordered_epoch < order.epoch < 1 << 32:
                    raise RemoteProtocolError(
                        detail=f"launch {order.epoch} after launch {self._ordered_epoch}"
                    )
                self._ordered_epoch = order.epoch
                if self.ended:
                    refusal = LeaseEnded(reason=str(self._reason and self._reason.value))
                    self._answers.say(LaunchFailed(order.epoch, refusal.code, refusal.facts))
                else:
                    try:
                        self._orders_in.send_nowait(order)
                    except anyio.WouldBlock as error:
                        raise RemoteProtocolError(
                            detail="it orders kernels faster than they start"
                        ) from error
            case Signal():
                if self._kernel is not None and order.epoch == self._epoch and 0 < order.signum < signal.NSIG:
                    self._output.let_through()
                    self._signal_soon(order.signum)
            case Spare(wish=wish):
                self.driver.asked(wish)
            case End():
                self._output.end_asked()
                known = {reason.value: reason for reason in EndReason}
                self.end(known.get(order.reason, EndReason.STOPPED_BY_USER))

    def _signal_soon(self, signum: int) -> None:
        # Each is a look at all processes of the machine: of a flood, equal ones are one.
        if not self._signals:
            self.driver.later(0, self._signal)
        self._signals[signum] = None

    def _signal(self) -> None:
        signals, self._signals = self._signals, {}
        if self._kernel is not None:
            for signum in signals:
                # A kernel that stands still for arrears must not be woken by its consumer.
                if signum != _CONTINUE or not self._stopped_for:
                    self._kernel.interrupt(signum)

    def _tunnel_event(self, event: Event) -> None:
        match event:
            case LaneFull():
                self._answers.noticed(event)
                self._output.look()
            case LaneDrained():
                self._answers.noticed(event)
                self._output.drained()
            case CaughtUp():
                self._output.hurry()
            case Closed(expired=True):
                self.end(EndReason.UNREACHABLE)
            case _:
                pass
