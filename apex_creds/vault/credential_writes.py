"""Credentials put into a section, changed, and taken out.

Guarantee: a batch is one commit; a record is sealed under the primary of its service's
keyset as that is when the commit is made, never under an older one. A name that two
writers give to credentials of two kinds at once is acknowledged to one of them at most.
What was removed was last sealed under a key that is destroyed afterwards. An edit does not
touch the secret, and counts from the next lease and redeem on, in every process.
"""

from __future__ import annotations

import math
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Mapping,
    Sequence,
)
from contextlib import suppress
from dataclasses import dataclass
from functools import wraps
from typing import Final, ParamSpec, TypeVar

import anyio
import anyio.lowlevel
import msgspec

from apex_creds.concurrency import off_loop
from apex_creds.documents import key_versions, observe
from apex_creds.documents.keystore import Keystore
from apex_creds.documents.records import Record, seal_record
from apex_creds.documents.sections import Changes, Section
from apex_creds.documents.store import DocumentStore
from apex_creds.errors import (
    ConflictError,
    CredentialChangedError,
    CredentialExistsError,
    CredentialNotFoundError,
    IntegrityError,
    InvalidInputError,
)
from apex_creds.model import (
    SECTION_NAMES,
    SECTIONS,
    Clock,
    Connection,
    CredentialInfo,
    Delivery,
    OAuthToken,
    Origin,
    Rotation,
    RotationStage,
    Sensitivity,
    check_name,
    check_time,
    is_of_another_value,
)
from apex_creds.vault.lookup import (
    Deletion,
    PutItem,
    dek_label,
    label_of,
    marked,
    next_info,
    service_of,
)

_ROUNDS: Final = 10
_TURN: Final = 64
_P = ParamSpec("_P")
_T = TypeVar("_T")


async def in_turns(items: Collection[_T]) -> AsyncIterator[_T]:
    """The items; now and then, other tasks of the loop have their turn."""
    for number, item in enumerate(items, start=1):
        if number % _TURN == 0:
            await anyio.lowlevel.checkpoint()
        yield item


async def check(store: DocumentStore, batch: Sequence[PutItem]) -> dict[str, list[PutItem]]:
    """Refuses items that could not be put.

    Returns:
        The items of each section concerned.

    Raises:
        InvalidNameError: A name or service is not acceptable.
        InvalidInputError: A time is none, or a name is there twice.
        CredentialExistsError: A name is taken by a credential of another kind.
    """

    def refuse() -> None:
        if len({item.key for item in batch}) != len(batch):
            raise InvalidInputError("A name is there twice.", hint="Put one after the other.")
        for item in batch:
            check_name(item.name)
            check_name(item.name if item.service is None else item.service, what="service")
            check_time(item.expires, what="end of the credential")
            if item.rotation is None and any(map(is_of_another_value, item.secret.parts)):
                raise InvalidInputError("No part's name begins with pending_ or previous_.")
            if isinstance(item.secret, OAuthToken):
                check_time(item.secret.expires_at, what="end of the token")

    await off_loop(len(batch), refuse)
    found: dict[str, list[PutItem]] = {}
    async for item in in_turns(batch):
        found.setdefault(SECTIONS[item.secret.kind], []).append(item)
    for section, items in found.items():
        await _refuse_taken(store, section, [item.key for item in items])
    return found


