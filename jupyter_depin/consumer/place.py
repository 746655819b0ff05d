"""Keeps the journal's note of a rental's running kernel true, so that another process can take the kernel up.

There is a note exactly while a kernel is known to run: it is dropped before another launch is ordered and when the
kernel ends. A journal that fails here (the disk is full) costs the chance to take the kernel up while it fails, and
nothing else: the kernel is there, its meter runs, and what could not be written down is written later. Vouchers are
another matter: one that is not in the journal is not sent.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator

from jupyter_depin.drivers.clock import steady_ns, unix_ns
from jupyter_depin.drivers.meter import PayerDriver
from jupyter_depin.errors import DepinError
from jupyter_depin.journal import Journal
from jupyter_depin.protocol.record import LaunchedKernel

log = logging.getLogger(__name__)


class Place:
    """One rental's note. Made by the rental, which calls it at each turn of its kernel's life.

    `noted`: an earlier process may have left one. `tell` says to the user why there is none.
    """

    def __init__(
        self, journal: Journal, channel_id: bytes, *, noted: bool, tell: Callable[[DepinError], None]
    ) -> None:
        self._journal, self._channel_id, self._noted, self._tell = journal, channel_id, noted, tell
        self._ordered: LaunchedKernel | None = None
        self._unwritten: LaunchedKernel | None = None
        self._ready_ns: int | None = None
        self._told = False

    def ordered(self, kernel: LaunchedKernel) -> None:
        """A kernel is about to be launched; the one before it ends."""
        self._ordered = kernel
        self.gone()

    def launched(self, meter: PayerDriver, since_ns: int) -> None:
        """The kernel that was ordered last runs, since `since_ns` (steady) at the earliest: so does its meter."""
        meter.start(since_ns)
        if self._ready_ns is None:
            # A process that takes the rental up will ask for it. The journal keeps that of the first launch.
            self._ready_ns = unix_ns() - (steady_ns() - since_ns)
        self._unwritten = self._ordered
        self.catch_up()

    def catch_up(self) -> None:
        """Write down what could not be written when it happened. Called on every change. Never raises."""
        if self._unwritten is None and self._ready_ns is None:
            return
        with self._despite_the_journal():
            if self._ready_ns is not None:
                self._journal.start(self._channel_id, self._ready_ns)
                self._ready_ns = None
            if self._unwritten is not None:
                self._journal.save_kernel(self._channel_id, self._unwritten)
                self._unwritten, self._noted = None, True
            self._told = False

    def gone(self) -> None:
        """No kernel runs any more."""
        self._unwritten = None
        if self._noted:
            with self._despite_the_journal():
                self._journal.forget_kernel(self._channel_id)
                self._noted = False

    @contextlib.contextmanager
    def _despite_the_journal(self) -> Iterator[None]:
        try:
            yield
        except DepinError as error:
            if not self._told:
                self._told = True
                log.warning(
                    "rental=%s cannot be taken up by another program: %s", self._channel_id.hex(), error
                )
                self._tell(error)
