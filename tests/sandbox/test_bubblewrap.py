"""Attacks from inside a sandboxed kernel's cells, and what the sandbox owes its renter: plots, home, debugger.

The kernel of the attacks is shared by the module; its agent is a thread with a loop of its own, which stays for as long
as the kernel does.
"""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import psutil
import pytest
from anyio.from_thread import start_blocking_portal
from jupyter_client import AsyncKernelClient, BlockingKernelClient

from jupyter_depin.errors import KernelStartFailed, SandboxMissing
from provider_kernel import sandbox as port
from provider_kernel.sandbox import KernelCommand, Limits, cgroup, foreign_user, seccomp, view
from provider_kernel.sandbox.bubblewrap import BubblewrapSandbox, passed_environment
from provider_kernel.sandbox.confined import ConfinedKernel
from provider_kernel.sandbox.signals import stands_still
from tests.sandbox.conftest import connect

pytestmark = pytest.mark.sandbox

SECRET = f"OWNER-SECRET-{secrets.token_hex(4)}"
MB = 1 << 20
Cell = Callable[[str], str]


@pytest.fixture(scope="module")
def cell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cell]:
    """Run a cell in the module's kernel: what it prints and, if it fails, its error."""
    folder = tmp_path_factory.mktemp("agent", numbered=True) / "k"
    os.environ["OWNER_TOKEN"] = SECRET
    with start_blocking_portal() as portal:

        async def start():
            limits = Limits(memory=1 << 30, pids=128)
            return await BubblewrapSandbox().start(KernelCommand(key=b"key"), folder=folder, limits=limits)

        kernel = portal.call(start)
        client = BlockingKernelClient()
        client.load_connection_info(
            {"transport": "ipc", "ip": f"{folder}/k", "key": "key", "signature_scheme": "hmac-sha256"}
            | {f"{name}_port": n for n, name in enumerate(("shell", "iopub", "stdin", "control", "hb"), 1)}
        )
        client.start_channels()

        def run(code: str) -> str:
            said: list[str] = []

            def hear(message) -> None:
                content = message["content"]
                if message["msg_type"] == "stream":
                    said.append(content["text"])
                elif message["msg_type"] == "error":
                    said.append(f"{content['ename']}: {content['evalue']}")
                elif "data" in content:
                    said.append(" ".join(content["data"]))

            client.execute_interactive(code, timeout=60, output_hook=hear)
            return "".join(said).strip()

        run("import ctypes, errno, os, socket, subprocess, sys\nlibc = ctypes.CDLL(None, use_errno=True)")
        try:
            yield run
        finally:
            client.stop_channels()
            portal.call(kernel.destroy)
            del os.environ["OWNER_TOKEN"]


@pytest.fixture
def bystander() -> Iterator[subprocess.Popen]:
    """A process of the owner."""
    with subprocess.Popen(["sleep", "3600"], env={"MARK": SECRET}) as process:
        yield process
        process.kill()


# -- the owner's files


def test_a_file_of_the_owner_is_not_there(cell, tmp_path):
    (tmp_path / "wallet").write_text(SECRET)
    assert cell(f"print(open({str(tmp_path / 'wallet')!r}).read())").startswith("FileNotFoundError")


def test_the_owners_home_shows_nothing_but_the_way_to_python(cell):
    home = Path.home()
    way = {
        Path(prefix).relative_to(home).parts[0]
        for prefix in view.python_prefixes()
        if Path(prefix).is_relative_to(home)
    }
    shown = cell(f"print(*os.listdir({str(home)!r}) if os.path.isdir({str(home)!r}) else [])").split()
    assert set(shown) <= way


def test_the_owners_tmp_is_not_there(cell):
    # The environment may lie below /tmp: then the way to it shows, and nothing else.
    way = {Path(prefix).parts[2] for prefix in view.python_prefixes() if prefix.startswith("/tmp/")}
    assert set(cell("print(*(n for n in os.listdir('/tmp') if not n.startswith('.')))").split()) <= way


