"""`jupyter depin …`: parse, call, print. An error is one sentence on standard error and exit status 1."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import anyio

from jupyter_depin.consumer.backend import Backend, connect
from jupyter_depin.consumer.config import ConsumerConfig, default_home
from jupyter_depin.consumer.recovery import recover
from jupyter_depin.errors import ConfigError, DepinError
from jupyter_depin.journal import Journal
from jupyter_depin.keys import Wallet
from jupyter_depin.protocol.identity import checksummed
from jupyter_depin.protocol.money import format_amount, parse_amount


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program and return its exit status."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.ERROR)
    try:
        status: int = options.run(options)
    except DepinError as error:
        print(f"jupyter-depin: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="jupyter depin", description="Notebook kernels on other people's machines."
    )
    parser.add_argument(
        "--home", type=Path, help=f"keys, journal and config.toml (default: {default_home()})"
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    demo = commands.add_parser("demo", help="try everything on this machine, without money")
    demo.add_argument(
        "--run", dest="notebook", type=Path, metavar="NOTEBOOK", help="execute a notebook instead of opening JupyterLab"
    )
    demo.add_argument("--output", type=Path, metavar="FILE", help="where the executed copy goes")
    demo.add_argument(
        "--json", action="store_true", help="print the receipt as one JSON object, on the last line"
    )
    demo.add_argument("--port", type=int, default=8888, help="JupyterLab's port")
    demo.add_argument("--no-browser", action="store_true", help="do not open a browser")
    demo.set_defaults(run=_demo)

    rentals = commands.add_parser("rentals", help="rentals that are not settled yet")
    rentals.add_argument("--settle", action="store_true", help="settle those that no running program holds")
    rentals.set_defaults(run=_rentals)

    receipts = commands.add_parser("receipts", help="what was paid, newest first")
    receipts.add_argument("--json", action="store_true", help="one JSON object per line")
    receipts.set_defaults(run=_receipts)

    wallet = commands.add_parser("wallet", help="address and balance")
    wallet.add_argument("--withdraw", metavar="AMOUNT", help="move money from escrow back to the wallet")
    wallet.set_defaults(run=_wallet)

    kernel = commands.add_parser("kernel", help="offer a rented kernel in every Jupyter program of yours")
    kernel.add_argument("ticket", help="the provider's ticket")
    kernel.add_argument("--address-book", type=Path, help="JSON file that names the chain and its contracts")
    kernel.add_argument("--name", default="Rented kernel (depin)", help="what the launcher shows")
    kernel.set_defaults(run=_kernel)

    doctor = commands.add_parser("doctor", help="what is missing here, and how to mend it")
    doctor.set_defaults(run=_doctor)
    return parser


def _demo(options: argparse.Namespace) -> int:
    # Imported here: the demo brings the chain's libraries along, which no other command needs at once.
    from jupyter_depin import demo

    if options.notebook is not None:
        return demo.run_notebook(options.notebook, output=options.output, as_json=options.json)
    if options.output or options.json:
        raise ConfigError(detail="--output and --json go with --run")
    return demo.run_lab(port=options.port, browser=not options.no_browser)


def _rentals(options: argparse.Namespace) -> int:
    config = ConsumerConfig.load(options.home)
    left = 0
    if options.settle:

        async def settle(backend: Backend) -> int:
            return await recover(backend, lambda rental: None)

        left = _with_backend(config, settle)
    with _journal(config) as journal:
        records = [*journal.open_leases("payer"), *journal.unsettled("payer")]
        for record in records:
            voucher = journal.voucher(record.channel_id)
            paid = format_amount(voucher.voucher.amount if voucher else 0, record.asset.decimals)
            state = f"ended ({record.reason.value}), not settled" if record.reason else "open"
            print(f"{record.channel_id.hex()[:16]}  {record.title}  {paid} {record.asset.symbol}  {state}")
        if not records:
            print("Every rental is settled.")
    return 1 if left else 0


def _receipts(options: argparse.Namespace) -> int:
    from jupyter_depin.demo import describe

    with _journal(ConsumerConfig.load(options.home)) as journal:
        receipts = journal.receipts()
    for receipt in receipts:
        print(json.dumps(receipt.to_json()) if options.json else describe(receipt))
    if not receipts and not options.json:
        print("No receipts yet.")
    return 0


def _wallet(options: argparse.Namespace) -> int:
    config = ConsumerConfig.load(options.home)
    config.home.mkdir(parents=True, exist_ok=True, mode=0o700)
    print(f"Address  {checksummed(Wallet.load_or_create(config.wallet).address)}")

    async def show(backend: Backend) -> int:
        ledger, wallet = backend.ledger, backend.wallet
        asset = ledger.asset
        if options.withdraw:
            amount = parse_amount(options.withdraw, asset.decimals)
            print(f"Withdrawn: {await ledger.withdraw(wallet, amount)}")
        print(f"Chain    {asset.chain_id}")
        print(
            f"Wallet   {format_amount(await ledger.balance(wallet.address), asset.decimals)} {asset.symbol}"
        )
        print(
            f"Escrow   {format_amount(await ledger.escrow(wallet.address), asset.decimals)} {asset.symbol}, free"
        )
        return 0

    return _with_backend(config, show)


def _kernel(options: argparse.Namespace) -> int:
    import shutil

    from jupyter_core.paths import jupyter_data_dir

    from jupyter_depin.chain.addresses import AddressBook
    from jupyter_depin.demo import write_kernel_spec
    from jupyter_depin.protocol.identity import Ticket

    ticket = Ticket.parse(options.ticket)
    home = options.home or default_home()
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    config = ConsumerConfig.load(home)
    if options.address_book is not None:
        AddressBook.load(options.address_book)
        shutil.copyfile(options.address_book, home / config.address_book)
    AddressBook.load(home / config.address_book)
    folder = Path(jupyter_data_dir()) / "kernels" / f"depin-{ticket.provider.hex()[:8]}"
    write_kernel_spec(folder, home, options.name, tickets=[str(ticket)])
    print(f"“{options.name}” is in the launcher of every Jupyter program of yours now ({folder}).")
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from jupyter_depin.doctor import report

    return anyio.run(report, options.home, print)


def _journal(config: ConsumerConfig) -> Journal:
    config.home.mkdir(parents=True, exist_ok=True, mode=0o700)
    return Journal(config.journal)


def _with_backend(config: ConsumerConfig, act: Callable[[Backend], Awaitable[int]]) -> int:
    async def run() -> int:
        backend = await connect(config)
        try:
            return await act(backend)
        finally:
            await backend.close()

    return anyio.run(run)
