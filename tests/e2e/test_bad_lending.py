"""What an owner reads when the agent cannot lend: one sentence, and nothing is left running."""

from __future__ import annotations

import os
import shutil
import socket
import sys
from pathlib import Path

import pytest

from jupyter_depin.protocol.identity import checksummed
from tests.e2e.market import run, running, sentence
from tests.e2e.world import free_port

pytestmark = pytest.mark.timeout(300)

INSTALL = (
    "Install it: `sudo apt install bubblewrap` (Debian, Ubuntu), `sudo dnf install bubblewrap` (Fedora)."
)
NO_BUBBLEWRAP = (
    f"Sandboxed kernels need bubblewrap, which does not work here (it is not installed). {INSTALL}"
)


@pytest.fixture(autouse=True)
def nothing_left_running(tmp_path):
    yield
    assert running(tmp_path) == []


@pytest.fixture
def without_bubblewrap(tmp_path) -> dict[str, str]:
    """An environment on whose path there is nothing."""
    (tmp_path / "bin").mkdir()
    return {**os.environ, "PATH": str(tmp_path / "bin"), "HOME": str(tmp_path)}


def failed(shared, home, *options, **more) -> str:
    """The sentence with which the agent gives up. No money may have moved."""
    before = shared.money()
    done = shared.start(home, *options, **more)
    assert done.stdout == ""
    assert shared.money() == before
    return sentence(done, "provider-kernel")


# -- its home


def test_a_second_agent_in_one_home(shared, tmp_path):
    home = shared.provider(tmp_path)
    with shared.agent(home):
        said = failed(shared, home)
    assert f"another agent runs in {home}" in said
    assert "--home" in said


@pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")
def test_a_home_that_kernels_would_see(shared, tmp_path):
    home = Path(sys.prefix) / f"lend-{os.getpid()}"
    try:
        assert "which kernels can read" in failed(shared, home, "--sandbox", "bubblewrap")
        assert not home.exists()
    finally:
        shutil.rmtree(home, ignore_errors=True)


# -- the sandbox


def test_a_wanted_sandbox_that_is_not_there(shared, tmp_path, without_bubblewrap):
    home = shared.provider(tmp_path, 'sandbox = "bubblewrap"\n')
    assert failed(shared, home, env=without_bubblewrap) == NO_BUBBLEWRAP
    assert failed(shared, home, "--sandbox", "bubblewrap", env=without_bubblewrap) == NO_BUBBLEWRAP


def test_the_check_says_what_to_install(without_bubblewrap):
    done = run("-m", "provider_kernel", "check", env=without_bubblewrap)
    assert sentence(done, "provider-kernel") == NO_BUBBLEWRAP


def test_without_bubblewrap_strangers_are_refused_unless_their_host_says_otherwise(
    shared, tmp_path, without_bubblewrap
):
    provider = shared.provider(tmp_path)
    home = shared.renter(tmp_path)
    with shared.agent(provider, env=without_bubblewrap) as ticket:
        shared.configure(home, tickets=[ticket])
        assert shared.refused(home) == (
            "The provider runs kernels without a sandbox and so accepts only people its owner named. Choose another one."
        )
    with (provider / "provider.toml").open("a") as file:
        file.write("accept_strangers_without_a_sandbox = true\n")
    with shared.agent(provider, env=without_bubblewrap) as ticket:
        # A slot is promised now: the next thing that is wanted is money.
        shared.configure(home, tickets=[ticket], max_spend="0.000001")
        assert shared.refused(home).startswith("Your limit of 0.000001 DEMO per rental is less than")


def test_the_doctor_says_what_to_install(tmp_path, without_bubblewrap):
    done = run("-m", "jupyter_depin", "doctor", env=without_bubblewrap)
    lines = done.stdout.splitlines()
    found = next(i for i, line in enumerate(lines) if "Sandbox" in line)
    assert lines[found].startswith("not here Sandbox (to lend): Sandboxed kernels need bubblewrap")
    assert lines[found + 1].strip() == f"→ {INSTALL}"
    assert done.returncode == 0, done.stdout
    assert done.stderr == ""


