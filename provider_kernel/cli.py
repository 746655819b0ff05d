"""`provider-kernel start`: lend this machine's kernels. Standard output carries one line, for programs: the ticket."""

from __future__ import annotations

import argparse
import json
import logging
import os
import secrets
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path

import anyio
import msgspec
from anyio.abc import TaskStatus

from jupyter_depin.chain import Ledger
from jupyter_depin.chain.shared import LedgerAddress, serve
from jupyter_depin.drivers.loop import new_event_loop
from jupyter_depin.errors import ConfigError, DepinError, MachineTrouble, NoNetwork
from jupyter_depin.journal import Journal
from jupyter_depin.keys import Wallet, load_or_create_node_secret
from jupyter_depin.protocol.identity import NodeId, checksummed, node_id, observer_text, socket_address
from jupyter_depin.protocol.money import parse_amount
from jupyter_depin.transport import Endpoint
from jupyter_depin.transport.iroh import join
from provider_kernel.agent import Agent
from provider_kernel.config import ProviderConfig
from provider_kernel.machine import allow_many_files, check_system, check_unseen, occupied
from provider_kernel.observer import observe
from provider_kernel.sandbox import Sandbox
from provider_kernel.sandbox.choice import choose
from provider_kernel.sandbox.connection import socket_paths

_PLAY_MONEY = 2**70
_LOOPBACK_SLOTS = 256
"""A test suite may hold many kernels at once; on one's own machine nobody is kept out."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program and return its exit status. An error is one sentence on standard error."""
    options = _parser().parse_args(arguments)
    status = 0
    try:
        check_system()
        options.run(options)
    except* DepinError as failures:
        print(f"provider-kernel: {_first(failures)}", file=sys.stderr)
        status = 1
    except* KeyboardInterrupt:
        status = 130
    return status


def _first(failures: BaseExceptionGroup[DepinError]) -> DepinError:
    first = failures.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="provider-kernel", description="Lend this machine's kernels to others, by the second."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    check = commands.add_parser("check", help="whether kernels can be sandboxed here")
    check.set_defaults(run=_check)
    start = commands.add_parser("start", help="lend kernels until Ctrl-C")
    start.add_argument(
        "--home",
        type=Path,
        default=Path("~/.local/share/provider-kernel"),
        help="keys, journal, provider.toml (default: %(default)s)",
    )
    start.add_argument("--listen", help="UDP address, such as 0.0.0.0:7979")
    start.add_argument("--address-book", type=Path, help="JSON file that names the chain and its contracts")
    start.add_argument(
        "--sandbox",
        choices=["auto", "bubblewrap", "none"],
        help="what confines the kernels; auto: bubblewrap where it works",
    )
    start.add_argument(
        "--loopback", type=_node, metavar="NODE", help="serve this one node only, on a ledger in memory"
    )
    start.add_argument("--with-parent", action="store_true", help="end when standard input does")
    start.add_argument(
        "--log-level",
        default="warning",
        choices=["debug", "info", "warning", "error"],
        help="default: %(default)s",
    )
    start.set_defaults(run=_run)
    watch = commands.add_parser("observe", help="lend nothing; tell nodes at which address they are seen")
    watch.add_argument(
        "--home",
        type=Path,
        default=Path("~/.local/share/provider-kernel-observer"),
        help="the node's key (default: %(default)s)",
    )
    watch.add_argument(
        "--listen", default="0.0.0.0:7979", help="UDP address of a public network (default: %(default)s)"
    )
    watch.add_argument(
        "--announce",
        action="append",
        type=_place,
        default=[],
        metavar="IP:PORT",
        help="where it is reached, if that is another address",
    )
    watch.set_defaults(run=_watch)
    return parser


