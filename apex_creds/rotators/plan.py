"""The states of a rotation at the provider, and what leads from one to the next. Pure.

Guarantee: from every state that a crash can leave there is a next step, or it says that a
person is needed. A value is replaced if it was asked for by its number, so that asking twice
is asking once, and a value that was made before a compromise counts as compromised, too.
"""

from __future__ import annotations

from typing import Final

from msgspec.structs import replace

from apex_creds.errors import InvalidInputError
from apex_creds.model import CredentialInfo, Rotation, RotationStage

_EARLY: Final = 600.0
"""Seconds before its end in which a value is replaced; no more than a part of its life."""
_PART: Final = 0.25
MOST_REFUSALS: Final = 3
"""In a row; then the provider is asked again only when a person says so."""


def state_of(info: CredentialInfo) -> Rotation:
    """Of a credential that is replaced at its provider.

    Raises:
        InvalidInputError: Nothing replaces it, or it is made anew for each lease.
    """
    if info.rotation is None:
        raise InvalidInputError(
            f"Nothing replaces {info.name!r} at its provider.",
            hint="Choose a rotator: apex-creds edit NAME --rotator URI",
        )
    if info.dynamic:
        raise InvalidInputError(
            f"{info.name!r} is made anew for each lease.", hint="There is nothing to rotate."
        )
    return info.rotation


def next_step(state: Rotation, now: float) -> RotationStage | None:
    """The step that can be taken now; ``IDLE``: a rotation is begun."""
    if state.stage is RotationStage.NEEDS_PERSON:
        return None
    if state.stage is RotationStage.IDLE:
        due = state.asked >= state.since and state.refusals < MOST_REFUSALS
        return RotationStage.IDLE if due else None
    lost = state.lost >= min(state.previous, state.since)
    # A clock that was ahead gives the replaced value no more than its grace.
    if state.stage is RotationStage.FINISH and not lost:
        return None if now < state.retires <= now + state.grace else state.stage
    return state.stage


def renews_at(info: CredentialInfo) -> float | None:
    """When a value that ends by itself is replaced, Unix seconds; None: not because of that."""
    if info.rotation is None or info.dynamic or info.expires is None:
        return None
    return info.expires - min(_EARLY, info.life * _PART)


def asked(
    state: Rotation,
    *,
    upto: int,
    lost: bool = False,
    by_hand: bool = False,
    retires: float | None = None,
) -> Rotation:
    """Has values up to that one replaced; by hand, also after refusals.

    Args:
        state: As it is.
        upto: The value.
        lost: It may be in wrong hands.
        by_hand: A person asks.
        retires: When the grace of the one before that is over at the latest.
    """
    stage, refusals = state.stage, state.refusals
    if upto < state.since:
        retires = None
    if by_hand:
        refusals = 0
        if stage is RotationStage.NEEDS_PERSON:
            stage = RotationStage.IDLE
    return replace(
        state,
        stage=stage,
        refusals=refusals,
        asked=max(state.asked, upto),
        lost=max(state.lost, upto) if lost else state.lost,
        retires=state.retires if retires is None else min(state.retires, retires),
    )


def begun(state: Rotation, *, attempt: str, now: float) -> Rotation:
    """A rotation is under way; nothing has happened at the provider yet."""
    return replace(
        state, stage=RotationStage.CREATE, attempt=attempt, begun=now, attempted=now, pending=0
    )


def created(state: Rotation, *, version: int, expires: float | None, now: float) -> Rotation:
    """The next value is stored with that version; ``set`` comes next."""
    return replace(
        state,
        stage=RotationStage.SET,
        pending=version,
        expires=expires,
        attempted=now,
        outcome="ok",
    )


def was_set(state: Rotation, *, now: float) -> Rotation:
    """The provider takes it beside the old one; it is tested next."""
    return replace(state, stage=RotationStage.TEST, attempted=now, outcome="ok")


def promoted(
    state: Rotation, stage: RotationStage, *, now: float, longest_grace: float | None
) -> Rotation:
    """The next value is the current one, and the current one the replaced one."""
    grace = state.grace if longest_grace is None else min(state.grace, longest_grace)
    if state.since <= state.lost:
        grace = 0.0
    return replace(
        state,
        stage=stage,
        since=state.pending,
        previous=state.since,
        pending=0,
        expires=None,
        retires=now + grace,
        changed=now,
        attempted=now,
        outcome="ok",
    )


def tested(state: Rotation, *, now: float) -> Rotation:
    """Of a swap: the new value is valid, the replaced one can be forgotten."""
    return replace(state, stage=RotationStage.FINISH, retires=now, attempted=now, outcome="ok")


def finished(state: Rotation, *, now: float) -> Rotation:
    """Nothing is under way; there is one value."""
    return replace(
        state,
        stage=RotationStage.IDLE,
        attempt="",
        previous=0,
        retires=0.0,
        refusals=0,
        attempted=now,
        outcome="ok",
    )


def undone(state: Rotation, *, now: float) -> Rotation:
    """The value of before is the current one, and the only one."""
    back = state.previous if state.stage is RotationStage.UNDO and not state.pending else 0
    return replace(
        state,
        stage=RotationStage.IDLE,
        attempt="",
        since=back or state.since,
        pending=0,
        previous=0,
        retires=0.0,
        expires=None,
        attempted=now,
    )


def refused(state: Rotation, *, now: float) -> Rotation:
    """The provider refused the step that was next."""
    after = {
        RotationStage.CREATE: RotationStage.IDLE,
        RotationStage.SET: RotationStage.UNDO,
        RotationStage.TEST: RotationStage.UNDO,
        RotationStage.UNDO: RotationStage.NEEDS_PERSON,
    }
    return replace(
        state,
        stage=after.get(state.stage, state.stage),
        refusals=state.refusals + 1,
        attempted=now,
        outcome="refused",
    )


def failed(state: Rotation, outcome: str, *, now: float) -> Rotation:
    """The step did not come to an end; it is taken again."""
    return replace(state, attempted=now, outcome=outcome)
