"""Keeps the journal's note of a rental's running kernel true, so that another process can take the kernel up.

There is a note exactly while a kernel is known to run: it is dropped before another launch is ordered and when the
kernel ends. A journal that fails here costs the chance to take the kernel up, and nothing else.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

from jupyter_depin.errors import DepinError
from jupyter_depin.journal import Journal
from jupyter_depin.protocol.record import LaunchedKernel

log = logging.getLogger(__name__)


class Place:
    """One rental's note. Made by the rental, which calls it at each turn of its kernel's life.

    `noted`: an earlier process may have left one.
    """

    def __init__(self, journal: Journal, channel_id: bytes, *, noted: bool) -> None:
        self._journal, self._channel_id, self._noted = journal, channel_id, noted
        self._ordered: LaunchedKernel | None = None

    def ordered(self, kernel: LaunchedKernel) -> None:
        """A kernel is about to be launched; the one before it ends."""
        self._ordered = kernel
        self.gone()

    def launched(self) -> None:
        """The kernel that was ordered last runs."""
        if self._ordered is not None:
            with self._despite_the_journal():
                self._journal.save_kernel(self._channel_id, self._ordered)
                self._noted = True

    def gone(self) -> None:
        """No kernel runs any more."""
        if self._noted:
            with self._despite_the_journal():
                self._journal.forget_kernel(self._channel_id)
                self._noted = False

    @contextlib.contextmanager
    def _despite_the_journal(self) -> Iterator[None]:
        try:
            yield
        except DepinError as error:
            log.warning("rental=%s cannot be taken up by another program: %s", self._channel_id.hex(), error)
