"""One tree of errors. An error's docstring is the sentence that its user reads.

The sentence says what happened and what to do; facts in braces are filled in from the keyword arguments. `code`
crosses the wire and the browser (which writes its own sentence, in the user's language, from code and facts);
`retryable` says whether the same attempt can succeed later without anybody changing anything.

Rejected: messages written at each `raise` (the same failure would then read differently in each place).
"""

from __future__ import annotations

import inspect
from collections import defaultdict
from typing import ClassVar

_MOST_FACTS = 8
_LONGEST_FACT = 200


def printed(text: str) -> str:
    """What another party wrote, as it may go to a terminal, a page or a log: short, and nothing that is not printed."""
    return "".join(sign if sign.isprintable() else " " for sign in text[:_LONGEST_FACT])


class DepinError(Exception):
    """Something went wrong in jupyter-depin: {detail}."""

    code: ClassVar[str] = "depin"
    retryable: ClassVar[bool] = False
    _by_code: ClassVar[dict[str, type[DepinError]]] = {}

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        code = cls.__dict__.get("code", cls.__name__)
        cls.code = code
        DepinError._by_code[code] = cls

    def __init__(self, /, **facts: object) -> None:
        # A docstring's first paragraph is for the user; what follows it is for the developer.
        self.facts: dict[str, str] = {name: str(value) for name, value in facts.items()}
        sentence = (
            inspect.cleandoc(type(self).__doc__ or type(self).__name__).split("\n\n")[0].replace("\n", " ")
        )
        # The other side may have left a fact out.
        super().__init__(sentence.format_map(defaultdict(lambda: "?", self.facts)))

    @staticmethod
    def from_wire(code: str, facts: dict[str, str]) -> DepinError:
        """Rebuild an error that the other side sent. Called by drivers; unknown codes become `LeaseRefused`.

        Another party may speak of the lease, the money and the kernel, not of this machine's files, keys or links: a
        sentence about those would be believed. Its facts are bounded and go to terminals and pages, so that they hold
        nothing that is not printed.
        """
        known = {printed(name): printed(value) for name, value in list(facts.items())[:_MOST_FACTS]}
        kind = DepinError._by_code.get(code)
        if kind is None or not issubclass(kind, (LeaseError, SandboxError, PaymentError)):
            said = ", ".join(f"{name}: {value}" for name, value in known.items())
            return LeaseRefused(reason=printed(f"{printed(code)} ({said})" if said else code))
        return kind(**known)


# -- protocol: whose fault a wrong step was


class ProtocolError(DepinError):
    """The two sides stopped understanding each other: {detail}. Update jupyter-depin on both machines."""


class LocalProtocolError(ProtocolError):
    """jupyter-depin made a step that its own protocol forbids: {detail}. Please report this as a bug."""


class RemoteProtocolError(ProtocolError):
    """The other side broke the protocol: {detail}. The connection was closed; choose another provider if it goes on."""


class MessageTooBig(ProtocolError):
    """A message of {size} bytes in {parts} parts was left out: {limit} bytes in {most} parts can pass at a time. Send less at once."""


class OutputNotKept(ProtocolError):
    """{messages} messages ({size}) that the kernel printed while the connection was down did not fit into the provider's journal and are missing here."""


class OutputGivenUp(ProtocolError):
    """{messages} messages ({size}) of the kernel before this one were not delivered yet when it was started again. They are missing here."""


# -- transport: the link


class TransportError(DepinError):
    """The link failed: {detail}. It is tried again by itself."""

    retryable = True


class PeerUnreachable(TransportError):
    """The provider at {address} did not answer. Check the ticket and your network, or choose another provider."""


class ConnectionLost(TransportError):
    """The link to the other side was lost ({detail}). It is taken up again by itself; nothing is lost meanwhile."""


class PortInUse(TransportError):
    """Port {port} is already in use on this machine. Stop the program that uses it, or choose another port."""

    retryable = False


# -- lease: who rents what from whom


class LeaseError(DepinError):
    """The rental could not go on: {detail}."""


class UnknownProvider(LeaseError):
    """Provider {provider} is not registered on this chain. Check the address, or ask the provider to register."""


class WrongAddress(LeaseError):
    """The machine that answered is {found}, not {expected}. Nothing was paid; get a fresh ticket from the provider."""


class OfferExpired(LeaseError):
    """This offer ended {ago} ago. Try again; if that does not help, the clock of one of the two machines is wrong."""


class PromiseLapsed(LeaseError):
    """The provider's promise of a place has lapsed before it was used. Try again."""


class OtherNetwork(LeaseError):
    """The provider is paid on {found}, you are set up for {expected}. Choose another provider, or set up its network."""


class RateAboveCap(LeaseError):
    """This offer costs {rate} per hour, above your limit of {cap}. Raise the limit or choose a cheaper offer."""


