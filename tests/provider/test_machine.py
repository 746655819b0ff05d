"""An agent's home: its own, and out of its kernels' sight."""

from __future__ import annotations

import subprocess
import sys

import pytest

from jupyter_depin.errors import ConfigError
from provider_kernel.cli import main
from provider_kernel.machine import allow_many_files, check_unseen, occupied

posix = pytest.mark.skipif(sys.platform == "win32", reason="no such locks and limits there")


@posix
def test_one_agent_a_home(tmp_path):
    with occupied(tmp_path / "home"):
        with pytest.raises(ConfigError, match="another agent runs in"), occupied(tmp_path / "home"):
            pass
        with occupied(tmp_path / "other"):
            pass
    with occupied(tmp_path / "home"):
        pass


@posix
def test_the_lock_goes_with_a_killed_agent(tmp_path):
    program = (
        "import sys, pathlib; from provider_kernel.machine import occupied\n"
        "with occupied(pathlib.Path(sys.argv[1])):\n"
        "    print('in', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as agent:
        assert agent.stdout is not None
        agent.stdout.readline()
        with pytest.raises(ConfigError), occupied(tmp_path):
            pass
        agent.kill()
    with occupied(tmp_path):
        pass


def test_a_home_that_cannot_be_made_is_one_sentence(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot be used"), occupied(tmp_path / "file" / "home"):
        pass


def test_a_home_that_kernels_could_read_is_refused(tmp_path):
    environment = tmp_path / "venv"
    (environment / "lend").mkdir(parents=True)
    (tmp_path / "link").symlink_to(environment)
    for home in (environment, environment / "lend", tmp_path / "link" / "lend"):
        with pytest.raises(ConfigError, match="which kernels can read"):
            check_unseen([tmp_path, home], ["/usr", str(environment)])
    check_unseen([tmp_path, tmp_path / "venvs"], ["/usr", str(environment)])


@posix
def test_the_limit_of_open_files_is_lifted():
    import resource

    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))
        allow_many_files()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        assert hard == before[1]
        assert soft == hard or soft >= 1 << 16
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize("command", ["start", "observe", "check"])
def test_a_system_where_nothing_can_be_lent_is_one_sentence(tmp_path, monkeypatch, capsys, command):
    monkeypatch.setattr(sys, "platform", "win32")
    options = [] if command == "check" else ["--home", str(tmp_path / "home")]
    assert main([command, *options]) == 1
    said = capsys.readouterr()
    assert (said.out, said.err) == (
        "",
        "provider-kernel: Kernels cannot be lent on Windows yet: that needs Linux.\n",
    )
    assert not (tmp_path / "home").exists()
