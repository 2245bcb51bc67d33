"""One source into the vault: decide, put, read back, compare, record.

Guarantee: nothing in the vault is replaced unless the flag says so, and then the
value, never what guards it: the stricter level, the mark and the origins stay. What counts
as migrated was read from storage again and compared; a second run of the same source
changes nothing that the first one did.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, TypeVar

from apex_creds.audit.events import AuditEvent, EventKind
from apex_creds.errors import CorruptDocumentError, CredentialExistsError, InvalidInputError
from apex_creds.migration.entries import (
    FIELDS,
    Entry,
    Sending,
    alternative_name,
    credential_name,
    sending,
)
from apex_creds.migration.legacy_readers import only_describe
from apex_creds.migration.progress import MISSING, EntryReport, Fate, SourceState, Written
from apex_creds.model import SECTIONS, CredentialInfo, Secret, Sensitivity
from apex_creds.vault import Opened, PutItem, Vault

# -- names ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Target:
    """An entry and its credential's name.

    Attributes:
        name: Empty where every name that it could have belongs to another kind.
        written: What an earlier run did with it.
        twin: An earlier entry of the source that has the same name and kind.
    """

    entry: Entry
    name: str
    written: Written | None = None
    twin: Entry | None = None


def assign(
    entries: Iterable[Entry],
    infos: Mapping[str, CredentialInfo],
    written: Iterable[Written] = (),
) -> list[Target]:
    """A target for each entry that has a secret.

    Args:
        entries: Of one source.
        infos: The vault's credentials by name.
        written: What earlier runs did with this source.
    """
    earlier = {item.key: item for item in written}
    taken: dict[str, Entry] = {}
    for entry in entries:
        if entry.secret is not None and entry.key in earlier:
            taken.setdefault(earlier[entry.key].name, entry)
    targets = []
    for entry in entries:
        if entry.secret is None:
            continue
        known = earlier.get(entry.key)
        name = known.name if known else _choose(entry, infos, taken)
        first = taken.setdefault(name, entry) if name else entry
        twin = first if first is not entry else None
        targets.append(Target(entry, name, written=known, twin=twin))
    return targets


def _choose(
    entry: Entry, infos: Mapping[str, CredentialInfo], taken: Mapping[str, Entry]
) -> str:
    candidates = (entry.name, alternative_name(entry.name, entry.kind))
    for name in candidates:
        if name in infos and infos[name].kind is entry.kind:
            return name
    for name in candidates:
        other = taken.get(name)
        if name not in infos and (other is None or other.kind is entry.kind):
            return name
    return ""


# -- copying --------------------------------------------------------------------------------


ACTION: Final = "migrate"
BATCH: Final = 200
_ROUNDS: Final = 3
_OF_A_TOKEN: Final = frozenset({"token_type", "scope", "expires_at"})
_T = TypeVar("_T")

Progress = Callable[[str, int, int], None]
"""Called with the source's path, how many entries are done, and how many there are."""


class OnConflict(StrEnum):
    """What to do where the vault has another value for an entry."""

    REPORT = "report"
    KEEP = "keep"
    REPLACE = "replace"


@dataclass(frozen=True, slots=True)
class _Decision:
    target: Target
    fate: Fate
    detail: str = ""
    there: CredentialInfo | None = None

    @property
    def puts(self) -> bool:
        return self.fate in (Fate.MIGRATED, Fate.REPLACED)

    @property
    def replaces(self) -> CredentialInfo | None:
        """What is replaced."""
        return self.there if self.fate is Fate.REPLACED else None


