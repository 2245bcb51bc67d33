"""A keyset never has zero or two primaries, whatever is done to it (rule 2)."""

from __future__ import annotations

import contextlib

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from apex_creds.errors import KeyStateError, UnknownKeyError
from apex_creds.keys import Keyset, KeyState, KeyVersion

ID = "0123456789abcdef" * 2
ORDER = list(KeyState)


def keyset() -> Keyset:
    return Keyset.new(id=ID, label="github", material=b"w1", parent=1, now=1.0)


def rotated() -> Keyset:
    return keyset().add_pending(material=b"w2", parent=1, now=2.0).promote(2, now=3.0)


def states(keys: Keyset) -> list[str]:
    return [v.state.value for v in keys.versions]


def test_new_has_version_1_as_primary():
    keys = keyset()
    assert keys.primary == KeyVersion(
        version=1, state=KeyState.PRIMARY, created=1.0, material=b"w1", parent=1, changed=1.0
    )
    assert keys.pending is None


def test_the_whole_road():
    keys = keyset().add_pending(material=b"w2", parent=3, now=2.0)
    assert states(keys) == ["primary", "pending"]
    assert keys.pending == keys.get(2)
    keys = keys.promote(2, now=3.0)
    assert states(keys) == ["active", "primary"]
    assert keys.get(1).changed == keys.get(2).changed == 3.0
    keys = keys.retire(1, now=4.0)
    assert keys.get(1).material == b"w1"
    keys = keys.destroy(1, now=5.0)
    assert states(keys) == ["destroyed", "primary"]
    assert (keys.get(1).material, keys.get(1).changed) == (b"", 5.0)


def test_methods_leave_the_original_alone():
    keys = keyset()
    keys.add_pending(material=b"w2", parent=1, now=2.0)
    assert states(keys) == ["primary"]


def test_an_abandoned_number_is_not_used_again():
    keys = keyset().add_pending(material=b"w2", parent=1, now=2.0).abandon(2)
    assert (keys.get(2).state, keys.get(2).material) == (KeyState.DESTROYED, b"")
    assert keys.add_pending(material=b"w3", parent=1, now=3.0).pending.version == 3


def test_rewrap_keeps_state_and_times():
    keys = rotated().rewrap(1, material=b"again", parent=9)
    assert (keys.get(1).material, keys.get(1).parent) == (b"again", 9)
    assert states(keys) == states(rotated())
    assert keys.get(1).changed == rotated().get(1).changed


def test_compromised_is_set_once_in_any_state():
    keys = rotated().mark_compromised(1, now=7.0)
    assert keys.get(1).compromised
    assert keys.get(1).changed == 7.0
    assert keys.mark_compromised(1, now=8.0) is keys
    keys = keys.retire(1, now=8.0).destroy(1, now=9.0)
    assert keys.get(1).compromised


@pytest.mark.parametrize(
    "step",
    [
        lambda k: k.promote(1, now=9.0),
        lambda k: k.promote(2, now=9.0),
        lambda k: k.retire(2, now=9.0),
        lambda k: k.destroy(2, now=9.0),
        lambda k: k.destroy(1, now=9.0),
        lambda k: k.abandon(2),
        lambda k: k.abandon(1),
        lambda k: k.retire(1, now=9.0).retire(1, now=9.0),
        lambda k: k.retire(1, now=9.0).promote(1, now=9.0),
        lambda k: k.retire(1, now=9).destroy(1, now=9).rewrap(1, material=b"x", parent=1),
        lambda k: k.retire(1, now=9).destroy(1, now=9).destroy(1, now=9),
        lambda k: k.add_pending(material=b"", parent=1, now=9.0),
        lambda k: k.add_pending(material=b"x", parent=0, now=9.0),
        lambda k: k.add_pending(material=b"x", parent=1, now=float("nan")),
        lambda k: k.rewrap(2, material=b"", parent=1),
        lambda k: k.add_pending(material=b"x", parent=1, now=9.0).add_pending(
            material=b"y", parent=1, now=9.0
        ),
        lambda k: (
            k.add_pending(material=b"x", parent=1, now=9.0)
            .mark_compromised(3, now=9.0)
            .promote(3, now=9.0)
        ),
    ],
)
def test_forbidden_steps(step):
    with pytest.raises(KeyStateError):
        step(rotated())


