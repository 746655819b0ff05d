"""What a renter reads when renting is refused: one sentence, nothing paid, nothing left running.

The program is the one that VS Code starts for a rented kernel. Jupyter programs get the same error as an exception.
"""

from __future__ import annotations

import json
import re
import sqlite3

import pytest

from jupyter_depin.kernelspec import write_kernel_spec
from jupyter_depin.keys import Wallet
from jupyter_depin.protocol.identity import NodeAddress, Ticket, checksummed
from jupyter_depin.transport.iroh import node_id_of
from tests.e2e.market import run, running, sentence
from tests.e2e.world import free_port

pytestmark = pytest.mark.timeout(300)

NOBODY = node_id_of(bytes(31) + b"\x01")


@pytest.fixture(autouse=True)
def nothing_left_running(tmp_path):
    yield
    assert running(tmp_path) == []


# -- who is rented from


def test_a_provider_that_is_not_in_the_registry(shared, tmp_path):
    home = shared.renter(tmp_path)
    shared.other_registry(None).save(home / "network.json")
    said = shared.refused(home)
    assert said == (
        f"Provider {checksummed(shared.ticket.provider)} is not registered on this chain. Check the address, or ask "
        "the provider to register."
    )


def test_a_registry_that_names_another_node(shared, tmp_path):
    home = shared.renter(tmp_path)
    shared.other_registry(NOBODY).save(home / "network.json")
    said = shared.refused(home)
    assert said == (
        f"The machine that answered is {shared.ticket.address.node.hex()}, not {NOBODY.hex()}. Nothing was paid; get a "
        "fresh ticket from the provider."
    )


def test_a_ticket_with_another_wallet(shared, tmp_path):
    other = Wallet.generate().address
    said = shared.refused(shared.renter(tmp_path, tickets=[str(Ticket(shared.ticket.address, other))]))
    assert said.startswith(
        f"The machine that answered is {checksummed(shared.ticket.provider)}, not {checksummed(other)}. Nothing was paid;"
    )


def test_a_ticket_of_a_machine_that_is_not_there(shared, tmp_path):
    nowhere = f"127.0.0.1:{free_port()}"
    ticket = Ticket(NodeAddress(NOBODY, (), (nowhere,)), shared.ticket.provider)
    said = shared.refused(shared.renter(tmp_path, tickets=[str(ticket)]))
    assert said == (
        f"The provider at {nowhere} did not answer. Check the ticket and your network, or choose another provider."
    )


@pytest.mark.parametrize(
    "spoil",
    [lambda t: t[1:], lambda t: t[:-9], lambda t: t[:20] + "!" + t[21:], lambda t: "", lambda t: "né"],
)
def test_a_ticket_that_was_copied_badly(shared, tmp_path, spoil):
    said = shared.refused(shared.renter(tmp_path, tickets=[spoil(str(shared.ticket))]))
    assert re.fullmatch(
        "This is not a valid ticket: it (is damaged|does not begin with depin1). Copy the whole line that the provider "
        "printed.",
        said,
    )  # fmt: skip


def test_no_ticket_at_all(shared, tmp_path):
    assert "no provider is known; add a ticket" in shared.refused(shared.renter(tmp_path, tickets=[]))


OFFERS = """
import provider_kernel.offers as offers
honest = offers.OfferBook.current
"""
FORGED = (
    OFFERS
    + """
from jupyter_depin.keys import Wallet
from jupyter_depin.protocol.messages import SignedOffer
other = Wallet.generate()
offers.OfferBook.current = lambda self, now: tuple(
    SignedOffer(s.offer, other.sign(s.offer.digest())) for s in honest(self, now)
)
"""
)
STALE = (
    OFFERS
    + """
offers.OfferBook.current = lambda self, now: honest(self, now - 3600)
"""
)
DEAF = """
import jupyter_depin.drivers.meter as meter
from jupyter_depin.errors import VoucherRefused
def verify_voucher(signed, signer, domain):
    raise VoucherRefused(reason="it is signed by another key")
meter.verify_voucher = verify_voucher
"""
OPEN_HOUSE = 'sandbox = "none"\naccept_strangers_without_a_sandbox = true\n'


