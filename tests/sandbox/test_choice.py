"""Which sandbox a machine gets."""

from __future__ import annotations

import pytest

from jupyter_depin.errors import SandboxMissing
from provider_kernel.sandbox.bubblewrap import BubblewrapSandbox
from provider_kernel.sandbox.choice import choose


@pytest.mark.sandbox
def test_auto_takes_bubblewrap_where_it_works():
    assert choose("auto").name == "bubblewrap"


def test_auto_takes_none_where_bubblewrap_does_not_work(monkeypatch):
    monkeypatch.setenv("PATH", "")
    sandbox = choose("auto")
    sandbox.check()
    assert (sandbox.name, sandbox.facts()["sandbox"]) == ("none", "none")


def test_a_named_sandbox_is_never_replaced(monkeypatch):
    monkeypatch.setenv("PATH", "")
    sandbox = choose("bubblewrap")
    assert isinstance(sandbox, BubblewrapSandbox)
    with pytest.raises(SandboxMissing, match="not installed"):
        sandbox.check()
