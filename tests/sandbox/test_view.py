"""Which folders of the agent's Python a kernel is shown."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from provider_kernel.sandbox import view


@pytest.fixture
def python(tmp_path, monkeypatch):
    """A made-up environment: `venv` made from `python/real`, which it knows by the link `python/link`."""
    for folder in ("venv/bin", "python/real/bin", "home"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "python/link").symlink_to("real")
    (tmp_path / "python/real/bin/python3").touch()
    (tmp_path / "shortcut").symlink_to(tmp_path / "python/link/bin/python3")
    (tmp_path / "venv/bin/python").symlink_to(tmp_path / "shortcut")
    for name, value in {
        "prefix": "venv",
        "exec_prefix": "venv",
        "base_prefix": "python/link",
        "base_exec_prefix": "python/link",
    }.items():
        monkeypatch.setattr(sys, name, str(tmp_path / value))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "venv/bin/python"))
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    return tmp_path


def test_the_environment_and_its_python_are_shown_by_all_their_names(python):
    assert sorted(view.python_prefixes()) == [
        f"{python}/python/link",
        f"{python}/python/real",
        f"{python}/venv",
    ]


def test_links_between_them_are_shown(python):
    assert view.python_links(view.python_prefixes()) == [
        (f"{python}/shortcut", f"{python}/python/link/bin/python3")
    ]


def test_an_environment_that_holds_the_home_folder_is_refused(python, monkeypatch):
    monkeypatch.setattr(Path, "home", lambda: python / "venv" / "home")
    with pytest.raises(view.PrivateEnvironment, match="venv"):
        view.python_prefixes()
