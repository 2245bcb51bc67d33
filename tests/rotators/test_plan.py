"""The plan alone: there is always a next step, and it ends."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from apex_creds.model import Rotation, RotationStage
from apex_creds.rotators import plan

NOW = 1_700_000_000.0


def states() -> st.SearchStrategy[Rotation]:
    numbers = st.integers(0, 9)
    return st.builds(
        Rotation,
        rotator=st.just("fake:"),
        grace=st.floats(0, 1e6),
        stage=st.sampled_from(RotationStage),
        since=st.integers(1, 9),
        pending=numbers,
        previous=st.integers(1, 9),
        retires=st.floats(NOW - 1e6, NOW + 1e9),
        asked=numbers,
        lost=numbers,
        refusals=st.integers(0, 5),
    )


@given(states())
def test_what_is_under_way_has_a_next_step_within_the_grace(state):
    if state.stage in (RotationStage.IDLE, RotationStage.NEEDS_PERSON):
        return
    later = NOW + state.grace
    assert plan.next_step(state, later + 1e9) is state.stage
    if plan.next_step(state, NOW) is None:  # the replaced value has its grace
        assert state.stage is RotationStage.FINISH
        assert NOW < state.retires <= later


@given(states(), st.booleans())
def test_each_way_from_a_step_leads_to_an_end(state, taken):
    """Whether the provider takes a step or refuses it, again and again."""
    if state.stage is RotationStage.NEEDS_PERSON:
        assert plan.next_step(state, NOW) is None
        state = plan.asked(state, upto=state.since, by_hand=True)
    for version in range(10, 30):
        step = plan.next_step(state, NOW + 2e9)
        if step is None:
            break
        state = follow(state, step, version, taken=taken)
    done = state.stage is RotationStage.IDLE
    assert done or (not taken and state.stage in (RotationStage.NEEDS_PERSON, step))
    if done and taken and state.refusals < plan.MOST_REFUSALS:
        assert state.asked < state.since


def follow(state: Rotation, step: RotationStage, version: int, *, taken: bool) -> Rotation:
    if step is RotationStage.IDLE:
        return plan.begun(state, attempt="a" * 32, now=NOW)
    if not taken:
        return plan.refused(state, now=NOW)
    if step is RotationStage.CREATE:
        return plan.created(state, version=version, expires=None, now=NOW)
    if step is RotationStage.SET:
        return plan.was_set(state, now=NOW)
    if step is RotationStage.TEST:
        return plan.promoted(state, RotationStage.FINISH, now=NOW, longest_grace=5.0)
    if step is RotationStage.FINISH:
        return plan.finished(state, now=NOW)
    return plan.undone(state, now=NOW)


@given(states(), st.integers(0, 20), st.integers(0, 20))
def test_asking_only_adds(state, one, two):
    both = plan.asked(plan.asked(state, upto=one), upto=two, lost=True)
    assert both == plan.asked(plan.asked(state, upto=two, lost=True), upto=one)
    assert plan.asked(both, upto=one) == both
