"""Whether the vault opens, all of it, and what is left undone in it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from apex_creds.audit import Report, check, read
from apex_creds.cli.doctor.checks import Check, failed, failure, ok, warning
from apex_creds.errors import ApexCredsError
from apex_creds.fs.home import audit_directory
from apex_creds.keys import KeyState, MasterKeyProvider
from apex_creds.keys.os_keyring import KeyringProvider
from apex_creds.model import SECTIONS
from apex_creds.scheduler.policy import Level
from apex_creds.scheduler.report import Undone, undone
from apex_creds.scheduler.worker import RotationWorker
from apex_creds.vault import Vault
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
            found = await undone(RotationWorker(vault).engine)  # which reads the others
        except ApexCredsError as error:
            return iter([failed("vault", error)])
        opened = ok("vault", f"opens; {count} credentials, every document verifies")
        return iter([opened, await _deletions(vault), rotation(found)])


async def _deletions(vault: Vault) -> Check:
    """Keys that no credential uses any more, and that are not on their way out.

    A retired one is: a rotation left it, and it is destroyed after its grace.
    """
    used = {(await vault.find(info.name)).key for info in await vault.list()}
    # The store below the vault: nothing above it lists keysets, and nobody else needs to.
    keystore = await vault._store.keystore()
    left = [
        keyset.label
        for keyset in keystore.body.deks
        if keyset.label.partition("/")[0] in SECTIONS.values()
        for version in keyset.versions
        if version.state is KeyState.ACTIVE
        and (bytes.fromhex(keyset.id), version.version) not in used
    ]
    if not left:
        return ok(_DELETIONS, "none was interrupted")
    services = ", ".join(sorted({label.partition("/")[2] for label in left}))
    return warning(
        _DELETIONS,
        f"one (or a rotation) was interrupted before its old key was left; service: {services}",
        "Store a credential with that --service and delete it: this destroys the key.",
    )


def rotation(found: Undone) -> Check:
    """Whether keys are due and nobody renews them."""
    name = "rotation"
    if found.waits:
        seen = "no worker runs" if found.worker is False else "no worker was seen"
        return warning(name, f"{shown(found)}, and {seen}", _fix(found))
    if found.ahead:
        return warning(
            name,
            f"keys were made while the clock was ahead: {_names(found.ahead)}",
            f"They rotate late by as much. Renew them: {_commands(found.ahead)}",
        )
    if found.steps or found.events:
        return ok(name, f"{shown(found)}; a worker is at it")
    return ok(name, "nothing is due")


def shown(found: Undone) -> str:
    """What waits, in a few words."""
    parts = []
    if found.levels:
        parts.append(f"keys are due: {_names(found.levels)}")
    elif found.steps:
        parts.append("a rotation is not at its end")
    if found.events:
        parts.append(f"{found.events} events wait")
    return ", ".join(parts)


def _fix(found: Undone) -> str:
    now = f", or for once: {_commands(found.levels)}" if found.levels else ""
    return f"Have one run always: apex-creds worker{now}"


def _names(levels: tuple[Level, ...]) -> str:
    return ", ".join(level.value for level in levels)


def _commands(levels: tuple[Level, ...]) -> str:
    return "; ".join(f"apex-creds rotate {level.value}" for level in levels)


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
