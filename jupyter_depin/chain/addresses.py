"""The address book: where the contracts of one chain are, in a JSON file that people copy to each other."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jupyter_depin.errors import ConfigError, DamagedConfig
from jupyter_depin.protocol.identity import Address, checksummed, parse_address
from jupyter_depin.protocol.market import Asset


@dataclass(frozen=True, slots=True)
class AddressBook:
    """One chain, its nodes' addresses (asked in this order), and the contracts and token in use there."""

    chain_id: int
    rpc_urls: tuple[str, ...]
    vault: Address
    registry: Address
    token: Address
    symbol: str
    decimals: int

    def __post_init__(self) -> None:
        if self.chain_id <= 0 or not self.rpc_urls or not 0 <= self.decimals <= 36:
            raise ConfigError(detail="an address book needs a chain id, an rpc url and 0 … 36 decimals")

    @property
    def asset(self) -> Asset:
        """What this chain pays with."""
        return Asset(self.chain_id, self.vault, self.token, self.symbol, self.decimals)

    @classmethod
    def load(cls, path: Path) -> AddressBook:
        """Read a book. Raises `DamagedConfig`."""
        try:
            return cls._from(json.loads(path.read_text("utf-8")))
        except OSError as error:
            raise DamagedConfig(path=path, reason=error.strerror or error) from error
        except KeyError as error:
            raise DamagedConfig(path=path, reason=f"{error} is missing") from error
        except ConfigError as error:
            raise DamagedConfig(path=path, reason=error.facts["detail"]) from error
        except (ValueError, TypeError, AttributeError) as error:
            raise DamagedConfig(path=path, reason=error) from error

    @classmethod
    def _from(cls, found: Any) -> AddressBook:
        if not isinstance(found, dict):
            raise ConfigError(detail="it is no address book")
        return cls(
            chain_id=int(found["chain_id"]),
            rpc_urls=tuple(str(url) for url in found["rpc_urls"]),
            vault=parse_address(found["vault"]),
            registry=parse_address(found["registry"]),
            token=parse_address(found["token"]),
            symbol=str(found["symbol"]),
            decimals=int(found["decimals"]),
        )

    def save(self, path: Path) -> None:
        """Write the book in one step, so that a reader never sees a half of it. Raises `DamagedConfig`."""
        text = json.dumps(
            {
                "chain_id": self.chain_id,
                "rpc_urls": list(self.rpc_urls),
                "vault": checksummed(self.vault),
                "registry": checksummed(self.registry),
                "token": checksummed(self.token),
                "symbol": self.symbol,
                "decimals": self.decimals,
            },
            indent=2,
        )
        beside = path.with_name(path.name + ".new")
        try:
            beside.write_text(text + "\n", "utf-8")
            os.replace(beside, path)
        except OSError as error:
            raise DamagedConfig(path=path, reason=error.strerror or error) from error
