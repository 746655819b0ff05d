"""What the renter wants: `config.toml` in the depin folder of Jupyter's data folder, overridden by a kernel spec.

tickets = ["depin1…"]                 # providers that may be asked
relays = ["https://…"]                # where this node is at home too; a provider's are in its ticket
observers = ["<node>@ip:port"]        # nodes that tell it how others see it, besides those in tickets
bind = "0.0.0.0:0"                    # its UDP address; a fixed port, for firewalls that open one
announce = ["ip:port"]                # where else it is reached, say through a router's forwarded port
address_book = "network.json"         # which chain, which contracts
max_rate_per_hour = "0.50"            # units of the asset
max_spend = "1.00"                    # per rental: locked as a deposit, the rest comes back
thrift = "auto"                       # spare bytes: "on" for a metered link, "off", or as the link needs it
allowed_env = ["LANG", "TZ"]          # what the provider's kernel may know of this machine's environment
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_args

from jupyter_core.paths import jupyter_data_dir

from jupyter_depin.errors import ConfigError, DamagedConfig
from jupyter_depin.protocol.identity import parse_observer, socket_address
from jupyter_depin.protocol.market import MAX_GRACE_S, MAX_SECONDS
from jupyter_depin.protocol.messages import Wish

_AMOUNTS = ("max_rate_per_hour", "max_spend")
_TEXTS: dict[str, Callable[[str], object]] = {"observers": parse_observer, "announce": socket_address}
_RANGES = {"max_seconds": (1, MAX_SECONDS), "keep_s": (0, MAX_GRACE_S), "settle_wait_s": (1, 3600)}
_AMOUNT = re.compile(r"[0-9]+(\.[0-9]*)?|\.[0-9]+")


def default_home() -> Path:
    """Where the renter's keys, journal and settings lie: `$JUPYTER_DEPIN_HOME` or Jupyter's data folder."""
    return Path(os.environ.get("JUPYTER_DEPIN_HOME") or Path(jupyter_data_dir()) / "depin")


@dataclass(frozen=True)
class ConsumerConfig:
    """One renter's settings. Amounts are decimal text in units of the asset; times in seconds.

    `loopback`: the rented machine is this one (an agent started on demand, an in-memory ledger, no money).
    `max_seconds`: the longest that one rental may last. `keep_s`: how long a rental whose program died is kept for
    another program to take up, though no longer than its grace; nothing is paid meanwhile. `settle_wait_s`: how long
    the end of a rental may take, of the provider and then of the ledger.
    """

    home: Path
    tickets: tuple[str, ...] = ()
    address_book: str = "network.json"
    max_rate_per_hour: str = "1"
    max_spend: str = "1"
    max_seconds: int = 24 * 3600
    thrift: Wish = "auto"
    relays: tuple[str, ...] = ()
    observers: tuple[str, ...] = ()
    bind: str = "0.0.0.0:0"
    announce: tuple[str, ...] = ()
    allowed_env: tuple[str, ...] = ("LANG", "LC_ALL", "TZ", "MPLBACKEND", "PYTHONHASHSEED")
    settle_wait_s: int = 20
    keep_s: int = 600
    loopback: bool = False

    @property
    def journal(self) -> Path:
        """The renter's journal."""
        return self.home / "journal.sqlite"

    @property
    def wallet(self) -> Path:
        """The renter's wallet key."""
        return self.home / "wallet.key"

    def make_home(self) -> None:
        """Make the folder, private to its owner. Called by whoever is about to write there. Raises `ConfigError`."""
        try:
            self.home.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise ConfigError(
                detail=f"the folder {self.home} cannot be made ({error.strerror}); name another one with --home"
            ) from error

    def filtered(self, environment: Mapping[str, str]) -> dict[str, str]:
        """The part of an environment that a stranger's machine may see. Jupyter hands us all of it, secrets included."""
        return {name: environment[name] for name in self.allowed_env if name in environment}

    @classmethod
    def load(cls, home: Path | None = None, **overrides: Any) -> ConsumerConfig:
        """Read `config.toml`, if it is there; `overrides` that are not None win. Raises `DamagedConfig`."""
        home = home or default_home()
        path = home / "config.toml"
        try:
            values: dict[str, Any] = tomllib.loads(path.read_text("utf-8")) if path.exists() else {}
            names = {f.name for f in fields(cls)} - {"home"}
            wishes = {name: value for name, value in overrides.items() if value is not None}
            for name, value in (values | wishes).items():
                if name not in names:
                    raise ConfigError(detail=f"there is no setting {name!r}")
                values[name] = tuple(value) if isinstance(value, list) else value
                _check(name, values[name], getattr(cls, name))
            return cls(home=home, **values)
        except ConfigError as error:
            raise DamagedConfig(path=path, reason=error.facts["detail"]) from error
        except OSError as error:
            raise DamagedConfig(path=path, reason=error.strerror or error) from error
        except ValueError as error:
            raise DamagedConfig(path=path, reason=error) from error


def _check(name: str, value: Any, default: Any) -> None:
    right = type(value) is type(default)
    if isinstance(value, tuple):
        right = right and all(isinstance(each, str) for each in value)
    if not right:
        raise ConfigError(detail=f"{name} is {value!r}, which is of the wrong kind")
    for text in value if name in _TEXTS else ():
        try:
            _TEXTS[name](text)
        except ConfigError as error:
            raise ConfigError(detail=f"in {name}, {error.facts['detail']}") from error
    if name == "thrift" and value not in get_args(Wish):
        raise ConfigError(detail=f"thrift is {value!r}; it can be auto, on or off")
    least, most = _RANGES.get(name, (0, 0))
    if name in _RANGES and not least <= value <= most:
        raise ConfigError(detail=f"{name} is {value}; it can be {least} to {most}")
    if name in _AMOUNTS and not _AMOUNT.fullmatch(value):
        raise ConfigError(detail=f"{name} is {value!r}, which is no amount such as 0.50")
