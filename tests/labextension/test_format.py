"""Amounts and times as the browser writes them."""

from __future__ import annotations

import pytest

from jupyter_depin.protocol.money import MAX_AMOUNT, format_amount

AMOUNTS = [
    (value, decimals)
    for value in (0, 1, 9, 10, 8_300, 8_333, 360_000, 999_999, 10**6, 10**18, 2**53 + 1, MAX_AMOUNT)
    for decimals in (0, 2, 6, 18)
]


def test_an_amount_reads_the_same_in_the_browser_and_on_the_command_line(front_end):
    shown = front_end("amounts", [[str(value), decimals] for value, decimals in AMOUNTS])
    assert shown == [format_amount(value, decimals) for value, decimals in AMOUNTS]


def test_a_short_amount_is_cut_and_never_rounded_up(front_end):
    given = {
        (8_399_999, 9): "0.0083",
        (123_456_789, 6): "123.4567",
        (8_333_333_333_333_333, 18): "0.0083",
        (12_345, 12): "0.000000012",
        (5, 6): "0.000005",
        (0, 6): "0",
        (10**6, 6): "1",
    }
    assert front_end("short", [[str(value), decimals] for value, decimals in given]) == list(given.values())


def test_a_time_reads_as_a_clock(front_end):
    given = {
        0: "00:00:00",
        83 * 10**9: "00:01:23",
        3_599_999_999_999: "00:59:59",
        360_000 * 10**9: "100:00:00",
    }
    assert front_end("clock", [str(ns) for ns in given]) == list(given.values())


@pytest.mark.parametrize(
    ("passed_ms", "shown"),
    [
        (0, "● · CPU demo · 0.36 DEMO/h · 00:01:23 · 0.0083 DEMO"),
        (5_000, "● · CPU demo · 0.36 DEMO/h · 00:01:28 · 0.0083 DEMO"),
        # Without news the seconds stop, and the silence is told.
        (40_000, "● · CPU demo · 0.36 DEMO/h · 00:01:38 · 0.0083 DEMO · last report 40 s ago"),
    ],
)
def test_between_reports_the_time_goes_on_and_the_amount_does_not(front_end, wire, passed_ms, shown):
    assert front_end("bar", [{"wire": wire(), "at": 1_000, "now": 1_000 + passed_ms}]) == [shown]
