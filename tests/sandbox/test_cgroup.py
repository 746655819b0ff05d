"""Control groups on a made-up tree: the version that this machine does not have is tested too."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from provider_kernel.sandbox import Limits, cgroup

LIMITS = Limits(memory=1 << 30, pids=99, cpu=1.5)


@pytest.fixture
def v2(tmp_path: Path) -> Path:
    """The agent's own group `unit` of a version 2 tree."""
    (tmp_path / "cgroup.controllers").write_text("cpu memory pids")
    unit = tmp_path / "unit"
    unit.mkdir()
    (unit / "cgroup.controllers").write_text("cpu memory pids")
    (unit / "cgroup.subtree_control").write_text("")
    (unit / "cgroup.procs").write_text(f"{os.getpid()}\n")
    return unit


def told(folder: Path, *names: str) -> list[str]:
    return [(folder / name).read_text() for name in names]


def test_version_2_moves_the_agent_into_a_leaf_and_hands_the_controllers_down(v2):
    home = cgroup.find(v2.parent, "0::/unit\n")
    assert home is not None
    assert told(v2, "agent/cgroup.procs", "cgroup.subtree_control") == [
        str(os.getpid()),
        "+cpu +memory +pids",
    ]
    assert (home.version, set(home.folders)) == (2, {"memory", "pids", "cpu"})
    group = home.make()
    group.limit(LIMITS)
    group.add(4242)
    group.freeze(True)
    (folder,) = set(group.folders.values())
    assert folder.parent == v2
    names = (
        "memory.max",
        "memory.swap.max",
        "memory.oom.group",
        "pids.max",
        "cpu.max",
        "cgroup.procs",
        "cgroup.freeze",
    )
    assert told(folder, *names) == ["1073741824", "0", "1", "99", "150000 100000", "4242", "1"]


def test_an_agent_that_was_moved_finds_its_place_again(v2):
    first = cgroup.find(v2.parent, "0::/unit\n")
    assert cgroup.find(v2.parent, "0::/unit/agent\n") == first


def test_nobody_else_is_moved(v2):
    (v2 / "cgroup.procs").write_text(f"{os.getpid()}\n1\n")
    assert cgroup.find(v2.parent, "0::/unit\n") is None
    assert not (v2 / "agent").exists()


def test_version_2_without_controllers_is_no_place(v2):
    (v2 / "cgroup.controllers").write_text("")
    assert cgroup.find(v2.parent, "0::/unit\n") is None


def test_version_1_has_a_folder_for_each_controller(tmp_path):
    for name in cgroup.V1_CONTROLLERS:
        (tmp_path / name / "mine").mkdir(parents=True)
        (tmp_path / name / "mine" / "cgroup.procs").touch()
    home = cgroup.find(tmp_path, "3:cpu,cpuacct:/mine\n2:memory:/mine\n1:pids:/mine\n4:freezer:/mine\n0::/\n")
    assert home is not None
    group = home.make()
    group.limit(LIMITS)
    group.add(4242)
    group.freeze(True)
    at = group.folders
    assert told(at["memory"], "memory.limit_in_bytes", "memory.memsw.limit_in_bytes") == [
        "1073741824",
        "1073741824",
    ]
    assert told(at["pids"], "pids.max", "cgroup.procs") == ["99", "4242"]
    assert told(at["cpu"], "cpu.cfs_quota_us", "cpu.cfs_period_us") == ["150000", "100000"]
    assert told(at["freezer"], "freezer.state") == ["FROZEN"]


def test_zero_means_no_limit(v2):
    home = cgroup.find(v2.parent, "0::/unit\n")
    assert home is not None
    group = home.make()
    group.limit(Limits(memory=0, pids=0, cpu=0.0))
    assert [path.name for path in group.folders["memory"].iterdir()] == []


def test_groups_of_dead_agents_are_swept_and_those_of_the_living_stay(v2):
    home = cgroup.find(v2.parent, "0::/unit\n")
    assert home is not None
    with subprocess.Popen(["true"]) as dead:
        dead.wait()
    for name in (f"depin-{dead.pid}-1", f"depin-{os.getpid()}-77", "other"):
        (v2 / name).mkdir()
    home.sweep()
    assert {path.name for path in v2.iterdir() if path.is_dir()} == {
        "agent",
        "other",
        f"depin-{os.getpid()}-77",
    }


def test_a_machine_without_groups_has_no_place(tmp_path):
    assert cgroup.find(tmp_path, "0::/\n") is None