def _place(text: str) -> str:
    try:
        return socket_address(text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(error.facts["detail"]) from error


def _node(text: str) -> NodeId:
    try:
        return node_id(bytes.fromhex(text))
    except (ValueError, ConfigError) as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a node id of 64 hex digits") from error


def _check(options: argparse.Namespace) -> None:
    sandbox = choose("bubblewrap")
    sandbox.check()
    print(
        ", ".join(f"{name} {value}" for name, value in {"sandbox": sandbox.name, **sandbox.facts()}.items())
    )


def _run(options: argparse.Namespace) -> None:
    logging.basicConfig(level=options.log_level.upper(), format="%(asctime)s %(name)s %(message)s")
    anyio.run(_start, options, backend_options={"loop_factory": new_event_loop})


def _watch(options: argparse.Namespace) -> None:
    anyio.run(_observe, options)


async def _observe(options: argparse.Namespace) -> None:
    home: Path = options.home.expanduser()
    with occupied(home):
        secret = load_or_create_node_secret(home / "node.key")
        endpoint = await join(secret=secret, listen=options.listen, announce=options.announce)
        try:
            print(json.dumps({"observer": observer_text(endpoint.address())}), flush=True)
            with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(observe, endpoint)
                    async for _ in signals:
                        tasks.cancel_scope.cancel()
        finally:
            await endpoint.close()


async def _start(options: argparse.Namespace) -> None:
    home: Path = options.home.expanduser()
    loopback: NodeId | None = options.loopback
    overrides = {"listen": options.listen, "sandbox": options.sandbox}
    if options.address_book:
        overrides["address_book"] = str(options.address_book.absolute())
    if loopback:
        overrides |= {
            "listen": "127.0.0.1:0",
            "sandbox": "none",
            "slots": _LOOPBACK_SLOTS,
            "title": "This machine",
        }
    config = ProviderConfig.load(home, **overrides)
    sandbox = choose(config.sandbox)
    sandbox.check()
    check_unseen((home, config.kernel_root), sandbox.shown())
    with occupied(home):
        await _lend(config, sandbox, options)


async def _lend(config: ProviderConfig, sandbox: Sandbox, options: argparse.Namespace) -> None:
    loopback: NodeId | None = options.loopback
    trusted = frozenset([loopback]) if loopback else _trusted(config)
    allow_many_files()
    wallet = Wallet.load_or_create(config.path("wallet.key"))
    secret = load_or_create_node_secret(config.path("node.key"))
    journal = Journal(config.path("journal.sqlite"))
    async with AsyncExitStack() as stack:
        config = stack.enter_context(_room_for_sockets(config))
        tasks = await stack.enter_async_context(anyio.create_task_group())
        ledger = await stack.enter_async_context(_ledger(config, bool(loopback)))
        address: LedgerAddress | None = None
        if loopback:
            address = await tasks.start(_serve_ledger, ledger)
        endpoint = await join(
            secret=secret,
            listen=config.listen,
            relays=config.relays,
            announce=config.announce,
            observers=config.observing,
        )
        await _register(ledger, wallet, endpoint, config)
        agent = Agent(
            config=config,
            endpoint=endpoint,
            ledger=ledger,
            wallet=wallet,
            journal=journal,
            sandbox=sandbox,
            trusted=trusted,
        )
        tasks.start_soon(_stop_on_signal, agent)
        if loopback or options.with_parent:
            tasks.start_soon(_stop_on_end_of_input, agent)
        try:
            _announce(agent, sandbox, address)
        except BrokenPipeError:
            # The parent is gone already.
            agent.stop()
        if loopback:
            # The parent reads no more, and whatever the kernels print would fill its pipe.
            os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        await agent.run()
        tasks.cancel_scope.cancel()


@contextmanager
def _room_for_sockets(config: ProviderConfig) -> Iterator[ProviderConfig]:
    """Where the home lies too deep for the paths of sockets, kernels get a private folder that does not."""
    try:
        socket_paths(config.kernel_folder(bytes(32)) / "1000")
    except MachineTrouble:
        root = tempfile.mkdtemp(prefix="depin-", dir="/tmp" if os.name == "posix" else None)
        try:
            yield replace(config, kernels=root)
        finally:
            shutil.rmtree(root, ignore_errors=True)
    else:
        yield config


async def _serve_ledger(ledger: Ledger, *, task_status: TaskStatus[LedgerAddress]) -> None:
    await serve(ledger, secrets.token_hex(16), task_status=task_status)


@asynccontextmanager
async def _ledger(config: ProviderConfig, loopback: bool) -> AsyncIterator[Ledger]:
    ledger: Ledger
    if loopback:
        from jupyter_depin.chain.memory import MemoryLedger

        ledger = MemoryLedger(gift=_PLAY_MONEY)
    else:
        from jupyter_depin.chain.addresses import AddressBook
        from jupyter_depin.chain.evm import EvmLedger

        book = config.path(config.address_book)
        if not book.exists():
            raise NoNetwork(
                path=book, fix="Put your network's address book there, or name it: --address-book FILE."
            )
        ledger = EvmLedger(AddressBook.load(book))
    try:
        await ledger.check()
        yield ledger
    finally:
        with anyio.CancelScope(shield=True):
            await ledger.close()


async def _register(ledger: Ledger, wallet: Wallet, endpoint: Endpoint, config: ProviderConfig) -> None:
    """Make sure that the registry names this node; that is how consumers know it is this wallet's."""
    record = await ledger.provider(wallet.address)
    if record is None or not record.active or record.node != endpoint.node:
        stake = parse_amount("0" if record and record.active else config.stake, ledger.asset.decimals)
        await ledger.register(wallet, endpoint.node, stake)


def _trusted(config: ProviderConfig) -> frozenset[NodeId]:
    try:
        return frozenset(_node(text) for text in config.trusted_nodes)
    except argparse.ArgumentTypeError as error:
        raise ConfigError(detail=f"in trusted_nodes, {error}") from error


def _announce(agent: Agent, sandbox: Sandbox, address: LedgerAddress | None) -> None:
    ready = {
        "ticket": str(agent.ticket),
        "provider": checksummed(agent.ticket.provider),
        "sandbox": sandbox.name,
    }
    if address is not None:
        ready["ledger"] = msgspec.to_builtins(address)
    print(json.dumps(ready), flush=True)


async def _stop_on_signal(agent: Agent) -> None:
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for _ in signals:
            agent.stop()


async def _stop_on_end_of_input(agent: Agent) -> None:
    # The parent holds the other end; when it dies, however it dies, the pipe ends.
    while True:
        await anyio.wait_readable(0)
        if not os.read(0, 4096):
            return agent.stop()
