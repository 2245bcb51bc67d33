"""Changes what using a credential takes: its level, and whether each use is signed for.

Guarantee: the secret is not touched; the change is audited before it happens, is durable on
return, and counts from the next lease and redeem on, in every process.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from apex_creds.audit.events import EventKind
from apex_creds.errors import CredentialNotFoundError
from apex_creds.model import SECTIONS, CredentialInfo, Sensitivity
from apex_creds.vault.keystore import Keystore
from apex_creds.vault.section import Record, Section
from apex_creds.vault.values import marked, parse_level
from apex_creds.vault.vault import Vault


async def edit(
    vault: Vault,
    name: str,
    *,
    challenge: bool | None = None,
    sensitivity: str | Sensitivity | None = None,
) -> CredentialInfo:
    """Changes a credential's mark, its level, or both; None leaves it as it is.

    Raises:
        CredentialNotFoundError: There is none of that name.
        InvalidInputError: There is no such level.
    """
    section = SECTIONS[(await vault.get(name)).kind]
    level = None if sensitivity is None else parse_level(sensitivity)
    made: CredentialInfo | None = None

    def change(before: Section, _: Keystore) -> Mapping[str, Record]:
        nonlocal made
        old = before.records.get(name)
        if old is None:
            raise CredentialNotFoundError("There is no credential of that name any more.")
        made = msgspec.structs.replace(
            old.info,
            challenge=marked(challenge, old.info),
            sensitivity=level or old.info.sensitivity,
            updated=vault.clock.time(),
        )
        return {**before.records, name: Record(made, old.sealed)}

    vault.record(EventKind.PUT, credential=name, detail=_in_words(challenge, level))
    await vault.store.commit_section(section, change, only=[name])
    assert made is not None
    return made


def _in_words(challenge: bool | None, level: Sensitivity | None) -> str:
    said = [] if level is None else [f"level {level.value}"]
    if challenge is not None:
        said.append("takes a challenge" if challenge else "takes no challenge")
    return "; ".join(said)
