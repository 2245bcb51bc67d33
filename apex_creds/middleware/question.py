"""The question that a person is asked before a lease is made.

Guarantee: pure; it says what the plugin asks for, and what is new in that. For a
credential that does not exist it takes as long, and looks to the plugin, like any other.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from apex_creds.leases.basis import resting
from apex_creds.model import CredentialInfo, CredentialKind, Delivery, DeliveryStyle
from apex_creds.policy.consent import ConsentRequest
from apex_creds.policy.decide import UNVERIFIED, Decision, Reason
from apex_creds.policy.decision_cache import added
from apex_creds.policy.grants import Grant, Grants
from apex_creds.policy.manifest import Access, Manifest, Need
from apex_creds.policy.rules import NEVER
from apex_creds.vault import Facts

__all__ = ["Wanted", "info_of", "request_for"]

_BEARER: Final = Delivery(DeliveryStyle.BEARER)


class Wanted(NamedTuple):
    """An invocation that is still to be made."""

    manifest: Manifest
    action: str


def info_of(need: Need, known: Facts) -> CredentialInfo:
    """The credential's; where there is none, that of one like most.

    So a plugin waits, or does not, for what does not exist as for what it is not granted:
    how long a refusal takes does not tell it which credentials there are.
    """
    if known.record is not None:
        return known.record.info
    return CredentialInfo(
        id="",
        name=need.name,
        service=need.name,
        kind=CredentialKind.API_KEY,
        version=0,
        delivery=_BEARER,
        origins=need.origins,
        created=0.0,
        updated=0.0,
    )


def request_for(wanted: Wanted, need: Need, known: Facts, decision: Decision) -> ConsentRequest:
    """What a person is asked, in full."""
    grants, info = known.grants, info_of(need, known)
    exists = known.record is not None
    manifest = wanted.manifest
    before, _ = resting(grants, manifest.plugin, need.name, None)
    return ConsentRequest(
        plugin=manifest.plugin,
        version=manifest.version,
        action=wanted.action,
        credential=need.name,
        level=info.sensitivity.value if exists else "",
        scopes=need.scopes,
        origins=tuple(map(str, need.origins or info.origins)),
        methods=need.methods,
        paths=need.paths,
        access=need.access,
        reason=need.reason,
        why=(decision.reason if exists else Reason.UNKNOWN_CREDENTIAL).value,
        before=_in_words(before),
        changes=_changes(manifest, need, before, grants),
        unverified=manifest.checksum.startswith(UNVERIFIED),
        second_factor=decision.second_factor < NEVER,
    )


def _in_words(grant: Grant | None) -> str:
    if grant is None:
        return ""
    access = "to read it" if grant.reveal else "to use it"
    scopes = f", scopes {', '.join(grant.scopes)}" if grant.scopes else ""
    until = f", until @{grant.until:.0f}" if grant.until is not None else ""
    return f"{access}{scopes}{until}"


def _changes(
    manifest: Manifest, need: Need, before: Grant | None, grants: Grants
) -> tuple[str, ...]:
    """What the plugin asks for beyond what the grant was given for; the weightiest first."""
    if before is None:
        return ()
    seen = grants.seen(before.manifest) if before.manifest else None
    if seen is not None:
        found = list(added(seen, tuple(sorted(manifest.needs, key=_weight))))
    else:
        new = [scope for scope in need.scopes if scope not in before.scopes]
        found = [f"{need.name}: scope {scope}" for scope in new]
    if before.checksum != manifest.checksum:
        found.insert(0, "its code is another than it was")
    return tuple(found)


def _weight(need: Need) -> tuple[bool, bool]:
    """Smaller for what would be read, then for what is required: a long list is cut."""
    return need.access is not Access.REVEAL, not need.required
