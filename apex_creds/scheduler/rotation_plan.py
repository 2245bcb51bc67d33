"""The state machine of rotation: what is to be done next, for each level, as values.

Guarantee: pure. ``plan`` depends on its arguments alone, so that a worker that starts
after a crash goes on where the last one stopped. A step that the design forbids can't be made:
``Step`` refuses it, and the steps that ``plan`` returns are legal in the state it was
given; the vault checks them again, against what is stored when they are done. When all
steps of a plan have been done, and the clock stands still, the next plan is empty.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from apex_creds.errors import KeyStateError
from apex_creds.keys.keyset import Keyset, KeyState, KeyVersion, grace_over
from apex_creds.scheduler.schedule import Level, LevelPolicy, NextFire, Policies, due_at, is_due

__all__ = ["Action", "KeyView", "MasterView", "Reason", "Step", "View", "next_due", "plan"]


class Action(StrEnum):
    """What a step does, in the order in which steps come."""

    PROMOTE = "promote"
    ROTATE = "rotate"
    MOVE = "move"
    RETIRE = "retire"
    DESTROY = "destroy"


class Reason(StrEnum):
    """Why."""

    INTERRUPTED = "interrupted"
    COMPROMISED = "compromised"
    TIME = "time"
    ENCRYPTIONS = "encryptions"
    REQUESTED = "requested"
    REPLACED = "replaced"
    UNUSED = "unused"
    GRACE_OVER = "grace_over"


_ACTIONS: Final = {
    Level.MASTER: frozenset({Action.ROTATE, Action.DESTROY}),
    Level.KEK: frozenset({Action.ROTATE, Action.MOVE, Action.RETIRE, Action.DESTROY}),
    Level.DEK: frozenset(Action),
}
_ORDER: Final = {action: number for number, action in enumerate(Action)}
_LEVELS: Final = {level: number for number, level in enumerate(Level)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One thing to do.

    Attributes:
        level: Of which key.
        action: A new primary (``rotate``), an added one made primary (``promote``), what
            a version protects put under the primary (``move``), or the end of a version.
        label: The DEK keyset's; empty for the other levels.
        version: The version that it is about: the one that is replaced, promoted, moved
            away from, retired or destroyed.
        reason: Why.
    """

    level: Level
    action: Action
    version: int
    reason: Reason
    label: str = ""

    def __post_init__(self) -> None:
        """Refuses steps that no state permits.

        Raises:
            KeyStateError: The level has no such step, or no such key.
        """
        if self.action not in _ACTIONS[self.level]:
            raise KeyStateError(f"A {self.level.value} key has no step {self.action.value!r}.")
        if self.version < 1 or bool(self.label) is not (self.level is Level.DEK):
            raise KeyStateError("A rotation step names no key version.")

    @property
    def urgent(self) -> bool:
        """Whether it is about a key that may be in wrong hands."""
        return self.reason is Reason.COMPROMISED


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyView:
    """A KEK or DEK keyset, and what is known of its use.

    Attributes:
        level: KEK or DEK.
        keyset: As stored.
        in_use: The versions that something refers to, or may refer to.
        encryptions: Messages under each version.
        stored: How many messages a new version begins with: all that is stored moves to it.
        label: The DEK keyset's; empty for the KEK.
    """

    level: Level
    keyset: Keyset
    in_use: frozenset[int]
    encryptions: Mapping[int, int] = field(default_factory=dict)
    stored: int = 0
    label: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class MasterView:
    """The master key.

    Attributes:
        version: The one that the key store names.
        created: When it began to be used.
        left: Earlier versions that the provider may still have, and when each was left.
        compromised: Versions up to this one are.
        began: When each version began to be used; those that never were are not there.
        gone: When earlier versions were deleted at the provider.
    """

    version: int
    created: float
    left: Mapping[int, float] = field(default_factory=dict)
    compromised: int = 0
    began: Mapping[int, float] = field(default_factory=dict)
    gone: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """All that a plan depends on, but for the policies and the clock.

    Attributes:
        master: The master key.
        keys: The KEK and the DEKs.
        requested: By level and label: a primary of this version, or an earlier one, is to
            be rotated.
    """

    master: MasterView
    keys: tuple[KeyView, ...]
    requested: Mapping[tuple[Level, str], int] = field(default_factory=dict)


