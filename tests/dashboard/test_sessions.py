"""Links work once; a session takes two values, and ends."""

from __future__ import annotations

import pytest

from apex_creds.dashboard.sessions import (
    LINK_SECONDS,
    MAX_SESSIONS,
    SESSION_SECONDS,
    SessionGate,
)


class Time:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def door(time: Time) -> SessionGate:
    return SessionGate(now=time)


def test_a_link_works_once(door: SessionGate) -> None:
    token = door.new_link()
    assert door.admit(token) is not None
    assert door.admit(token) is None


def test_a_link_is_void_when_another_is_made(door: SessionGate) -> None:
    first, second = door.new_link(), door.new_link()
    assert door.admit(first) is None
    assert door.admit(second) is not None


def test_a_wrong_guess_does_not_use_a_link_up(door: SessionGate) -> None:
    token = door.new_link()
    assert door.admit(token[:-1]) is None
    assert door.admit("") is None
    assert door.admit(token) is not None


def test_a_link_is_good_for_ten_minutes(door: SessionGate, time: Time) -> None:
    token = door.new_link()
    time.now += LINK_SECONDS
    assert door.admit(token) is None
    time.now -= 1
    assert door.admit(token) is None, "used up all the same"


def test_nobody_is_let_in_before_a_link_was_made(door: SessionGate) -> None:
    assert door.admit("") is None


def test_a_session_takes_cookie_and_key(door: SessionGate) -> None:
    one, other = door.admit(door.new_link()), door.admit(door.new_link())
    assert one is not None
    assert other is not None
    assert door.find(one.cookie, one.key) == one.session
    assert door.find(one.cookie, "") is None
    assert door.find("", one.key) is None
    assert door.find(one.key, one.cookie) is None
    assert door.find(one.cookie, other.key) is None


def test_a_session_ends_when_it_is_left_or_old(door: SessionGate, time: Time) -> None:
    one, other = door.admit(door.new_link()), door.admit(door.new_link())
    assert one is not None
    assert other is not None
    door.leave(one.session)
    door.leave(one.session)
    assert door.find(one.cookie, one.key) is None
    assert door.lasts(other.session)
    time.now += SESSION_SECONDS
    assert door.find(other.cookie, other.key) is None
    assert not door.lasts(other.session)


def test_the_oldest_session_makes_room(door: SessionGate) -> None:
    made = [door.admit(door.new_link()) for _ in range(MAX_SESSIONS + 1)]
    alive = [one is not None and door.lasts(one.session) for one in made]
    assert alive == [False] + [True] * MAX_SESSIONS


def test_values_are_not_shown_nor_kept(door: SessionGate) -> None:
    token = door.new_link()
    made = door.admit(token)
    assert made is not None
    assert made.cookie not in repr(made)
    assert made.key not in repr(made)
    kept = repr(vars(door)) + repr([vars(door)["_sessions"]])
    assert token not in kept
    assert made.cookie not in kept