@pytest.mark.parametrize(
    "path", ["/etc/shadow", "/etc/machine-id", "/etc/hostname", "/etc/ssh", "/var/log", "/root/.ssh"]
)
def test_a_private_file_of_the_machine_is_not_there(cell, path):
    assert cell(f"print(os.path.exists({path!r}))") == "False"


def test_no_user_of_the_machine_is_named(cell):
    assert cell("import pwd; print(*(u.pw_name for u in pwd.getpwall()))") == "root renter"
    assert cell("print(os.getuid(), os.getgid(), os.uname().nodename)") == "1000 1000 kernel"


def test_mounts_are_only_memory_and_the_shown_folders(cell):
    shown = cell("print(*(line.split()[4] for line in open('/proc/self/mountinfo')), sep='\\n')").splitlines()
    allowed = ("/usr", "/bin", "/sbin", "/lib", "/etc/", "/run/depin/", "/proc", "/dev", "/tmp", "/home")
    strange = [
        point
        for point in shown
        if not point.startswith(allowed) and point not in ("/", *view.python_prefixes())
    ]
    assert strange == []


@pytest.mark.parametrize(
    "folder", ["/", "/usr", "/etc", "/run", "/run/depin", "/dev", sys.prefix, sys.base_prefix]
)
def test_it_cannot_write_to(cell, folder):
    said = cell(f"open({folder + '/x'!r}, 'w')")
    assert said.startswith(("OSError: [Errno 30]", "PermissionError")), said


def test_it_can_write_only_to_home_tmp_and_shm(cell):
    said = cell("""
found = set()
for folder, folders, _ in os.walk('/'):
    if folder == '/':
        folders.remove('proc')
    try:
        open(folder + '/.probe', 'w').close()
        os.remove(folder + '/.probe')
        found.add(folder)
    except OSError:
        pass
print(*found, sep='\\n')""")
    writable = said.splitlines()
    assert {"/home/renter", "/tmp", "/dev/shm"} <= set(writable)
    assert [folder for folder in writable if not folder.startswith(("/home", "/tmp", "/dev/shm"))] == []


def test_the_running_python_cannot_be_overwritten(cell):
    said = cell("open('/proc/self/exe', 'r+b')")
    assert said.startswith(("OSError: [Errno 30]", "OSError: [Errno 26]", "PermissionError")), said


# -- the agent's secrets


def test_the_agents_environment_stays_with_the_agent(cell):
    assert cell("print(*os.environ)").find("OWNER_TOKEN") == -1
    said = cell("""
for pid in filter(str.isdigit, os.listdir('/proc')):
    try:
        print(open(f'/proc/{pid}/environ').read())
    except OSError as refusal:
        print(refusal.strerror)""")
    assert SECRET not in said


def test_nothing_of_the_agent_is_inherited(cell):
    said = cell("""
for fd in os.listdir('/proc/self/fd'):
    try:
        print(os.readlink(f'/proc/self/fd/{fd}'))
    except OSError:
        pass""")
    strange = [
        target
        for target in said.splitlines()
        if not target.startswith(
            ("socket:", "pipe:", "anon_inode:", "/dev/null", "/proc/", "/home/renter/", "/dev/urandom")
        )
    ]
    assert strange == []


def test_a_program_inherits_no_socket_of_the_kernel(cell):
    said = cell(
        "print(subprocess.run(['ls', '-l', '/proc/self/fd'], capture_output=True, text=True, close_fds=False).stdout)"
    )
    assert "socket:" not in said


# -- the network


def test_a_service_of_the_machine_cannot_be_reached(cell):
    with socket.create_server(("127.0.0.1", 0)) as service:
        port = service.getsockname()[1]
        assert cell(f"socket.create_connection(('127.0.0.1', {port}), 5)").startswith(
            "ConnectionRefusedError"
        )


def test_nobody_outside_can_be_reached(cell):
    assert cell("socket.create_connection(('192.0.2.1', 80), 5)").startswith("OSError: [Errno 101]")
    assert cell("socket.getaddrinfo('example.org', 80)").startswith("gaierror")


