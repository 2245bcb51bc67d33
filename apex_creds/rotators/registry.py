"""Rotators by URI: those of this package, and of others by entry point.

Guarantee: what this package has itself is never replaced; a URI that is not understood is not
repeated in an error. A credential gets a rotator only if that can rotate its kind.
"""

from __future__ import annotations

from collections.abc import Collection
from importlib import import_module
from typing import Final, Protocol

from apex_creds import extensions
from apex_creds.audit.events import EventKind
from apex_creds.errors import InvalidInputError
from apex_creds.model import SECTIONS, CredentialInfo, CredentialKind, Rotation, RotationStage
from apex_creds.rotators import openbao_database
from apex_creds.rotators.protocol import Rotator
from apex_creds.vault import Vault, credential_writes

BUILT_IN: Final = {
    "aws-access-key": "apex_creds.rotators.aws_access_key",
    "github-app": "apex_creds.rotators.github_app",
    "openbao-approle": "apex_creds.rotators.openbao_approle",
    "postgres-role": "apex_creds.rotators.postgres_role",
    "redis-acl": "apex_creds.rotators.redis_acl",
}


DYNAMIC: Final = "openbao-database"


class FromUri(Protocol):
    """A module's function ``from_uri``."""

    def __call__(self, uri: str) -> Rotator:
        """The rotator of a whole URI."""


def rotator_from_uri(uri: str) -> Rotator:
    """The rotator for ``KIND:ADDRESS…``.

    Raises:
        InvalidInputError: There is none of that kind, or its address is not understood.
        NotInstalledError: What it needs is not installed.
    """
    kind = uri.partition(":")[0]
    if kind in BUILT_IN:
        make: FromUri = import_module(BUILT_IN[kind]).from_uri
        return make(uri)
    made = extensions.make(extensions.ROTATORS, uri)
    if not isinstance(made, Rotator):
        raise InvalidInputError(
            "There is no such rotator.",
            hint=f"Use {', '.join([*BUILT_IN, DYNAMIC])}, or install the package that has it "
            "(docs/EXTENDING.md).",
        )
    return made


def is_dynamic(info: CredentialInfo) -> bool:
    """Whether a credential's value is made for each lease; see ``dynamic``."""
    return info.rotation is not None and info.rotation.rotator.startswith(f"{DYNAMIC}:")


async def configure(
    vault: Vault,
    name: str,
    *,
    uri: str | None = None,
    interval: float | None = None,
    cron: str | None = None,
    grace: float | None = None,
) -> CredentialInfo:
    """Says how a credential is replaced at its provider; None leaves it as it is.

    Args:
        vault: Unsealed.
        name: The credential's.
        uri: Of the rotator; empty: it is not replaced there any more.
        interval: Seconds from one rotation to the next; 0: no interval.
        cron: Five fields, UTC; empty: none.
        grace: Seconds that a replaced value stays valid.

    Raises:
        CredentialNotFoundError: There is none of that name.
        InvalidInputError: The rotator can't rotate it, or a rotation is under way.
    """
    info = await vault.get(name)
    before = info.rotation
    if before is not None and before.stage not in (
        RotationStage.IDLE,
        RotationStage.NEEDS_PERSON,
    ):
        raise InvalidInputError(
            "A rotation of this credential is under way.",
            hint=f"Let it end first: apex-creds rotate credential {name!r}",
        )
    if uri == "":
        changes = credential_writes.Edit(
            no_rotation=True, replaces=info.version, rotates=before
        )
    else:
        if before is None and uri is None:
            raise InvalidInputError(
                "Nothing replaces this credential at its provider.", hint="Say --rotator URI."
            )
        old = before or Rotation(rotator="")
        made = Rotation(
            rotator=uri or old.rotator,
            interval=old.interval if interval is None else interval or None,
            cron=old.cron if cron is None else cron,
            grace=old.grace if grace is None else grace,
            since=before.since if before else info.version,
            changed=before.changed if before else info.updated,
        )
        if made.rotator.startswith(f"{DYNAMIC}:"):
            openbao_database.from_uri(made.rotator)
            kinds: Collection[CredentialKind] = (CredentialKind.BASIC,)
        else:
            kinds = rotator_from_uri(made.rotator).kinds
        if info.kind not in kinds or info.connection is not None:
            raise InvalidInputError(
                f"This rotator can't replace a credential of kind {info.kind}.",
                hint=f"It is for {', '.join(sorted(kinds))}.",
            )
        changes = credential_writes.Edit(rotation=made, replaces=info.version, rotates=before)
    vault.record(EventKind.PUT, credential=name, detail=str(changes))
    return await credential_writes.edit(
        vault.store, SECTIONS[info.kind], name, changes, clock=vault.clock
    )
