"""`jupyter depin …` on a machine where there is nothing yet, and with words that it does not understand."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from jupyter_depin.chain.addresses import AddressBook
from jupyter_depin.cli import main
from jupyter_depin.keys import Wallet
from jupyter_depin.protocol.identity import NO_ADDRESS, NodeAddress, Ticket, checksummed
from jupyter_depin.transport.iroh import node_id_of

TICKET = Ticket(NodeAddress(node_id_of(bytes(32)), (), ("127.0.0.1:9",)), Wallet.generate().address)
COMMANDS = ("demo", "rentals", "attach", "receipts", "wallet", "kernel", "doctor")


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home that does not exist yet."""
    monkeypatch.setenv("JUPYTER_DEPIN_HOME", str(tmp_path / "depin"))
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "jupyter"))
    return tmp_path / "depin"


@pytest.fixture
def book(tmp_path):
    """An address book on a stick."""
    path = tmp_path / "book.json"
    AddressBook(1, ("http://127.0.0.1:9",), NO_ADDRESS, NO_ADDRESS, NO_ADDRESS, "DEMO", 6).save(path)
    return path


def failed(capsys, *words: str) -> str:
    assert main(words) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    return said.err.removeprefix("jupyter-depin: ").strip()


def test_jupyter_finds_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "jupyter", "depin", "--help"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert all(command in done.stdout for command in COMMANDS)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["demo", "--exec"], "--exec needs a command"),
        (["demo", "--port", "9", "--exec", "true"], "--exec needs a command, and goes with neither"),
        (["demo", "--run", "x.ipynb", "--port", "9"], "--port, --no-browser and --exec do not go with --run"),
        (["demo", "--output", ""], "--output and --json go with --run"),
        (["kernel", str(TICKET), "--name", " "], "--name is empty"),
        (["kernel", str(TICKET)[:-3] + "xyz"], "This is not a valid ticket: it is damaged."),
    ],
)
def test_words_that_do_not_go_together(capsys, home, words, said):
    assert said in failed(capsys, *words)
    assert not home.exists()


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(capsys, command):
    with pytest.raises(SystemExit) as left:
        main([command, "--help"])
    assert left.value.code == 0
    said = capsys.readouterr().out
    assert f"usage: jupyter depin {command}" in said
    assert said.count("\n") > 5


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["rent"], "argument COMMAND: invalid choice: 'rent' (choose from"),
        (["rentals", "--json"], "unrecognized arguments: --json"),
        (["kernel"], "the following arguments are required: TICKET"),
        (["wallet", "--withdraw"], "argument --withdraw: expected one argument"),
    ],
)
def test_words_that_are_not_understood(capsys, words, said):
    with pytest.raises(SystemExit) as left:
        main(words)
    assert left.value.code == 2
    assert said in capsys.readouterr().err.splitlines()[-1]


def test_a_fresh_machine_has_no_rentals_and_no_receipts(capsys, home):
    assert main(["rentals"]) == main(["rentals", "--settle"]) == main(["receipts"]) == 0
    assert capsys.readouterr().out == "Every rental is settled.\nEvery rental is settled.\nNo receipts yet.\n"
    assert main(["receipts", "--json"]) == 0
    assert capsys.readouterr().out == ""
    assert not home.exists()


def test_a_fresh_machine_gets_a_wallet_that_stays(capsys, home):
    assert main(["wallet"]) == 0
    address, chain = capsys.readouterr().out.splitlines()
    assert address == f"Address  {checksummed(Wallet.load_or_create(home / 'wallet.key').address)}"
    assert home.stat().st_mode & 0o777 == 0o700
    assert "none yet" in chain
    assert main(["wallet"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == address


def test_withdrawing_needs_a_payment_network(capsys, home):
    assert main(["wallet", "--withdraw", "1"]) == 1
    assert capsys.readouterr().err == (
        f"jupyter-depin: No payment network is set up: {home}/network.json is missing. `jupyter depin kernel TICKET "
        "--address-book FILE` sets one up.\n"
    )


@pytest.mark.parametrize("words", [["--home", "{}", "wallet"], ["wallet", "--home", "{}"]])
def test_another_home_is_understood_before_and_after_the_command(capsys, home, tmp_path, words):
    other = tmp_path / "other"
    assert main([word.format(other) for word in words]) == 0
    assert (other / "wallet.key").exists()
    assert not home.exists()


def test_a_kernel_is_offered_to_every_jupyter_program(capsys, home, book, tmp_path):
    assert main(["kernel", str(TICKET), "--address-book", str(book), "--name", "GPU in Lyon"]) == 0
    assert "“GPU in Lyon” is in the launcher" in capsys.readouterr().out
    (written,) = (tmp_path / "jupyter" / "kernels").glob("*/kernel.json")
    spec = json.loads(written.read_text())
    assert spec["display_name"] == "GPU in Lyon"
    assert spec["metadata"]["kernel_provisioner"]["config"] == {"home": str(home), "tickets": [str(TICKET)]}
    assert str(TICKET) in spec["argv"]
    assert AddressBook.load(home / "network.json") == AddressBook.load(book)


def test_the_address_book_in_use_may_be_named_again(home, book):
    assert main(["kernel", str(TICKET), "--address-book", str(book)]) == 0
    assert main(["kernel", str(TICKET), "--address-book", str(home / "network.json")]) == 0
    assert main(["kernel", str(TICKET)]) == 0
    assert AddressBook.load(home / "network.json") == AddressBook.load(book)


def test_a_relative_home_is_written_in_full(book, tmp_path, monkeypatch, home):
    monkeypatch.chdir(tmp_path)
    assert main(["kernel", str(TICKET), "--address-book", str(book), "--home", "here"]) == 0
    (written,) = (tmp_path / "jupyter" / "kernels").glob("*/kernel.json")
    argv = json.loads(written.read_text())["argv"]
    assert argv[argv.index("--home") + 1] == os.fspath(tmp_path / "here")


def test_a_kernel_needs_a_ticket_and_an_address_book(capsys, home, book, tmp_path):
    assert failed(capsys, "kernel", "depin2abc") == (
        "This is not a valid ticket: it does not begin with depin1. Copy the whole line that the provider printed."
    )
    assert failed(capsys, "kernel", str(TICKET)[:-5]).startswith("This is not a valid ticket: it is damaged.")
    assert failed(capsys, "kernel", str(TICKET)) == (
        f"No payment network is set up: {home}/network.json is missing. Add --address-book FILE, as the provider gave it "
        "to you."
    )
    missing = tmp_path / "missing.json"
    assert failed(capsys, "kernel", str(TICKET), "--address-book", str(missing)) == (
        f"The file {missing} cannot be used: No such file or directory. Correct it, or move it away."
    )
    assert not (tmp_path / "jupyter").exists()


def test_a_damaged_book_does_not_replace_a_good_one(capsys, home, book, tmp_path):
    assert main(["kernel", str(TICKET), "--address-book", str(book)]) == 0
    capsys.readouterr()
    bad = tmp_path / "bad.json"
    bad.write_text('{"chain_id": 1}')
    assert "'rpc_urls' is missing" in failed(capsys, "kernel", str(TICKET), "--address-book", str(bad))
    assert AddressBook.load(home / "network.json") == AddressBook.load(book)


def test_damaged_settings_stop_every_command(capsys, home):
    home.mkdir()
    (home / "config.toml").write_text("settle_wait = 3\n")
    for command in ("rentals", "receipts", "wallet"):
        assert failed(capsys, command) == (
            f"The file {home}/config.toml cannot be used: there is no setting 'settle_wait'. Correct it, or move it away."
        )