@pytest.mark.parametrize("version", [0, 3, -1])
def test_an_unknown_version(version):
    with pytest.raises(UnknownKeyError):
        rotated().get(version)
    with pytest.raises(UnknownKeyError):
        rotated().promote(version, now=1.0)


def raw(version: int, state: str, **more: object) -> dict[str, object]:
    base = {"version": version, "state": state, "created": 1.0, "changed": 1.0, "parent": 1}
    return {**base, "material": "" if state == "destroyed" else "d3Jhcw==", **more}


@pytest.mark.parametrize(
    "document",
    [
        {"id": ID, "label": "x", "versions": []},
        {"id": ID, "label": "x", "versions": [raw(1, "active")]},
        {"id": ID, "label": "x", "versions": [raw(1, "primary"), raw(2, "primary")]},
        {"id": ID, "label": "x", "versions": [raw(2, "active"), raw(1, "primary")]},
        {"id": ID, "label": "x", "versions": [raw(1, "active"), raw(1, "primary")]},
        {"id": ID, "label": "x", "versions": [raw(0, "primary")]},
        {"id": ID, "label": "x", "versions": [raw(2**32, "primary")]},
        {"id": ID, "label": "x", "versions": [raw(1, "primary", parent=0)]},
        {"id": ID, "label": "x", "versions": [raw(1, "primary", material="")]},
        {
            "id": ID,
            "label": "x",
            "versions": [raw(1, "primary"), raw(2, "destroyed", material="eA==")],
        },
        {
            "id": ID,
            "label": "x",
            "versions": [raw(1, "primary"), raw(2, "pending"), raw(3, "pending")],
        },
        {"id": ID.upper(), "label": "x", "versions": [raw(1, "primary")]},
        {"id": ID + "\n", "label": "x", "versions": [raw(1, "primary")]},
        {"id": ID[1:], "label": "x", "versions": [raw(1, "primary")]},
    ],
)
def test_a_stored_keyset_that_is_none(document):
    with pytest.raises(KeyStateError):
        msgspec.json.decode(msgspec.json.encode(document), type=Keyset)


@pytest.mark.parametrize(
    "document",
    [
        {"id": ID, "label": "x", "versions": [raw(1, "primary", extra=1)]},
        {"id": ID, "label": "x", "versions": [raw(1, "king")]},
        {"id": ID, "label": "x", "versions": [raw(1, "primary")], "more": 1},
        {"id": ID, "versions": [raw(1, "primary")]},
    ],
)
def test_unknown_fields_and_states_are_refused(document):
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(msgspec.json.encode(document), type=Keyset)


def test_repr_does_not_show_the_material():
    assert "w1" not in repr(keyset())


class Rotation(RuleBasedStateMachine):
    """Any sequence of steps, allowed or not, on one keyset."""

    @initialize()
    def start(self):
        self.keys = keyset()
        self.now = 1.0
        self.seen: dict[int, KeyState] = {}

    def attempt(self, step):
        self.now += 1.0
        before = self.keys
        with contextlib.suppress(KeyStateError, UnknownKeyError):
            self.keys = step(before)
        assert msgspec.json.decode(msgspec.json.encode(self.keys), type=Keyset) == self.keys

    @rule()
    def add(self):
        self.attempt(lambda k: k.add_pending(material=b"m", parent=1, now=self.now))

    @rule(
        name=st.sampled_from(["promote", "retire", "destroy", "abandon", "mark_compromised"]),
        version=st.integers(1, 6),
    )
    def step(self, name, version):
        self.attempt(lambda k: getattr(k, name)(version, now=self.now))

    @rule(version=st.integers(1, 6))
    def rewrap(self, version):
        self.attempt(lambda k: k.rewrap(version, material=b"r", parent=2))

    @invariant()
    def one_primary(self):
        assert [v.state for v in self.keys.versions].count(KeyState.PRIMARY) == 1

    @invariant()
    def nobody_goes_back_and_nothing_disappears(self):
        now = {v.version: v.state for v in self.keys.versions}
        assert all(ORDER.index(now[n]) >= ORDER.index(s) for n, s in self.seen.items())
        self.seen = now

    @invariant()
    def what_may_decrypt_has_material(self):
        assert all(
            bool(v.material) != (v.state is KeyState.DESTROYED) for v in self.keys.versions
        )


TestRotation = Rotation.TestCase
TestRotation.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
