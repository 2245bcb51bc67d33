"""The stored values of a credential that is rotated, and the state beside them.

The rules, in order:

1. A record has the current value, which plugins get, and at most two others: the ``pending``
   one, which is not valid everywhere yet, and the ``previous`` one, which still may be.
2. None is opened for its provider before an event in the audit log says so.
3. What a step comes to is one commit of values and state together. It holds only if version
   and state are as they were read (compare-and-set): what a person, or another process, has
   stored meanwhile is never overwritten.
4. A replaced value is stored until it is made invalid, and nowhere after.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from msgspec.structs import replace

from apex_creds.audit.events import AuditEvent, EventKind
from apex_creds.documents.records import Record
from apex_creds.model import (
    PENDING,
    PREVIOUS,
    SECTIONS,
    CredentialInfo,
    CredentialKind,
    Rotation,
    RotationStage,
    Secret,
    is_of_another_value,
)
from apex_creds.vault import Vault, credential_writes
from apex_creds.vault.lookup import PutItem


@dataclass(frozen=True, slots=True)
class Values:
    """At most three values of one credential."""

    current: Secret
    pending: Secret | None = None
    previous: Secret | None = None

    @classmethod
    def of(cls, kind: CredentialKind, parts: Mapping[str, bytes]) -> Self:
        """Those that a record's parts are of."""

        def value(prefix: str) -> Secret | None:
            chosen = [name for name in parts if name.startswith(prefix)]
            found = {name.removeprefix(prefix): parts[name] for name in chosen}
            return Secret(kind, found) if found else None

        now = {name: data for name, data in parts.items() if not is_of_another_value(name)}
        return cls(Secret(kind, now), value(PENDING), value(PREVIOUS))

    @property
    def others(self) -> tuple[Secret, ...]:
        """All but the current one."""
        return tuple(each for each in (self.pending, self.previous) if each is not None)

    @property
    def stored(self) -> Secret:
        """All in the parts of one record."""
        parts = dict(self.current.parts)
        for prefix, value in ((PENDING, self.pending), (PREVIOUS, self.previous)):
            if value is not None:
                parts |= {prefix + name: data for name, data in value.parts.items()}
        return Secret(self.current.kind, parts)


def open_values(vault: Vault, record: Record, action: str) -> Values:
    """What a record has, for its provider; audited before, as that action."""
    key_id, version = record.key
    event = AuditEvent(
        time=vault.clock.time(),
        kind=EventKind.ROTATION,
        action=action,
        credential=record.info.key,
        decision="allow",
        key_id=key_id.hex(),
        key_version=version,
    )
    with vault.release(record, vault.audit.encode(event)) as opened:
        parts = {name: bytes(opened.view(name)) for name in opened.names}
    return Values.of(record.info.kind, parts)


async def note(vault: Vault, before: CredentialInfo, state: Rotation) -> CredentialInfo:
    """Commits a state alone; the values stay.

    Raises:
        CredentialChangedError: The credential was changed meanwhile.
    """
    changes = credential_writes.Edit(
        rotation=state, replaces=before.version, rotates=before.rotation
    )
    return await credential_writes.edit(
        vault.store, SECTIONS[before.kind], before.key, changes, clock=vault.clock
    )


async def store(
    vault: Vault,
    before: CredentialInfo,
    values: Values,
    state: Rotation,
    *,
    expires: float | None,
) -> None:
    """Commits values and state together.

    Raises:
        CredentialChangedError: The credential was changed meanwhile.
    """
    item = PutItem(
        name=before.name,
        secret=values.stored,
        expires=expires,
        replaces=before.version,
        rotation=state,
        rotates=before.rotation,
        principal=before.principal,
    )
    await vault.put_many([item])


async def forget_others(vault: Vault, info: CredentialInfo) -> CredentialInfo:
    """Deletes the values that a rotation has left beside the current one.

    Raises:
        CredentialChangedError: The credential was changed meanwhile.
    """
    record = await vault.find(info.name, principal=info.principal)
    values = open_values(vault, record, "forget others")
    if not values.others or info.rotation is None:
        return info
    state = replace(
        info.rotation,
        stage=RotationStage.IDLE,
        since=info.version + 1,
        pending=0,
        previous=0,
        retires=0.0,
    )
    await store(vault, info, Values(values.current), state, expires=info.expires)
    return await vault.get(info.name, principal=info.principal)
