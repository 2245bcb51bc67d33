"""Hours as the clocks on the wall show them, also on the days when those are changed."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from apex_creds.errors import InvalidInputError
from apex_creds.model import Sensitivity
from apex_creds.policy.rules import Policy, Rule, Verdict, window


def at(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("moment", "inside"),
    [
        # 2024-03-31: at 01:00 UTC clocks in Berlin go from 02:00 to 03:00.
        ("2024-03-31T00:59:59", False),  # 01:59:59
        ("2024-03-31T01:00:00", True),  # 03:00, past 02:30 at once
        ("2024-03-31T01:29:59", True),
        ("2024-03-31T01:30:00", False),  # 03:30
        # 2024-10-27: at 01:00 UTC they go back from 03:00 to 02:00.
        ("2024-10-27T00:29:59", False),  # 02:29:59, the first time
        ("2024-10-27T00:30:00", True),
        ("2024-10-27T00:59:59", True),
        ("2024-10-27T01:00:00", False),  # 02:00 again
        ("2024-10-27T01:30:00", True),  # 02:30 again
        ("2024-10-27T02:29:59", True),
        ("2024-10-27T02:30:00", False),
    ],
)
def test_across_a_change_of_the_clocks(moment: str, inside: bool) -> None:
    assert window(start="02:30", end="03:30", zone="Europe/Berlin").holds(at(moment)) is inside


@pytest.mark.parametrize(
    ("moment", "inside"),
    [
        ("2024-01-05T21:59:00", False),  # Friday
        ("2024-01-05T22:00:00", True),
        ("2024-01-06T05:59:59", True),  # Saturday, still Friday's
        ("2024-01-06T06:00:00", False),
        ("2024-01-06T22:00:00", False),
        ("2024-01-05T05:00:00", False),  # Thursday's is none
    ],
)
def test_over_midnight_it_belongs_to_the_day_on_which_it_began(
    moment: str, inside: bool
) -> None:
    assert (
        window(days=["fri"], start="22:00", end="06:00", zone="UTC").holds(at(moment)) is inside
    )


def test_the_day_is_the_zones() -> None:
    monday = window(days=["mon"], zone="Pacific/Auckland")
    assert monday.holds(at("2024-01-07T11:00:00"))  # Sunday in UTC
    assert not monday.holds(at("2024-01-08T11:00:00"))


@pytest.mark.parametrize(
    "given",
    [
        {"zone": "Europe/Atlantis"},
        {"zone": "../../../etc/passwd"},
        {"zone": "/etc/localtime"},
        {"zone": "America"},
        {"zone": ""},
        {"zone": "UTC\x00"},
        {"zone": "UTC", "days": ["monday"]},
        {"zone": "UTC", "days": []},
        {"zone": "UTC", "start": "8:00"},
        {"zone": "UTC", "start": "24:00", "end": "06:00"},
        {"zone": "UTC", "end": "25:00"},
        {"zone": "UTC", "start": "08:00", "end": "08:00"},
        {"zone": "UTC", "start": "٠٨:00"},
    ],
)
def test_what_is_no_window_is_refused(given: dict[str, object]) -> None:
    with pytest.raises(InvalidInputError):
        window(**given)


def ruled(policy: Policy, now: float) -> tuple[str, bool]:
    ruling = policy.rule_on(
        plugin="p", action="a", credential="c", level=Sensitivity.NORMAL, now=now
    )
    return ruling.rule, ruling.timed


def test_a_rule_sleeps_outside_of_its_hours_and_says_when_to_look_again() -> None:
    office = window(start="08:00", end="18:00", zone="Europe/Berlin")
    policy = Policy(
        [
            Rule(id="office", decision=Verdict.ALLOW, time=office),
            Rule(id="else", decision=Verdict.DENY),
        ]
    )
    assert ruled(policy, at("2024-07-01T05:59:59")) == ("else", True)
    assert ruled(policy, at("2024-07-01T06:00:00")) == ("office", True)
    assert ruled(policy, at("2024-12-02T06:59:59")) == ("else", True)
    assert ruled(policy, at("2024-12-02T07:00:00")) == ("office", True)


@pytest.mark.parametrize("now", [float("nan"), float("inf"), -float("inf"), 1e300, -1e300])
def test_where_there_is_no_date_what_refuses_holds_and_what_allows_does_not(now: float) -> None:
    always = window(zone="UTC")
    allowing = Policy([Rule(id="yes", decision=Verdict.ALLOW, time=always)])
    denying = Policy([Rule(id="no", decision=Verdict.DENY, time=always)])
    assert ruled(allowing, now)[0] == "levels.normal"
    assert ruled(denying, now)[0] == "no"
