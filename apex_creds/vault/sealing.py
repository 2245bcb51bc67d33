"""A section's document out of its records.

Guarantee: the document is the generation after the one it replaces, under the KEK that is
primary in the key store it is given. Pure, but for the nonces.
"""

from __future__ import annotations

from collections.abc import Mapping

from apex_creds.storage.base import Data
from apex_creds.vault.document import Header, mac_of
from apex_creds.vault.keystore import Keystore
from apex_creds.vault.section import Record, Section, count_uses, keys_used, seal_section

__all__ = ["seal_part"]


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
