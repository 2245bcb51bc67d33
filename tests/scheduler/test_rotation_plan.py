"""The state machine and the policies: what is due, in which order, and what can't be."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apex_creds.errors import InvalidInputError, KeyStateError
from apex_creds.keys.keyset import Keyset, KeyState
from apex_creds.scheduler.rotation_plan import (
    Action,
    KeyView,
    MasterView,
    Reason,
    Step,
    View,
    plan,
)
from apex_creds.scheduler.schedule import DAY, Level, LevelPolicy, Policies, is_due
from apex_creds.scheduler.worker import next_fire

NOW = 1_700_000_000.0
ID = "ab" * 16


def never(cron: str, after: float) -> float | None:
    return None


def keyset(created: float = NOW) -> Keyset:
    return Keyset.new(id=ID, label="api_keys/x", material=b"m", parent=1, now=created)


def dek(keys: Keyset, *used: int, uses: int = 0) -> KeyView:
    return KeyView(
        level=Level.DEK,
        keyset=keys,
        label=keys.label,
        in_use=frozenset(used),
        encryptions={keys.primary.version: uses},
    )


def steps(*keys: KeyView, now: float = NOW, policies: Policies | None = None, **master):
    view = View(master=MasterView(**{"version": 1, "created": now, **master}), keys=keys)
    return plan(view, policies or Policies(), now=now, next_fire=never)


def kinds(found) -> list[tuple[str, str]]:
    return [(step.level.value, step.action.value) for step in found]


def test_nothing_is_due_for_fresh_keys() -> None:
    assert steps(dek(keyset(), 1)) == ()


def test_a_dek_is_due_after_its_interval_and_not_before() -> None:
    made = dek(keyset(NOW - 90 * DAY), 1)
    assert kinds(steps(made)) == [("dek", "rotate")]
    assert steps(made, now=NOW - 1) == ()


def test_a_dek_is_due_after_so_many_encryptions() -> None:
    policies = Policies(dek=LevelPolicy(max_encryptions=5))
    assert steps(dek(keyset(), 1, uses=4), policies=policies) == ()
    (found,) = steps(dek(keyset(), 1, uses=5), policies=policies)
    assert found.reason is Reason.ENCRYPTIONS


@pytest.mark.parametrize("stored", [0, 4, 5, 6, 100])
def test_no_dek_is_due_for_what_its_own_rotation_moved_to_it(stored: int) -> None:
    policies = Policies(dek=LevelPolicy(max_encryptions=5))
    rotated = replace(dek(keyset(), 1, uses=stored), stored=stored)
    assert steps(rotated, policies=policies) == ()
    used = stored + 5 if stored >= 5 else 5
    written = replace(rotated, encryptions={1: used - 1})
    assert steps(written, policies=policies) == ()
    assert kinds(steps(replace(written, encryptions={1: used}), policies=policies))


def test_a_whole_life() -> None:
    keys = keyset().add_pending(material=b"n", parent=1, now=NOW)
    assert kinds(steps(dek(keys, 1))) == [("dek", "promote")]
    keys = keys.promote(2, now=NOW)
    assert kinds(steps(dek(keys, 1, 2))) == [("dek", "move")]
    assert kinds(steps(dek(keys, 2))) == [("dek", "retire")]
    keys = keys.retire(1, now=NOW)
    assert steps(dek(keys, 2)) == ()
    assert steps(dek(keys, 2), now=NOW + 7 * DAY - 1) == ()
    assert kinds(steps(dek(keys, 2), now=NOW + 7 * DAY)) == [("dek", "destroy")]
    keys = keys.destroy(1, now=NOW)
    assert steps(dek(keys, 2)) == ()


def test_a_compromised_primary_is_replaced_before_anything_is_moved() -> None:
    keys = keyset().add_pending(material=b"n", parent=1, now=NOW).promote(2, now=NOW)
    keys = keys.mark_compromised(2, now=NOW)
    (found,) = steps(dek(keys, 1, 2))
    assert found.action is Action.ROTATE
    assert found.urgent


def test_a_compromised_version_is_destroyed_without_grace() -> None:
    keys = keyset().add_pending(material=b"n", parent=1, now=NOW).promote(2, now=NOW)
    keys = keys.mark_compromised(1, now=NOW).retire(1, now=NOW)
    (found,) = steps(dek(keys, 2))
    assert (found.action, found.reason) == (Action.DESTROY, Reason.COMPROMISED)


def test_what_is_urgent_comes_first() -> None:
    old = KeyView(
        level=Level.KEK, keyset=keyset(NOW - 400 * DAY), in_use=frozenset({1}), label=""
    )
    lost = dek(keyset().mark_compromised(1, now=NOW), 1)
    assert kinds(steps(old, lost)) == [("dek", "rotate"), ("kek", "rotate")]


def test_an_old_master_key_goes_after_its_grace() -> None:
    found = steps(version=3, left={1: NOW - 8 * DAY, 2: NOW - 6 * DAY})
    assert [(s.action, s.version) for s in found] == [(Action.DESTROY, 1)]
    found = steps(version=3, left={1: NOW, 2: NOW}, compromised=2)
    assert [s.version for s in found] == [1, 2]


def test_old_master_keys_go_in_their_order_also_if_the_clock_was_set_back() -> None:
    assert steps(version=3, left={1: NOW, 2: NOW - 9 * DAY}) == ()
    found = steps(version=3, left={1: NOW, 2: NOW - 9 * DAY}, now=NOW + 7 * DAY)
    assert [s.version for s in found] == [1, 2]


@given(st.floats(-1e10, 1e10), st.integers(0, 3))
def test_an_order_is_about_versions_whatever_their_times(created: float, number: int) -> None:
    keys = keyset(created).add_pending(material=b"n", parent=1, now=-created)
    view = View(
        master=MasterView(version=2, created=NOW),
        keys=(dek(keys.promote(2, now=-created), 2),),
        requested={(Level.DEK, "api_keys/x"): number, (Level.MASTER, ""): number},
    )
    never_due = LevelPolicy(interval=None)
    quiet = Policies(master=never_due, kek=never_due, dek=never_due)
    found = plan(view, quiet, now=NOW, next_fire=never)
    asked = {step.level for step in found if step.reason is Reason.REQUESTED}
    assert asked == ({Level.DEK, Level.MASTER} if number >= 2 else set())


def test_what_was_retired_while_the_clock_was_ahead_is_not_kept_for_years() -> None:
    for ahead, kept in ((6 * DAY, True), (8 * DAY, False), (3650 * DAY, False)):
        keys = keyset().add_pending(material=b"n", parent=1, now=NOW).promote(2, now=NOW)
        found = steps(dek(keys.retire(1, now=NOW + ahead), 2))
        assert kinds(found) == ([] if kept else [("dek", "destroy")])
        found = steps(version=2, left={1: NOW + ahead})
        assert kinds(found) == ([] if kept else [("master", "destroy")])


@pytest.mark.parametrize(
    ("level", "action"),
    [
        (Level.MASTER, Action.RETIRE),
        (Level.MASTER, Action.MOVE),
        (Level.MASTER, Action.PROMOTE),
        (Level.KEK, Action.PROMOTE),
    ],
)
def test_a_level_has_only_its_own_steps(level: Level, action: Action) -> None:
    with pytest.raises(KeyStateError):
        Step(level=level, action=action, version=1, reason=Reason.TIME)


def test_a_step_names_a_version_and_a_dek_its_label() -> None:
    for options in ({"version": 0, "label": "x"}, {"version": 1}):
        with pytest.raises(KeyStateError):
            Step(level=Level.DEK, action=Action.ROTATE, reason=Reason.TIME, **options)


@given(st.floats(-400 * DAY, 400 * DAY), st.floats(DAY, 300 * DAY))
def test_a_wrong_clock_puts_off_no_rotation_by_more_than_an_interval(
    ahead: float, interval: float
) -> None:
    policy = LevelPolicy(interval=interval)
    created = NOW + ahead
    due = is_due(policy, created=created, now=NOW, salt="x", next_fire=never)
    assert due is (created + interval <= NOW or created > NOW + interval)


def test_downtime_neither_skips_nor_doubles() -> None:
    made = dek(keyset(NOW - 1000 * DAY), 1)
    assert kinds(steps(made)) == [("dek", "rotate")]
    keys = made.keyset.add_pending(material=b"n", parent=1, now=NOW).promote(2, now=NOW)
    assert kinds(steps(dek(keys, 1, 2))) == [("dek", "move")]


def test_jitter_is_the_same_for_the_same_key_and_stays_within_bounds() -> None:
    policy = LevelPolicy(interval=DAY, jitter=DAY)
    made = {
        salt: next(
            hour
            for hour in range(73)
            if is_due(policy, created=NOW, now=NOW + hour * 3600, salt=salt, next_fire=never)
        )
        for salt in map(str, range(40))
    }
    assert all(24 <= hour <= 48 for hour in made.values())
    assert len(set(made.values())) > 5


def test_cron() -> None:
    policy = Policies(dek=LevelPolicy(cron="0 3 * * *"))
    midnight = NOW - NOW % DAY
    view = View(
        master=MasterView(version=1, created=midnight), keys=(dek(keyset(midnight), 1),)
    )
    three = midnight + 3 * 3600
    assert plan(view, policy, now=three - 1, next_fire=next_fire) == ()
    assert kinds(plan(view, policy, now=three, next_fire=next_fire)) == [("dek", "rotate")]
    with pytest.raises(InvalidInputError):
        next_fire("every day", NOW)


@pytest.mark.parametrize(
    "fields", [{"interval": -1.0}, {"interval": 0.0}, {"grace": float("nan")}, {"jitter": -1.0}]
)
def test_policies_that_make_no_sense(fields: dict[str, float]) -> None:
    with pytest.raises(InvalidInputError):
        LevelPolicy(**fields)
    with pytest.raises(InvalidInputError):
        Policies(kek=LevelPolicy(max_encryptions=5))


def test_plans_hold_no_step_for_what_is_destroyed() -> None:
    keys = keyset().add_pending(material=b"n", parent=1, now=NOW).abandon(2, now=NOW)
    assert steps(dek(keys, 1)) == ()
    assert keys.get(2).state is KeyState.DESTROYED
