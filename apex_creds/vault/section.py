"""A section's records: metadata, and the sealed secret of each credential.

Guarantee: a record's secret opens only as the record and version it was sealed for, with
the DEK version it names. Values are immutable. No I/O.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import msgspec

from apex_creds.crypto import envelope, parts
from apex_creds.crypto.envelope import Context
from apex_creds.crypto.memory import SecretBytes
from apex_creds.errors import CorruptDocumentError, DecryptionError, IntegrityError
from apex_creds.keys.hierarchy import DocumentKeys
from apex_creds.keys.keyset import Keyset
from apex_creds.model import SECTIONS, CredentialInfo, Secret
from apex_creds.storage.base import Data, Token
from apex_creds.vault import bodies
from apex_creds.vault.bodies import Record
from apex_creds.vault.document import Header, Packed, pack, unpack

__all__ = [
    "FindKey",
    "Record",
    "Resealed",
    "Section",
    "count_uses",
    "keys_used",
    "open_record",
    "open_section",
    "reseal_record",
    "reseal_records",
    "seal_record",
    "seal_section",
]

FindKey = Callable[[bytes, int], SecretBytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A section as of one change token; ``header`` is None while it does not exist.

    ``uses`` counts the messages that were sealed under each DEK version in use.
    """

    name: str
    token: Token | None
    header: Header | None
    mac: str
    records: Mapping[str, Record]
    uses: Mapping[tuple[str, int], int] = field(default_factory=dict)

    @property
    def generation(self) -> int:
        """Of the last write; 0 before the first."""
        return self.header.generation if self.header else 0


class Resealed(msgspec.Struct, frozen=True, gc=False):
    """A record under a new key, beside the one that it takes the place of.

    The garbage collector does not see it: tens of thousands of tuples at a time would have
    it search the whole heap, and hold the event loop meanwhile.
    """

    old: Record
    new: Record


def seal_record(
    info: CredentialInfo, secret: Secret, *, vault_id: bytes, keyset: Keyset, key: SecretBytes
) -> Record:
    """Encrypts a secret under ``key``, the primary of ``keyset``."""
    with parts.encode(secret.parts) as plaintext:
        return _seal(info, plaintext, vault_id=vault_id, keyset=keyset, key=key)


def open_record(record: Record, *, vault_id: bytes, find_key: FindKey) -> SecretBytes:
    """Decrypts a record's parts into locked memory; the caller closes it.

    Raises:
        DecryptionError: It does not open as this record.
        UnknownKeyError: Its key is not to be had.
    """
    return envelope.decrypt(find_key, record.sealed, context=_context(record.info, vault_id))


def reseal_record(
    record: Record, *, vault_id: bytes, find_key: FindKey, keyset: Keyset, key: SecretBytes
) -> Record:
    """The same secret and version under another DEK version."""
    with open_record(record, vault_id=vault_id, find_key=find_key) as plaintext:
        return _seal(record.info, plaintext, vault_id=vault_id, keyset=keyset, key=key)


def reseal_records(
    records: Iterable[Record],
    *,
    section: str,
    vault_id: bytes,
    find_key: FindKey,
    keyset: Keyset,
    key: SecretBytes,
) -> tuple[list[Resealed], list[Record]]:
    """As ``reseal_record``, for many of a section that are all under one version.

    Returns:
        Each record and its new form, and the records that do not open.

    Raises:
        UnknownKeyError: Their key is not to be had.
        SecretWipedError: A key was destroyed meanwhile.
    """
    done: list[Resealed] = []
    failed: list[Record] = []
    chosen = list(records)
    if not chosen:
        return done, failed
    key_id, version = chosen[0].key
    with envelope.Resealer(
        find_key(key_id, version),
        key,
        vault_id=vault_id,
        section=section,
        key_id=key_id,
        versions=(version, keyset.primary.version),
    ) as resealer:
        for record in chosen:
            info = record.info
            try:
                sealed = resealer.reseal(
                    record.sealed,
                    record_id=bytes.fromhex(info.id),
                    record_version=info.version,
                )
            except (DecryptionError, CorruptDocumentError):
                failed.append(record)
            else:
                done.append(Resealed(record, Record(info, sealed)))
    return done, failed


def keys_used(records: Iterable[Record]) -> tuple[tuple[str, int], ...]:
    """Every DEK id and version that the records name, sorted."""
    heads = {record.sealed[: envelope.HEADER_BYTES]: record.sealed for record in records}
    keys = map(envelope.header, heads.values())
    return tuple(sorted({(key.hex(), version) for key, version in keys}))


def count_uses(
    before: Section, records: Mapping[str, Record], used: Iterable[tuple[str, int]]
) -> dict[tuple[str, int], int]:
    """``before.uses``, with the records that are new counted; keys out of use left out."""
    known = before.records
    heads = Counter(
        record.sealed[: envelope.HEADER_BYTES]
        for name, record in records.items()
        if known.get(name) is not record
    )
    counts = dict.fromkeys(used, 0)
    for key in counts:
        head = envelope.head(bytes.fromhex(key[0]), key[1])
        counts[key] = before.uses.get(key, 0) + heads[head]
    return counts


def seal_section(
    header: Header,
    records: Iterable[Record],
    keys: DocumentKeys,
    *,
    uses: Mapping[tuple[str, int], int],
) -> Data:
    """The document for ``header`` and ``records``."""
    counts = tuple((key, version, count) for (key, version), count in sorted(uses.items()))
    return pack(header, bodies.encode(list(records), counts), keys)


def open_section(packed: Packed, *, token: Token, keys: DocumentKeys) -> Section:
    """Checks and decrypts a section; the secrets in it stay sealed.

    Raises:
        IntegrityError: It is not what this vault wrote.
    """
    header = packed.header
    plaintext = unpack(packed, keys)
    try:
        pieces, uses = bodies.decode(plaintext)
        records = {record.info.name: record for piece in pieces for record in piece}
    except (msgspec.DecodeError, UnicodeDecodeError, IntegrityError):
        raise CorruptDocumentError(
            f"The body of {header.section!r} is malformed.",
            hint="Restore it from a backup; nothing was changed or overwritten.",
        ) from None
    return Section(
        name=header.section,
        token=token,
        header=header,
        mac=packed.mac,
        records=records,
        uses={(key, version): count for key, version, count in uses},
    )


def _seal(
    info: CredentialInfo,
    plaintext: SecretBytes,
    *,
    vault_id: bytes,
    keyset: Keyset,
    key: SecretBytes,
) -> Record:
    sealed = envelope.encrypt(
        key,
        plaintext,
        context=_context(info, vault_id),
        key_id=bytes.fromhex(keyset.id),
        key_version=keyset.primary.version,
    )
    return Record(info, sealed)


def _context(info: CredentialInfo, vault_id: bytes) -> Context:
    return Context(
        vault_id=vault_id,
        section=SECTIONS[info.kind],
        record_id=bytes.fromhex(info.id),
        record_version=info.version,
    )
