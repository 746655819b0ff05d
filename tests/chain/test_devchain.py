"""The embedded chain as a program: it starts, stops, dies and comes back."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from typing import Any

import pytest

from jupyter_depin.chain.deploy import deploy
from jupyter_depin.chain.evm import EvmLedger
from jupyter_depin.keys import Wallet
from jupyter_depin.protocol.identity import checksummed
from jupyter_depin.protocol.money import Amount


def ask(url: str, method: str, *params: Any, headers: dict[str, str] | None = None) -> Any:
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json", **(headers or {})})
    with urllib.request.urlopen(request, timeout=30) as response:
        answer = json.loads(response.read())
    return answer["result"] if "result" in answer else answer["error"]


def tip(url: str) -> tuple[str, str]:
    block = ask(url, "eth_getBlockByNumber", "latest", False)
    return block["number"], block["hash"]


def test_it_says_where_it_is_funds_and_stops_when_asked(start):
    owner = Wallet.generate()
    chain = start("--fund", checksummed(owner.address))
    assert ask(chain.url, "eth_chainId") == hex(31337)
    assert int(ask(chain.url, "eth_getBalance", "0x" + owner.address.hex(), "latest"), 16) == 1000 * 10**18
    assert chain.stop() == 0


def test_it_ends_with_the_program_that_started_it():
    chain = subprocess.Popen(
        [sys.executable, "-m", "jupyter_depin.chain.devchain", "--with-parent"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert chain.stdin is not None
    assert chain.stdout is not None
    chain.stdout.readline()
    chain.communicate(timeout=60)  # closes its standard input
    assert chain.returncode == 0


def test_a_taken_port_is_told_in_one_sentence():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = subprocess.run(
            [sys.executable, "-m", "jupyter_depin.chain.devchain", "--port", str(port)],
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.strip() == (
        f"Port {port} is already in use on this machine. Stop the program that uses it, or choose another port."
    )


async def test_a_killed_chain_comes_back_with_the_same_blocks_and_the_same_money(start, tmp_path):
    state, owner = tmp_path / "chain.jsonl", Wallet.generate()
    arguments = ("--state", str(state), "--fund", checksummed(owner.address))
    chain = start(*arguments)
    book = await deploy(chain.url, owner)
    ledger = EvmLedger(book)
    await ledger.mint(owner, owner.address, Amount(1000))
    ask(chain.url, "evm_increaseTime", 5000)
    await ledger.deposit(owner, Amount(400))
    before, clock = tip(chain.url), await ledger.now()
    await ledger.close()
    os.kill(chain.process.pid, signal.SIGKILL)
    chain.process.communicate()

    again = start(*arguments, "--port", chain.url.rsplit(":", 1)[1])
    assert tip(again.url) == before
    ledger = EvmLedger(book)
    assert await ledger.escrow(owner.address) == 400
    assert await ledger.now() >= clock
    await ledger.deposit(owner, Amount(600))
    assert await ledger.escrow(owner.address) == 1000
    await ledger.close()


def test_a_half_written_last_line_is_dropped_and_the_rest_kept(start, tmp_path):
    state = tmp_path / "chain.jsonl"
    chain = start("--state", str(state))
    ask(chain.url, "evm_mine")
    before = tip(chain.url)
    chain.process.kill()
    chain.process.communicate()
    with state.open("ab") as file:
        file.write(b'{"kind": "mine", "a')
    again = start("--state", str(state))
    assert tip(again.url) == before
    ask(again.url, "evm_mine")
    assert state.read_bytes().endswith(b"}\n")
    assert again.stop() == 0


@pytest.mark.parametrize(
    "damage",
    [
        b"nonsense\n",
        b'{"genesis": 1}\n{"kind": "raw", "at": 5, "data": "00"}\n',
        b"[]\n",
        b"somebody's notes",
    ],
)
def test_a_damaged_state_file_is_left_alone(tmp_path, damage):
    state = tmp_path / "chain.jsonl"
    state.write_bytes(damage)
    done = run_once("--state", str(state))
    assert done.returncode == 1
    assert str(state) in done.stderr
    assert "Traceback" not in done.stderr
    assert state.read_bytes() == damage


def run_once(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "jupyter_depin.chain.devchain", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_two_chains_cannot_share_a_state_file(start, tmp_path):
    state = tmp_path / "chain.jsonl"
    start("--state", str(state))
    second = run_once("--state", str(state))
    assert second.returncode == 1
    assert "another chain is using it" in second.stderr


def test_snapshots_bring_back_blocks_and_time_also_after_a_restart(start, tmp_path):
    state, someone = tmp_path / "chain.jsonl", "0x" + "ab" * 20
    chain = start("--state", str(state))
    ask(chain.url, "evm_mine")
    before, snapshot = tip(chain.url), ask(chain.url, "evm_snapshot")
    ask(chain.url, "evm_increaseTime", 10**6)
    ask(chain.url, "evm_fund", someone)
    assert tip(chain.url) != before
    assert ask(chain.url, "evm_revert", snapshot) is True
    assert tip(chain.url) == before
    assert ask(chain.url, "eth_getBalance", someone, "latest") == "0x0"
    ask(chain.url, "evm_fund", someone)
    after = tip(chain.url)
    assert chain.stop() == 0
    assert tip(start("--state", str(state)).url) == after


def test_time_follows_the_wall_and_can_be_put_forward(start):
    chain = start()
    stamps = [int(ask(chain.url, "eth_getBlockByNumber", "pending", False)["timestamp"], 16)]
    assert abs(stamps[0] - time.time()) < 60
    ask(chain.url, "evm_increaseTime", 100_000)
    ask(chain.url, "evm_mine")
    stamps.append(int(ask(chain.url, "eth_getBlockByNumber", "latest", False)["timestamp"], 16))
    assert stamps[1] - stamps[0] >= 100_000


def test_a_page_in_a_browser_cannot_reach_it(start):
    chain = start()
    for headers, status in (({"Content-Type": "text/plain"}, 415), ({"Host": "evil.example"}, 403)):
        with pytest.raises(urllib.error.HTTPError) as refused:
            ask(chain.url, "evm_mine", headers=headers)
        assert refused.value.code == status
    assert tip(chain.url)[0] == "0x0"


def test_what_makes_no_sense_is_answered_with_an_error(start):
    chain = start()
    assert ask(chain.url, "eth_nonsense")["code"] == -32601
    assert ask(chain.url, "eth_getBalance")["code"] == -32602
    assert ask(chain.url, "eth_sendRawTransaction", "0x02c0")["code"] == -32602
    assert ask(chain.url, "eth_getTransactionReceipt", "0x" + "00" * 32) is None
    assert ask(chain.url, "eth_getBlockByNumber", "0xffff", False) is None
