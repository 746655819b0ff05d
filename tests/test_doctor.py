"""`jupyter depin doctor`: says what is missing and how to mend it, and changes nothing where there is nothing."""

from __future__ import annotations

import json

import anyio
import pytest

from jupyter_depin.doctor import report
from jupyter_depin.kernelspec import write_kernel_spec
from jupyter_depin.keys import Wallet
from jupyter_depin.protocol.identity import NodeAddress, Ticket, checksummed
from jupyter_depin.transport.iroh import node_id_of


@pytest.fixture
def home(tmp_path):
    """A renter's folder with a wallet and nothing else."""
    Wallet.load_or_create(tmp_path / "depin" / "wallet.key")
    return tmp_path / "depin"


def examined(home) -> tuple[int, list[str]]:
    said: list[str] = []
    return anyio.run(report, home, said.append), said


def fix_of(said: list[str], name: str) -> tuple[str, str]:
    """What was found, and the line that follows it."""
    index = next(i for i, line in enumerate(said) if line[9:].startswith(name))
    return said[index], said[index + 1].strip() if index + 1 < len(said) else ""


def test_a_fresh_machine_is_well_and_stays_fresh(tmp_path):
    status, said = examined(tmp_path / "depin")
    assert status == 0
    assert fix_of(said, "Wallet") == (
        "not here Wallet: none yet",
        "→ `jupyter depin wallet` makes one; `jupyter depin demo` needs none.",
    )
    for name in ("Python", "Transport (iroh)", "Settings"):
        assert fix_of(said, name)[0].startswith("ok ")
    assert not (tmp_path / "depin").exists()


def test_a_wallet_without_a_network(home):
    status, said = examined(home)
    assert status == 1
    assert (
        fix_of(said, "Wallet")[0]
        == f"ok       Wallet: {checksummed(Wallet.load_or_create(home / 'wallet.key').address)}"
    )
    assert fix_of(said, "Journal")[0] == "ok       Journal: every rental is settled"
    assert fix_of(said, "Payment network") == (
        f"MISSING  Payment network: No payment network is set up: {home}/network.json is missing",
        "→ `jupyter depin kernel TICKET --address-book FILE` sets one up.",
    )


def test_everything_that_is_damaged_is_named_with_its_fix(home):
    (home / "wallet.key").write_text("no key")
    (home / "journal.sqlite").write_text("no journal")
    (home / "network.json").write_text("[]")
    ticket = Ticket(NodeAddress(node_id_of(bytes(32)), (), ("127.0.0.1:9",)), Wallet.generate().address)
    (home / "config.toml").write_text(f"tickets = {json.dumps(['depin1?', str(ticket)])}\n")
    status, said = examined(home)
    assert status == 1
    assert fix_of(said, "Wallet")[1].startswith("→ Restore your backup")
    assert fix_of(said, "Journal")[1].startswith("→ It was left untouched: copy it")
    assert fix_of(said, "Payment network")[1] == "→ Correct it, or move it away."
    assert fix_of(said, "Provider")[1] == "→ Copy the whole line that the provider printed."
    assert said[-2].endswith("Provider: The provider at 127.0.0.1:9 did not answer")


def test_a_provider_that_only_a_kernel_spec_names_is_asked_too(home, tmp_path, monkeypatch):
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    ticket = Ticket(NodeAddress(node_id_of(bytes(32)), (), ("127.0.0.1:9",)), Wallet.generate().address)
    write_kernel_spec(tmp_path / "jupyter" / "kernels" / "rented", home, tickets=[str(ticket)])
    other = Ticket(ticket.address, Wallet.generate().address)
    write_kernel_spec(
        tmp_path / "jupyter" / "kernels" / "other", tmp_path / "elsewhere", tickets=[str(other)]
    )
    _, said = examined(home)
    assert len([line for line in said if "Provider: The provider at 127.0.0.1:9 did not answer" in line]) == 1


def test_settings_that_cannot_be_read(home):
    (home / "config.toml").write_text("?")
    status, said = examined(home)
    assert status == 1
    found, fix = fix_of(said, "Settings")
    assert str(home / "config.toml") in found
    assert fix == "→ Correct it, or move it away."
