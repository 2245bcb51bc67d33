"""May this plugin have a lease on that credential? Pure, total, default deny.

Guarantee: ``decide`` never raises, reads nothing but its arguments, and the permission
that it returns is never wider than the manifest or the credential alone, nor than what a
grant or a rule of the operator's allows. Undeclared is always denied; a rule or a grant
that says no is stronger than any that says yes.
"""

from __future__ import annotations

import re
import unicodedata
from enum import StrEnum
from typing import Final, NamedTuple
from urllib.parse import unquote_to_bytes

import msgspec

from apex_creds.model import ConnectionState, CredentialInfo, Origin
from apex_creds.policy.grants import Grant, GrantDecision
from apex_creds.policy.manifest import Access, Echoes, Need
from apex_creds.policy.rules import EACH_LEASE, NEVER, NO_POLICY, Policy, Ruling, Verdict

UNVERIFIED: Final = "unverified:"
"""Begins the checksum of code that is not what its metadata says."""

_MINUTE: Final = 60.0


class Reason(StrEnum):
    """Why a decision is as it is; for the audit log and operators, never for plugins."""

    GRANTED = "granted"
    POLICY_ALLOWED = "policy_allowed"
    POLICY_DENIED = "policy_denied"
    GRANT_DENIED = "grant_denied"
    SECOND_FACTOR_NEEDED = "second_factor_needed"
    MANIFEST_CHANGED = "manifest_changed"
    CHECKSUM_MISMATCH = "checksum_mismatch"
    CHALLENGE_NEEDED = "challenge_needed"
    LOCKED_DOWN = "locked_down"
    RATE_LIMITED = "rate_limited"
    UNDECLARED = "undeclared"
    NOT_GRANTED = "not_granted"
    UNKNOWN_CREDENTIAL = "unknown_credential"
    GRANT_EXPIRED = "grant_expired"
    CREDENTIAL_EXPIRED = "credential_expired"
    NEEDS_RECONNECT = "needs_reconnect"
    NOT_REFRESHED = "not_refreshed"
    SHARED_NOT_ALLOWED = "shared_not_allowed"
    SCOPE_NOT_GRANTED = "scope_not_granted"
    ORIGIN_NOT_ALLOWED = "origin_not_allowed"
    REVEAL_NOT_GRANTED = "reveal_not_granted"
    SIGN_NOT_GRANTED = "sign_not_granted"
    REQUEST_NOT_ALLOWED = "request_not_allowed"
    FOREIGN_HANDLE = "foreign_handle"
    FOREIGN_PRINCIPAL = "foreign_principal"


REFUSALS: Final = frozenset(Reason) - {Reason.GRANTED, Reason.POLICY_ALLOWED}
"""The reasons of what was not allowed."""


class Outcome(StrEnum):
    """``ask``: a person (or a second factor) may still make it an ``allow``."""

    ALLOW = "allow"
    DENY = "deny"
    ASK = "ask"


class Identity(NamedTuple):
    """What a plugin is, as far as grants are bound to it; empty: not known."""

    manifest: str = ""
    checksum: str = ""


class Permission(msgspec.Struct, frozen=True, kw_only=True):
    """What a lease may do. Empty ``methods`` or ``paths``: all; empty ``origins``: none.

    Attributes:
        bodies: Methods whose requests may have a body, though most of them have none.
        echoes: Whether services may send the secret back to the plugin.
        until: Unix seconds when grant or credential ends; None: neither does.
        recheck: Unix seconds from when on it must be decided again, since a rule's hours or
            a second factor may be over; None: never.
        sign: Whether the secret may make signatures.
        inject: Whether it may be added to requests itself.
    """

    scopes: tuple[str, ...] = ()
    origins: frozenset[Origin] = frozenset()
    methods: frozenset[str] = frozenset()
    paths: tuple[str, ...] = ()
    bodies: tuple[str, ...] = ()
    reveal: bool = False
    echoes: bool = False
    until: float | None = None
    recheck: float | None = None
    sign: bool = False
    inject: bool = True

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
        return _unambiguous(path) and any(
            path.startswith(pattern[:-1]) if pattern.endswith("*") else path == pattern
            for pattern in self.paths
        )


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """Allowed with a permission, denied, or to be asked about; and why.

    Attributes:
        rule: Id of the rule (or ``levels.NAME``) that policy decided by; empty where it
            did not come to policy.
        line: Where that stands in the policy file; 0: nowhere.
        second_factor: Seconds for which a second factor is good here, ``EACH_LEASE`` or
            ``NEVER``: none is needed.
    """

    reason: Reason
    permission: Permission | None = None
    outcome: Outcome = Outcome.DENY
    rule: str = ""
    line: int = 0
    second_factor: float = NEVER

    @property
    def allowed(self) -> bool:
        """Whether there is a permission."""
        return self.permission is not None


