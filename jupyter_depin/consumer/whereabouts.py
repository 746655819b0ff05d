"""Whom a renter asks how others see its node: the observers in its settings, and those that its tickets name.

A provider that is reached directly is such a node too, so with two tickets or with one and an observer it is enough.
Nobody else is ever asked.
"""

from __future__ import annotations

from jupyter_depin.consumer.config import ConsumerConfig
from jupyter_depin.errors import BadTicket
from jupyter_depin.protocol.identity import NodeAddress, Ticket, parse_observer

MOST = 8
"""Nodes that are asked; two that agree are enough."""


def observers(config: ConsumerConfig) -> tuple[NodeAddress, ...]:
    """The nodes to ask, each once. Called when a backend is made; a bad ticket is told when it is used.

    Raises `ConfigError` for an observer in the settings that is none.
    """
    found: dict[bytes, NodeAddress] = {each.node: each for each in map(parse_observer, config.observers)}
    for text in config.tickets:
        try:
            ticket = Ticket.parse(text)
        except BadTicket:
            continue
        for each in (*ticket.observers, ticket.address):
            if each.direct:
                found.setdefault(each.node, each)
    return tuple(found.values())[:MOST]
