"""May this plugin have a lease on that credential? Pure, total, default deny.

Guarantee: ``decide`` never raises, reads nothing but its arguments, and the permission
that it returns is never wider than the manifest, the grant or the credential alone.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

import msgspec

from apex_creds.model import CredentialInfo, Origin
from apex_creds.policy.grants import Grant
from apex_creds.policy.manifest import Access, Need


class Reason(StrEnum):
    """Why a decision is as it is; for the audit log and operators, never for plugins."""

    GRANTED = "granted"
    UNDECLARED = "undeclared"
    NOT_GRANTED = "not_granted"
    UNKNOWN_CREDENTIAL = "unknown_credential"
    GRANT_EXPIRED = "grant_expired"
    CREDENTIAL_EXPIRED = "credential_expired"
    SCOPE_NOT_GRANTED = "scope_not_granted"
    ORIGIN_NOT_ALLOWED = "origin_not_allowed"
    REVEAL_NOT_GRANTED = "reveal_not_granted"
    REQUEST_NOT_ALLOWED = "request_not_allowed"
    FOREIGN_HANDLE = "foreign_handle"


class Permission(msgspec.Struct, frozen=True, kw_only=True):
    """What a lease may do. Empty ``methods`` or ``paths``: all; empty ``origins``: none.

    Attributes:
        until: Unix seconds when grant or credential ends; None: neither does.
    """

    scopes: tuple[str, ...] = ()
    origins: frozenset[Origin] = frozenset()
    methods: frozenset[str] = frozenset()
    paths: tuple[str, ...] = ()
    reveal: bool = False
    until: float | None = None

    def allows_request(self, *, origin: Origin, method: str, path: str) -> bool:
        """Whether a request may carry the secret."""
        return (
            origin in self.origins
            and (not self.methods or method in self.methods)
            and self.allows_path(path)
        )

    def allows_path(self, path: str) -> bool:
        """Whether ``path`` (raw, as it will be sent, without query) matches ``paths``."""
        if not self.paths:
            return True
        return _unambiguous(path) and any(_matches(path, pattern) for pattern in self.paths)


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """Allowed with a permission, or denied; and why."""

    reason: Reason
    permission: Permission | None = None

    @property
    def allowed(self) -> bool:
        """Whether there is a permission."""
        return self.permission is not None


_DENIED: Final = {
    reason: Decision(reason=reason) for reason in Reason if reason is not Reason.GRANTED
}


def decide(
    *, need: Need | None, grant: Grant | None, info: CredentialInfo | None, now: float
) -> Decision:
    """Decides on a lease.

    Args:
        need: What the manifest declares; None when it does not.
        grant: The grant for plugin and credential; None when there is none.
        info: The credential; None when it does not exist.
        now: Unix seconds.
    """
    if need is None:
        return _DENIED[Reason.UNDECLARED]
    if info is None:
        return _DENIED[Reason.UNKNOWN_CREDENTIAL]
    if grant is None:
        return _DENIED[Reason.NOT_GRANTED]
    if _over(grant.until, now):
        return _DENIED[Reason.GRANT_EXPIRED]
    if _over(info.expires, now):
        return _DENIED[Reason.CREDENTIAL_EXPIRED]
    if not set(need.scopes) <= set(grant.scopes):
        return _DENIED[Reason.SCOPE_NOT_GRANTED]
    if need.origins and not set(need.origins) <= set(info.origins):
        return _DENIED[Reason.ORIGIN_NOT_ALLOWED]
    return Decision(reason=Reason.GRANTED, permission=_permission(need, grant, info))


def _permission(need: Need, grant: Grant, info: CredentialInfo) -> Permission:
    ends = [end for end in (grant.until, info.expires) if end is not None]
    return Permission(
        scopes=need.scopes,
        origins=frozenset(need.origins or info.origins),
        methods=frozenset(need.methods),
        paths=need.paths,
        reveal=grant.reveal and need.access is Access.REVEAL,
        until=min(ends, default=None),
    )


def _over(end: float | None, now: float) -> bool:
    return end is not None and now >= end


def _unambiguous(path: str) -> bool:
    """False for spellings that a server may read as another path than the pattern did."""
    lowered = path.lower()
    tricky = ("%25", "%2e", "%2f", "%5c", "%00", "\\", "//", ";")
    if any(part in lowered for part in tricky):
        return False
    return not {".", ".."} & set(path.split("/"))


def _matches(path: str, pattern: str) -> bool:
    if pattern.endswith("*"):
        return path.startswith(pattern[:-1])
    return path == pattern
