"""Changes what using a credential takes, and where and how it may be sent.

Guarantee: the secret is not touched; the change is audited before it happens, is durable on
return, and counts from the next lease and redeem on, in every process. Where it may not be
sent any more, a lease that is open does not send it either.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from apex_creds.audit.events import EventKind
from apex_creds.documents.keystore import Keystore
from apex_creds.documents.records import Record
from apex_creds.documents.sections import Section
from apex_creds.errors import CredentialNotFoundError
from apex_creds.model import SECTIONS, CredentialInfo, Delivery, Origin, Sensitivity
from apex_creds.vault.values import marked, parse_level
from apex_creds.vault.vault import Vault


async def edit(
    vault: Vault,
    name: str,
    *,
    challenge: bool | None = None,
    sensitivity: str | Sensitivity | None = None,
    origins: Iterable[str | Origin] | None = None,
    delivery: str | Delivery | None = None,
) -> CredentialInfo:
    """Changes what is known of a credential, not its value; None leaves it as it is.

    Args:
        vault: That has it.
        name: The credential's.
        challenge: Whether each use takes a nonce that a client has signed.
        sensitivity: ``normal``, ``sensitive`` or ``critical``.
        origins: Where it may be sent from now on, ``https://host[:port]``, and nowhere else.
        delivery: ``bearer``, ``header:NAME``, ``query:NAME`` or ``basic``.

    Raises:
        CredentialNotFoundError: There is none of that name.
        InvalidInputError: There is no such level, origin or delivery.
    """
    section = SECTIONS[(await vault.get(name)).kind]
    level = None if sensitivity is None else parse_level(sensitivity)
    places = None if origins is None else tuple(Origin.parse(str(text)) for text in origins)
    how = Delivery.parse(delivery) if isinstance(delivery, str) else delivery
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
            origins=old.info.origins if places is None else places,
            delivery=how or old.info.delivery,
            updated=vault.clock.time(),
        )
        return {**before.records, name: Record(made, old.sealed)}

    vault.record(
        EventKind.PUT, credential=name, detail=_in_words(challenge, level, places, how)
    )
    await vault.store.sections.commit(section, change, only=[name])
    assert made is not None
    return made


def _in_words(
    challenge: bool | None,
    level: Sensitivity | None,
    places: tuple[Origin, ...] | None,
    how: Delivery | None,
) -> str:
    said = [] if level is None else [f"level {level.value}"]
    if challenge is not None:
        said.append("takes a challenge" if challenge else "takes no challenge")
    if places is not None:
        said.append(f"may be sent to {', '.join(map(str, places)) or 'nowhere'}")
    if how is not None:
        said.append(f"sent as {how}")
    return "; ".join(said)