_DENIED: Final = {
    reason: Decision(reason=reason)
    for reason in (Reason.UNDECLARED, Reason.UNKNOWN_CREDENTIAL, Reason.FOREIGN_PRINCIPAL)
}


def decide(
    *,
    need: Need | None,
    grant: Grant | None,
    info: CredentialInfo | None,
    now: float,
    policy: Policy = NO_POLICY,
    plugin: str = "",
    action: str = "",
    factor: float | None = None,
    identity: Identity | None = None,
    principal: str = "",
) -> Decision:
    """Decides on a lease.

    What belongs to a principal is for calls for that one; the shared credential is for calls
    for nobody, and where a rule says so for those who have none of that name.

    Args:
        need: What the manifest declares; None when it does not.
        grant: The grant for plugin and credential; None when there is none.
        info: The credential; None when it does not exist.
        now: Unix seconds.
        policy: The operator's; without, a person decides on everything.
        plugin: Its id.
        action: What it is about to do.
        factor: When a second factor was last shown for this plugin and credential, Unix
            seconds. Where one is needed for each lease: only if it was for this one.
        identity: What the plugin is now; a grant that is bound to another is none.
        principal: Who the plugin is called for; empty: nobody.
    """
    if need is None:
        return _DENIED[Reason.UNDECLARED]
    if info is None:
        return _DENIED[Reason.UNKNOWN_CREDENTIAL]
    if info.principal and info.principal != principal:
        return _DENIED[Reason.FOREIGN_PRINCIPAL]
    ruling = policy.rule_on(
        plugin=plugin,
        action=action,
        credential=need.name,
        level=info.sensitivity,
        scopes=need.scopes,
        origins=need.origins or info.origins,
        now=now,
        principal=principal,
    )
    if principal and not (info.principal or ruling.shared):
        return _decision(Reason.SHARED_NOT_ALLOWED, Outcome.DENY, ruling)
    refused = _refused(need, grant, info, ruling, now)
    if refused is not None:
        return _decision(refused, Outcome.DENY, ruling)
    lack = _lack(need, grant, identity, now)
    # A rule that allows means the plugin that the operator knows.
    unsure = identity is not None and identity.checksum.startswith(UNVERIFIED)
    if lack is not None and (unsure or ruling.decision is Verdict.ASK):
        return _decision(lack, Outcome.ASK, ruling)
    if not _fresh(factor, ruling.second_factor, now):
        return _decision(Reason.SECOND_FACTOR_NEEDED, Outcome.ASK, ruling)
    recheck = (now // _MINUTE + 1) * _MINUTE if ruling.timed else None
    if factor is not None and EACH_LEASE < ruling.second_factor < NEVER:
        recheck = _earlier(recheck, factor + ruling.second_factor)
    covering = None if lack is not None else grant
    permission = _permission(need, covering, info, ruling, recheck)
    asked = ruling.decision is Verdict.ASK
    reason = Reason.GRANTED if asked else Reason.POLICY_ALLOWED
    return _decision(reason, Outcome.ALLOW, ruling, permission)


def _refused(
    need: Need, grant: Grant | None, info: CredentialInfo, ruling: Ruling, now: float
) -> Reason | None:
    """Why nobody can be asked about it."""
    denied = grant is not None and grant.decision is GrantDecision.DENY
    if grant is not None and denied and not _over(grant.until, now):
        return Reason.GRANT_DENIED
    if ruling.decision is Verdict.DENY:
        return Reason.POLICY_DENIED
    if _over(info.ends, now):
        return Reason.CREDENTIAL_EXPIRED
    if info.connection is not None and info.connection.state is ConnectionState.NEEDS_RECONNECT:
        return Reason.NEEDS_RECONNECT
    if need.origins and not set(need.origins) <= set(info.origins):
        return Reason.ORIGIN_NOT_ALLOWED
    return None


def _lack(
    need: Need, grant: Grant | None, identity: Identity | None, now: float
) -> Reason | None:
    """Why the grant does not do."""
    code = identity.checksum if identity is not None else ""
    if code.startswith(UNVERIFIED) and (grant is None or grant.checksum != code):
        return Reason.CHECKSUM_MISMATCH
    if grant is None:
        return Reason.NOT_GRANTED
    if _over(grant.until, now):
        return Reason.GRANT_EXPIRED
    if not set(need.scopes) <= set(grant.scopes):
        return Reason.SCOPE_NOT_GRANTED
    if identity is not None and not (
        grant.manifest in ("", identity.manifest) and grant.checksum in ("", identity.checksum)
    ):
        return Reason.MANIFEST_CHANGED
    return None


def _fresh(factor: float | None, good_for: float, now: float) -> bool:
    """Whether no second factor is needed, or the one that was shown is still good."""
    if good_for == NEVER:
        return True
    if factor is None or not factor <= now:
        return False
    return good_for == EACH_LEASE or now - factor < good_for


def _decision(
    reason: Reason, outcome: Outcome, ruling: Ruling, permission: Permission | None = None
) -> Decision:
    return Decision(
        reason=reason,
        permission=permission,
        outcome=outcome,
        rule=ruling.rule,
        line=ruling.line,
        second_factor=ruling.second_factor,
    )


def _permission(
    need: Need,
    grant: Grant | None,
    info: CredentialInfo,
    ruling: Ruling,
    recheck: float | None,
) -> Permission:
    allowed = ruling.decision is Verdict.ALLOW
    more, echoes = allowed and _gives(ruling, need.access), allowed and ruling.echoes
    # A grant that the permission does not rest on does not end it either.
    rests = None if allowed else grant
    if grant is not None:
        by_grant = _gives(grant, need.access)
        if (by_grant and not more) or (grant.echoes and not echoes):
            rests = grant
        more, echoes = more or by_grant, echoes or grant.echoes
    return Permission(
        scopes=need.scopes,
        origins=frozenset(need.origins or info.origins),
        methods=frozenset(need.methods),
        paths=need.paths,
        bodies=need.bodies,
        reveal=need.access is Access.REVEAL and more,
        sign=need.access is not Access.INJECT and more,
        inject=need.access is not Access.SIGN,
        echoes=need.echoes is Echoes.ALLOWED and echoes,
        until=_earlier(info.ends, rests.until if rests is not None else None),
        recheck=recheck,
    )


def _gives(source: Ruling | Grant, access: Access) -> bool:
    """Whether a rule or grant gives more than to have the secret added to requests."""
    return source.reveal or (source.sign and access is Access.SIGN)


# What is a separator, or an escape once more, to a server that decodes and folds a path.
_SEPARATING: Final = re.compile(
    r"[%;?#\\\x00-\x1f\x7f-\x9f\u2044\u2215\u2216\u29f5\u29f8\u29f9\u3033\u3035\ufffd]"
)
_ESCAPE: Final = re.compile(r"%(?![0-9a-f]{2})", re.IGNORECASE)


def _earlier(one: float | None, other: float | None) -> float | None:
    """The first of two ends; None is none."""
    if one is None or other is None:
        return other if one is None else one
    return min(one, other)


def _over(end: float | None, now: float) -> bool:
    return end is not None and not now < end


def _unambiguous(path: str) -> bool:
    """False for spellings that a server may read as another path than the pattern did.

    That is after it decoded the escapes, more than once perhaps, and folded characters that
    look alike (full-width dots and slashes).
    """
    if _ESCAPE.search(path):
        return False
    try:
        decoded = unquote_to_bytes(path).decode()
    except UnicodeDecodeError:  # overlong forms among them
        return False
    folded = unicodedata.normalize("NFKC", decoded)
    segments = folded.split("/")
    if len(segments) != path.count("/") + 1 or _SEPARATING.search(folded + decoded):
        return False
    for bare in map(str.strip, segments):  # one that moves through a path, or begins as one
        if bare.startswith("..") or (bare.startswith(".") and not any(map(str.isalnum, bare))):
            return False
    return all(segments[1:-1])  # the last one may be empty, and the first is