def plan(
    view: View, policies: Policies, *, now: float, next_fire: NextFire
) -> tuple[Step, ...]:
    """The steps that can be taken now, what is urgent first.

    Args:
        view: What is stored.
        policies: When keys are due.
        now: Unix seconds.
        next_fire: Reads cron expressions.
    """
    steps = list(_master_steps(view, policies.master, now, next_fire))
    for key in view.keys:
        steps += _key_steps(key, view, policies.of(key.level), now, next_fire)
    return tuple(
        sorted(
            steps,
            key=lambda s: (
                not s.urgent,
                _ORDER[s.action],
                _LEVELS[s.level],
                s.label,
                s.version,
            ),
        )
    )


def next_due(view: View, policies: Policies, *, next_fire: NextFire) -> dict[Level, float]:
    """When the next key of each level is due by the clock; a level without is not there."""
    found: dict[Level, float] = {}
    dates = [(Level.MASTER, view.master.created, _master_salt(view.master))]
    dates += [(k.level, k.keyset.primary.created, _salt(k)) for k in view.keys]
    for level, created, salt in dates:
        policy = policies.of(level)
        at = due_at(policy, created=created, salt=salt, next_fire=next_fire)
        if at is not None:
            found[level] = min(at, found.get(level, at))
    return found


# -- the master key ------------------------------------------------------------------


def _master_steps(
    view: View, policy: LevelPolicy, now: float, next_fire: NextFire
) -> Iterator[Step]:
    master, reason = view.master, None
    salt, made = _master_salt(master), master.created
    if master.version <= master.compromised:
        reason = Reason.COMPROMISED
    elif master.version <= view.requested.get((Level.MASTER, ""), 0):
        reason = Reason.REQUESTED
    elif is_due(policy, created=made, now=now, salt=salt, next_fire=next_fire):
        reason = Reason.TIME
    if reason is not None:
        yield Step(
            level=Level.MASTER, action=Action.ROTATE, version=master.version, reason=reason
        )
    for version, left in sorted(master.left.items()):
        compromised = version <= master.compromised
        over = compromised or grace_over(left, before=now - policy.grace, now=now)
        if version >= master.version or not over:
            return  # in their order, whatever the clock said: how far they went is one number
        why = Reason.COMPROMISED if compromised else Reason.GRACE_OVER
        yield Step(level=Level.MASTER, action=Action.DESTROY, version=version, reason=why)


def _master_salt(master: MasterView) -> str:
    return f"master {master.version}"


# -- KEK and DEKs --------------------------------------------------------------------


def _key_steps(
    key: KeyView, view: View, policy: LevelPolicy, now: float, next_fire: NextFire
) -> Iterator[Step]:
    if key.keyset.pending is not None:
        yield _step(key, Action.PROMOTE, key.keyset.pending, Reason.INTERRUPTED)
        return  # what comes after depends on whether it can be
    reason = _due(key, view, policy, now, next_fire)
    if reason is not None:
        yield _step(key, Action.ROTATE, key.keyset.primary, reason)
    for old in key.keyset.versions:
        if old.state not in (KeyState.ACTIVE, KeyState.RETIRED):
            continue
        why = Reason.COMPROMISED if old.compromised else None
        if old.version in key.in_use:
            if not key.keyset.primary.compromised:  # else it would have to move again
                yield _step(key, Action.MOVE, old, why or Reason.REPLACED)
        elif old.state is KeyState.ACTIVE:
            yield _step(key, Action.RETIRE, old, why or Reason.UNUSED)
        elif old.compromised or grace_over(old.changed, before=now - policy.grace, now=now):
            yield _step(key, Action.DESTROY, old, why or Reason.GRACE_OVER)


def _due(
    key: KeyView, view: View, policy: LevelPolicy, now: float, next_fire: NextFire
) -> Reason | None:
    primary = key.keyset.primary
    if primary.compromised:
        return Reason.COMPROMISED
    if primary.version <= view.requested.get((key.level, key.label), 0):
        return Reason.REQUESTED
    if is_due(policy, created=primary.created, now=now, salt=_salt(key), next_fire=next_fire):
        return Reason.TIME
    most = policy.max_encryptions
    if most is None:
        return None
    # Where more is stored than the limit, no version can keep it: one is due, then, when as
    # many messages came after those that it began with. Else each would be due at once.
    begun = key.stored if key.stored >= most else 0
    due = key.encryptions.get(primary.version, 0) >= begun + most
    return Reason.ENCRYPTIONS if due else None


def _step(key: KeyView, action: Action, version: KeyVersion, reason: Reason) -> Step:
    # A KEK is never pending: it is made and promoted in one commit.
    return Step(
        level=key.level,
        action=action,
        version=version.version,
        reason=reason,
        label=key.label,
    )


def _salt(key: KeyView) -> str:
    return f"{key.keyset.id} {key.keyset.primary.version}"
