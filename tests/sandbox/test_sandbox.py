"""One suite over both sandboxes: what the agent counts on, whichever it uses."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
from pathlib import Path

import anyio
import psutil
import pytest

from jupyter_depin.errors import KernelStartFailed
from provider_kernel import sandbox as port
from provider_kernel.sandbox import KernelCommand, Limits, Sandbox, bubblewrap, cgroup
from provider_kernel.sandbox import process as plain
from provider_kernel.sandbox.child import ended, open_pidfd
from provider_kernel.sandbox.choice import choose


def family(pid: int) -> list[psutil.Process]:
    leader = psutil.Process(pid)
    return [leader, *leader.children(recursive=True)]


def processor_time(pid: int) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in family(pid))


def marked(mark: str) -> list[int]:
    """The machine's living processes with `mark` among their arguments."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if mark in process.cmdline() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
    return found


async def test_a_client_runs_code_in_it(start):
    async with start() as talk:
        assert await talk.run("print(6 * 7)") == "42\n"
        assert psutil.pid_exists(talk.kernel.pid)


async def test_its_working_directory_is_a_private_home(start):
    async with start() as talk:
        cell = "import os; open('note.txt', 'w').write('x'); print('note.txt' in os.listdir(), os.getcwd() == os.path.realpath('.'))"
        assert await talk.run(cell) == "True True\n"


async def test_a_variable_of_the_consumer_arrives(start):
    async with start(env={"DEPIN_COURSE": "physics"}) as talk:
        assert await talk.run("import os; print(os.environ['DEPIN_COURSE'])") == "physics\n"


async def test_a_signal_interrupts_a_sleeping_cell(start):
    async with start() as talk:
        await talk.run("import time; print('asleep', flush=True); time.sleep(3600)", until="asleep")
        talk.kernel.interrupt(signal.SIGINT)
        with anyio.fail_after(30):
            assert await talk.finished() == "KeyboardInterrupt"


async def test_a_signal_reaches_the_programs_that_a_cell_started(start):
    async with start() as talk:
        cell = "import subprocess; p = subprocess.Popen(['sleep', '3600']); print('up', flush=True); p.wait()"
        await talk.run(cell, until="up")
        talk.kernel.interrupt(signal.SIGINT)
        with anyio.fail_after(30):
            assert await talk.finished() == "KeyboardInterrupt"
            # Not its status, which Python loses when the interrupt comes while it is being told.
            assert await talk.run("print(p.wait() is not None)") == "True\n"


@pytest.mark.parametrize("freezer", [True, False])
async def test_pause_stops_every_process_and_unpause_lets_them_run_on(start, monkeypatch, freezer):
    if not freezer:
        monkeypatch.setattr(cgroup.Cgroup, "can_freeze", property(lambda _: False))
    async with start() as talk:
        cell = (
            "import subprocess, sys\n"
            "p = subprocess.Popen([sys.executable, '-c', 'while True: pass'], start_new_session=True)\n"
            "print('counting', flush=True)\n"
            "while True: pass"
        )
        await talk.run(cell, until="counting")
        talk.kernel.pause()
        talk.kernel.pause()
        with anyio.fail_after(60):
            await standing_still(talk.kernel.pid)
        talk.kernel.unpause()
        before = processor_time(talk.kernel.pid)
        with anyio.fail_after(60):
            while processor_time(talk.kernel.pid) <= before:
                await moment()
            talk.kernel.interrupt(signal.SIGINT)
            assert await talk.finished() == "KeyboardInterrupt"


async def test_a_signal_interrupts_a_kernel_that_was_paused(start):
    async with start() as talk:
        cell = (
            "import threading, time\n"
            "others = [threading.Thread(target=time.sleep, args=[3600], daemon=True) for _ in range(40)]\n"
            "for thread in others: thread.start()\n"
            "print('asleep', flush=True)\n"
            "time.sleep(3600)"
        )
        for _ in range(5):
            await talk.run(cell, until="asleep")
            talk.kernel.pause()
            talk.kernel.unpause()
            talk.kernel.interrupt(signal.SIGINT)
            with anyio.fail_after(30):
                assert await talk.finished() == "KeyboardInterrupt"