class Copying:
    """The copying of one source's entries.

    Args:
        vault: Where to.
        before: What earlier runs did with this source; None for none.
        unchanged: Whether the source has the content that ``before`` describes.
        on_conflict: See ``OnConflict``.
        dry_run: Decide and compare; write nothing.
    """

    def __init__(
        self,
        vault: Vault,
        *,
        before: SourceState | None,
        unchanged: bool,
        on_conflict: OnConflict,
        dry_run: bool,
    ) -> None:
        self._vault = vault
        self._before = before
        self._unchanged = unchanged
        self._on_conflict = on_conflict
        self._dry_run = dry_run

    async def targets(self, entries: Sequence[Entry]) -> list[Target]:
        """A target for each entry that has a secret."""
        infos = {info.name: info for info in await self._vault.list(principal="")}
        return assign(entries, infos, self._before.written if self._before else ())

    async def copy(
        self, batch: Sequence[Target]
    ) -> tuple[dict[str, EntryReport], list[Written]]:
        """Copies a batch.

        Returns:
            What became of each entry, by its key, and what is to be recorded.

        Raises:
            CorruptDocumentError: What was stored did not read back as it was written.
            CredentialExistsError: Another writer keeps taking the names.
        """
        for _ in range(_ROUNDS - 1):
            try:
                return await self._copy(batch)
            except CredentialExistsError:  # another writer took a name; decide again
                continue
        return await self._copy(batch)

    async def _copy(
        self, batch: Sequence[Target]
    ) -> tuple[dict[str, EntryReport], list[Written]]:
        infos = {info.name: info for info in await self._vault.list(principal="")}
        decisions = [await self._decide(target, infos) for target in batch]
        chosen = [decision for decision in decisions if decision.puts]
        if chosen and not self._dry_run:
            put = await self._vault.put_many(_item(d.target, d.replaces) for d in chosen)
            made = {info.name: info for info in put}
            await self._read_back([d.target for d in chosen], made)
            infos |= made
        reports: dict[str, EntryReport] = {}
        written: list[Written] = []
        for decision in decisions:
            target, fate = decision.target, decision.fate
            info = infos.get(target.name)
            origins, delivery = proposed(target.entry, fate, info)
            reports[target.entry.key] = EntryReport(
                service=target.entry.service,
                kind=target.entry.kind.value,
                name=target.name,
                fate=fate,
                detail=decision.detail,
                origins=origins,
                delivery=delivery,
            )
            if fate in (Fate.MIGRATED, Fate.REPLACED, Fate.PRESENT, Fate.KEPT):
                version = info.version if info else 1
                written.append(Written(target.entry.key, target.name, version))
            elif target.written is not None:
                written.append(target.written)
        return reports, written

    # -- deciding ----------------------------------------------------------------

    async def _decide(self, target: Target, infos: Mapping[str, CredentialInfo]) -> _Decision:
        if not target.name:
            return _Decision(target, Fate.CONFLICT, "its names belong to other kinds")
        if target.twin is not None:
            secret, other = target.entry.secret, target.twin.secret
            twice = "it is in the source twice"
            if secret is not None and other is not None and secret.parts == other.parts:
                return _Decision(target, Fate.PRESENT, twice)
            return _Decision(target, Fate.CONFLICT, f"{twice}, with two values")
        info = infos.get(target.name)
        if info is None:
            if target.written is None or self._on_conflict is OnConflict.REPLACE:
                return _Decision(target, Fate.MIGRATED)
            if self._unchanged or self._on_conflict is OnConflict.KEEP:
                return _Decision(target, Fate.REMOVED)
            why = "it was deleted in the vault, and the source changed since"
            return _Decision(target, Fate.CONFLICT, why)
        if info.kind is not target.entry.kind:
            return _Decision(target, Fate.CONFLICT, f"its name belongs to a {info.kind} now")
        return await self._decide_against(target, info)

    async def _decide_against(self, target: Target, info: CredentialInfo) -> _Decision:
        secret, known = target.entry.secret, target.written
        assert secret is not None
        async with self._vault.open(target.name, action=ACTION) as opened:
            if same(opened, secret):
                return _Decision(target, Fate.PRESENT)
            differs = "another value"
            if same(opened, secret, but=FIELDS):
                # What could be a secret of the fields beside it, and the vault has not.
                here = json.loads(secret.parts.get(FIELDS) or b"{}")
                there = json.loads(bytes(opened.view(FIELDS))) if FIELDS in opened.names else {}
                others = {
                    n: v for n, v in here.items() if n not in _OF_A_TOKEN and there.get(n) != v
                }
                if only_describe(others):
                    return _Decision(target, Fate.PRESENT, "other descriptions differ")
                differs = "other fields beside the secret"
        set_by_hand = known is not None and known.version == 0
        newer = known is not None and self._unchanged and info.version > known.version
        if set_by_hand or newer:  # the vault's value came after the source's
            return _Decision(target, Fate.CHANGED)
        if self._on_conflict is OnConflict.KEEP:
            return _Decision(target, Fate.KEPT, f"the vault has {differs}")
        if self._on_conflict is OnConflict.REPLACE:
            had = f"version {info.version} had {differs}"
            detail = "; ".join([had, *_kept(info, target.entry.like)])
            return _Decision(target, Fate.REPLACED, detail, info)
        return _Decision(target, Fate.CONFLICT, f"the vault has {differs}")

    # -- reading back ------------------------------------------------------------

    async def _read_back(
        self, chosen: Sequence[Target], infos: Mapping[str, CredentialInfo]
    ) -> None:
        store = self._vault.store
        for section in dict.fromkeys(SECTIONS[target.entry.kind] for target in chosen):
            found = await store.sections.reread(section)  # out of the storage, not of memory
            if not found.shards:
                raise _lost()
            await store.keystore()  # a key is made before a record is moved to it
            for target in chosen:
                secret, record = target.entry.secret, found.records.get(target.name)
                version = infos[target.name].version
                if record is None or SECTIONS[target.entry.kind] != section:
                    continue  # of another section; or deleted meanwhile
                if record.info.version > version:
                    continue  # changed by another writer meanwhile
                assert secret is not None
                event = AuditEvent(
                    time=self._vault.clock.time(),
                    kind=EventKind.EXPOSE,
                    action=ACTION,
                    credential=target.name,
                    decision="allow",
                    reason="read back",
                )
                with self._vault.release(record, self._vault.audit.encode(event)) as opened:
                    if record.info.version != version or not same(opened, secret):
                        raise _lost()


