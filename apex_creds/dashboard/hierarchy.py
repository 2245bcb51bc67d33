"""The key hierarchy as the page draws it: levels, versions, what each protects.

Guarantee: read from what is stored, and nothing changed; no key material is in it. What
grows with the number of credentials is counted in a thread.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Final

import anyio.to_thread
import msgspec

from apex_creds.dashboard.shown import Names
from apex_creds.documents.keystore import Keystore
from apex_creds.documents.sections import Section
from apex_creds.keys.keyset import Keyset, KeyState, KeyVersion
from apex_creds.scheduler.engine import Engine
from apex_creds.scheduler.events import kind_of
from apex_creds.scheduler.policy import Level
from apex_creds.scheduler.rotation import MasterView, Step, View, next_due, plan
from apex_creds.scheduler.sharing import worker_runs
from apex_creds.vault import reseal
from apex_creds.vault.reseal import SECTION_NAMES, KekScan

UNKNOWN: Final = -1
"""Only the provider, or another document, knows what it protects."""
_ROOT: Final = "root"


class VersionOf(msgspec.Struct, frozen=True, kw_only=True):
    """One version; times in Unix seconds.

    Attributes:
        parent: The version of the level above that wraps it.
        protects: Credentials for a DEK; documents and keys for a KEK.
    """

    version: int
    state: str
    compromised: bool = False
    parent: int = 0
    protects: int = 0
    encryptions: int = 0
    created: float = 0.0
    changed: float = 0.0


class Key(msgspec.Struct, frozen=True, kw_only=True):
    """One key with the versions that are left.

    Attributes:
        label: ``section/service``; ``root`` for the vault's own; empty above the DEKs.
        destroyed: How many versions are no more.
    """

    level: str
    versions: tuple[VersionOf, ...]
    label: str = ""
    destroyed: int = 0


class Hierarchy(msgspec.Struct, frozen=True, kw_only=True):
    """All keys.

    Attributes:
        master: Where the master key is kept: the provider's kind alone.
        due: When the next key of a level is due, Unix seconds.
        steps: What could be done now, in words of the state machine.
        worker: Whether one runs; None where that can't be told.
        waiting: Security events that nobody acted on yet.
    """

    master: str
    keys: tuple[Key, ...]
    due: dict[str, float]
    steps: tuple[dict[str, object], ...]
    worker: bool | None = None
    waiting: tuple[str, ...] = ()


async def hierarchy(engine: Engine, *, names: Names) -> Hierarchy:
    """Reads how the keys are.

    Raises:
        IntegrityError: A document is not what this vault wrote.
    """
    view, state = await engine.view(), await engine.document.read()
    scan = await reseal.scan(engine.store)
    sections = [await engine.store.sections.read(name) for name in SECTION_NAMES]
    keystore = await engine.store.keystore()
    worker = await worker_runs(engine.store.storage)
    now = engine.store.clock.time()

    def build() -> Hierarchy:
        keys = (
            _master(view.master),
            _kek(keystore, scan),
            *_deks(keystore, view, _counted(sections), names),
        )
        steps = plan(view, state.policies, now=now, next_fire=engine.next_fire)
        due = next_due(view, state.policies, next_fire=engine.next_fire)
        return Hierarchy(
            master=keystore.root_header.master.uri.partition(":")[0],
            keys=keys,
            due={level.value: at for level, at in due.items()},
            steps=tuple(_step(step, names) for step in steps),
            worker=worker,
            waiting=tuple(kind_of(item.event) for item in state.queue),
        )

    return await anyio.to_thread.run_sync(build)


def _counted(sections: list[Section]) -> Counter[tuple[bytes, int]]:
    return Counter(record.key for section in sections for record in section.records.values())


def _master(master: MasterView) -> Key:
    ages = {**master.left, master.version: master.created}
    versions = tuple(
        VersionOf(
            version=version,
            state=(KeyState.PRIMARY if version == master.version else KeyState.RETIRED).value,
            compromised=version <= master.compromised,
            protects=UNKNOWN if version == master.version else 0,
            created=at,
            changed=at,
        )
        for version, at in sorted(ages.items())
    )
    return Key(level=Level.MASTER.value, versions=versions)


def _kek(keystore: Keystore, scan: KekScan) -> Key:
    keks = keystore.root_header.keks
    counts = {v.version: scan.protects(v.version) for v in keks.versions}
    return _key(Level.KEK, keks, counts)


def _deks(
    keystore: Keystore, view: View, counted: Counter[tuple[bytes, int]], names: Names
) -> Iterator[Key]:
    """The vault's own key, then those of the sections, then others."""
    uses = {key.keyset.id: key.encryptions for key in view.keys}
    unknown = dict.fromkeys((v.version for v in keystore.body.root.versions), UNKNOWN)
    yield _key(Level.DEK, keystore.body.root, unknown, label=_ROOT)
    for keyset in keystore.body.deks:
        known = keyset.label.partition("/")[0] in SECTION_NAMES
        key_id = bytes.fromhex(keyset.id)
        counts = {
            v.version: counted[key_id, v.version] if known else UNKNOWN for v in keyset.versions
        }
        label = names.label(keyset.label)
        yield _key(Level.DEK, keyset, counts, label=label, uses=uses.get(keyset.id))


def _key(
    level: Level,
    keyset: Keyset,
    counts: Mapping[int, int],
    *,
    label: str = "",
    uses: Mapping[int, int] | None = None,
) -> Key:
    live = [v for v in keyset.versions if v.state is not KeyState.DESTROYED]
    return Key(
        level=level.value,
        label=label,
        versions=tuple(_version(v, counts.get(v.version, 0), uses or {}) for v in live),
        destroyed=len(keyset.versions) - len(live),
    )


def _version(version: KeyVersion, protects: int, uses: Mapping[int, int]) -> VersionOf:
    return VersionOf(
        version=version.version,
        state=version.state.value,
        compromised=version.compromised,
        parent=version.parent,
        protects=protects,
        encryptions=uses.get(version.version, 0),
        created=version.created,
        changed=version.changed,
    )


def _step(step: Step, names: Names) -> dict[str, object]:
    return {
        "action": step.action.value,
        "level": step.level.value,
        "label": names.label(step.label),
        "version": step.version,
        "reason": step.reason.value,
    }