def test_an_offer_that_another_wallet_signed(shared, tmp_path):
    with shared.agent(shared.provider(tmp_path), lie=FORGED) as ticket:
        said = shared.refused(shared.renter(tmp_path, tickets=[ticket]))
    assert said.startswith("The machine that answered is 0x")
    assert said.endswith("Nothing was paid; get a fresh ticket from the provider.")


def test_an_offer_that_has_expired(shared, tmp_path):
    with shared.agent(shared.provider(tmp_path), lie=STALE) as ticket:
        said = shared.refused(shared.renter(tmp_path, tickets=[ticket]))
    assert re.fullmatch(
        r"This offer ended 30\d\d s ago. Try again; if that does not help, the clock of one of the two machines is wrong.",
        said,
    )  # fmt: skip


def test_a_provider_without_a_sandbox(shared, tmp_path):
    with shared.agent(shared.provider(tmp_path, 'sandbox = "none"\n')) as ticket:
        said = shared.refused(shared.renter(tmp_path, tickets=[ticket]))
    assert said == (
        "The provider runs kernels without a sandbox and so accepts only people its owner named. Choose another one."
    )


# -- money


def test_an_empty_wallet(shared, tmp_path):
    home = shared.renter(tmp_path, max_spend="1.5")
    (home / "wallet.key").unlink()
    shared.funded(home / "wallet.key", money=0)
    assert (
        shared.refused(home)
        == "Your wallet holds 0 DEMO where 1.5 are needed. Add money, or spend less (max_spend; for an owner, stake)."
    )


def test_a_wallet_that_cannot_pay_the_networks_fees(shared, tmp_path):
    home = shared.renter(tmp_path)
    (home / "wallet.key").unlink()
    shared.funded(home / "wallet.key", fees=False)
    said = shared.refused(home)
    assert said.startswith("Your wallet holds 0 of the network's own coin where 0.0")


def test_a_rate_above_the_limit(shared, tmp_path):
    said = shared.refused(shared.renter(tmp_path, max_rate_per_hour="0.35"))
    assert said == (
        "This offer costs 3.6 DEMO per hour, above your limit of 0.35 DEMO. Raise the limit or choose a cheaper offer."
    )


def test_a_limit_below_the_least_deposit(shared, tmp_path):
    said = shared.refused(shared.renter(tmp_path, max_spend="0.001"))
    assert said == (
        "Your limit of 0.001 DEMO per rental is less than the 0.003 that must be locked. Raise it (max_spend)."
    )


PAY = """
import asyncio, json, sys
from jupyter_client.manager import start_new_kernel
from jupyter_depin.consumer.runtime import Runtime
manager, client = start_new_kernel(kernel_name="depin-rented", startup_timeout=60)
runtime = Runtime.get()
paused = __import__("threading").Event()
runtime.subscribe(lambda status: status.state == "paused" and paused.set())
assert paused.wait(60) or runtime.snapshot()[0].state == "paused"
(rental,) = runtime.snapshot()
print(json.dumps(rental.reason), flush=True)
client.stop_channels()
manager.shutdown_kernel()
"""


def test_a_provider_that_refuses_every_voucher_gets_nothing(shared, tmp_path):
    lazy = OPEN_HOUSE + "tick_s = 1\narrears_s = 2\n"
    with shared.agent(shared.provider(tmp_path, lazy), lie=DEAF) as ticket:
        home = shared.renter(tmp_path, tickets=[ticket], max_rate_per_hour="3.6")
        write_kernel_spec(tmp_path / "jupyter" / "kernels" / "depin-rented", home)
        before = shared.money()
        done = run("-c", PAY, env={**shared.world.environment(), "JUPYTER_PATH": str(tmp_path / "jupyter")})
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout) == ["VoucherRefused", {"reason": "it is signed by another key"}]
        said = [line.partition(" ")[2] for line in done.stderr.splitlines() if "refused" in line]
        assert set(said) == {
            "A payment was refused: it is signed by another key. The kernel is paused until a valid one arrives."
        }
        receipts = shared.depin(home, "receipts").stdout
        assert "Collected             0 DEMO (THE CHAIN DISAGREES)" in receipts
    assert shared.money() == before


