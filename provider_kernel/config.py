"""The owner's rules, in one TOML file: `provider.toml` in the agent's folder. Without it, one slot on this machine.

    title = "RTX 4090 in Lyon"
    rate_per_hour = "0.34"
    slots = 1
    listen = "0.0.0.0:7979"
    relays = ["https://relay.example.org"]            # the node lives on all of them
    announce = ["203.0.113.9:7979"]                   # where else it is reached, say through a router's forwarded port
    observers = ["<node>@198.51.100.7:7979"]          # nodes that tell it how others see it
    address_book = "network.json"
    sandbox = "auto"                                  # or "bubblewrap", "none"
    trusted_wallets = ["0x…"]                         # payers that are welcome without a sandbox
    accept_strangers_without_a_sandbox = false
    kernels = "/run/depin"                            # for the kernels' folders; by default in the agent's
    output_mb = 64                                    # of what a kernel prints while its renter is away
    thrift = "auto"                                   # "on" or "off": never look whether a renter's link is slow

Plain frozen values go down from here; nothing below reads a file or the environment.
"""

from __future__ import annotations

import hashlib
import re
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from jupyter_depin.errors import ConfigError, DamagedConfig
from jupyter_depin.protocol.identity import (
    Address,
    NodeAddress,
    parse_address,
    parse_observer,
    socket_address,
)
from jupyter_depin.protocol.market import MAX_ARREARS_S, MAX_GRACE_S, MAX_SECONDS, MAX_TICK_S, readable
from jupyter_depin.protocol.messages import Wish
from provider_kernel.sandbox import Limits

_TEXTS: dict[str, Callable[[str], object]] = {
    "announce": socket_address,
    "observers": parse_observer,
    "trusted_wallets": parse_address,
}
_AMOUNT = re.compile(r"[0-9]+(\.[0-9]*)?|\.[0-9]+")

SandboxName = Literal["auto", "bubblewrap", "none"]


