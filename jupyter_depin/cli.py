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
from jupyter_depin.errors import ConfigError, DepinError, NoNetwork, PaymentError
from jupyter_depin.journal import Journal, LeaseRecord
from jupyter_depin.keys import Wallet
from jupyter_depin.protocol.identity import checksummed
from jupyter_depin.protocol.money import format_amount, parse_amount
from jupyter_depin.protocol.reason import SENTENCES
from jupyter_depin.protocol.receipt import Receipt


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program and return its exit status."""
    options = _parser().parse_args(arguments, argparse.Namespace(home=None))
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
    # Understood before and after the command; a default of its own would hide what stood before.
    home = argparse.ArgumentParser(add_help=False)
    home.add_argument(
        "--home",
        type=Path,
        default=argparse.SUPPRESS,
        metavar="FOLDER",
        help=f"keys, journal and config.toml (default: {default_home()})".replace("%", "%%"),
    )
    parser = argparse.ArgumentParser(
        prog="jupyter depin", description="Notebook kernels on other people's machines.", parents=[home]
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(
        name: str, about: str, *, parents: Sequence[argparse.ArgumentParser] = (home,)
    ) -> argparse.ArgumentParser:
        return commands.add_parser(
            name, help=about, description=f"{about[0].upper()}{about[1:]}.", parents=list(parents)
        )

    demo = command("demo", "try everything on this machine, without money", parents=())
    demo.add_argument(
        "--run",
        dest="notebook",
        type=Path,
        metavar="NOTEBOOK",
        help="execute a notebook instead of opening JupyterLab",
    )
    demo.add_argument("--output", type=Path, metavar="FILE", help="where the executed copy goes")
    demo.add_argument(
        "--json", action="store_true", help="print the receipt as one JSON object, on the last line"
    )
    demo.add_argument("--port", type=_port, help="JupyterLab's port (default: 8888, or the next free one)")
    demo.add_argument("--no-browser", action="store_true", help="do not open a browser")
    demo.add_argument(
        "--exec",
        dest="program",
        nargs=argparse.REMAINDER,
        metavar="COMMAND",
        help="start this Jupyter program instead of JupyterLab (last option)",
    )
    demo.set_defaults(run=_demo)

    rentals = command("rentals", "rentals that are not settled yet")
    rentals.add_argument("--settle", action="store_true", help="settle those that no running program holds")
    rentals.set_defaults(run=_rentals)

    attach = command("attach", "take up a rental whose program is gone, with its kernel and its variables")
    attach.add_argument(
        "rental", nargs="?", metavar="RENTAL", help="the beginning of its id; none: list them"
    )
    attach.add_argument(
        "--existing-file",
        type=Path,
        metavar="FILE",
        help="where the connection file goes, for `--existing FILE`",
    )
    attach.add_argument("--leave", action="store_true", help="at Ctrl-C, let it go instead of settling it")
    attach.add_argument("--json", action="store_true", help="one JSON object per line")
    attach.set_defaults(run=_attach)

    receipts = command("receipts", "what was paid, newest first")
    receipts.add_argument("--json", action="store_true", help="one JSON object per line")
    receipts.set_defaults(run=_receipts)

    wallet = command("wallet", "address and balance")
    wallet.add_argument("--withdraw", metavar="AMOUNT", help="move money from escrow back to the wallet")
    wallet.set_defaults(run=_wallet)

    kernel = command("kernel", "offer a rented kernel in every Jupyter program of yours")
    kernel.add_argument("ticket", metavar="TICKET", help="the line that the provider printed: depin1…")
    kernel.add_argument(
        "--address-book", type=Path, metavar="FILE", help="JSON file that names the chain and its contracts"
    )
    kernel.add_argument("--name", default="Rented kernel (depin)", help="what the launcher shows")
    kernel.set_defaults(run=_kernel)

    doctor = command("doctor", "what is missing here, and how to mend it")
    doctor.set_defaults(run=_doctor)
    return parser


def _port(text: str) -> int:
    if not text.isdecimal() or not 0 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port: 0 to 65535")
    return int(text)


def _demo(options: argparse.Namespace) -> int:
    # Imported here: the demo brings the chain's libraries along, which no other command needs at once.
    from jupyter_depin import demo

    lab = options.port is not None or options.no_browser
    if options.notebook is not None:
        if lab or options.program is not None:
            raise ConfigError(detail="--port, --no-browser and --exec do not go with --run")
        return demo.run_notebook(options.notebook, output=options.output, as_json=options.json)
    if options.output is not None or options.json:
        raise ConfigError(detail="--output and --json go with --run")
    if options.program is not None:
        if lab or not options.program:
            raise ConfigError(detail="--exec needs a command, and goes with neither --port nor --no-browser")
        return demo.run_program(options.program)
    return demo.run_lab(port=options.port, browser=not options.no_browser)


def _rentals(options: argparse.Namespace) -> int:
    config = ConsumerConfig.load(options.home)
    left = 0
    if not config.journal.exists():
        print("Every rental is settled.")
        return 0
    with _journal(config) as journal:
        if options.settle and _pending(journal):

            async def settle(backend: Backend) -> int:
                return await recover(
                    backend, lambda rental: None, say=lambda line: print(line, file=sys.stderr)
                )

            left = _with_backend(config, settle)
        records = _pending(journal)
        for record in records:
            voucher = journal.voucher(record.channel_id)
            paid = format_amount(voucher.voucher.amount if voucher else 0, record.asset.decimals)
            state = f"not settled yet; {SENTENCES[record.reason]}" if record.reason else "open"
            path = "" if record.reason else journal.last_path(record.channel_id)
            print(
                f"{record.channel_id.hex()[:16]}  {record.title}  {paid} {record.asset.symbol}  {state}"
                + (f", {path}" if path else "")
            )
        if not records:
            print("Every rental is settled.")
        elif not options.settle:
            print("`jupyter depin rentals --settle` settles those that no running program holds.")
    return 1 if left else 0


def _attach(options: argparse.Namespace) -> int:
    from jupyter_depin import attach

    def say(line: str) -> None:
        print(line, flush=True)

    config = ConsumerConfig.load(options.home)
    if options.rental is None:
        if options.existing_file is not None or options.leave:
            raise ConfigError(detail="--existing-file and --leave go with RENTAL")
        attach.show(config, as_json=options.json, say=say)
        return 0

    async def hold() -> None:
        await attach.hold(
            config,
            options.rental,
            file=options.existing_file,
            leave=options.leave,
            as_json=options.json,
            say=say,
        )

    anyio.run(hold)
    return 0


def _pending(journal: Journal) -> list[LeaseRecord]:
    return [*journal.open_leases("payer"), *journal.unsettled("payer")]


def _receipts(options: argparse.Namespace) -> int:
    from jupyter_depin.receipts import describe

    config = ConsumerConfig.load(options.home)
    receipts: list[Receipt] = []
    if config.journal.exists():
        with _journal(config) as journal:
            receipts = journal.receipts()
    for receipt in receipts:
        print(json.dumps(receipt.to_json()) if options.json else describe(receipt))
    if not receipts and not options.json:
        print("No receipts yet.")
    return 0


def _wallet(options: argparse.Namespace) -> int:
    config = ConsumerConfig.load(options.home)
    config.make_home()
    print(f"Address  {checksummed(Wallet.load_or_create(config.wallet).address)}", flush=True)
    if not options.withdraw and not (config.home / config.address_book).exists():
        print("Chain    none yet: `jupyter depin kernel TICKET --address-book FILE` names one")
        return 0

    async def show(backend: Backend) -> int:
        ledger, wallet = backend.ledger, backend.wallet
        asset = ledger.asset
        if options.withdraw:
            amount = parse_amount(options.withdraw, asset.decimals)
            free = await ledger.escrow(wallet.address)
            if not 0 < amount <= free:
                most = f"{format_amount(free, asset.decimals)} {asset.symbol}"
                raise PaymentError(detail=f"{options.withdraw} cannot be withdrawn, only up to {most}")
            print(f"Withdrawn in transaction {await ledger.withdraw(wallet, amount)}")
        print(f"Chain    {asset.chain_id}")
        print(
            f"Wallet   {format_amount(await ledger.balance(wallet.address), asset.decimals)} {asset.symbol}"
        )
        free = await ledger.escrow(wallet.address)
        hint = "; `jupyter depin wallet --withdraw AMOUNT` moves it to the wallet" if free else ""
        print(f"Escrow   {format_amount(free, asset.decimals)} {asset.symbol}, free{hint}")
        return 0

    return _with_backend(config, show)


def _kernel(options: argparse.Namespace) -> int:
    from jupyter_core.paths import jupyter_data_dir

    from jupyter_depin.chain.addresses import AddressBook
    from jupyter_depin.kernelspec import write_kernel_spec
    from jupyter_depin.protocol.identity import Ticket

    ticket = Ticket.parse(options.ticket)
    if not options.name.strip():
        raise ConfigError(detail="--name is empty; the launcher needs something to show")
    config = ConsumerConfig.load(options.home)
    config.make_home()
    if options.address_book is not None:
        AddressBook.load(options.address_book).save(config.home / config.address_book)
    if not (config.home / config.address_book).exists():
        raise NoNetwork(
            path=config.home / config.address_book,
            fix="Add --address-book FILE, as the provider gave it to you.",
        )
    AddressBook.load(config.home / config.address_book)
    folder = Path(jupyter_data_dir()) / "kernels" / f"depin-{ticket.provider.hex()[:8]}"
    write_kernel_spec(folder, config.home.absolute(), options.name, tickets=[str(ticket)])
    print(f"“{options.name}” is in the launcher of every Jupyter program of yours now ({folder}).")
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from jupyter_depin.doctor import report

    return anyio.run(report, options.home, print)


def _journal(config: ConsumerConfig) -> Journal:
    config.make_home()
    return Journal(config.journal)


def _with_backend(config: ConsumerConfig, act: Callable[[Backend], Awaitable[int]]) -> int:
    async def run() -> int:
        backend = await connect(config)
        try:
            return await act(backend)
        finally:
            await backend.close()

    return anyio.run(run)
