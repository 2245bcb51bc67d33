"""Which rotator a credential has: finds one by URI; sets, changes and removes it.

The rules, in order:

1. What this package has itself is never replaced by an entry point of another.
2. A URI that is not understood is not repeated in an error.
3. A credential gets a rotator only if that can rotate its kind, and none while a rotation is
   under way.
4. Values that a rotation has left beside the current one go with the rotator: without it,
   nobody would ever end them.
"""

from __future__ import annotations

from collections.abc import Collection
from importlib import import_module
from typing import Final, Protocol

from msgspec.structs import replace

from apex_creds import extensions
from apex_creds.audit.events import EventKind
from apex_creds.errors import InvalidInputError
from apex_creds.model import (
    DYNAMIC,
    SECTIONS,
    CredentialInfo,
    CredentialKind,
    Rotation,
    RotationStage,
)
from apex_creds.policy.display import operator_command
from apex_creds.rotators import openbao_database
from apex_creds.rotators.protocol import Rotator
from apex_creds.rotators.values import forget_others
from apex_creds.vault import Vault, credential_writes

BUILT_IN: Final = {
    "aws-access-key": "apex_creds.rotators.aws_access_key",
    "github-app": "apex_creds.rotators.github_app",
    "openbao-approle": "apex_creds.rotators.openbao_approle",
    "postgres-role": "apex_creds.rotators.postgres_role",
    "redis-acl": "apex_creds.rotators.redis_acl",
}
_BETWEEN: Final = (RotationStage.IDLE, RotationStage.NEEDS_PERSON)


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


async def configure(
    vault: Vault,
    name: str,
    *,
    uri: str | None = None,
    interval: float | None = None,
    cron: str | None = None,
    grace: float | None = None,
    principal: str = "",
) -> CredentialInfo:
    """Says how a credential is replaced at its provider; None leaves it as it is.

    Args:
        vault: Unsealed.
        name: The credential's.
        uri: Of the rotator; empty: it is not replaced there any more, and values that a
            rotation has left are deleted.
        interval: Seconds from one rotation to the next; 0: no interval.
        cron: Five fields, UTC; empty: none.
        grace: Seconds that a replaced value stays valid.
        principal: Whose it is; empty: the shared one.

    Raises:
        CredentialNotFoundError: There is none of that name.
        InvalidInputError: The rotator can't rotate it, or a rotation is under way.
    """
    info = await vault.get(name, principal=principal)
    before = info.rotation
    if before is not None and before.stage not in _BETWEEN:
        raise InvalidInputError(
            "A rotation of this credential is under way.",
            hint="Let it end first: "
            + operator_command("rotate credential", name, principal=principal),
        )
    made: Rotation | None = None
    if uri != "":
        if before is None and uri is None:
            raise InvalidInputError(
                "Nothing replaces this credential at its provider.", hint="Say --rotator URI."
            )
        old = before or Rotation(rotator="", since=info.version, changed=info.updated)
        made = replace(
            old,
            rotator=uri or old.rotator,
            interval=old.interval if interval is None else interval or None,
            cron=old.cron if cron is None else cron,
            grace=old.grace if grace is None else grace,
            refusals=0 if uri else old.refusals,
        )
        _check_kind(info, made)
    elif before is not None:
        info = await forget_others(vault, info)
        before = info.rotation
    changes = credential_writes.Edit(
        rotation=made, no_rotation=made is None, replaces=info.version, rotates=before
    )
    vault.record(EventKind.PUT, credential=info.key, detail=str(changes))
    return await credential_writes.edit(
        vault.store, SECTIONS[info.kind], info.key, changes, clock=vault.clock
    )


def _check_kind(info: CredentialInfo, made: Rotation) -> None:
    kinds: Collection[CredentialKind] = (CredentialKind.BASIC,)
    if made.dynamic:
        openbao_database.from_uri(made.rotator)
    else:
        kinds = rotator_from_uri(made.rotator).kinds
    if info.kind not in kinds or info.connection is not None:
        raise InvalidInputError(
            f"This rotator can't replace a credential of kind {info.kind}.",
            hint=f"It is for {', '.join(sorted(kinds))}.",
        )