@dataclass(frozen=True)
class ProviderConfig:
    """What an agent needs to know. Times in seconds; `rate_per_hour` is decimal text in units of the asset."""

    home: Path
    title: str = "Python on a CPU"
    rate_per_hour: str = "0.36"
    slots: int = 4
    max_seconds: int = 24 * 3600
    tick_s: int = 5
    arrears_s: int = 30
    grace_s: int = 600
    stake: str = "100"
    listen: str = "0.0.0.0:0"
    relays: tuple[str, ...] = ()
    announce: tuple[str, ...] = ()
    observers: tuple[str, ...] = ()
    address_book: str = "network.json"
    sandbox: SandboxName = "auto"
    accept_strangers_without_a_sandbox: bool = False
    thrift: Wish = "auto"
    trusted_nodes: tuple[str, ...] = ()
    trusted_wallets: tuple[str, ...] = ()
    memory_mb: int = 4096
    processes: int = 512
    kernels: str = ""
    output_mb: int = 64
    output_hours: int = 24
    output_total_mb: int = 1024

    def __post_init__(self) -> None:
        if self.sandbox not in get_args(SandboxName):
            raise ConfigError(detail=f"sandbox is {self.sandbox!r}; it can be auto, bubblewrap or none")
        if self.thrift not in get_args(Wish):
            raise ConfigError(detail=f"thrift is {self.thrift!r}; it can be auto, on or off")
        if not 0 < self.slots <= 1024:
            raise ConfigError(detail=f"slots is {self.slots}; it can be 1 to 1024")
        if not 0 < self.tick_s <= self.arrears_s or self.grace_s <= 0 or self.max_seconds <= 0:
            raise ConfigError(detail="0 < tick_s ≤ arrears_s, grace_s and max_seconds above 0")
        for name in ("memory_mb", "processes"):
            if getattr(self, name) <= 0:
                raise ConfigError(detail=f"{name} is {getattr(self, name)}; a kernel needs some")
        limits = {
            "max_seconds": MAX_SECONDS,
            "tick_s": MAX_TICK_S,
            "arrears_s": MAX_ARREARS_S,
            "grace_s": MAX_GRACE_S,
        }
        for name, limit in limits.items():
            if getattr(self, name) > limit:
                raise ConfigError(
                    detail=f"{name} is {getattr(self, name)}; no renter takes more than {limit}"
                )
        if not 0 < self.output_mb <= self.output_total_mb or self.output_hours <= 0:
            raise ConfigError(detail="0 < output_mb ≤ output_total_mb, and output_hours above 0")
        for name in ("rate_per_hour", "stake"):
            if not _AMOUNT.fullmatch(getattr(self, name)):
                raise ConfigError(
                    detail=f"{name} is {getattr(self, name)!r}, which is no amount such as 0.34"
                )
        readable("title", self.title)
        for name, check in _TEXTS.items():
            for text in getattr(self, name):
                try:
                    check(text)
                except ConfigError as error:
                    raise ConfigError(detail=f"in {name}, {error.facts['detail']}") from error

    @property
    def observing(self) -> tuple[NodeAddress, ...]:
        """The nodes that are asked how they see this one. They are named in the ticket, for renters to ask too."""
        return tuple(map(parse_observer, self.observers))

    @property
    def welcome_payers(self) -> frozenset[Address]:
        """Who may pay for a kernel that no sandbox confines."""
        return frozenset(map(parse_address, self.trusted_wallets))

    @property
    def limits(self) -> Limits:
        """What one kernel may use."""
        return Limits(memory=self.memory_mb << 20, pids=self.processes)

    def path(self, name: str) -> Path:
        """A file of the agent's folder; absolute names are taken as they are."""
        return self.home / name

    @property
    def kernel_root(self) -> Path:
        """Where kernels have their folders: below `kernels`, or in the home. The agent clears it when it starts."""
        if not self.kernels:
            return self.path("kernels")
        # A name of its own: others may have things there, another agent among them.
        own = hashlib.blake2s(str(self.home.absolute()).encode(), digest_size=4).hexdigest()
        return self.path(self.kernels) / f"depin-{own}"

    @property
    def output_root(self) -> Path:
        """Where output is kept for renters who are away, out of the kernels' sight. The agent clears it when it starts."""
        return self.path("output")

    @property
    def output_room(self) -> tuple[int, int, int]:
        """How much of it is kept: bytes for one kernel, bytes for all of them, seconds."""
        return self.output_mb << 20, self.output_total_mb << 20, self.output_hours * 3600

    def kernel_folder(self, channel_id: bytes) -> Path:
        """A kernel's own folder. Its name is short, for the paths of the sockets in it have a narrow limit."""
        return self.kernel_root / channel_id.hex()[:12]

    @classmethod
    def load(cls, home: Path, **overrides: Any) -> ProviderConfig:
        """Read `provider.toml` in `home`, if it is there; `overrides` (from the command line) win.

        Raises `DamagedConfig` on anything that is not as it should be.
        """
        path = home / "provider.toml"
        values: dict[str, Any] = {}
        try:
            if path.exists():
                values = tomllib.loads(path.read_text("utf-8"))
            kinds = {f.name: f.type for f in fields(cls) if f.name != "home"}
            for name, value in values.items():
                if name not in kinds:
                    raise ConfigError(detail=f"there is no setting {name!r}")
                values[name] = _checked(name, value, getattr(cls, name))
            return cls(home=home, **(values | {k: v for k, v in overrides.items() if v is not None}))
        except ConfigError as error:
            raise DamagedConfig(path=path, reason=error.facts["detail"]) from error
        except OSError as error:
            raise DamagedConfig(path=path, reason=error.strerror or error) from error
        except ValueError as error:
            raise DamagedConfig(path=path, reason=error) from error


def _checked(name: str, value: Any, default: Any) -> Any:
    if isinstance(default, tuple) and isinstance(value, list) and all(isinstance(v, str) for v in value):
        return tuple(value)
    if type(value) is not type(default):
        raise ConfigError(detail=f"{name} is {value!r}; {default!r} would be of the right kind")
    return value