def same(opened: Opened, secret: Secret, *, but: str = "") -> bool:
    """Whether an opened credential has the parts of a secret.

    Args:
        opened: From the vault.
        secret: From the source.
        but: A part that does not count.
    """
    wanted = {name: part for name, part in secret.parts.items() if part and name != but}
    names = {name for name in opened.names if len(opened.view(name)) and name != but}
    return names == set(wanted) and all(opened.view(name) == wanted[name] for name in names)


def batches(targets: Sequence[_T], size: int = BATCH) -> Iterator[Sequence[_T]]:
    """``targets`` in pieces."""
    return (targets[at : at + size] for at in range(0, len(targets), size))


def problems(entries: Iterable[Entry]) -> dict[str, EntryReport]:
    """What becomes of the entries that have no secret, by key."""
    return {
        entry.key: EntryReport(
            service=entry.service,
            kind=entry.kind.value,
            name="",
            fate=Fate(entry.problem.value),
            detail=entry.detail,
        )
        for entry in entries
        if entry.problem is not None
    }


def proposed(
    entry: Entry, fate: Fate, info: CredentialInfo | None
) -> tuple[tuple[str, ...], str]:
    """Where and how an entry's credential may be sent: as it is, or as it would be."""
    there = info if fate not in MISSING else None
    there = there or (entry.like if fate is Fate.MIGRATED else None)
    if there is not None:
        return tuple(map(str, there.origins)), str(there.delivery)
    if fate is not Fate.MIGRATED:
        return (), ""
    known = sending(entry.service, entry.kind)
    return tuple(map(str, known.origins)), str(known.delivery or "bearer")


def _item(target: Target, there: CredentialInfo | None) -> PutItem:
    entry = target.entry
    if entry.secret is None:
        raise InvalidInputError("An entry without a secret.")
    like = entry.like
    if like is None:
        kept = there is not None and bool(there.origins)
        known = Sending() if kept else sending(entry.service, entry.kind)
        return PutItem(
            name=target.name,
            secret=entry.secret,
            service=credential_name(entry.service),
            origins=known.origins or None,
            delivery=known.delivery,
            as_is=True,
        )
    return PutItem(
        name=target.name,
        secret=entry.secret,
        service=like.service,
        as_is=True,
        delivery=like.delivery,
        origins=None if there and there.origins else like.origins,
        expires=like.expires,
        sensitivity=None if there and _is_as_strict(there, like) else like.sensitivity,
        challenge=like.challenge or None,
    )


def _is_as_strict(there: CredentialInfo, like: CredentialInfo) -> bool:
    order = list(Sensitivity)
    return order.index(there.sensitivity) >= order.index(like.sensitivity)


def _kept(there: CredentialInfo, like: CredentialInfo | None) -> Iterator[str]:
    """What of the vault's own stays when another vault's value replaces it, in words."""
    if like is None:
        return
    if there.sensitivity is not like.sensitivity and _is_as_strict(there, like):
        yield f"it stays {there.sensitivity}"
    if there.challenge and not like.challenge:
        yield "it still takes a challenge"
    if there.origins and there.origins != like.origins:
        yield f"its origins stay {', '.join(map(str, there.origins))}"


def _lost() -> CorruptDocumentError:
    return CorruptDocumentError(
        "What was stored did not read back as it was written.",
        hint="The source is untouched. Check the disk and the memory of this machine.",
    )
