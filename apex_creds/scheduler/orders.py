"""Orders to renew keys: which versions they are about, by number.

Guarantee: an order is about the versions that there were when it was given, whatever any
clock said then or says later: version numbers only grow. It is done when every key that it
names has a newer primary, and whether it is, is read from the key store.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from msgspec.structs import replace

from apex_creds.auth.access_document import DEK_LABEL
from apex_creds.documents.cached import Document
from apex_creds.documents.keystore import Keystore
from apex_creds.documents.store import DocumentStore
from apex_creds.errors import CredentialNotFoundError
from apex_creds.keys.keyset import KeyState
from apex_creds.scheduler.kek_rotation import SECTION_NAMES
from apex_creds.scheduler.policy import Level
from apex_creds.scheduler.state import RotationState

Numbers = Mapping[str, int]
"""By ``request_key``: versions of that number and older ones."""

_LEVELS: Final = tuple(Level)


def request_key(level: Level, label: str = "") -> str:
    """How a key is named in an order: its level and, for a DEK, its label."""
    return f"{level.value} {label}" if label else level.value


def labels_of(keystore: Keystore, service: str = "") -> list[str]:
    """The labels of a service's DEKs; without one, of all that are rotated.

    Raises:
        CredentialNotFoundError: No credential is of that service.
    """
    known = keystore.by_label
    if not service:
        kinds = {*SECTION_NAMES, DEK_LABEL}
        return [name for name in known if name in kinds or name.partition("/")[0] in kinds]
    found = [f"{name}/{service}" for name in SECTION_NAMES if f"{name}/{service}" in known]
    if not found:
        raise CredentialNotFoundError(
            "No credential is of that service.", hint="See: apex-creds list"
        )
    return found


def newest(keystore: Keystore, level: Level, labels: Iterable[str] = ()) -> dict[str, int]:
    """The newest version of each key: of the level or, of DEKs, of these labels."""
    if level is Level.MASTER:
        return {request_key(level): keystore.root_header.master.version}
    if level is Level.KEK:
        return {request_key(level): keystore.root_header.keks.versions[-1].version}
    return {
        request_key(level, label): keystore.by_label[label].versions[-1].version
        for label in labels
    }


def newest_below(keystore: Keystore, level: Level, labels: Iterable[str]) -> dict[str, int]:
    """As ``newest``, with every key that is opened by those of the level."""
    if level is Level.DEK:
        return newest(keystore, level, labels)
    found: dict[str, int] = {}
    for each in _LEVELS[_LEVELS.index(level) :]:
        found |= newest(keystore, each, keystore.by_label)
    return found


async def order(document: Document[RotationState], numbers: Numbers) -> None:
    """Has keys renewed that are of these versions, or older; durable on return."""
    await document.change(lambda state: with_orders(state, numbers))


def with_orders(state: RotationState, numbers: Numbers) -> RotationState:
    """The state with keys that are to be renewed."""
    renew = dict(state.renew)
    for name, number in numbers.items():
        renew[name] = max(number, renew.get(name, 0))
    return state if renew == state.renew else replace(state, renew=renew)


def undone(keystore: Keystore, numbers: Numbers) -> list[str]:
    """The keys whose primary is not newer than that; one that is gone needs no renewal."""
    return [name for name, number in numbers.items() if 0 < _primary(keystore, name) <= number]


def surviving(
    keystore: Keystore,
    state: RotationState,
    numbers: Numbers,
    *,
    level: Level,
    version: int = 0,
) -> list[str]:
    """The keys of which such a version is not destroyed; of the level, that one alone."""
    found = []
    for name, number in numbers.items():
        of, _, label = name.partition(" ")
        only = version if of == level else 0
        if of == Level.MASTER:
            alive = state.discarded < (only or number)
        else:
            keyset = keystore.by_label.get(label) if label else keystore.root_header.keks
            alive = keyset is not None and any(
                v.version <= number
                and only in (0, v.version)
                and v.state is not KeyState.DESTROYED
                for v in keyset.versions
            )
        if alive:
            found.append(name)
    return found


def _primary(keystore: Keystore, name: str) -> int:
    level, _, label = name.partition(" ")
    if level == Level.MASTER:
        return keystore.root_header.master.version
    if level == Level.KEK:
        return keystore.root_header.keks.primary.version
    keyset = keystore.by_label.get(label)
    return 0 if keyset is None else keyset.primary.version


async def adopt(store: DocumentStore, document: Document[RotationState]) -> None:
    """Turns orders of an earlier program, which were by time, into orders by number.

    Its clock may have been wrong, so they are about every version that there is.
    """
    requested = (await document.read()).requested
    if not requested:
        return
    numbers = by_time(await store.keystore(), requested)
    await document.change(
        lambda state: (
            replace(with_orders(state, numbers), requested={})
            if state.requested == requested
            else state
        )
    )


def by_time(keystore: Keystore, requested: Iterable[str]) -> dict[str, int]:
    """Orders by time as orders by number; without a label they are about the whole level."""
    found: dict[str, int] = {}
    for name in requested:
        level, _, label = name.partition(" ")
        if not label:
            found |= newest(keystore, Level(level), labels_of(keystore))
        elif label in keystore.by_label:
            found |= newest(keystore, Level.DEK, [label])
    return found
