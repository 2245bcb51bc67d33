"""Whether the files and directories of the vault are ours alone."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from apex_creds.cli.doctor.checks import Check, failed, failure, ok, warning
from apex_creds.errors import StorageError
from apex_creds.fs.home import AUDIT, CREDENTIALS, SECURITY
from apex_creds.fs.private_files import check
from apex_creds.vault.partial import left_copies
from apex_creds.vault.remains import ASIDE

_NAME = "permissions"


def permissions(home: Path) -> Iterator[Check]:
    """One line for each thing that is wrong, or one that nothing is."""
    seen, wrong = 0, []
    try:
        for path in _entries(home):
            seen += 1
            found = _look(path, outer=path == home)
            if found is not None:
                wrong.append(found)
    except OSError as error:
        wrong.append(
            failure(_NAME, f"{error.filename}: {error.strerror}", "Look who changed it.")
        )
    if wrong:
        yield from wrong
    else:
        yield ok(_NAME, f"{seen} files and directories, all closed to others")


def leftovers(home: Path) -> Check:
    """Whether an interrupted backup left a copy in the home or beside it."""
    name, left = "copies", [*left_copies(home), *left_copies(home.parent)]
    aside = []
    with suppress(OSError):
        aside = sorted(each for each in os.listdir(home) if each.startswith(f"{ASIDE}-"))
    if left:
        return warning(
            name,
            f"left unfinished: {', '.join(map(str, left))}",
            "Remove them; the next backup to the same directory does, too.",
        )
    if aside:
        return ok(name, f"a restore kept what was there before: {', '.join(aside)}")
    return ok(name, "no unfinished one here or beside the vault")


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


def _look(path: Path, *, outer: bool) -> Check | None:
    try:
        status = os.lstat(path)
        check(path, status, directory=_is_folder(path, status), outer=outer)
    except StorageError as error:
        return failed(_NAME, error)
    except OSError as error:
        return failure(_NAME, f"{path}: {error.strerror}", "Look who changed it.")
    return None


def _is_folder(path: Path, status: os.stat_result) -> bool:
    return stat.S_ISDIR(status.st_mode) or path.name in (SECURITY, CREDENTIALS, AUDIT)