# -- the payment network


def test_a_payment_network_that_does_not_answer(shared, tmp_path):
    home = shared.provider(tmp_path)
    url = f"http://127.0.0.1:{free_port()}"
    shared.book(rpc_urls=[url]).save(home / "network.json")
    assert failed(shared, home) == (
        f"The payment network at {url} does not answer. Check your network and this address; what is owed is settled later."
    )


def test_another_chain_behind_the_address(shared, tmp_path):
    home = shared.provider(tmp_path)
    shared.book(chain_id=8453).save(home / "network.json")
    assert "is chain 31337, not chain 8453. Correct the address" in failed(shared, home)


def test_no_payment_network(shared, tmp_path):
    home = shared.provider(tmp_path)
    (home / "network.json").unlink()
    assert failed(shared, home) == (
        f"No payment network is set up: {home}/network.json is missing. Put your network's address book there, or name "
        "it: --address-book FILE."
    )


def test_a_wallet_that_cannot_pay_the_stake(shared, tmp_path):
    home = shared.provider(tmp_path)
    shared.funded(home / "wallet.key", money=5_000_000)
    assert (
        failed(shared, home)
        == "Your wallet holds 5 DEMO where 100 are needed. Add money, or spend less (max_spend; for an owner, stake)."
    )


def test_a_stake_that_is_too_low(shared, tmp_path):
    home = shared.provider(tmp_path, 'stake = "1.5"\n')
    shared.funded(home / "wallet.key")
    assert failed(shared, home) == (
        'A stake of 1.5 DEMO is below the least one on this network. Set `stake = "100"` in provider.toml.'
    )


def test_a_node_that_acts_for_another_provider(shared, tmp_path):
    home = shared.provider(tmp_path)
    shared.funded(home / "wallet.key")
    shutil.copyfile(shared.world.provider / "node.key", home / "node.key")
    owner = checksummed(shared.ticket.provider).lower()
    assert f"this node acts for the provider {owner}" in failed(shared, home).lower()


# -- files, ports, options


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("slots = ?", "Invalid value (at line 2, column 9)"),
        ("slot = 2", "there is no setting 'slot'"),
        ("slots = 0", "slots is 0; it can be 1 to 1024"),
        ('slots = "2"', "slots is '2'; 4 would be of the right kind"),
        ('sandbox = "docker"', "sandbox is 'docker'; it can be auto, bubblewrap or none"),
        ('rate_per_hour = "cheap"', "rate_per_hour is 'cheap', which is no amount such as 0.34"),
        ('stake = "-1"', "stake is '-1', which is no amount such as 0.34"),
        ('title = "a\\tb"', r"title with control characters in the text 'a\tb'"),
        ("max_seconds = 4294967296", "max_seconds is 4294967296; no renter takes more than 4294967295"),
        ("memory_mb = 0", "memory_mb is 0; a kernel needs some"),
        ("processes = -1", "processes is -1; a kernel needs some"),
        ("tick_s = 60", "0 < tick_s ≤ arrears_s, grace_s and max_seconds above 0"),
    ],
)
def test_a_damaged_setting(shared, tmp_path, text, reason):
    home = shared.provider(tmp_path, text)
    assert failed(shared, home) == (
        f"The file {home}/provider.toml cannot be used: {reason}. Correct it, or move it away."
    )


def test_a_damaged_address_book(shared, tmp_path):
    home = shared.provider(tmp_path)
    (home / "network.json").write_text("[]")
    assert failed(shared, home).startswith(f"The file {home}/network.json cannot be used: ")


