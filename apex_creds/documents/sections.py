"""Sections in shards: which document of a section has a credential; sealed, and the whole.

Guarantee: a credential's shard depends on the vault and its name alone, and discloses
nothing of the name without a key. Shards are made together and never apart: a section has
all of them or none. A sealed shard is the generation after the one it replaces, under the
KEK that is primary in the key store it is given. Values are immutable. No I/O. Specified
in docs/FORMAT.md, "Shards".
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Final

from msgspec.structs import replace

from apex_creds.crypto import kdf
from apex_creds.crypto.memory import SecretBytes
from apex_creds.documents.document import Header, mac_of
from apex_creds.documents.keystore import Keystore
from apex_creds.documents.records import Record, Section, count_uses, keys_used, seal_section
from apex_creds.model import SECTIONS
from apex_creds.storage.base import Data

_DOMAIN: Final = b"\0shard\0"
_MANY: Final = 100_000


def shard_names(section: str, count: int) -> tuple[str, ...]:
    """The documents of a section that is kept in ``count`` of them."""
    digits = max(2, len(f"{count - 1:x}"))
    return tuple(f"{section}_{number:0{digits}x}" for number in range(count))


class ShardNames:
    """Where each credential of a vault is.

    Args:
        root: The vault's root key; what is derived from it is wiped by ``close``.
        count: In how many documents a section is.

    Attributes:
        by_section: The documents of each section, in the order of look-ups.
    """

    def __init__(self, root: SecretBytes, count: int) -> None:
        self._key = kdf.derive(root, kdf.Purpose.NAME_INDEX)
        self._count = count
        self.by_section = {name: shard_names(name, count) for name in SECTIONS.values()}
        self._sections = {name: s for s, names in self.by_section.items() for name in names}
        self._known: dict[str, int] = {}

    def all(self, section: str) -> tuple[str, ...]:
        """Every document of a section."""
        return self.by_section[section]

    def of(self, section: str, credential: str) -> str:
        """The document of a section that has, or would have, a credential."""
        number = self._known.get(credential)
        if number is None:
            if len(self._known) >= _MANY:
                self._known.clear()
            number = self._known[credential] = self._number(credential)
        return self.by_section[section][number]

    def section_of(self, document: str) -> str | None:
        """Whose piece a document is; None for those that are no piece."""
        return self._sections.get(document)

    def close(self) -> None:
        """Wipes the key."""
        self._key.close()
        self._known.clear()

    def _number(self, credential: str) -> int:
        tag = kdf.hmac_sha256(self._key, _DOMAIN + credential.encode())
        return int.from_bytes(tag[:8], "big") % self._count


@dataclass(frozen=True, slots=True, kw_only=True)
class Merged(Section):
    """A section out of its pieces.

    Its header is nobody's: the generation is the sum of the pieces', the KEK version the
    oldest, ``keys_used`` all of theirs.
    """

    parts: Mapping[str, Section] = field(default_factory=dict)

    def only(self, documents: Collection[str]) -> Merged:
        """What is in some of the pieces."""
        chosen = {name: part for name, part in self.parts.items() if name in documents}
        return merge(self.name, chosen)


def merge(name: str, parts: Mapping[str, Section], *, before: Merged | None = None) -> Merged:
    """The whole section.

    Args:
        name: The section's.
        parts: All its pieces; none while it does not exist.
        before: An earlier whole, so that only what moved since has to be looked at.
    """
    records = _records(parts, before)
    uses: dict[tuple[str, int], int] = {}
    for part in parts.values():
        for key, count in part.uses.items():
            uses[key] = uses.get(key, 0) + count
    headers = [part.header for part in parts.values() if part.header is not None]
    return Merged(
        name=name,
        token=None,
        header=_header(name, headers) if headers else None,
        mac="",
        records=records,
        uses=uses,
        parts=parts,
    )


def divided(
    before: Merged, records: Mapping[str, Record], names: ShardNames
) -> dict[str, dict[str, Record]]:
    """The new records of each piece whose records are to be others than ``before``."""
    if records is before.records:
        return {}
    changed: dict[str, dict[str, Record]] = {}
    left = dict(records)
    for shard, part in before.parts.items():
        kept = {name: left.pop(name) for name in part.records if name in left}
        if any(kept.get(name) is not record for name, record in part.records.items()):
            changed[shard] = kept
    for name, record in left.items():
        shard = names.of(before.name, name)
        if shard not in changed:
            part_before = before.parts.get(shard)
            changed[shard] = dict(part_before.records) if part_before is not None else {}
        changed[shard][name] = record
    return changed


def _records(parts: Mapping[str, Section], before: Merged | None) -> dict[str, Record]:
    if before is None or not before.parts:
        return {name: r for part in parts.values() for name, r in part.records.items()}
    records = dict(before.records)
    moved = [(n, part) for n, part in parts.items() if before.parts.get(n) is not part]
    for shard, _ in moved:
        for name in before.parts[shard].records:
            del records[name]
    for _, part in moved:
        records.update(part.records)
    return records


def _header(name: str, headers: list[Header]) -> Header:
    return replace(
        headers[0],
        section=name,
        generation=sum(header.generation for header in headers),
        kek_version=min(header.kek_version for header in headers),
        written=max(header.written for header in headers),
        keys_used=tuple(sorted({key for header in headers for key in header.keys_used})),
    )


def seal_part(
    before: Section, records: Mapping[str, Record], keystore: Keystore, *, now: float
) -> tuple[Data, Section]:
    """A section's document, and the section as it is then (its token is not known yet)."""
    keks, used = keystore.root_header.keks, keys_used(records.values())
    header = Header(
        vault_id=keystore.header.vault_id,
        section=before.name,
        generation=before.generation + 1,
        kek_id=keks.id,
        kek_version=keks.primary.version,
        written=now,
        keys_used=used,
    )
    keys = keystore.hierarchy.document_keys(before.name, header.kek_version)
    uses = count_uses(before, records, used)
    data = seal_section(header, records.values(), keys, uses=uses)
    section = Section(
        name=before.name,
        token=None,
        header=header,
        mac=mac_of(data),
        records=records,
        uses=uses,
    )
    return data, section