def test_the_doctor_sees_an_empty_wallet_and_a_full_one(shared, tmp_path):
    home = shared.renter(tmp_path, max_spend="1.5")
    full = shared.depin(home, "doctor")
    assert full.returncode == 0, full.stdout
    assert " DEMO, for rentals of at most 1.5\n" in full.stdout
    (home / "wallet.key").unlink()
    empty = shared.depin(home, "doctor")
    assert empty.returncode == 1
    assert (
        "MISSING  Money: Your wallet holds 0 DEMO where 1.5 are needed\n         → Add money" in empty.stdout
    )


# -- the payment network


def test_a_payment_network_that_does_not_answer(shared, tmp_path):
    home = shared.renter(tmp_path)
    url = f"http://127.0.0.1:{free_port()}"
    shared.book(rpc_urls=[url]).save(home / "network.json")
    said = f"The payment network at {url} does not answer. Check your network and this address; what is owed is settled later."
    assert shared.refused(home) == said
    assert sentence(shared.depin(home, "wallet")) == said


@pytest.mark.parametrize("command", ["rent", "wallet"])
def test_another_chain_behind_the_address(shared, tmp_path, command):
    home = shared.renter(tmp_path)
    book = shared.book(chain_id=8453)
    book.save(home / "network.json")
    said = shared.refused(home) if command == "rent" else sentence(shared.depin(home, "wallet"))
    assert said == (
        f"{book.rpc_urls[0]} is chain 31337, not chain 8453. Correct the address in your configuration; nothing was paid."
    )


def test_a_chain_without_the_contracts(shared, tmp_path):
    home = shared.renter(tmp_path)
    vault = "0x" + 20 * "ab"
    shared.book(vault=vault).save(home / "network.json")
    assert f"is chain 31337 without the vault {vault}, not chain 31337." in shared.refused(home)


def test_no_payment_network(shared, tmp_path):
    home = shared.renter(tmp_path)
    (home / "network.json").unlink()
    assert shared.refused(home) == (
        f"No payment network is set up: {home}/network.json is missing. `jupyter depin kernel TICKET --address-book "
        "FILE` sets one up."
    )


# -- files and ports


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("config.toml", "tickets = ?", "Invalid value (at line 1, column 11)"),
        ("config.toml", 'ticket = "depin1"', "there is no setting 'ticket'"),
        ("config.toml", 'tickets = "depin1"', "tickets is 'depin1', which is of the wrong kind"),
        ("config.toml", "tickets = [1]", "tickets is (1,), which is of the wrong kind"),
        ("config.toml", "max_spend = 1", "max_spend is 1, which is of the wrong kind"),
        ("config.toml", 'max_rate_per_hour = "much"', "max_rate_per_hour is 'much', which is no amount such as 0.50"),
        ("config.toml", "max_seconds = 0", "max_seconds is 0; it can be 1 to 4294967295"),
        ("config.toml", "keep_s = -1", "keep_s is -1; it can be 0 to 86400"),
        ("config.toml", "settle_wait_s = 0", "settle_wait_s is 0; it can be 1 to 3600"),
        ("network.json", "{", "Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
        ("network.json", "{}", "'chain_id' is missing"),
    ],
)  # fmt: skip
def test_a_damaged_setting(shared, tmp_path, name, content, reason):
    home = shared.renter(tmp_path)
    (home / name).write_text(content)
    said = shared.refused(home)
    assert said == f"The file {home / name} cannot be used: {reason}. Correct it, or move it away."
    assert (home / name).read_text() == content


