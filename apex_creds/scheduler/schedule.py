"""When each level of keys rotates: per-level policies, and due-ness computed from them.

Guarantee: pure. Whether a key is due follows from when it was made and the clock, and, in
``rotation_plan``, from how often it was used and what was asked for; nothing that a process
remembers or a scheduler's job store holds.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from enum import StrEnum
from typing import Final

import msgspec

from apex_creds.errors import InvalidInputError

DAY: Final = 86_400.0

NextFire = Callable[[str, float], float | None]
"""The first time after a moment that a cron expression (UTC) fires; None for never."""


class Level(StrEnum):
    """The three levels of the hierarchy."""

    MASTER = "master"
    KEK = "kek"
    DEK = "dek"


class LevelPolicy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When the keys of one level rotate. Whatever comes first counts.

    Attributes:
        interval: Seconds after a key was made; None for never.
        cron: Five fields, UTC; empty for never.
        jitter: Up to so many seconds later, different for each key.
        max_encryptions: Messages under one version; DEKs only.
        grace: Seconds that a retired version is kept.
    """

    interval: float | None = None
    cron: str = ""
    jitter: float = 0.0
    max_encryptions: int | None = None
    grace: float = 7 * DAY

    def __post_init__(self) -> None:
        """Checks the numbers.

        Raises:
            InvalidInputError: One is negative, or not finite.
        """
        numbers = (self.interval, self.jitter, self.grace, self.max_encryptions)
        if any(n is not None and not (math.isfinite(n) and n >= 0) for n in numbers):
            raise InvalidInputError("A rotation policy has a number that is none.")
        if self.interval == 0 or self.max_encryptions == 0:
            raise InvalidInputError("A key can't be due from the moment that it is made.")


class Policies(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The policies of the three levels."""

    master: LevelPolicy = LevelPolicy(interval=365 * DAY)
    kek: LevelPolicy = LevelPolicy(interval=180 * DAY)
    dek: LevelPolicy = LevelPolicy(interval=90 * DAY)

    def __post_init__(self) -> None:
        """Refuses what can't be counted.

        Raises:
            InvalidInputError: A number of encryptions for a level that has none.
        """
        if self.master.max_encryptions or self.kek.max_encryptions:
            raise InvalidInputError(
                "Encryptions are counted for DEKs only.", hint="Use an interval, or cron."
            )

    def of(self, level: Level) -> LevelPolicy:
        """The policy of a level."""
        found: LevelPolicy = getattr(self, level.value)
        return found


def due_at(
    policy: LevelPolicy, *, created: float, salt: str, next_fire: NextFire
) -> float | None:
    """When a key made at ``created`` is due by the clock; None for never.

    Args:
        policy: The level's.
        created: Unix seconds.
        salt: Spreads the jitter: the same key always has the same.
        next_fire: Reads the cron expression.
    """
    times = [] if policy.interval is None else [created + policy.interval]
    fires = next_fire(policy.cron, created) if policy.cron else None
    if fires is not None:
        times.append(fires)
    if not times:
        return None
    digest = hashlib.blake2b(salt.encode(), digest_size=6).digest()
    return min(times) + policy.jitter * int.from_bytes(digest) / 2**48


def is_due(
    policy: LevelPolicy, *, created: float, now: float, salt: str, next_fire: NextFire
) -> bool:
    """Whether a key is due by the clock.

    A key from further in the future than its next rotation would be was made while the
    clock was wrong: it is due, once, so that no rotation is put off for years.
    """
    at = due_at(policy, created=created, salt=salt, next_fire=next_fire)
    if at is None or at <= now:
        return at is not None
    if created <= now:
        return False
    from_now = due_at(policy, created=now, salt=salt, next_fire=next_fire)
    return from_now is not None and created > from_now