def test_it_has_no_interface_but_loopback(cell):
    assert cell("print(*(name for _, name in socket.if_nameindex()))") == "lo"


def test_an_abstract_socket_of_the_owner_cannot_be_reached(cell):
    name = f"owner-{secrets.token_hex(4)}"
    with socket.socket(socket.AF_UNIX) as service:
        service.bind(f"\0{name}")
        service.listen()
        said = cell(f"socket.socket(socket.AF_UNIX).connect('\\0{name}')")
    assert said.startswith("ConnectionRefusedError")


@pytest.mark.parametrize(
    ("family", "kind"), [(40, 1), (38, 5), (17, 3), (31, 3)], ids=["vsock", "alg", "packet", "bluetooth"]
)
def test_a_socket_family_is_refused(cell, family, kind):
    assert cell(f"socket.socket({family}, {kind})").startswith("OSError: [Errno 97]")


def test_a_raw_socket_is_refused(cell):
    assert cell("socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)").startswith("PermissionError")


# -- other processes


def test_it_sees_only_its_own_processes(cell, bystander):
    said = cell("""
for pid in filter(str.isdigit, os.listdir('/proc')):
    print(open(f'/proc/{pid}/cmdline').read().split('\\0')[0])""")
    assert "sleep" not in said
    assert len(said.splitlines()) <= 4


def test_it_cannot_signal_a_process_of_the_owner(cell, bystander):
    assert cell(f"os.kill({bystander.pid}, 9)").startswith("ProcessLookupError")
    assert bystander.poll() is None


def test_it_cannot_end_the_sandboxs_first_process(cell):
    cell("os.kill(1, 9)")
    assert cell("print('alive')") == "alive"


def test_the_kernel_of_a_root_agent_is_not_root_to_the_machine(cell):
    cell("import time; marker = subprocess.Popen(['sleep', '86399'])")
    inside = [p for p in psutil.process_iter(["cmdline", "uids"]) if p.info["cmdline"] == ["sleep", "86399"]]
    assert [process.info["uids"].real for process in inside] == [
        foreign_user.HOST_ID if os.geteuid() == 0 else os.getuid()
    ]
    cell("marker.kill(); marker.wait()")


def test_it_has_no_privilege_and_gets_none(cell):
    said = cell("print(open('/proc/self/status').read())")
    status = dict(line.split(":\t", 1) for line in said.splitlines() if ":\t" in line)
    assert {status[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")


# -- the machine's kernel


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("mount", "b'none', b'/tmp', b'tmpfs', 0, None"),
        ("umount2", "b'/tmp', 2"),
        ("unshare", "0x10000000"),
        ("setns", "0, 0"),
        ("pivot_root", "b'/tmp', b'/tmp'"),
        ("fsopen", "b'tmpfs', 0"),
        ("ptrace", "0x4206, 1, 0, 0"),
        ("process_vm_readv", "1, None, 0, None, 0, 0"),
        ("keyctl", "0, -3, 1, 0, 0"),
        ("bpf", "0, 0, 0"),
        ("io_uring_setup", "1, 0"),
        ("userfaultfd", "0"),
        ("perf_event_open", "0, 0, 0, 0, 0"),
        ("open_by_handle_at", "-100, 0, 0"),
        ("syslog", "10, 0, 0"),
        ("init_module", "0, 0, b''"),
        ("reboot", "0, 0, 0, 0"),
    ],
)
def test_a_system_call_is_refused(cell, name, arguments):
    number = seccomp.REFUSED[name][0 if os.uname().machine == "x86_64" else 1]
    said = cell(f"r = libc.syscall({number}, {arguments}); print(r, errno.errorcode.get(ctypes.get_errno()))")
    assert said == "-1 EPERM"


