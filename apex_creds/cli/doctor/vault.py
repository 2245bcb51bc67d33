"""Whether the vault opens, all of it, and what is left undone in it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from apex_creds.audit import Report, check, read
from apex_creds.cli.doctor.checks import Check, failed, failure, ok, warning
from apex_creds.errors import ApexCredsError
from apex_creds.keys import KeyState, MasterKeyProvider
from apex_creds.keys.os_keyring import KeyringProvider
from apex_creds.model import SECTIONS
from apex_creds.vault import Vault
from apex_creds.vault.home import audit_directory
from apex_creds.vault.node import log_id

_DELETIONS = "deletions"
_CHAIN = "audit chain"


async def keyring_backend(*, needed: bool) -> Check:
    """Which keyring backend there is, and whether it may be trusted with a key."""
    name = "keyring"
    try:
        return ok(name, await KeyringProvider().backend_name())
    except ApexCredsError as error:
        if needed:
            return failed(name, error)
        return ok(name, "none that is safe to use; this vault does not need one")


async def opens(home: Path, provider: MasterKeyProvider) -> Iterator[Check]:
    """Unseals the vault and reads every document."""
    try:
        vault = await Vault.unseal(home, master=provider)
    except ApexCredsError as error:
        return iter([failed("vault", error)])
    async with vault:
        try:
            count = len(await vault.list())
        except ApexCredsError as error:
            return iter([failed("vault", error)])
        opened = ok("vault", f"opens; {count} credentials, every document verifies")
        return iter([opened, await _deletions(vault)])


async def _deletions(vault: Vault) -> Check:
    """Keys that could still decrypt, but that no credential uses any more."""
    used = {(await vault.find(info.name)).key for info in await vault.list()}
    # The store below the vault: nothing above it lists keysets, and nobody else needs to.
    keystore = await vault._store.keystore()
    left = [
        keyset.label
        for keyset in keystore.body.deks
        if keyset.label.partition("/")[0] in SECTIONS.values()
        for version in keyset.versions
        if version.state in (KeyState.ACTIVE, KeyState.RETIRED)
        and (bytes.fromhex(keyset.id), version.version) not in used
    ]
    if not left:
        return ok(_DELETIONS, "none was interrupted")
    services = ", ".join(sorted({label.partition("/")[2] for label in left}))
    return warning(
        _DELETIONS,
        f"one was interrupted before its key was destroyed; service: {services}",
        "Store a credential with that --service and delete it: this destroys the key.",
    )


def audit_chain(home: Path, vault_id: str) -> tuple[Check, float]:
    """Whether the log verifies; and the time of its last event, 0 if that can't be had."""
    directory, vault_id = audit_directory(home), log_id(home, vault_id)
    try:
        report = check(directory, vault_id=vault_id)
    except ApexCredsError as error:
        return failed(_CHAIN, error), 0.0
    if not report.ok:
        return _broken(report), 0.0
    last = [event.time for event in read(directory, vault_id=vault_id, after=report.count - 1)]
    return ok(_CHAIN, f"{report.count} events, unbroken"), last[-1] if last else 0.0


def _broken(report: Report) -> Check:
    return failure(
        _CHAIN,
        f"line {report.bad_line} {report.how}; the {report.count} events before it verify",
        "Keep a copy of the log, find out who changed it, and restore it.",
    )
