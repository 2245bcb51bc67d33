"""What is open, as far as the events tell; and what was done."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from apex_creds.audit.events import EventKind, Recorded
from apex_creds.dashboard.lease_view import MAX_OPEN, OpenLeases
from apex_creds.dashboard.log_status import MAX_PAIRS, Activity

DAY = 86_400.0


def event(kind: EventKind, time: float = 100.0, **more: object) -> Recorded:
    return Recorded(time=time, kind=kind, seq=1, hash="", **more)  # type: ignore[arg-type]


def lease(name: str = "l1", invocation: str = "i1", **more: object) -> Recorded:
    fields = {"plugin": "p", "credential": "c", **more}
    return event(EventKind.LEASE, lease=name, invocation=invocation, **fields)


def end(invocation: str = "i1") -> Recorded:
    return event(EventKind.INVOCATION, invocation=invocation)


def open_after(*events: Recorded, now: float = 101.0) -> dict[str, object]:
    made = OpenLeases()
    for each in events:
        made.take(each)
    return {item.lease: item for item in made.open(now)}


def test_a_lease_is_open_until_its_invocation_ends() -> None:
    assert set(open_after(lease(), lease("l2", "i2"))) == {"l1", "l2"}
    assert set(open_after(lease(), lease("l2", "i2"), end())) == {"l2"}


def test_a_lease_whose_end_was_logged_first_is_not_open() -> None:
    assert open_after(end(), lease()) == {}


def test_uses_are_counted() -> None:
    use = event(EventKind.REDEEM, 150.0, lease="l1", invocation="i1", method="GET", origin="o")
    found = open_after(lease(), use, use)["l1"]
    assert (found.uses, found.last, found.method, found.origin) == (2, 150.0, "GET", "o")


def test_a_use_of_a_lease_from_before_what_was_read_is_open_since_nobody_knows() -> None:
    use = event(EventKind.REDEEM, lease="l9", invocation="i9", plugin="p", credential="c")
    assert open_after(use)["l9"].since == 0.0


def test_a_revocation_marks_what_it_reaches() -> None:
    more = lease("l2", "i2", plugin="q")
    for plugin, credential, reached in (
        ("p", "", {"l1"}),
        ("", "c", {"l1", "l2"}),
        ("q", "c", {"l2"}),
        ("", "", {"l1", "l2"}),
        ("q", "d", set()),
    ):
        revoke = event(EventKind.REVOKE, plugin=plugin, credential=credential)
        found = open_after(lease(), more, revoke)
        assert {name for name, item in found.items() if item.revoked} == reached
    after = open_after(event(EventKind.REVOKE, plugin="p"), lease())
    assert not after["l1"].revoked, "made after it"


def test_what_is_silent_for_a_day_is_given_up() -> None:
    assert open_after(lease(), now=100.0 + DAY) != {}
    assert open_after(lease(), now=101.0 + DAY) == {}


def test_however_many_there_are_it_is_bounded() -> None:
    made = OpenLeases()
    for n in range(MAX_OPEN + 10):
        made.take(lease(f"l{n}", f"i{n}"))
    assert len(made.open(101.0)) == MAX_OPEN
    assert len(made._of) == MAX_OPEN


@given(
    st.lists(
        st.tuples(st.sampled_from("LUE"), st.integers(0, 3), st.integers(0, 1)), max_size=40
    )
)
def test_nothing_of_an_invocation_is_open_after_its_end(script) -> None:
    made, ended, opened = OpenLeases(), set(), set()
    for what, invocation, number in script:
        name, of = f"l{invocation}.{number}", f"i{invocation}"
        if what == "E":
            ended.add(of)
            made.take(end(of))
        else:
            kind = EventKind.LEASE if what == "L" else EventKind.REDEEM
            made.take(event(kind, lease=name, invocation=of, plugin="p", credential="c"))
            opened.add((name, of))
    found = {(item.lease, item.invocation) for item in made.open(101.0)}
    assert found == {(name, of) for name, of in opened if of not in ended}


def test_activity_is_by_pair_and_bounded() -> None:
    made = Activity()
    pair = {"plugin": "p", "credential": "c"}
    made.take(event(EventKind.REDEEM, 5.0, **pair))
    made.take(event(EventKind.DENIAL, 6.0, reason="not_granted", **pair))
    made.take(event(EventKind.GRANT, 7.0, reason="consent_once", **pair))
    made.take(event(EventKind.GRANT, 8.0, detail="by command", **pair))
    made.take(event(EventKind.REDEEM, 9.0, plugin="p"))
    use = made.pairs["p", "c", ""]
    assert (use.redeems, use.used, use.denials, use.why) == (1, 5.0, 1, "not_granted")
    assert (use.answer, use.answered) == ("once", 7.0)
    for n in range(MAX_PAIRS + 5):
        made.take(event(EventKind.REDEEM, plugin=f"p{n}", credential="c"))
    assert len(made.pairs) == MAX_PAIRS