@pytest.mark.parametrize("flags", ["-U", "-Un", "-r"])
def test_a_program_makes_no_namespace(cell, flags):
    assert (
        cell(f"print(subprocess.run(['unshare', {flags!r}, 'true'], capture_output=True).returncode)") != "0"
    )


def test_a_terminal_cannot_be_typed_into(cell):
    said = cell("import fcntl, pty; a, b = pty.openpty(); fcntl.ioctl(b, 0x5412, b'x')")
    assert said.startswith("PermissionError: [Errno 1]")


@pytest.mark.parametrize(
    "path", ["sys/kernel/core_pattern", "sys/vm/swappiness", "sysrq-trigger", "irq/default_smp_affinity"]
)
def test_the_machines_settings_cannot_be_written(cell, path):
    assert cell(f"open('/proc/{path}', 'w').close()").startswith(
        ("OSError: [Errno 30]", "PermissionError", "FileNotFoundError")
    )


def test_there_are_no_devices_but_the_harmless_ones(cell):
    harmless = [
        "null",
        "zero",
        "full",
        "random",
        "urandom",
        "tty",
        "console",
        "ptmx",
        "pts",
        "shm",
        "fd",
        "stdin",
        "stdout",
        "stderr",
        "core",
    ]
    assert set(cell("print(*os.listdir('/dev'))").split()) <= set(harmless)
    assert cell("print(os.path.exists('/sys/class'))") == "False"


@pytest.mark.parametrize("device", ["full", "null", "random", "tty", "urandom", "zero"])
def test_a_device_of_the_machine_cannot_be_changed(cell, device):
    # To what it is anyway: the attempt must be safe on a machine where it works.
    said = cell(f"os.chmod('/dev/{device}', os.stat('/dev/{device}').st_mode & 0o7777)")
    assert said.startswith(("OSError: [Errno 30]", "PermissionError")), said


def test_a_device_cannot_be_made(cell):
    assert cell("os.mknod('/tmp/disk', 0o60600, os.makedev(254, 0))").startswith("PermissionError")


# -- limits


@pytest.fixture
def start_small(tmp_path):
    """Start a kernel with narrow limits and hand it to a function, with its client."""

    async def run(code: str, limits: Limits) -> tuple[str, int | None]:
        kernel = await BubblewrapSandbox().start(
            KernelCommand(key=b"key"), folder=tmp_path / "k", limits=limits
        )
        client = AsyncKernelClient()
        client.load_connection_info(
            {"transport": "ipc", "ip": f"{tmp_path}/k/k", "key": "key", "signature_scheme": "hmac-sha256"}
            | {f"{name}_port": n for n, name in enumerate(("shell", "iopub", "stdin", "control", "hb"), 1)}
        )
        client.start_channels()
        said: list[str] = []
        status: list[int] = []

        def hear(message) -> None:
            content = message["content"]
            if message["msg_type"] == "stream":
                said.append(content["text"])
            elif message["msg_type"] == "error":
                said.append(content["ename"])

        async def end() -> None:
            status.append(await kernel.wait())
            group.cancel_scope.cancel()

        try:
            with anyio.fail_after(60):
                async with anyio.create_task_group() as group:
                    group.start_soon(end)
                    await client.execute_interactive(code, timeout=60, output_hook=hear)
                    group.cancel_scope.cancel()
        finally:
            client.stop_channels()
            await kernel.destroy()
        return "".join(said).strip(), status[0] if status else None

    return run


@pytest.mark.parametrize("folder", ["/home/renter", "/tmp", "/dev/shm"])
async def test_a_folder_fills_up_at_its_size(start_small, folder):
    said, _ = await start_small(
        f"""
n = 0
with open({folder + "/x"!r}, 'wb', buffering=0) as file:
    try:
        while n < 64:
            file.write(bytes(1 << 20))
            n += 1
    except OSError as full:
        print(full.errno, n)""",
        Limits(home=8 * MB, tmp=8 * MB, shm=8 * MB),
    )
    error, written = said.split()
    assert error == "28"
    assert int(written) <= 8