class NoFreeSlot(LeaseError):
    """The provider is busy: all {slots} of its places are taken. Try again later or choose another provider."""

    retryable = True


class StrangersRefused(LeaseError):
    """The provider runs kernels without a sandbox and so accepts only people its owner named. Choose another one."""


class LeaseRefused(LeaseError):
    """The provider refused the rental: {reason}. Nothing was paid."""


class LeaseEnded(LeaseError):
    """The rental has ended: {reason}. Start a new kernel to rent again."""


class UnknownLease(LeaseError):
    """The provider no longer knows this rental, probably because its machine restarted. You pay only for what you already signed."""


class RentalNotFound(LeaseError):
    """There is no rental {rental} here. `jupyter depin rentals` lists those that exist."""


class RentalHeld(LeaseError):
    """The rental {rental} is held by another running program of yours. Use its kernel there, or end that program first."""


class NotTakenUp(LeaseError):
    """The rental {rental} cannot be taken up now, for its provider does not answer. Try again soon; it costs nothing meanwhile."""

    retryable = True


# -- payment: who owes what to whom


class PaymentError(DepinError):
    """The payment failed: {detail}."""


class EmptyWallet(PaymentError):
    """Your wallet holds {balance} {symbol} where {needed} are needed. Add money, or spend less (max_spend; for an owner, stake)."""


class FeesMissing(EmptyWallet):
    """Your wallet holds {balance} of the network's own coin where {needed} are needed for its fees. Send it some more."""


class LimitTooLow(PaymentError):
    """Your limit of {cap} {symbol} per rental is less than the {needed} that must be locked. Raise it (max_spend)."""


class VoucherRefused(PaymentError):
    """A payment was refused: {reason}. The kernel is paused until a valid one arrives."""


class ChainUnreachable(PaymentError):
    """The payment network at {url} does not answer. Check your network and this address; what is owed is settled later."""

    retryable = True


class WrongChain(PaymentError):
    """{url} is chain {found}, not chain {expected}. Correct the address in your configuration; nothing was paid."""


class TransactionFailed(PaymentError):
    """The payment network rejected {action}: {reason}. No money moved."""


class VouchersSkipped(TransactionFailed):
    """The payment network skipped {skipped} of {total} vouchers ({reason}). All others were collected."""


class StakeTooLow(TransactionFailed):
    """A stake of {stake} {symbol} is below the least one on this network. Set `stake = "{least}"` in provider.toml."""


class SettlementPending(PaymentError):
    """The rental is not settled yet: {reason}. It is in the journal and is settled at the next start."""

    retryable = True


class ProviderGone(SettlementPending):
    """The provider does not settle, so the payment network was asked to close: the rest comes back after {until}."""


# -- the provider's machine


class SandboxError(DepinError):
    """The kernel's sandbox failed: {detail}."""


class SandboxMissing(SandboxError):
    """Sandboxed kernels need bubblewrap, which does not work here ({reason}). {fix}"""


class KernelStartFailed(SandboxError):
    """The kernel did not start on the provider's machine: {reason}."""


class MachineTrouble(KernelStartFailed):
    """The provider's machine cannot start kernels now: {reason}. Choose another provider, or try again later.

    For causes that are the owner's affair: they may name folders and programs of that machine.
    """


class UnsupportedSystem(DepinError):
    """Kernels cannot be lent on {system} yet: that needs Linux."""


# -- what the user wrote


class ConfigError(DepinError):
    """The configuration is wrong: {detail}."""


class DamagedConfig(ConfigError):
    """The file {path} cannot be used: {reason}. Correct it, or move it away."""


class DamagedJournal(ConfigError):
    """The journal {path} is damaged ({reason}). It was left untouched: copy it, then restore a backup or move it away."""


class NewerJournal(ConfigError):
    """The journal {path} was written by a newer jupyter-depin (form {form}). It was left untouched, and no money is lost: it and the keys beside it hold everything. Install the newest version, and it goes on."""


class JournalInUse(ConfigError):
    """A running program with an older jupyter-depin (process {pid}) has rentals in the journal. Let it finish or end it, then try again."""

    retryable = True


class JournalUnavailable(ConfigError):
    """The journal {path} cannot be used now ({reason}). Free disk space and check its permissions, then try again."""

    retryable = True


class DamagedKey(ConfigError):
    """The key file {path} is not a valid key ({reason}). Restore your backup; without it the money cannot be moved."""


class NoNetwork(ConfigError):
    """No payment network is set up: {path} is missing. {fix}"""


class BadTicket(ConfigError):
    """This is not a valid ticket: {reason}. Copy the whole line that the provider printed."""


class DemoBroken(DepinError):
    """The demo's {part} ended before all was settled, so there is no receipt. Nothing real was owed; run it again."""


class BadNotebook(ConfigError):
    """The notebook {path} cannot be used: {reason}. Name another file."""
