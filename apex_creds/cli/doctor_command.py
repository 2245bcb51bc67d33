"""``doctor``: is everything around the vault as it should be, and if not, what to do.

Guarantee: every check is made, whatever the others found; nothing is changed.
"""

from __future__ import annotations

import os
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

import anyio

from apex_creds.admin.archive import left_copies
from apex_creds.audit import check, read
from apex_creds.cli import app
from apex_creds.cli.command import Settings, command, find_provider, master_uri, read_header
from apex_creds.cli.console import Cell, Line, Report, Rows
from apex_creds.crypto.memory import SecretBytes, arena
from apex_creds.crypto.sodium import library_versions
from apex_creds.documents.keystore import root_header
from apex_creds.errors import ApexCredsError, IsolationUnavailableError, StorageError
from apex_creds.fs import private_files
from apex_creds.fs.home import AUDIT, CREDENTIALS, SECURITY, audit_directory
from apex_creds.isolation import control_groups, sandbox
from apex_creds.keys import KeyState, MasterKeyProvider
from apex_creds.keys.os_keyring import KeyringProvider
from apex_creds.model import SECTION_NAMES
from apex_creds.policy.display import show_time
from apex_creds.scheduler.schedule import Level
from apex_creds.scheduler.status import Undone, undone
from apex_creds.scheduler.worker import RotationWorker
from apex_creds.vault import Vault
from apex_creds.vault.config import log_id
from apex_creds.vault.unfinished import ASIDE

_TOLERANCE: Final = 2.0
_EARLIEST: Final = 1_735_689_600.0  # 2025-01-01: before there was anything of this to run


class State(StrEnum):
    """How a check ended."""

    OK = "ok"
    WARNING = "warning"
    FAILURE = "failure"