async def test_memory_that_runs_out_does_not_cost_the_owner_a_program(start_small):
    said, _ = await start_small("print(open('/proc/self/oom_score_adj').read())", Limits())
    assert said == "1000"


@asynccontextmanager
async def talking(folder: Path) -> AsyncIterator[tuple[ConfinedKernel, AsyncKernelClient]]:
    kernel = await BubblewrapSandbox().start(KernelCommand(key=b"key"), folder=folder, limits=Limits())
    client = AsyncKernelClient()
    connect(client, kernel.sockets, b"key")
    client.start_channels()
    try:
        with anyio.fail_after(60):
            await client.wait_for_ready()
            yield kernel, client
    finally:
        client.stop_channels()
        await kernel.destroy()


async def begun(client: AsyncKernelClient, code: str, word: str) -> None:
    """Run a cell until it has printed a word."""
    client.execute(code)
    while (await client.get_iopub_msg())["content"].get("text") != word:
        pass


FORKING = """
import os, signal, time
kernel = os.getpid()
for _ in range(16):
    if os.fork() == 0:
        # Each link makes the next one and goes; all of them wake the kernel.
        while True:
            if os.fork():
                os._exit(0)
            os.kill(kernel, signal.SIGCONT)
print('forking', flush=True)
time.sleep(3600)
"""


HEADLESS = """
import os, subprocess, sys
program = '''
import ctypes, threading
threading.Thread(target=lambda: [None for _ in iter(int, 1)], daemon=True).start()
ctypes.CDLL(None).syscall(60 if __import__('platform').machine() == 'x86_64' else 93, 0)
'''
p = subprocess.Popen([sys.executable, '-c', program])
while 'Z' not in open(f'/proc/{p.pid}/status').read().split('State:')[1][:3]:
    pass
print('headless', flush=True)
"""


async def test_threads_that_outlive_their_main_thread_are_stopped_too(tmp_path, monkeypatch):
    monkeypatch.setattr(cgroup.Cgroup, "can_freeze", property(lambda _: False))
    async with talking(tmp_path / "k") as (kernel, client):
        await begun(client, HEADLESS, "headless\n")
        kernel.pause()
        inside = psutil.Process(kernel.pid).children(recursive=True)
        while not all(stands_still(process.pid) for process in inside):
            pass
        before = [process.cpu_times()[:2] for process in inside]
        await anyio.run_process([sys.executable, "-I", "-S", "-c", "sum(range(5_000_000))"])
        assert [process.cpu_times()[:2] for process in inside] == before


