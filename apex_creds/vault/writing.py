"""Putting credentials into a section.

Guarantee: a batch is one commit; a record is sealed under the primary of its service's
keyset as that is when the commit is made, never under an older one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from apex_creds.errors import CredentialExistsError
from apex_creds.model import SECTIONS, Clock, CredentialInfo, check_name
from apex_creds.vault import dek
from apex_creds.vault.keystore import Keystore
from apex_creds.vault.section import Record, Section, seal_record
from apex_creds.vault.store import DocumentStore
from apex_creds.vault.values import PutItem, dek_label, next_info


async def check(store: DocumentStore, item: PutItem) -> None:
    """Refuses an item that could not be put.

    Raises:
        InvalidNameError: Its name or service is not acceptable.
        CredentialExistsError: The name is taken by a credential of another kind.
    """
    check_name(item.name)
    check_name(item.service or item.name, what="service")
    for other in set(SECTIONS.values()) - {SECTIONS[item.secret.kind]}:
        if item.name in (await store.section(other)).records:
            raise CredentialExistsError(
                "That name belongs to a credential of another kind.",
                hint="Delete it first, or choose another name.",
            )


async def put(
    store: DocumentStore, section: str, items: Sequence[PutItem], *, clock: Clock
) -> dict[str, CredentialInfo]:
    """Seals and commits items of one section.

    Returns:
        The metadata of what was written, by name.
    """
    written: dict[str, CredentialInfo] = {}

    def change(before: Section, keystore: Keystore) -> Mapping[str, Record]:
        written.clear()
        records = dict(before.records)
        for item in items:
            info = next_info(item, records.get(item.name), clock.time())
            records[item.name] = _seal(info, item, keystore)
            written[item.name] = info
        return records

    known = (await store.section(section)).records
    labels = {dek_label(next_info(item, known.get(item.name), 0.0)) for item in items}
    await dek.ensure(store, labels, now=clock.time())
    await store.commit_section(section, change)
    return written


def _seal(info: CredentialInfo, item: PutItem, keystore: Keystore) -> Record:
    keyset = keystore.by_label[dek_label(info)]
    return seal_record(
        info,
        item.secret,
        vault_id=bytes.fromhex(keystore.header.vault_id),
        keyset=keyset,
        key=keystore.hierarchy.unwrap(keyset, keyset.primary.version),
    )