_STYLE: Final = {State.OK: "green", State.WARNING: "yellow", State.FAILURE: "bold red"}


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the doctor's.

    Attributes:
        name: What was examined.
        detail: What was found.
        fix: What to do; empty where nothing is needed.
    """

    name: str
    state: State
    detail: str
    fix: str = ""


def _ok(name: str, detail: str) -> Check:
    return Check(name, State.OK, detail)


def _warning(name: str, detail: str, fix: str) -> Check:
    """It works, with less protection than there could be."""
    return Check(name, State.WARNING, detail, fix)


def _failure(name: str, detail: str, fix: str) -> Check:
    """It does not work, or is not safe."""
    return Check(name, State.FAILURE, detail, fix)


def _failed(name: str, error: ApexCredsError) -> Check:
    return _failure(name, error.message, error.hint)


@command()
def doctor(chosen: Settings) -> Report:
    """Check the keyring, the files, the memory, the clock, the log; say what to fix.

    Ends with 1 if anything is a failure; warnings alone end with 0.
    """
    home, found = chosen.folder, list[Check]()
    header, latest = None, 0.0
    try:
        header = read_header(chosen)
    except ApexCredsError as error:
        found.append(_failed("vault", error))
    if header is not None or home.exists():
        found += [*_permissions(home), _copies(home)]
    uri = chosen.master or (root_header(header).master.uri if header else "keyring:")
    try:
        found.append(_ok("keyring", anyio.run(KeyringProvider().backend_name)))
    except ApexCredsError as error:
        unneeded = _ok("keyring", "none that is safe to use; this vault does not need one")
        found.append(_failed("keyring", error) if uri.startswith("keyring:") else unneeded)
    if header is not None:
        try:
            provider = find_provider(master_uri(chosen, header))
            found += anyio.run(_opened, home, provider)
        except ApexCredsError as error:
            found.append(_failed("vault", error))
        chain, latest = _audit_chain(home, header.vault_id)
        found.append(chain)
        latest = max(latest, header.written)
    found += _machine(latest)
    rows = [(one.name, Cell(one.state, _STYLE[one.state]), one.detail) for one in found]
    return Report(
        [{**asdict(one), "state": one.state.value} for one in found],
        Rows(("check", "state", "found"), rows),
        *(Line(f"{one.name}: {one.fix}", _STYLE[one.state]) for one in found if one.fix),
        code=int(any(one.state is State.FAILURE for one in found)),
    )


# -- files ---------------------------------------------------------------------------------


def _permissions(home: Path) -> Iterator[Check]:
    """One line for each thing that is wrong, or one that nothing is."""
    name, fix = "permissions", "Look who changed it."
    seen, wrong = 0, []
    try:
        for path in _entries(home):
            seen += 1
            try:
                status = os.lstat(path)
                named = path.name in (SECURITY, CREDENTIALS, AUDIT)
                folder = named or stat.S_ISDIR(status.st_mode)
                private_files.check(path, status, directory=folder, outer=path == home)
            except StorageError as error:
                wrong.append(_failed(name, error))
            except OSError as error:
                wrong.append(_failure(name, f"{path}: {error.strerror}", fix))
    except OSError as error:
        wrong.append(_failure(name, f"{error.filename}: {error.strerror}", fix))
    if wrong:
        yield from wrong
    else:
        yield _ok(name, f"{seen} files and directories, all closed to others")


def _copies(home: Path) -> Check:
    """Whether an interrupted backup left a copy in the home or beside it."""
    name, left, aside = "copies", [*left_copies(home), *left_copies(home.parent)], list[str]()
    with suppress(OSError):
        aside = sorted(each for each in os.listdir(home) if each.startswith(f"{ASIDE}-"))
    if left:
        return _warning(
            name,
            f"left unfinished: {', '.join(map(str, left))}",
            "Remove them; the next backup to the same directory does, too.",
        )
    if aside:
        return _ok(name, f"a restore kept what was there before: {', '.join(aside)}")
    return _ok(name, "no unfinished one here or beside the vault")


def _entries(home: Path) -> Iterator[Path]:
    """The home, its directories, and what lies in them."""
    yield home
    for folder in (home / SECURITY, home / SECURITY / AUDIT, home / CREDENTIALS):
        if not os.path.lexists(folder):
            continue
        if folder.name != AUDIT:
            yield folder
        if not folder.is_symlink() and folder.is_dir():
            yield from sorted(folder.iterdir())


# -- the vault -----------------------------------------------------------------------------


async def _opened(home: Path, provider: MasterKeyProvider) -> list[Check]:
    """Unseals the vault, reads every document, and searches for interrupted work."""
    async with await Vault.unseal(home, master=provider) as vault:
        listed = await vault.list()
        found = await undone(RotationWorker(vault).engine)  # which reads the others
        used = {(await vault.find(info.name, principal=info.principal)).key for info in listed}
        # The store below the vault: nothing above it lists keysets, and nobody else needs to.
        keystore = await vault._store.keystore()
    # A retired key is on its way out: a rotation left it, and it is destroyed after its grace.
    left = {
        keyset.label.partition("/")[2]
        for keyset in keystore.body.deks
        if keyset.label.partition("/")[0] in SECTION_NAMES
        for version in keyset.versions
        if version.state is KeyState.ACTIVE
        and (bytes.fromhex(keyset.id), version.version) not in used
    }
    deletions = _ok("deletions", "none was interrupted")
    if left:
        deletions = _warning(
            "deletions",
            "one (or a rotation) was interrupted before its old key was left; service: "
            f"{', '.join(sorted(left))}",
            "Store a credential with that --service and delete it: this destroys the key.",
        )
    opened = _ok("vault", f"opens; {len(listed)} credentials, every document verifies")
    return [opened, deletions, rotation_check(found)]


def rotation_check(found: Undone) -> Check:
    """Whether keys are due and nobody renews them."""
    name, waiting = "rotation", []
    if found.levels:
        waiting.append(f"keys are due: {_names(found.levels)}")
    elif found.steps:
        waiting.append("a rotation is not at its end")
    if found.events:
        waiting.append(f"{found.events} events wait")
    due = ", ".join(waiting)
    if found.waits:
        seen = "no worker runs" if found.worker is False else "no worker was seen"
        now = f", or for once: {_commands(found.levels)}" if found.levels else ""
        fix = f"Have one run always: apex-creds worker{now}"
        return _warning(name, f"{due}, and {seen}", fix)
    if found.ahead:
        return _warning(
            name,
            f"keys were made while the clock was ahead: {_names(found.ahead)}",
            f"They rotate late by as much. Renew them: {_commands(found.ahead)}",
        )
    if found.steps or found.events:
        return _ok(name, f"{due}; a worker is at it")
    return _ok(name, "nothing is due")


def _names(levels: tuple[Level, ...]) -> str:
    return ", ".join(level.value for level in levels)


def _commands(levels: tuple[Level, ...]) -> str:
    return "; ".join(f"apex-creds rotate {level.value}" for level in levels)


def _audit_chain(home: Path, vault_id: str) -> tuple[Check, float]:
    """Whether the log verifies; and the time of its last event, 0 if that can't be had."""
    name = "audit chain"
    directory, log = audit_directory(home), log_id(home, vault_id)
    try:
        report = check(directory, vault_id=log)
    except ApexCredsError as error:
        return _failed(name, error), 0.0
    if not report.ok:
        broken = (
            f"line {report.bad_line} {report.how}; the {report.count} events before it verify"
        )
        fix = "Keep a copy of the log, find out who changed it, and restore it."
        return _failure(name, broken, fix), 0.0
    last = [event.time for event in read(directory, vault_id=log, after=report.count - 1)]
    return _ok(name, f"{report.count} events, unbroken"), last[-1] if last else 0.0


