"""A short run at the doors behind which whole sides stand."""

from __future__ import annotations

import random

from tests.fuzz.run import Outcome
from tests.fuzz.words import Speaker
from tests.fuzz.worlds import DOORS, knocked


async def test_no_lie_breaks_a_renter_a_lender_or_an_agent(caplog):
    outcome = Outcome()
    await knocked(3000, Speaker(random.Random(3)), outcome)
    assert outcome.wrong == {}
    assert set(outcome.knocks) == set(DOORS)
    assert not [record for record in caplog.records if record.exc_info], "a task failed unseen"
    for record in caplog.records:
        assert record.getMessage().isprintable()
        assert len(record.getMessage()) < 1000
