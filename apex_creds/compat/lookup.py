"""From a service and a kind, as the old managers had them, to a credential.

Guarantee: what migration or ``set_…`` stored for a service is found for that service; a
credential that was stored under another name is found by its service: the manager's own keys
the first one first, others the newest first.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from apex_creds.errors import CorruptDocumentError
from apex_creds.migration.entries import (
    FIELDS,
    alternative_name,
    credential_name,
    plain_fields,
    token_fields,
)
from apex_creds.model import CredentialInfo, CredentialKind
from apex_creds.vault import Opened


def names_for(service: str, kind: CredentialKind) -> tuple[str, str]:
    """The names that a service's credential may have, the first one first."""
    name = credential_name(service)
    return name, alternative_name(name, kind)


def find_info(
    infos: Iterable[CredentialInfo], service: str, kind: CredentialKind
) -> CredentialInfo | None:
    """A service's credential of a kind, whatever its name is."""
    found = [info for info in infos if info.kind is kind]
    named = named_info(found, service, kind)
    if named is not None:
        return named
    wanted = credential_name(service)
    of_service = [info for info in found if info.service == wanted]
    added = [info for info in of_service if info.name.startswith(f"{wanted}/")]
    if added:  # the manager's own, which went by the order in which they came
        return min(added, key=lambda info: (info.created, info.name))
    return max(of_service, key=lambda info: (info.updated, info.name), default=None)


def named_info(
    infos: Iterable[CredentialInfo], service: str, kind: CredentialKind
) -> CredentialInfo | None:
    """The credential of a kind that has one of a service's own names."""
    by_name = {info.name: info for info in infos if info.kind is kind}
    found = (by_name.get(name) for name in names_for(service, kind))
    return next((info for info in found if info is not None), None)


def free_name(infos: Iterable[CredentialInfo], service: str, kind: CredentialKind) -> str:
    """A name for a new credential of a service."""
    first, second = names_for(service, kind)
    return second if first in {info.name for info in infos} else first


def text_of(opened: Opened) -> str:
    """An API key."""
    return bytes(opened.view()).decode()


def token_of(opened: Opened, info: CredentialInfo | None) -> dict[str, object]:
    """A token as the old managers had it; the very mapping, if they stored it.

    Raises:
        CorruptDocumentError: What was kept beside the token is not what was stored.
    """
    access = bytes(opened.view("access")).decode()
    refresh = bytes(opened.view("refresh")).decode() if "refresh" in opened.names else ""
    if FIELDS in opened.names:
        return _from_fields(bytes(opened.view(FIELDS)), access, refresh)
    return plain_fields(
        access=access,
        refresh=refresh,
        expires=info.expires if info else None,
        token_type=(info.token_type if info else "") or "Bearer",
        scope=info.scope if info else "",
    )


def _from_fields(data: bytes, access: str, refresh: str) -> dict[str, object]:
    try:
        return token_fields(data, access=access, refresh=refresh)
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError, TypeError):
        failure = CorruptDocumentError(
            "The fields of the token are malformed.", hint="Store it again."
        )
    raise failure
