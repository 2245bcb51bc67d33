"""Limits against a model that remembers everything; whose uses count for whom."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apex_creds.policy.patterns import name_pattern
from apex_creds.policy.rate_limits import MAX_WINDOWS, LimitState, RateLimits, Windows
from apex_creds.policy.rules import LimitRule


class Now:
    def __init__(self) -> None:
        self.at = 1000.0

    def __call__(self) -> float:
        return self.at


def limit(
    per: str, of: str = "redeems", amount: int = 3, seconds: int = 60, **more
) -> LimitRule:
    return LimitRule(id=f"{per}-{of}", per=per, of=of, amount=amount, seconds=seconds, **more)


@settings(max_examples=150, deadline=None)
@given(
    per=st.sampled_from(["plugin", "credential", "pair"]),
    amount=st.integers(1, 4),
    steps=st.lists(
        st.tuples(
            st.sampled_from([0.0, 0.5, 10.0, 29.0, 60.0]),
            st.lists(st.sampled_from(["p", "q"]), min_size=1, max_size=2, unique=True),
            st.sampled_from(["c", "d"]),
        ),
        max_size=30,
    ),
)
def test_no_stretch_of_time_ever_has_more_than_the_limit(per, amount, steps) -> None:
    now, admitted = Now(), []
    limits, windows = RateLimits([limit(per, amount=amount)]), Windows(now)

    def keys(plugins, credential) -> set:
        whose = {"plugin": plugins, "credential": [""], "pair": plugins}[per]
        return {(plugin, "" if per == "plugin" else credential) for plugin in whose}

    for wait, plugins, credential in steps:
        now.at += wait
        breach = limits.admit(windows, plugins, credential)
        recent = [key for at, used in admitted if at > now.at - 60 for key in used]
        full = any(recent.count(key) >= amount for key in keys(plugins, credential))
        assert (breach is not None) is full
        if breach is None:
            admitted.append((now.at, keys(plugins, credential)))
        else:
            assert 0 < breach.retry_after <= 60


def test_after_retry_after_there_is_room_and_not_before() -> None:
    now = Now()
    limits, windows = RateLimits([limit("pair", amount=2)]), Windows(now)
    assert limits.admit(windows, ["p"], "c") is None
    now.at += 20
    assert limits.admit(windows, ["p"], "c") is None
    breach = limits.admit(windows, ["p"], "c")
    assert breach.retry_after == pytest.approx(40)
    now.at += 39.9
    assert limits.admit(windows, ["p"], "c") is not None
    now.at += 0.1
    assert limits.admit(windows, ["p"], "c") is None


def test_a_use_that_is_refused_counts_nowhere() -> None:
    now = Now()
    limits = RateLimits([limit("plugin", amount=1), limit("credential", amount=3)])
    windows = Windows(now)
    assert limits.admit(windows, ["greedy"], "c") is None
    for _ in range(10):
        assert limits.admit(windows, ["greedy"], "c").rule == "plugin-redeems"
    assert limits.admit(windows, ["p"], "c") is None
    assert limits.admit(windows, ["q"], "c") is None
    assert limits.admit(windows, ["r"], "c").rule == "credential-redeems"


def test_it_counts_for_all_plugins_on_the_way() -> None:
    limits, windows = RateLimits([limit("plugin", amount=2)]), Windows(Now())
    assert limits.admit(windows, ["inner1", "outer"], "c") is None
    assert limits.admit(windows, ["inner2", "outer"], "c") is None
    assert limits.admit(windows, ["inner3", "outer"], "c") is not None
    assert limits.admit(windows, ["inner3"], "c") is None


def test_names_with_signs_do_not_meet() -> None:
    limits, windows = RateLimits([limit("pair", amount=1)]), Windows(Now())
    for plugin, credential in [("a/b", "c"), ("a", "b/c"), ("a%2Fb", "c"), ("", "a/b/c")]:
        assert limits.admit(windows, [plugin], credential) is None
        assert limits.admit(windows, [plugin], credential) is not None


def test_a_limit_may_be_about_some_only() -> None:
    rule = limit("plugin", amount=1, plugin=(name_pattern("web.*"),),
                 credential=(name_pattern("prod/**"),))  # fmt: skip
    limits, windows = RateLimits([rule]), Windows(Now())
    for _ in range(3):
        assert limits.admit(windows, ["other"], "prod/a") is None
        assert limits.admit(windows, ["web.x"], "test/a") is None
    assert limits.admit(windows, ["web.x"], "prod/a") is None
    assert limits.admit(windows, ["web.x"], "prod/b") is not None


def test_denials_are_counted_and_then_refuse_uses_too() -> None:
    now = Now()
    limits, windows = RateLimits([limit("plugin", "denials", 2)]), Windows(now)
    assert limits.deny(windows, ["p"], "x") == []
    assert limits.deny(windows, ["p"], "y") == []
    assert limits.admit(windows, ["p"], "c") is not None
    ((rule, breach),) = limits.deny(windows, ["p"], "z")
    assert (rule.id, breach.plugin) == ("plugin-denials", "p")
    assert limits.admit(windows, ["q"], "c") is None
    now.at += 60
    assert limits.admit(windows, ["p"], "c") is None


def test_the_denials_of_some_do_not_lock_a_credential_for_others() -> None:
    limits, windows = RateLimits([limit("credential", "denials", 1)]), Windows(Now())
    assert limits.deny(windows, ["evil"], "c") == []
    assert limits.deny(windows, ["evil"], "c") != []
    assert limits.admit(windows, ["good"], "c") is None


def test_a_clock_set_back_opens_nothing() -> None:
    now = Now()
    limits, windows = RateLimits([limit("pair", amount=1)]), Windows(now)
    assert limits.admit(windows, ["p"], "c") is None
    now.at -= 500
    assert limits.admit(windows, ["p"], "c") is not None


def test_the_counts_survive_being_stored() -> None:
    now = Now()
    limits, windows = RateLimits([limit("pair", amount=2)]), Windows(now)
    limits.admit(windows, ["p"], "c")
    stored = LimitState(windows=windows.export())
    again = Windows(now, stored.windows)
    assert limits.admit(again, ["p"], "c") is None
    assert limits.admit(again, ["p"], "c") is not None
    assert len(stored.windows) == 1
    now.at += 60
    assert Windows(now, stored.windows).export() == {}


def test_what_is_remembered_is_bounded() -> None:
    now = Now()
    limits = RateLimits(
        [limit("pair", "denials", 5, seconds=10**6), limit("plugin", "denials", 10**5)]
    )
    windows = Windows(now)
    for number in range(MAX_WINDOWS + 100):
        now.at += 0.001
        windows.add(f"LIMITER/{number}", 5, 10**6)
    limits.deny(windows, ["p"], "one more")
    assert len(windows.export()) <= MAX_WINDOWS


def test_threads_never_pass_more_than_the_limit_together() -> None:
    limits, windows, lock = (
        RateLimits([limit("pair", amount=50)]),
        Windows(Now()),
        threading.Lock(),
    )
    passed: list[int] = []

    def work() -> None:
        for _ in range(50):
            with lock:
                found = limits.admit(windows, ["p"], "c")
            if found is None:
                passed.append(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(passed) == 50


def test_guessing_names_pushes_no_use_out() -> None:
    limits = RateLimits([limit("pair", amount=1), limit("pair", "denials", 5)])
    windows = Windows(Now(), most=20)
    assert limits.admit(windows, ["p"], "c") is None
    for number in range(200):
        limits.deny(windows, ["p"], f"guess{number}")
    assert limits.admit(windows, ["p"], "c") is not None
    assert len(windows.export()) <= 20


def test_counts_that_an_earlier_version_stored_still_count() -> None:
    stored = {"LIMITER/pair-redeems/redeems/a%2Fb/c/1/60/second": (1060.0, (1000.0,))}
    limits, windows = RateLimits([limit("pair", amount=1)]), Windows(Now(), stored)
    assert limits.admit(windows, ["a/b"], "c") == ("pair-redeems", 60.0, "a/b", "c")
    assert windows.export() == stored


@pytest.mark.parametrize("ahead", [1.0, 59.0, 61.0, 3.2e8])
def test_what_was_counted_while_the_clock_was_ahead_counts_for_one_more_window(
    ahead: float,
) -> None:
    now = [1000.0 + ahead]
    windows = Windows(lambda: now[0])
    assert windows.add("uses", 2, 60)
    assert windows.add("uses", 2, 60)
    now[0] = 1000.0
    for _ in range(3):  # also if nobody but asks
        assert windows.wait("uses", 2, 60) == pytest.approx(60.0)
    assert not windows.add("uses", 2, 60)
    now[0] += 60.0
    assert windows.wait("uses", 2, 60) is None
