"""Signals for a whole group of processes, on systems with and without a way to name a thread."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys

import pytest

from provider_kernel.sandbox import signals

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no process groups there")

PAIR = "import subprocess, sys; p = subprocess.Popen(['sleep', '3600']); print(p.pid, flush=True); sys.exit(p.wait())"


@pytest.mark.parametrize("by_thread", [True, False])
def test_every_process_of_the_group_gets_it_and_no_other(monkeypatch, by_thread):
    if not by_thread:
        monkeypatch.setattr(signals, "_to_thread", None)
    with contextlib.ExitStack() as stack:
        group, other = (
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", PAIR], stdout=subprocess.PIPE, text=True, start_new_session=True
                )
            )
            for _ in range(2)
        )
        for process in (group, other):
            assert process.stdout is not None
            process.stdout.readline()
        signals.signal_group(group.pid, signal.SIGTERM)
        assert group.wait(60) == -signal.SIGTERM
        # Its end of the pipe closes with its child.
        assert group.stdout is not None
        assert group.stdout.read() == ""
        assert other.poll() is None
        signals.signal_group(other.pid, signal.SIGKILL)


def test_a_group_that_has_ended_is_no_error():
    with subprocess.Popen([sys.executable, "-c", ""], start_new_session=True) as process:
        process.wait()
    signals.signal_group(process.pid, signal.SIGINT)
