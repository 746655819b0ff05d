"""The REST interface, as the browser meets it: over HTTP, through a real Jupyter Server."""

from __future__ import annotations

import json
from typing import Any, cast

import pytest
from jupyter_server.auth.decorator import authorized
from tornado import web
from tornado.httpclient import HTTPClientError

from jupyter_depin.errors import (
    ChainUnreachable,
    EmptyWallet,
    PeerUnreachable,
    SettlementPending,
)
from jupyter_depin.server.extension import DepinExtension
from jupyter_depin.server.handlers import DepinHandler, routes

authenticated_code = web.authenticated(lambda self: None).__code__
authorized_code = authorized(lambda self: None).__code__

RENTAL = "ab" * 32
API = ("jupyter-depin", "api", "rentals")


def body(error: pytest.ExceptionInfo[HTTPClientError]) -> Any:
    response = error.value.response
    assert response is not None
    return json.loads(response.body)


async def test_amounts_cross_as_decimal_strings(jp_fetch, rentals):
    # 2^60 is where JavaScript's numbers begin to round.
    rentals.add(spent=2**60 + 1, cap=2**61, served_ns=2**60 + 1)
    listed = json.loads((await jp_fetch(*API)).body)["rentals"]
    assert [(rental["id"], rental["spent"], rental["served_ns"]) for rental in listed] == [
        (RENTAL, "1152921504606846977", "1152921504606846977")
    ]
    assert json.loads((await jp_fetch(*API, RENTAL)).body) == listed[0]


async def test_settling_answers_with_the_receipt(jp_fetch, rentals):
    rentals.add(spent=8_300)
    ended = json.loads((await jp_fetch(*API, RENTAL, "settle", method="POST", body="")).body)
    assert ended["state"] == "ended"
    assert ended["receipt"] == {"paid": "8300", "refunded": "171700"}
    assert ended["reason"] == {"code": "stopped_by_user", "facts": {}}


@pytest.mark.parametrize("path", [(RENTAL,), ("no-such-id",)])
async def test_an_unknown_rental_is_not_found(jp_fetch, path):
    with pytest.raises(HTTPClientError) as error:
        await jp_fetch(*API, *path)
    assert error.value.code == 404
    assert body(error)["code"] == "RentalNotFound"
    assert body(error)["facts"] == {"rental": path[0]}


@pytest.mark.parametrize(
    ("failure", "http", "retryable"),
    [
        (SettlementPending(reason="the network is busy"), 503, True),
        (ChainUnreachable(url="chain.example"), 503, True),
        (PeerUnreachable(address="provider.example"), 503, True),
        (EmptyWallet(balance="0", symbol="DEMO", needed="1"), 402, False),
    ],
)
async def test_an_error_is_told_as_code_and_facts(jp_fetch, rentals, failure, http, retryable):
    rentals.add()
    rentals.fail_with(failure)
    with pytest.raises(HTTPClientError) as error:
        await jp_fetch(*API, RENTAL, "settle", method="POST", body="")
    assert error.value.code == http
    assert body(error) == {
        "code": failure.code,
        "message": str(failure),
        "facts": failure.facts,
        "retryable": retryable,
    }


async def test_a_bug_does_not_show_its_traceback(jp_fetch, rentals):
    rentals.add()
    rentals.fail_with(ValueError("secret detail"))
    with pytest.raises(HTTPClientError) as error:
        await jp_fetch(*API, RENTAL, "settle", method="POST", body="")
    assert error.value.code == 500
    assert "secret detail" not in json.dumps(body(error))


@pytest.mark.parametrize(("method", "path"), [("GET", ()), ("GET", (RENTAL,)), ("POST", (RENTAL, "settle"))])
async def test_strangers_are_turned_away(jp_fetch, rentals, method, path):
    rentals.add()
    with pytest.raises(HTTPClientError) as error:
        await jp_fetch(
            *API,
            *path,
            method=method,
            headers={"Authorization": "token wrong"},
            allow_nonstandard_methods=True,
        )
    assert error.value.code == 403
    assert rentals.statuses[RENTAL].state == "running"


def test_no_verb_of_any_handler_is_open():
    """Both guards wrap every verb; a handler that forgot one would let anybody stop a rental."""
    handlers = {handler for _, handler, _ in routes(cast("DepinExtension", None))}
    assert handlers == set(DepinHandler.__subclasses__())
    for handler in handlers:
        assert handler.auth_resource == "depin"
        verbs = {"get", "post", "put", "patch", "delete", "head"} & set(vars(handler))
        assert verbs
        for verb in verbs:
            guard = vars(handler)[verb]
            assert guard.__code__ is authenticated_code, (handler, verb)
            assert guard.__wrapped__.__code__ is authorized_code, (handler, verb)
