"""A question can be answered for as long as it was asked for, whatever the clock says."""

from __future__ import annotations

import pytest

from apex_creds.auth.access_document import PendingRequest
from apex_creds.clocks import Moment
from apex_creds.policy.consent import ConsentRequest
from tests.support.clocks import TwoClocks


def asked(clock: TwoClocks, *, moment: bool = True) -> PendingRequest:
    request = ConsentRequest(plugin="p", credential="c")
    return PendingRequest(
        id="0" * 8,
        request=request,
        asked=clock.wall,
        expires=clock.wall + 60.0,
        moment=Moment.now(clock) if moment else None,
    )


@pytest.mark.parametrize("jump", [-1e9, -59.0, 59.0, 3.2e8])
def test_a_question_is_open_for_its_time(jump: float) -> None:
    clock = TwoClocks()
    item = asked(clock)
    clock.set_by(jump)
    clock.go_on(59.0)
    assert item.seconds_left(Moment.now(clock)) == pytest.approx(1.0)
    clock.go_on(1.1)
    assert item.seconds_left(Moment.now(clock)) == 0.0


@pytest.mark.parametrize(("ahead", "left"), [(0.0, 60.0), (1.0, 60.0), (3600.0, 0.0)])
def test_one_of_another_machine_goes_by_the_wall_clock(ahead: float, left: float) -> None:
    there = TwoClocks()
    there.set_by(ahead)
    for item in (asked(there), asked(there, moment=False)):
        assert item.seconds_left(Moment.now(TwoClocks())) == left
