"""A cell over a link with 200 ms round trip and 1 % loss, against the speed of light and an SSH forward.

Renter and provider are machines of a network of their own with the real programs on both; both peers share the link.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from jupyter_depin.demo import KERNEL_NAME
from jupyter_depin.kernelspec import write_kernel_spec
from tests.bench.children import Child, child
from tests.bench.kernels import PORTS
from tests.bench.report import Benchmark, Line, in_turns, quantile
from tests.e2e.world import World
from tests.net.link import Link, Terms, link, missing
from tests.net.netns import Host, network
from tests.net.rental import door

_AGENT_PORT = 41000
_ROUND_TRIP_S = 0.2
_TERMS = Terms(delay_ns=int(_ROUND_TRIP_S / 2 * 1e9), loss=0.01)
_NAME = "lossy_execute_p50_ms"
_FLOOR = "round trip + local kernel"


@contextmanager
def far_apart(terms: Terms) -> Iterator[tuple[World, Host, Host, Link]]:
    """A world whose renter and provider are machines of their own, joined by a bad link; each reaches the chain."""
    with tempfile.TemporaryDirectory(prefix="depin-") as folder, network() as net:
        world = World(Path(folder))
        renter, provider = net.host("renter"), net.host("provider")
        doors = [door(host, world._chain_port) for host in (renter, provider)]
        try:
            with link(renter, provider, terms) as joined:
                yield world, renter, provider, joined
        finally:
            for each in doors:
                each.close()
            world.close()


@contextmanager
def rented(world: World, renter: Host, provider: Host, address: str, *role: str) -> Iterator[Child]:
    """An agent on one machine, and a program of the renter's on the other (`far`; without a role it rents a kernel)."""
    home = world.provider
    (home / "provider.toml").write_text(
        'rate_per_hour = "3.6"\nstake = "100"\ntick_s = 1\narrears_s = 30\nsandbox = "none"\n'
        f'accept_strangers_without_a_sandbox = true\nlisten = "{address}:{_AGENT_PORT}"\n'
    )
    agent = subprocess.Popen(
        provider.inside(sys.executable, "-m", "provider_kernel", "start", "--home", str(home)),
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert agent.stdout is not None
        ticket = json.loads(agent.stdout.readline())["ticket"]
        (world.consumer / "config.toml").write_text(
            f'tickets = ["{ticket}"]\nmax_rate_per_hour = "3.6"\nmax_spend = "7.2"\nsettle_wait_s = 5\n'
        )
        write_kernel_spec(world.folder / "jupyter" / "kernels" / KERNEL_NAME, world.consumer)
        with child("far", *(role or ("rent",)), on=renter, environment=world.environment()) as rented:
            yield rented
    finally:
        agent.kill()
        agent.wait()
        assert agent.stdout is not None
        agent.stdout.close()


@contextmanager
def _forwarded(renter: Host, provider: Host, address: str) -> Iterator[Child]:
    with (
        child("far", "keep", on=provider) as kernel,
        child("ssh_forward", "serve", address, on=provider) as server,
    ):
        info = kernel.hear()
        targets = [info[port] for port in PORTS]
        with child("ssh_forward", "forward", f"{address}:{server.hear()}", *targets, on=renter) as forward:
            info |= dict(zip(PORTS, forward.hear(), strict=True))
            with child("far", "reach", json.dumps(info), on=renter) as reached:
                yield reached


def _measure(quick: bool) -> Iterator[Line]:
    reason = missing()
    if reason is not None:
        for peer in (_FLOOR, "asyncssh forward"):
            yield Line(_NAME, None, "ms", peer, None, reason)
        return
    blocks, cells = (2, 5) if quick else (10, 10)
    with (
        far_apart(_TERMS) as (world, renter, provider, joined),
        rented(world, renter, provider, joined.addresses[1]) as ours,
        _forwarded(renter, provider, joined.addresses[1]) as ssh,
        child("far", "local", on=renter) as local,
    ):
        everybody = (ours, ssh, local)
        for each in everybody:
            each.hear()
        samples = in_turns(blocks, *(partial(each.ask, cells) for each in everybody))
    mine, theirs, here = (quantile(each, 0.5) for each in samples)
    yield Line(_NAME, mine * 1e3, "ms", _FLOOR, (_ROUND_TRIP_S + here) * 1e3)
    yield Line(_NAME, mine * 1e3, "ms", "asyncssh forward", theirs * 1e3)


BENCHMARKS = (
    Benchmark(
        (_NAME,),
        "lower",
        "a cell over a link with 200 ms round trip and 1 % loss (goal: 1.05 times round trip + local kernel)",
        _measure,
    ),
)