async def test_a_program_that_waits_for_signals_in_another_thread_gets_them(start):
    async with start() as talk:
        program = (
            "import signal, threading\n"
            "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])\n"
            "waiting = threading.Thread(target=lambda: print(signal.sigwait([signal.SIGINT]).name, flush=True))\n"
            "waiting.start()\n"
            "print('up', flush=True)\n"
            "waiting.join()"
        )
        cell = (
            "import subprocess, sys\n"
            f"p = subprocess.Popen([sys.executable, '-c', {program!r}], stdout=subprocess.PIPE, text=True)\n"
            "print(p.stdout.readline(), flush=True)\n"
            "p.wait()"
        )
        await talk.run(cell, until="up")
        talk.kernel.interrupt(signal.SIGINT)
        with anyio.fail_after(30):
            assert await talk.finished() == "KeyboardInterrupt"
            assert await talk.run("print(p.stdout.read())") == "SIGINT\n\n"


async def moment() -> None:
    """Some time passes on the processor: a program starts and ends."""
    await anyio.run_process([sys.executable, "-I", "-S", "-c", "sum(range(1_000_000))"])


async def standing_still(pid: int) -> None:
    """Return when the processes have used no processor for five moments on end."""
    still = 0
    while still < 5:
        before = processor_time(pid)
        await moment()
        still = still + 1 if processor_time(pid) == before else 0


async def test_a_paused_kernel_can_be_destroyed(start):
    async with start() as talk:
        talk.kernel.pause()
        with anyio.fail_after(30):
            await talk.kernel.destroy()
            assert await talk.kernel.wait() == -signal.SIGKILL


async def test_wait_gives_two_waiters_the_exit_status(start):
    statuses: list[int] = []

    async def waiter(kernel) -> None:
        statuses.append(await kernel.wait())

    async with start() as talk:
        with anyio.fail_after(30):
            async with anyio.create_task_group() as group:
                group.start_soon(waiter, talk.kernel)
                group.start_soon(waiter, talk.kernel)
                talk.client.execute("import os; os._exit(3)")
        assert statuses == [3, 3]


async def test_a_waiter_may_give_up_without_harm(start):
    async with start() as talk:
        with anyio.move_on_after(0):
            await talk.kernel.wait()
        assert await talk.run("print('alive')") == "alive\n"


async def test_a_killed_kernel_has_the_signal_as_its_status(start):
    async with start() as talk:
        os.kill(talk.kernel.pid, signal.SIGKILL)
        with anyio.fail_after(30):
            assert await talk.kernel.wait() == -signal.SIGKILL
        talk.kernel.interrupt(signal.SIGINT)
        talk.kernel.pause()
        talk.kernel.unpause()


async def test_destroy_kills_the_children_and_removes_the_folder(start):
    mark = f"{secrets.randbelow(10**9) + 10**9}"
    async with start() as talk:
        cell = f"""
import os, subprocess
for i in range(5):
    subprocess.Popen(['sleep', {mark!r}])
subprocess.Popen(['sleep', {mark!r}], start_new_session=True)
os.system('sh -c "sleep {mark} & sleep {mark} &"')
print('forked')
"""
        await talk.run(cell)
        with anyio.fail_after(30):
            while len(marked(mark)) < 8:
                await moment()
            await talk.kernel.destroy()
        assert marked(mark) == []
        assert not talk.folder.exists()
        await talk.kernel.destroy()


async def test_a_kernel_that_cannot_start_says_why(sandbox: Sandbox, tmp_path: Path):
    command = KernelCommand(key=b"k", signature_scheme="hmac-of-no-kind")
    with anyio.fail_after(60), pytest.raises(KernelStartFailed, match="of-no-kind"):
        await sandbox.start(command, folder=tmp_path / "kernel", limits=Limits())
    assert not (tmp_path / "kernel").exists()


async def test_giving_up_a_start_leaves_nothing(sandbox: Sandbox, tmp_path: Path):
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    with anyio.move_on_after(0.01) as scope:
        await sandbox.start(KernelCommand(key=b"k"), folder=tmp_path / "kernel", limits=Limits())
    assert scope.cancelled_caught
    assert {child.pid for child in psutil.Process().children(recursive=True)} <= before
    assert not (tmp_path / "kernel").exists()


