"""The old manager's words for rotation, and what they are here.

Guarantee: an interval is set as policy, durably; a rotation that returned is done.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from msgspec.structs import replace

from apex_creds.errors import ConflictError
from apex_creds.migration.progress import migration_document
from apex_creds.scheduler import report
from apex_creds.scheduler.orders import labels_of, newest, order, undone
from apex_creds.scheduler.policy import DAY, Level
from apex_creds.scheduler.state import RotationState, rotation_document
from apex_creds.scheduler.worker import RotationWorker
from apex_creds.vault import Vault

LEVELS: Final[Mapping[str, Level]] = {
    "master_key": Level.MASTER,
    "key_encryption_keys": Level.KEK,
    "data_encryption_keys": Level.DEK,
}
"""The old names of the levels."""


async def set_intervals(vault: Vault, days: Mapping[str, float]) -> None:
    """Makes intervals, by the old names of their levels, the policy."""
    wanted = {LEVELS[name].value: count * DAY for name, count in days.items()}

    def change(state: RotationState) -> RotationState:
        changed = {
            level: replace(getattr(state.policies, level), interval=seconds)
            for level, seconds in wanted.items()
        }
        policies = replace(state.policies, **changed)
        return state if policies == state.policies else replace(state, policies=policies)

    await rotation_document(vault.store).change(change)


async def take_intervals(vault: Vault) -> None:
    """Makes the intervals of a migrated configuration the policy, once."""
    document = migration_document(vault.store)
    if vault.store.storage.change_token("migration") is None:
        return
    state = await document.read()
    if not state.intervals or state.applied:
        return
    await set_intervals(vault, state.intervals)
    await document.change(lambda found: replace(found, applied=True))


async def rotate(vault: Vault, levels: Iterable[Level]) -> None:
    """Renews the keys of levels, now.

    Raises:
        ConflictError: Another worker rotates, and does what was asked for when it can.
        ApexCredsError: A step failed; what was asked for stays asked for.
    """
    engine, keystore = RotationWorker(vault).engine, await vault.store.keystore()
    wanted: dict[str, int] = {}
    for level in levels:
        wanted |= newest(keystore, level, labels_of(keystore))
    await order(engine.document, wanted)
    outcome = await engine.run()
    for failure in outcome.failed.values():
        raise failure
    if undone(await vault.store.keystore(), wanted):
        raise ConflictError(
            "Another worker rotates keys at this moment.", hint="It does this, too; wait."
        )


async def status(vault: Vault) -> dict[str, dict[str, object]]:
    """How the keys of each level are, in the old manager's form."""
    found = await report.status(RotationWorker(vault).engine)
    now = vault.clock.time()
    result: dict[str, dict[str, object]] = {}
    for name, level in LEVELS.items():
        interval = found.state.policies.of(level).interval
        made = [x.created for x in found.lines if x.level is level and x.state == "primary"]
        last, due = max(made, default=None), found.due.get(level)
        result[name] = {
            "rotation_interval_days": None if interval is None else _number(interval / DAY),
            "last_rotation": last,
            "next_rotation": due,
            "rotation_needed": due is not None and due <= now,
            "due_for_rotation": due is not None and due <= now,
            "days_since_last_rotation": None if last is None else max(0.0, (now - last) / DAY),
            "days_until_rotation": None if due is None else max(0.0, (due - now) / DAY),
        }
    return result


def _number(days: float) -> float:
    """An int where it is one, as the old manager had it."""
    return int(days) if days == int(days) else days
