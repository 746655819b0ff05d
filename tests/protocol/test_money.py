"""Money: integers, one rounding rule, exact text."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jupyter_depin.errors import ConfigError
from jupyter_depin.protocol.money import (
    MAX_AMOUNT,
    NS_PER_HOUR,
    Amount,
    Rate,
    amount,
    format_amount,
    owed,
    parse_amount,
    rate,
    served_for,
)

AMOUNTS = st.integers(0, MAX_AMOUNT)
RATES = st.one_of(st.integers(1, 10**9), st.integers(1, MAX_AMOUNT))
TIMES = st.integers(0, 10**6 * NS_PER_HOUR)


@pytest.mark.parametrize("wrong", [-1, MAX_AMOUNT + 1, 1.0, "1", True, None])
def test_what_is_no_amount_is_refused(wrong):
    for check in (amount, rate):
        with pytest.raises(ConfigError):
            check(wrong)


def test_the_limits_are_amounts():
    assert (amount(0), amount(MAX_AMOUNT), rate(MAX_AMOUNT)) == (0, 2**88 - 1, 2**88 - 1)


def test_half_a_unit_an_hour_costs_139_base_units_a_second():
    half = Rate(500_000)
    assert owed(half, 10**9) == 138
    assert owed(half, 2 * 10**9) == 277
    assert owed(half, NS_PER_HOUR) == 500_000
    assert owed(Rate(0), NS_PER_HOUR) == 0


@given(RATES, TIMES, TIMES)
def test_what_is_owed_is_rounded_down_and_rises(rate, some, more):
    exact = Fraction(rate * some, NS_PER_HOUR)
    assert exact - 1 < owed(Rate(rate), some) <= exact
    assert owed(Rate(rate), some) <= owed(Rate(rate), some + more)
    # Paying in steps never costs more than paying once.
    assert owed(Rate(rate), some) + owed(Rate(rate), more) <= owed(Rate(rate), some + more)


@given(RATES, AMOUNTS)
def test_a_payment_covers_the_longest_service_that_it_pays(rate, paid):
    longest = served_for(Rate(rate), Amount(paid))
    assert owed(Rate(rate), longest) <= paid < owed(Rate(rate), longest + 1)


@given(AMOUNTS, st.integers(0, 18))
def test_text_is_exact_both_ways(value, decimals):
    text = format_amount(value, decimals)
    assert parse_amount(text, decimals) == value
    assert not ("." in text and text.endswith(("0", ".")))


@pytest.mark.parametrize(
    ("text", "value"),
    [("0.50", 500_000), ("1", 10**6), (" 2.5 ", 2_500_000), (".5", 500_000), ("0", 0), ("007", 7 * 10**6)],
)
def test_what_people_type(text, value):
    assert parse_amount(text, 6) == value


@pytest.mark.parametrize(
    "text", ["", ".", "-1", "+1", "1e3", "1,5", "1.2.3", "0.0000001", "٣", "1 000", "0x1", "nan"]
)
def test_what_is_no_exact_amount_is_refused(text):
    with pytest.raises(ConfigError):
        parse_amount(text, 6)


@given(st.text(max_size=12), st.integers(0, 18))
def test_any_text_is_an_amount_or_a_config_error(text, decimals):
    try:
        value = parse_amount(text, decimals)
    except ConfigError:
        return
    assert amount(value) == value