def test_a_mistyped_contract(shared, tmp_path):
    home = shared.renter(tmp_path)
    text = (home / "network.json").read_text()
    vault = json.loads(text)["vault"]
    (home / "network.json").write_text(text.replace(vault, vault.swapcase().replace("0X", "0x")))
    assert "is mistyped: its checksum is wrong. Correct it" in shared.refused(home)


def test_a_damaged_wallet(shared, tmp_path):
    home = shared.renter(tmp_path)
    (home / "wallet.key").write_text("0x12")
    for said in (shared.refused(home), sentence(shared.depin(home, "wallet"))):
        assert said == (
            f"The key file {home}/wallet.key is not a valid key (it holds 4 characters, not 64). Restore your backup; "
            "without it the money cannot be moved."
        )
    assert (home / "wallet.key").read_text() == "0x12"


def test_a_damaged_journal(shared, tmp_path):
    home = shared.renter(tmp_path)
    journal = home / "journal.sqlite"
    journal.write_bytes(b"SQLite" * 99)
    for said in (shared.refused(home), sentence(shared.depin(home, "receipts"))):
        assert said == (
            f"The journal {journal} is damaged (it is no SQLite file). It was left untouched: copy it, then restore a "
            "backup or move it away."
        )
    assert journal.read_bytes() == b"SQLite" * 99


def test_a_journal_of_another_program(shared, tmp_path):
    home = shared.renter(tmp_path)
    with sqlite3.connect(home / "journal.sqlite") as other:
        other.execute("CREATE TABLE cats (name TEXT)")
    assert "is damaged (it belongs to another program)." in shared.refused(home)


def test_a_home_that_cannot_be_made(shared, tmp_path):
    home = shared.renter(tmp_path)
    blocked = home / "wallet.key" / "home"
    done = run("-m", "jupyter_depin", "wallet", "--home", blocked)
    assert sentence(done) == (
        f"The configuration is wrong: the folder {blocked} cannot be made (Not a directory); name another one with --home."
    )


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "No such file or directory"),
        ("{", "it is no connection file (Expecting property name enclosed in double quotes: line 1 column 2 (char 1))"),
        ("{}", "it lacks 'transport'"),
        ("1", "it is no connection file ('int' object is not iterable)"),
    ],
)  # fmt: skip
def test_a_damaged_connection_file(shared, tmp_path, content, reason):
    home, path = shared.renter(tmp_path), tmp_path / "c.json"
    if content is not None:
        path.write_text(content)
    said = sentence(run("-m", "jupyter_depin.kernel", "-f", path, "--home", home))
    assert said == f"The file {path} cannot be used: {reason}. Correct it, or move it away."


def test_a_port_that_is_taken(shared, tmp_path):
    taken = int(shared.book().rpc_urls[0].rpartition(":")[2])
    said = shared.refused(shared.renter(tmp_path), taken=taken)
    assert said == (
        f"Port {taken} is already in use on this machine. Stop the program that uses it, or choose another port."
    )


# -- through Jupyter's own programs

EXECUTE = """
import nbformat
from nbclient import NotebookClient
v4 = nbformat.v4
NotebookClient(v4.new_notebook(cells=[v4.new_code_cell("1")]), kernel_name="depin-rented").execute()
"""


def test_a_jupyter_program_ends_with_our_sentence(shared, tmp_path):
    home = shared.renter(tmp_path, max_rate_per_hour="0.01")
    write_kernel_spec(tmp_path / "jupyter" / "kernels" / "depin-rented", home)
    done = run("-c", EXECUTE, env={**shared.world.environment(), "JUPYTER_PATH": str(tmp_path / "jupyter")})
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "jupyter_depin.errors.RateAboveCap: This offer costs 3.6 DEMO per hour, above your limit of 0.01 DEMO. Raise "
        "the limit or choose a cheaper offer."
    )


def test_withdrawing_what_is_not_there(shared, tmp_path):
    home = shared.renter(tmp_path)
    before = shared.money()
    for amount in ("9999999", "0", "much"):
        said = sentence(shared.depin(home, "wallet", f"--withdraw={amount}"))
        assert amount in said
    assert shared.money() == before
