"""Loading, the crossing of threads, and the events that the browser listens to."""

from __future__ import annotations

import json
import subprocess
import sys

import anyio
import pytest

RENTAL = "ab" * 32
API = ("jupyter-depin", "api", "rentals")
SCHEMA = "https://schema.jupyter-depin.org/rental/v1"


async def next_rental(stream) -> dict:
    """The next rental event; other extensions speak on the same stream."""
    with anyio.fail_after(30):
        while True:
            event = json.loads(await stream.read_message())
            if event["schema_id"] == SCHEMA:
                return event


@pytest.mark.parametrize(
    "change",
    [
        {"state": "starting", "served_ns": 0, "spent": 0},
        {"served_ns": 10**10, "spent": 1_000, "since": 1.0},
        {"state": "paused", "reason": ("VoucherRefused", {"reason": "too low"}), "rtt_ms": None},
        {"state": "reconnecting", "relayed": None},
        {"state": "ended", "reason": ("cap_reached", {}), "receipt": {"paid": 9_000, "transaction": "0xab"}},
    ],
    ids=lambda change: change.get("state", "running"),
)
async def test_every_report_reaches_the_event_stream_in_full(jp_fetch, jp_ws_fetch, rentals, change):
    rentals.add()
    await jp_fetch(*API)
    stream = await jp_ws_fetch("api", "events", "subscribe")
    rentals.report(**change)
    event = await next_rental(stream)
    shown = json.loads((await jp_fetch(*API, RENTAL)).body)
    for clocked in ("state_age_s",):
        assert (event.pop(clocked) is None) == (shown.pop(clocked) is None)
    assert {name: event[name] for name in shown} == shown
    stream.close()


async def test_the_rentals_are_opened_at_the_first_request_and_once(jp_fetch, rentals):
    assert rentals.opened == 0
    await jp_fetch(*API)
    await jp_fetch(*API)
    assert (rentals.opened, len(rentals.subscribers)) == (1, 1)


async def test_shutdown_stops_listening_and_settles_nothing(jp_fetch, jp_serverapp, rentals):
    rentals.add()
    await jp_fetch(*API)
    await jp_serverapp.extension_manager.stop_all_extensions()
    assert rentals.subscribers == []
    assert rentals.statuses[RENTAL].state == "running"


def test_the_extension_is_light_to_load():
    """People who never rent start Jupyter as fast as before: no consumer, no chain, no transport."""
    code = (
        "import sys, jupyter_depin.server.extension;"
        "print([n for n in ('iroh', 'web3', 'coincurve', 'jupyter_depin.consumer') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