# -- the machine ---------------------------------------------------------------------------


def _machine(latest: float) -> Iterator[Check]:
    """Secrets in memory, core dumps, the libraries, and the clock.

    Args:
        latest: Unix seconds of the newest event or document; 0 when there is none.
    """
    name = "memory locking"
    with SecretBytes.random(32):
        locked = arena().locked
    try:
        import resource
    except ImportError:
        limit = ""
    else:
        soft = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
        limit = "" if soft < 0 else f" (limit {soft // 1024} KiB)"
    if locked:
        yield _ok(name, f"secrets are locked in memory{limit}")
    else:
        yield _warning(
            name,
            f"the system refuses to lock memory: secrets may be swapped to disk{limit}",
            "Raise the limit (ulimit -l, LimitMEMLOCK= of systemd), or encrypt the swap.",
        )

    name = "core dumps"
    if app.hardening is None:
        yield _warning(
            name,
            "this process was not hardened",
            "Run the apex-creds program; the middleware does it for a runtime.",
        )
    elif app.hardening.no_core_files and (app.hardening.undumpable or sys.platform != "linux"):
        yield _ok(name, "off for this program, and for runtimes that use the middleware")
    else:
        yield _warning(
            name,
            "this system does not let a program switch them off",
            "Set ulimit -c 0 where the runtime is started.",
        )

    yield _wall()

    libraries = ", ".join(
        f"{library} {number}" for library, number in library_versions().items()
    )
    yield _ok("cryptography", libraries)  # SECURITY.md says when to update them

    name, now = "clock", time.time()
    fix = "Set the clock (timedatectl set-ntp true): expiry and the log depend on it."
    if now < _EARLIEST:
        yield _failure(name, f"it says {show_time(now)}", fix)
    elif now + _TOLERANCE < latest:
        yield _failure(name, f"it is {latest - now:.0f} s behind the vault's last event", fix)
    else:
        yield _ok(name, f"{show_time(now)}, not before anything that the vault has seen")


def _wall() -> Check:
    """Whether plugins can run isolated here; there is one wall, and no weaker one."""
    name = "isolation"
    try:
        program = sandbox.bubblewrap()
    except IsolationUnavailableError as error:
        return _warning(name, f"none: {error.message}", error.hint)
    works = f"{program} with namespaces and a filter of system calls works"
    if control_groups.is_needed() and control_groups.parent() is None:
        works += ", but nothing counts the processes behind it: this is root"
        fix = "Run as an ordinary user, or give root a control group that it can write."
        return _warning(name, works, fix)
    return _ok(name, works)
