"""Put the contracts on a chain and get money for trying things out.

Called by the demo, by tests, and by whoever starts a network of their own. All that is needed is a node's address and
a `Signer` whose wallet can pay the fees.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from jupyter_depin.chain.addresses import AddressBook
from jupyter_depin.chain.artifacts import artifact
from jupyter_depin.chain.rpc import Rpc, RpcRefused
from jupyter_depin.chain.transactions import Transactor
from jupyter_depin.errors import ChainUnreachable, ConfigError
from jupyter_depin.protocol.identity import NO_ADDRESS, Address, Signer, parse_address
from jupyter_depin.protocol.market import Asset
from jupyter_depin.protocol.money import Amount

_DAY_S = 24 * 3600
_MIN_STAKE = Amount(100_000_000)


@dataclass(frozen=True, slots=True)
class Rules:
    """What is fixed for good when the contracts are deployed; times in seconds, the stake in base units.

    A provider that is offline for the whole `challenge_s` can lose vouchers that it has not redeemed, so it is longer
    than the longest halt of a rollup that was seen (116 minutes).
    """

    challenge_s: int = _DAY_S
    settle_s: int = _DAY_S
    min_stake: Amount = _MIN_STAKE
    thaw_s: int = 21 * _DAY_S


async def deploy(
    rpc_url: str,
    signer: Signer,
    *,
    token: Address | None = None,
    rules: Rules | None = None,
    timeout_s: float = 10.0,
    deadline_s: float = 120.0,
) -> AddressBook:
    """Deploy vault and registry for `token`, and a `DemoToken` where none is given.

    Raises `ChainUnreachable`, `EmptyWallet` (fees), `TransactionFailed`, `ConfigError` if `token` is no ERC-20.
    """
    rules = rules or Rules()
    rpc = Rpc([rpc_url], timeout_s)
    try:
        chain_id = await rpc.number("eth_chainId")
        # Errors while deploying are about fees; the asset is not known yet.
        transactor = Transactor(rpc, Asset(chain_id, NO_ADDRESS, NO_ADDRESS, "base units", 0), deadline_s)

        async def create(name: str, *arguments: Any) -> Address:
            receipt = await transactor.send(
                signer, None, artifact(name).creation(*arguments), f"the deployment of {name}"
            )
            with rpc.reading():
                return parse_address(receipt["contractAddress"].lower())

        if token is None:
            token = await create("DemoToken")
        symbol, decimals = await _describe(rpc, token)
        vault = await create("SessionVault", rules.challenge_s, rules.settle_s)
        registry = await create("ProviderRegistry", token, rules.min_stake, rules.thaw_s)
        return AddressBook(chain_id, (rpc_url,), vault, registry, token, symbol, decimals)
    except RpcRefused as error:
        raise ChainUnreachable(url=rpc_url) from error
    finally:
        await rpc.close()


async def _describe(rpc: Rpc, token: Address) -> tuple[str, int]:
    erc20 = artifact("DemoToken")
    answers = []
    for function in ("symbol", "decimals"):
        call = {"to": "0x" + token.hex(), "data": "0x" + erc20.call(function).hex()}
        try:
            answers.append(erc20.result(function, await rpc.data("eth_call", call, "latest"))[0])
        except (RpcRefused, ValueError) as error:
            raise ConfigError(detail=f"there is no ERC-20 token at 0x{token.hex()}") from error
    return str(answers[0]), int(answers[1])


async def fund(rpc_url: str, address: Address, *, timeout_s: float = 10.0) -> None:
    """Ask a development chain for 1000 ETH, for fees. Raises `ChainUnreachable`, also where it is not such a chain."""
    rpc = Rpc([rpc_url], timeout_s)
    try:
        await rpc.call("evm_fund", "0x" + address.hex())
    except RpcRefused as error:
        raise ChainUnreachable(url=rpc_url) from error
    finally:
        await rpc.close()