async def test_a_kernel_that_will_not_be_paused_is_killed(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(cgroup.Cgroup, "can_freeze", property(lambda _: False))
    async with talking(tmp_path / "k") as (kernel, client):
        await begun(client, FORKING, "forking\n")
        kernel.pause()
        if "would not be paused" in caplog.text:
            assert await kernel.wait() == -9
        else:
            # On a busy machine all of them may be caught between two forks.
            assert [process.pid for process in kernel._inside() if not stands_still(process.pid)] == []


async def test_memory_is_bounded(start_small):
    said, status = await start_small(
        "kept = []\nwhile True:\n    kept.append(bytearray(b'x' * (16 << 20)))", Limits(memory=512 * MB)
    )
    # A group's limit kills the kernel; the limit of each process makes Python say so.
    assert status == -9 or said == "MemoryError"


async def test_processes_are_bounded(start_small):
    if BubblewrapSandbox().facts()["processes"] == "no limit":
        pytest.skip("root without control groups: nothing counts a sandbox's processes")
    said, _ = await start_small(
        """
import os, signal, time
n, children = 0, []
try:
    while n < 500:
        if (pid := os.fork()) == 0:
            time.sleep(3600)
        children.append(pid)
        n += 1
except BlockingIOError:
    print(n)
for pid in children:
    os.kill(pid, signal.SIGKILL)""",
        Limits(pids=64),
    )
    assert int(said) < 64


async def test_groups_are_gone_with_their_kernels(start_small):
    home = cgroup.find()
    if home is None:
        pytest.skip("no control groups here")
    before = {group for folder in home.folders.values() for group in folder.iterdir()}
    await start_small("print(1)", Limits())
    assert {
        group for folder in home.folders.values() for group in folder.iterdir() if group.is_dir()
    } <= before


def test_groups_of_a_killed_agent_are_swept():
    home = cgroup.find()
    if home is None:
        pytest.skip("no control groups here")
    with subprocess.Popen(["true"]) as gone:
        gone.wait()
    assert not psutil.pid_exists(gone.pid)
    for folder in home.folders.values():
        (folder / f"{cgroup.PREFIX}{gone.pid}-1").mkdir(exist_ok=True)
    BubblewrapSandbox().facts()
    for folder in home.folders.values():
        assert not (folder / f"{cgroup.PREFIX}{gone.pid}-1").exists()


# -- what a renter gets


def test_a_plot_is_drawn(cell):
    assert "image/png" in cell(
        "import matplotlib.pyplot as plt; plt.plot([1, 2]); plt.title('Größe'); plt.show()"
    )


def test_sqlite_threads_and_subprocesses_work(cell):
    assert cell("import sqlite3; print(sqlite3.connect('x.db').execute('select 6*7').fetchone()[0])") == "42"
    assert (
        cell("from concurrent.futures import ThreadPoolExecutor as T; print(*T(4).map(abs, [-1, -2]))")
        == "1 2"
    )
    assert cell("import multiprocessing as m; print(m.Pool(2).map(abs, [-3, -4]))") == "[3, 4]"
    assert cell(
        "print(subprocess.run('echo $HOME; id -un', shell=True, capture_output=True, text=True).stdout)"
    ) == ("/home/renter\nrenter")


def test_only_harmless_variables_of_the_consumer_pass():
    harmless = {"DEPIN_COURSE": "x", "LANG": "de_DE.UTF-8", "LC_TIME": "C", "TZ": "UTC", "MPLBACKEND": "agg"}
    harmful = {
        "LD_PRELOAD": "x",
        "PYTHONPATH": "/x",
        "PATH": "/x",
        "HOME": "/x",
        "XLANG": "x",
        "TZ\n": "x",
        "LC_X": "\0--bind",
    }
    assert passed_environment(harmless | harmful) == harmless


# -- machines where it does not work


def test_a_missing_program_is_told_with_the_fix():
    with pytest.raises(SandboxMissing, match="apt install bubblewrap"):
        BubblewrapSandbox("bwrap-that-is-not-there").check()


def test_an_old_program_is_told_with_its_version(tmp_path):
    old = tmp_path / "bwrap"
    old.write_text("#!/bin/sh\necho bubblewrap 0.6.1\n")
    old.chmod(0o755)
    with pytest.raises(SandboxMissing, match=r"0\.6\.1"):
        BubblewrapSandbox(str(old)).check()


def test_a_failing_program_is_told_with_its_words(tmp_path):
    failing = tmp_path / "bwrap"
    failing.write_text(
        "#!/bin/sh\n[ $1 = --version ] && echo bubblewrap 0.9.0 && exit\necho bwrap: no way >&2; exit 1\n"
    )
    failing.chmod(0o755)
    with pytest.raises(SandboxMissing, match="no way"):
        BubblewrapSandbox(str(failing)).check()


async def test_a_program_that_never_makes_the_sandbox_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(port, "START_S", 1)
    stuck = tmp_path / "bwrap"
    stuck.write_text("#!/bin/sh\nexec sleep 3600\n")
    stuck.chmod(0o755)
    before = psutil.Process().children(recursive=True)
    with pytest.raises(KernelStartFailed, match="did not come up within 1 s"), anyio.fail_after(60):
        await BubblewrapSandbox(str(stuck)).start(
            KernelCommand(key=b"k"), folder=tmp_path / "k", limits=Limits()
        )
    assert psutil.Process().children(recursive=True) == before
    assert not (tmp_path / "k").exists()