async def test_a_folder_with_too_long_a_name_is_refused(sandbox: Sandbox, tmp_path: Path):
    with pytest.raises(KernelStartFailed, match="too long a name"):
        await sandbox.start(KernelCommand(key=b"k"), folder=tmp_path / ("k" * 120), limits=Limits())


async def test_stderr_tail_keeps_the_last_words_of_a_flood(start):
    async with start() as talk:
        cell = (
            "import os, sys\n"
            "out = sys.stderr._original_stdstream_copy\n"
            "for i in range(32): os.write(out, b'flood ' * 10000)\n"
            "os.write(out, b'last words\\n')"
        )
        with anyio.fail_after(60):
            await talk.run(cell)
        tail = talk.kernel.stderr_tail()
        assert tail.endswith("last words\n")
        assert len(tail) < 64 << 10


AGENT = """
import sys, anyio
from pathlib import Path
from provider_kernel.sandbox import KernelCommand, Limits
from provider_kernel.sandbox.choice import choose

async def main():
    kernel = await choose(sys.argv[1]).start(KernelCommand(key=b"k"), folder=Path(sys.argv[2]), limits=Limits())
    print(kernel.pid, flush=True)
    await anyio.sleep_forever()

anyio.run(main)
"""


async def test_no_kernel_outlives_a_killed_agent(sandbox: Sandbox, tmp_path: Path):
    with subprocess.Popen(
        [sys.executable, "-c", AGENT, sandbox.name, str(tmp_path / "kernel")],
        stdout=subprocess.PIPE,
        text=True,
    ) as agent:
        assert agent.stdout is not None
        kernel = open_pidfd(int(await anyio.to_thread.run_sync(agent.stdout.readline)))
        assert kernel is not None
        agent.kill()
    with anyio.fail_after(30):
        await ended(kernel)
        while True:
            # The next agent removes the control groups that this one left.
            groups = cgroup.find()
            choose(sandbox.name).facts()
            if groups is None or not any(
                (at / f"depin-{agent.pid}-1").exists() for at in groups.folders.values()
            ):
                break
            await moment()
    os.close(kernel)


# -- starts that do not come to an end


def left() -> tuple[set[str], set[int]]:
    """This process's descriptors and children."""
    descriptors = set(os.listdir("/proc/self/fd"))
    return descriptors, {process.pid for process in psutil.Process().children(recursive=True)}


@pytest.fixture
def hanging(monkeypatch, tmp_path) -> None:
    """Kernels that never open their sockets, and little patience."""
    script = tmp_path / "hang.py"
    script.write_text("import time\ntime.sleep(3600)\n")
    monkeypatch.setattr(bubblewrap, "KERNEL_MAIN", script)
    monkeypatch.setattr(plain, "_argv", lambda *_: [sys.executable, str(script)])
    monkeypatch.setattr(port, "START_S", 1)


async def failing(sandbox: Sandbox, folder: Path, key: bytes = b"k") -> str:
    with pytest.raises(KernelStartFailed) as caught, anyio.fail_after(60):
        await sandbox.start(KernelCommand(key=key), folder=folder, limits=Limits())
    assert not folder.exists()
    return str(caught.value)


async def test_a_kernel_that_never_comes_up_leaves_nothing(sandbox, hanging, tmp_path):
    # The first start may make what stays for the agent's life.
    await failing(sandbox, tmp_path / "a")
    before = left()
    assert "it did not come up within 1 s" in await failing(sandbox, tmp_path / "b")
    assert left() == before


async def test_a_program_that_cannot_be_spawned_leaves_nothing(sandbox, hanging, tmp_path, monkeypatch):
    await failing(sandbox, tmp_path / "a")

    def refuse(*_, **__):
        raise OSError("no more processes")

    before = left()
    monkeypatch.setattr(subprocess, "Popen", refuse)
    assert "no more processes" in await failing(sandbox, tmp_path / "b")
    assert left() == before


async def test_a_key_that_is_no_text_is_one_sentence_and_leaves_nothing(sandbox, hanging, tmp_path):
    await failing(sandbox, tmp_path / "a")
    before = left()
    assert "its key is not UTF-8 text" in await failing(sandbox, tmp_path / "b", key=b"\xff")
    assert left() == before
