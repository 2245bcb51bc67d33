"""Test vectors as flat files, one case each, that any language reads in ten lines.

A file is ``name: value`` lines in UTF-8 (bytes in hexadecimal), of which the first is
``expect:``, ``success`` or the error that a reader must give. After an empty line there may be
more: the text itself, or files, each after a line ``-- NAME --``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

FOLDER = Path(__file__).parent


def text_of(expect: str, fields: Mapping[str, object], more: str = "") -> str:
    """The file of one case."""
    lines = [f"expect: {expect}", *(f"{name}: {_shown(at)}" for name, at in fields.items())]
    return "\n".join(lines) + "\n" + ("\n" + more if more else "")


def _shown(value: object) -> str:
    return value.hex() if isinstance(value, bytes) else str(value)


def write(folder: str, cases: Mapping[str, str]) -> None:
    """Makes ``tests/vectors/FOLDER`` hold these files, and no other."""
    (FOLDER / folder).mkdir(exist_ok=True)
    for path in (FOLDER / folder).iterdir():
        path.unlink()
    for name, text in cases.items():
        (FOLDER / folder / file_name(name)).write_text(text, encoding="utf-8")


def file_name(name: str) -> str:
    """A case's name as one of a file."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") + ".txt"


def load(folder: str) -> dict[str, str]:
    """Every file of a folder."""
    paths = sorted((FOLDER / folder).iterdir())
    return {path.name: path.read_text(encoding="utf-8") for path in paths}


def parse(text: str) -> tuple[dict[str, str], str]:
    """The fields of a file, and what comes after them."""
    head, _, more = text.partition("\n\n")
    pairs = (
        line.split(": ", 1) if ": " in line else (line.rstrip(":"), "")
        for line in head.splitlines()
    )
    return dict(pairs), more