def _retried(work: Callable[_P, Awaitable[_T]]) -> Callable[_P, Awaitable[_T]]:
    """Has it done again from fresh state where another writer was first."""

    @wraps(work)
    async def attempts(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        for _ in range(_ROUNDS - 1):
            with suppress(ConflictError):
                return await work(*args, **kwargs)
        return await work(*args, **kwargs)

    return attempts


@_retried
async def put(
    store: DocumentStore, section: str, items: Sequence[PutItem], *, clock: Clock
) -> dict[str, CredentialInfo]:
    """Seals and commits items of one section.

    Returns:
        The metadata of what was written, by key.

    Raises:
        CredentialExistsError: Another writer gave a name to another kind meanwhile.
        ConflictError: Other writers were first, again and again.
    """
    written: dict[str, Record] = {}
    replaced: Mapping[str, Record] = {}

    def change(before: Section, keystore: Keystore) -> Changes:
        nonlocal replaced
        replaced = before.records
        for item in items:
            key = item.key
            if item.replaces is not None:
                old = replaced.get(key)
                _check_version(item.name, old.info if old else None, item.replaces)
                _check_rotation(item.name, old.info if old else None, item.rotates)
            info = next_info(item, replaced.get(key), clock.time())
            keyset = keystore.by_label.get(dek_label(info))
            if keyset is None:  # another process deleted it meanwhile, and its service with it
                raise ConflictError(
                    "Other writers keep changing that credential.", hint="Try again."
                )
            written[key] = seal_record(
                info,
                item.secret,
                vault_id=bytes.fromhex(keystore.header.vault_id),
                keyset=keyset,
                key=keystore.hierarchy.unwrap(keyset, keyset.primary.version),
            )
        return written

    known = (await store.sections.read(section)).records
    labels = await off_loop(
        len(items),
        lambda: {label_of(section, service_of(item, known.get(item.key))) for item in items},
    )
    await key_versions.ensure(store, labels, now=clock.time())
    await store.sections.commit(section, change, size=len(items))
    try:
        await _refuse_taken(store, section, written)
    except CredentialExistsError:
        await _withdraw(store, section, written, replaced)
        raise
    return await off_loop(len(items), lambda: {n: r.info for n, r in written.items()})


@dataclass(frozen=True, slots=True, kw_only=True)
class Edit:
    """What is to change of a credential beside its value; None stays as it is.

    ``expires`` is infinite for a credential without end.

    Attributes:
        rotation: How it is replaced at its provider from now on, or how far that is.
        no_rotation: It is not any more.
        replaces: The version that it is a change of; None: any.
        rotates: Of a step of a rotation: the state that it is a step from.
    """

    challenge: bool | None = None
    sensitivity: Sensitivity | None = None
    origins: tuple[Origin, ...] | None = None
    delivery: Delivery | None = None
    expires: float | None = None
    connection: Connection | None = None
    rotation: Rotation | None = None
    no_rotation: bool = False
    replaces: int | None = None
    rotates: Rotation | None = None

    def __str__(self) -> str:
        """For the log."""
        said = [] if self.sensitivity is None else [f"level {self.sensitivity.value}"]
        if self.challenge is not None:
            said.append("takes a challenge" if self.challenge else "takes no challenge")
        if self.origins is not None:
            said.append(f"may be sent to {', '.join(map(str, self.origins)) or 'nowhere'}")
        if self.delivery is not None:
            said.append(f"sent as {self.delivery}")
        if self.expires is not None:
            said.append("without end" if self.expires == math.inf else "with another end")
        if self.connection is not None:
            said.append(f"{self.connection.provider}: {self.connection.state}")
        if self.rotation is not None:
            said.append(f"replaced by {self.rotation.rotator.partition(':')[0]}")
        if self.no_rotation:
            said.append("not replaced at its provider")
        return "; ".join(said)


async def edit(
    store: DocumentStore, section: str, key: str, changes: Edit, *, clock: Clock
) -> CredentialInfo:
    """Commits a change of a credential's metadata.

    Raises:
        CredentialNotFoundError: There is none of that name any more.
    """
    made: CredentialInfo | None = None
    end = None if changes.expires == math.inf else changes.expires

    def change(before: Section, _: Keystore) -> Changes:
        nonlocal made
        old = before.records.get(key)
        if old is None:
            raise CredentialNotFoundError("There is no credential of that name any more.")
        info = old.info
        _check_version(info.name, info, changes.replaces)
        _check_rotation(info.name, info, changes.rotates)
        rotation = changes.rotation or info.rotation
        made = msgspec.structs.replace(
            info,
            challenge=marked(changes.challenge, info),
            sensitivity=changes.sensitivity or info.sensitivity,
            origins=info.origins if changes.origins is None else changes.origins,
            delivery=changes.delivery or info.delivery,
            expires=info.expires if changes.expires is None else end,
            connection=changes.connection or info.connection,
            rotation=None if changes.no_rotation else rotation,
            updated=clock.time(),
        )
        return {key: Record(made, old.sealed)}

    await store.sections.commit(section, change, size=1)
    assert made is not None
    return made


@_retried
async def remove(
    store: DocumentStore, section: str, key: str, *, clock: Clock
) -> Deletion | None:
    """Removes a credential and shreds it; None where there is none of that name.

    Raises:
        ConflictError: Other writers were first, again and again.
    """
    record = (await store.sections.read(section)).records.get(key)
    if record is None:
        return None
    label, now = dek_label(record.info), clock.time()
    with observe.triggered("deletion"):
        await key_versions.renew(store, label, now=now)
    overwritten = await key_versions.move_records(store, section, label, without=key)
    destroyed = await key_versions.destroy_unused(store, section, label, now=now)
    return Deletion(name=record.info.name, shredded=destroyed, overwritten=overwritten)


async def finish_removals(store: DocumentStore, *, clock: Clock) -> bool | None:
    """Shreds what removals that were interrupted had left to be shredded.

    Returns:
        Whether all of it is destroyed, as read back; None where there was nothing.
    """
    done = None
    for section in SECTION_NAMES:
        for label in await key_versions.left_behind(store, section):
            destroyed = await key_versions.destroy_unused(
                store, section, label, now=clock.time()
            )
            done = destroyed and done is not False
    return done


async def mark_rotations_uncertain(store: DocumentStore) -> None:
    """Leaves to a person how rotations at providers go on, in a vault of an earlier time.

    What it has may have been replaced there since: a step taken again would make an old
    secret valid again, unnoticed. Not where a value ends by itself.
    """

    def uncertain(section: Section) -> dict[str, Record]:
        return {
            key: Record(made, record.sealed)
            for key, record in section.records.items()
            if (made := _with_uncertain_rotation(record.info)) is not record.info
        }

    for name in SECTION_NAMES:
        with suppress(IntegrityError):  # what does not open is an error when it is read
            if uncertain(section := await store.sections.read(name)):
                await store.sections.commit(
                    name, lambda before, _: uncertain(before), size=len(section.records)
                )


def _with_uncertain_rotation(info: CredentialInfo) -> CredentialInfo:
    if info.rotation is None or info.dynamic or info.expires is not None:
        return info
    state = RotationStage.NEEDS_PERSON
    if info.rotation.stage is state:
        return info
    made = msgspec.structs.replace(info.rotation, stage=state, outcome="restored")
    return msgspec.structs.replace(info, rotation=made)


def _check_version(name: str, info: CredentialInfo | None, version: int | None) -> None:
    """Compare-and-set: refuses what another writer has replaced meanwhile; 0: has put there."""
    if version is not None and (0 if info is None else info.version) != version:
        raise CredentialChangedError(
            f"{name!r} was changed meanwhile.", hint="Read it again, then decide."
        )


def _check_rotation(name: str, info: CredentialInfo | None, state: Rotation | None) -> None:
    """The same for a step of a rotation, which changes what is not a version, too."""
    if state is not None and (info is None or info.rotation != state):
        raise CredentialChangedError(
            f"The rotation of {name!r} was changed meanwhile.",
            hint="Read it again, then decide.",
        )


async def _refuse_taken(store: DocumentStore, section: str, names: Collection[str]) -> None:
    others = [other for other in SECTION_NAMES if other != section]
    found = await store.sections.read_all(others)

    def taken() -> bool:
        return any(name in other.records for other in found for name in names)

    if await off_loop(len(names), taken):
        raise CredentialExistsError(
            "That name belongs to a credential of another kind.",
            hint="Delete it first, or choose another name.",
        )


async def _withdraw(
    store: DocumentStore,
    section: str,
    written: Mapping[str, Record],
    replaced: Mapping[str, Record],
) -> None:
    """Takes a put back.

    Each writer checks for the other after its own commit, so that one at least of two that
    give a name to two kinds sees it.
    """

    def change(before: Section, _: Keystore) -> Changes:
        found = {name: before.records.get(name) for name in written}
        ours = [name for name, r in found.items() if r and r.info == written[name].info]
        return {name: replaced.get(name) for name in ours}

    with anyio.CancelScope(shield=True):
        await store.sections.commit(section, change, size=len(written))
