"""Shares of the master key on a terminal: shown once, and typed back.

Guarantee: shares go to a terminal, one at a time, and are cleared from it; elsewhere only by
``--force``. They are read without echo, or from standard input; never from arguments or the
environment. Nothing here writes them to a file.
"""

from __future__ import annotations

import base64
import getpass
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from apex_creds.cli import output, prompts, qr
from apex_creds.crypto.memory import SecretBytes
from apex_creds.errors import InvalidInputError, StorageError
from apex_creds.fs.oserrors import translated
from apex_creds.fs.private_files import check, open_small, read_small
from apex_creds.keys.provider import decode_key
from apex_creds.keys.shares import MAX_SHARES, WORDS, Share, combine, parse_share

__all__ = ["armour", "ask", "read_private", "read_sealed", "show"]

_CLEAR: Final = "\x1b[2J\x1b[3J\x1b[H"
_COLUMNS: Final = 3
_LIMIT: Final = 64 * 1024
_ARMOUR: Final = "apex-creds-recovery-v1:"


def show(shares: Sequence[str], *, heading: str, with_qr: bool) -> None:
    """Shows shares one after the other; off a terminal, all of them, one a line."""
    for number, words in enumerate(shares, start=1):
        title = f"Share {number} of {len(shares)} {heading}"
        if not sys.stdout.isatty():
            sys.stdout.write(f"# {title}\n{words}\n")
            continue
        output.say(title, style="bold")
        _columns(words.split())
        if with_qr:
            qr.draw(words, sys.stdout)
        if sys.stdin.isatty():
            getpass.getpass("Write it down, then press Enter; it is not shown again: ")
            sys.stdout.write(_CLEAR)
            sys.stdout.flush()


def _columns(words: Sequence[str]) -> None:
    rows = -(-len(words) // _COLUMNS)
    numbered = [f"{number:2} {word:10}" for number, word in enumerate(words, start=1)]
    for row in range(rows):
        output.say("  " + "  ".join(numbered[row::rows]))


def ask() -> SecretBytes:
    """Asks for shares until there are enough, and combines them; the caller closes it.

    Raises:
        InvalidInputError: Standard input has not what it takes.
    """
    if not sys.stdin.isatty():
        return combine([parse_share(line) for line in _lines(prompts.read_input(_LIMIT))])
    found: dict[int, Share] = {}
    while not found or len(found) < next(iter(found.values())).threshold:
        share = _ask_one(len(found) + 1, next(iter(found.values()), None))
        found[share.index] = share
        output.note(f"{len(found)} of {share.threshold} shares")
    return combine(list(found.values()))


def _ask_one(number: int, first: Share | None) -> Share:
    """Asks again until it is a share, and one of the same set; Ctrl-C ends it."""
    while True:
        typed = getpass.getpass(f"Share {number}, {WORDS} words (not shown): ")
        try:
            share = parse_share(typed)
        except InvalidInputError as error:
            output.note(f"{error.message} {error.hint}")
            continue
        if first is None or share.set_id == first.set_id:
            return share
        output.note("That share is of another set than the first.")


def _lines(data: bytes) -> Iterable[str]:
    text = data.decode("utf-8", errors="replace")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    if not 1 <= len(lines) <= MAX_SHARES:
        raise InvalidInputError(
            "Standard input has no shares.", hint="One share a line; # begins a comment."
        )
    return lines


# -- sealed ------------------------------------------------------------------------------


def armour(sealed: bytes) -> str:
    """The text form of what was sealed to a public key."""
    return _ARMOUR + base64.b64encode(sealed).decode()


def read_sealed(file: Path) -> bytes:
    """Reads what ``armour`` made.

    Raises:
        InvalidInputError: The file can't be read, or is nothing of the kind.
    """
    try:
        found = read_small(file, limit=_LIMIT, follow=True).decode("ascii").strip()
        if found.startswith(_ARMOUR):
            return base64.b64decode(found.removeprefix(_ARMOUR), validate=True)
    except (OSError, ValueError, StorageError):
        pass
    raise InvalidInputError(
        f"{file} is nothing that recovery export --to wrote.", hint="Check its name."
    )


def read_private(file: Path) -> SecretBytes:
    """Reads a private key, from a file that nobody else can; the caller closes it.

    Raises:
        InvalidInputError: It is none.
        StorageError: It can't be read, or others can read it.
    """
    with (
        translated(file),
        open(open_small(file, limit=_LIMIT, follow=True), "rb", 0) as raw,
    ):
        check(file, os.fstat(raw.fileno()))
        key = decode_key((raw.read(_LIMIT) or b"").rstrip(b"\n"))
    if key is None:
        raise InvalidInputError(f"{file} holds no private key.", hint="Check its name.")
    return key
