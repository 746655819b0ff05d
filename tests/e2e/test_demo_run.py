"""`jupyter depin demo --run` (`jupyter_depin.demo.notebook`): a notebook through the whole path, without Lab."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

import nbformat
import psutil
import pytest

from tests.e2e.conftest import assert_all_gone, family

pytestmark = pytest.mark.timeout(300)

RATE = 360_000
TICK_S = 5


def notebook(path: Path, *cells: str) -> Path:
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells]), path)
    return path


def wait_for_kernel(pid: int) -> list[psutil.Process]:
    """The demo's processes, once a kernel is among them."""
    while True:
        found = family(psutil.Process(pid))
        if any(
            "kernel" in " ".join(words[2:])
            for words in map(words_of, found[1:])
            if "provider_kernel" not in words
        ):
            return found


def words_of(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def last_json(output: str) -> dict:
    return json.loads(output.strip().splitlines()[-1])


def test_a_notebook_is_executed_paid_and_settled(run_demo, tmp_path):
    source = notebook(
        tmp_path / "class.ipynb",
        "import math, statistics\nprint('hello', 6 * 7)",
        "statistics.mean(math.sqrt(n) for n in range(1000))",
        "%matplotlib inline\nimport matplotlib.pyplot as plt\nplt.plot([1, 3, 2]);",
        "try:\n    1 / 0\nexcept ZeroDivisionError as error:\n    print('caught', error)",
        "import time\ntime.sleep(6)",  # longer than a tick, so that more than the last voucher is signed
    )
    done = run_demo("--run", source, "--output", tmp_path / "done.ipynb", "--json")
    assert done.returncode == 0, done.stderr
    cells = nbformat.read(tmp_path / "done.ipynb", as_version=4).cells
    assert cells[0].outputs[0].text == "hello 42\n"
    assert cells[1].outputs[0].output_type == "execute_result"
    assert "image/png" in cells[2].outputs[0].data
    assert cells[3].outputs[0].text == "caught division by zero\n"

    receipt = last_json(done.stdout)
    assert set(receipt) == {
        "provider", "node", "started", "ended", "seconds", "rate_per_hour", "asset", "vouchers", "paid", "refunded",
        "collected_on_chain", "transactions", "chain_agrees",
    }  # fmt: skip
    assert receipt["chain_agrees"] is True
    assert receipt["rate_per_hour"] == str(RATE)
    assert receipt["paid"] == receipt["collected_on_chain"]
    assert receipt["vouchers"] >= 2
    assert [each["kind"] for each in receipt["transactions"]] == ["open", "settle"]
    assert abs(int(receipt["paid"]) - RATE * receipt["seconds"] / 3600) <= RATE * TICK_S / 3600
    assert int(receipt["paid"]) + int(receipt["refunded"]) == 720_000
    assert "for show" in done.stderr.lower()
    assert not list(tmp_path.glob("depin-demo-*")), "the demo cleans up after itself"


def test_a_minute_costs_a_minute(run_demo, tmp_path):
    source = notebook(tmp_path / "minute.ipynb", "import time\ntime.sleep(60)")
    done = run_demo("--run", source, "--json")
    assert done.returncode == 0, done.stderr
    receipt = last_json(done.stdout)
    assert receipt["seconds"] >= 60
    assert abs(int(receipt["paid"]) - RATE * receipt["seconds"] / 3600) <= RATE * TICK_S / 3600
    assert receipt["vouchers"] >= 60 // TICK_S
    assert receipt["paid"] == receipt["collected_on_chain"]


def test_a_failing_cell_is_paid_settled_and_reported(run_demo, tmp_path):
    source = notebook(
        tmp_path / "bad.ipynb", "print('before')", "raise RuntimeError('the cat pulled the plug')"
    )
    done = run_demo("--run", source, "--json")
    assert done.returncode == 1
    assert "RuntimeError: the cat pulled the plug" in done.stderr
    assert "Traceback" not in done.stderr
    executed = nbformat.read(tmp_path / "bad.executed.ipynb", as_version=4)
    assert executed.cells[0].outputs[0].text == "before\n"
    assert executed.cells[1].outputs[0].ename == "RuntimeError"
    assert last_json(done.stdout)["chain_agrees"] is True


def test_ctrl_c_stops_pays_and_settles(start_demo, tmp_path):
    source = notebook(tmp_path / "long.ipynb", "import time\nprint('begun')", "time.sleep(3600)")
    with start_demo("--run", source, "--json") as demo:
        with (tmp_path / "demo.err").open() as errors:
            while "Running" not in errors.readline():
                assert demo.poll() is None
        # Somewhere between the start of the kernel and its long cell: wherever, the end is the same.
        everything = wait_for_kernel(demo.pid)
        demo.send_signal(signal.SIGINT)
        printed, _ = demo.communicate()
        assert demo.returncode == 1
        assert last_json(printed)["chain_agrees"] is True
        assert_all_gone(everything)
    said = (tmp_path / "demo.err").read_text()
    assert "Stopped." in said
    assert "Traceback" not in said


@pytest.mark.parametrize(("part", "module"), [("agent", "provider_kernel"), ("chain", "devchain")])
def test_a_part_that_dies_ends_the_run_at_once_and_nothing_is_claimed(start_demo, tmp_path, part, module):
    source = notebook(tmp_path / "long.ipynb", "import time\nprint('begun')", "time.sleep(3600)")
    with start_demo("--run", source) as demo:
        everything = wait_for_kernel(demo.pid)
        (dying,) = (
            process
            for process in everything[1:]
            if module in " ".join(words_of(process)) and process.ppid() == demo.pid
        )
        dying.kill()
        printed, _ = demo.communicate(timeout=120)
        assert demo.returncode == 1
        assert_all_gone(everything)
    said = (tmp_path / "demo.err").read_text()
    assert f"The demo's {part} ended before all was settled" in said
    assert "Traceback" not in said
    assert "next start" not in said
    assert printed == ""
    assert not list(tmp_path.glob("depin-demo-*"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no such device here")
def test_a_copy_that_cannot_be_written_does_not_cost_the_receipt(run_demo, tmp_path):
    done = run_demo("--run", notebook(tmp_path / "one.ipynb", "1"), "--output", "/dev/full", "--json")
    assert done.returncode == 1
    assert "cannot be used: No space left on device" in done.stderr
    assert "Traceback" not in done.stderr
    assert last_json(done.stdout)["chain_agrees"] is True


def test_what_a_killed_demo_left_is_removed_by_the_next(run_demo, start_demo, tmp_path):
    source = notebook(tmp_path / "one.ipynb", "1")
    with start_demo("--run", source) as demo:
        while not (left := list(tmp_path.glob("depin-demo-*"))):
            assert demo.poll() is None
        demo.kill()
        demo.wait()
    assert run_demo("--run", source).returncode == 0
    assert not left[0].exists()


def test_another_program_sees_the_rented_kernel(run_demo, tmp_path):
    source = notebook(tmp_path / "one.ipynb", "print(6 * 7)")
    words = ["nbconvert", "--execute", "--to", "notebook", "--output", "done.ipynb", source.name]
    done = run_demo(
        "--exec", sys.executable, "-m", "jupyter", *words, "--ExecutePreprocessor.kernel_name=depin-rented"
    )
    assert done.returncode == 0, done.stderr
    assert nbformat.read(tmp_path / "done.ipynb", as_version=4).cells[0].outputs[0].text == "42\n"
    assert "the chain agrees" in done.stdout
    assert "cannot be started" in run_demo("--exec", "no-such-program").stderr


def test_the_receipt_is_readable_by_people(run_demo, tmp_path):
    done = run_demo("--run", notebook(tmp_path / "one.ipynb", "1 + 1"))
    assert done.returncode == 0, done.stderr
    for word in (
        "Provider",
        "Node",
        "Started",
        "Ended",
        "Served",
        "Vouchers",
        "Paid",
        "Refunded",
        "the chain agrees",
    ):
        assert word in done.stdout


def test_what_is_no_notebook_gets_one_sentence(run_demo, tmp_path):
    (tmp_path / "text.ipynb").write_text("not a notebook")
    for path in ("text.ipynb", "missing.ipynb"):
        done = run_demo("--run", tmp_path / path)
        assert done.returncode == 1
        assert path in done.stderr
        assert "Traceback" not in done.stderr