@pytest.mark.parametrize("name", ["wallet.key", "node.key"])
def test_a_damaged_key(shared, tmp_path, name):
    home = shared.provider(tmp_path)
    (home / name).write_text("z" * 64)
    assert failed(shared, home) == (
        f"The key file {home / name} is not a valid key (it holds something else than hex digits). Restore your backup; "
        "without it the money cannot be moved."
    )


def test_a_damaged_journal(shared, tmp_path):
    home = shared.provider(tmp_path)
    (home / "journal.sqlite").write_text("no journal")
    assert failed(shared, home) == (
        f"The journal {home}/journal.sqlite is damaged (it is no SQLite file). It was left untouched: copy it, then "
        "restore a backup or move it away."
    )


def test_a_port_that_is_taken(shared, tmp_path):
    home = shared.provider(tmp_path)
    with socket.socket(type=socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        assert failed(shared, home, "--listen", f"127.0.0.1:{port}") == (
            f"Port {port} is already in use on this machine. Stop the program that uses it, or choose another port."
        )


def test_an_address_that_is_none(shared, tmp_path):
    said = failed(shared, shared.provider(tmp_path), "--listen", "here")
    assert said == "The configuration is wrong: 'here' is not an address of the form ip:port."


def test_a_relay_that_is_none(shared, tmp_path):
    said = failed(shared, shared.provider(tmp_path, 'relays = ["nowhere"]\n'))
    assert said.startswith("The configuration is wrong: the relay 'nowhere' is no address of the web: ")


def test_a_trusted_node_that_is_none(shared, tmp_path):
    home = shared.provider(tmp_path, 'trusted_nodes = ["abc"]\n')
    assert failed(shared, home) == (
        "The configuration is wrong: in trusted_nodes, 'abc' is not a node id of 64 hex digits."
    )


def test_a_trusted_wallet_that_is_none(shared, tmp_path):
    home = shared.provider(tmp_path, 'trusted_wallets = ["0xabc"]\n')
    assert failed(shared, home) == (
        f"The file {home}/provider.toml cannot be used: in trusted_wallets, '0xabc' is not an address. Correct it, or "
        "move it away."
    )


def test_a_folder_that_cannot_be_made(shared, tmp_path):
    home = shared.provider(tmp_path) / "provider.toml" / "home"
    assert failed(shared, home) == (
        f"The configuration is wrong: the folder {home} cannot be used (Not a directory)."
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["lend"], "argument COMMAND: invalid choice: 'lend' (choose from"),
        (["start", "--sandbox", "docker"], "argument --sandbox: invalid choice: 'docker' (choose from"),
        (["start", "--log-level", "loud"], "argument --log-level: invalid choice: 'loud' (choose from"),
        (["start", "--loopback", "ab"], "argument --loopback: 'ab' is not a node id of 64 hex digits"),
        (["start", "--loopback", "xy"], "argument --loopback: 'xy' is not a node id of 64 hex digits"),
        (["start", "--rate", "2"], "unrecognized arguments: --rate 2"),
    ],
)
def test_words_that_are_not_understood(words, said):
    done = run("-m", "provider_kernel", *words)
    assert done.returncode == 2
    assert done.stdout == ""
    assert said in done.stderr.splitlines()[-1]


# -- the embedded chain


def test_the_embedded_chain_says_what_is_wrong(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        wrong = {
            f"--port={port}": f"Port {port} is already in use on this machine.",
            "--fund=0xabc": "'0xabc' is not an address.",
            f"--state={tmp_path}": f"The file {tmp_path} cannot be used: Is a directory.",
        }
        for option, said in wrong.items():
            done = run("-m", "jupyter_depin.chain.devchain", option)
            assert done.returncode == 1
            assert done.stdout == ""
            assert said in done.stderr
            assert done.stderr.count("\n") == 1
    (tmp_path / "history").write_text("{}\n")
    done = run("-m", "jupyter_depin.chain.devchain", "--state", tmp_path / "history")
    assert done.stderr.startswith(f"The file {tmp_path}/history cannot be used: it is not a chain's history:")
