"""Where in a TOML text its tables and keys stand, since ``tomllib`` does not say.

Guarantee: never raises; for a text that ``tomllib`` accepts, a header or key is found on
the line that it is on, also behind multi-line strings and arrays.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

_TOKEN: Final = re.compile(
    r'(?P<text>"""(?:[^\\]|\\.)*?"{3,5}|\'\'\'.*?\'{3,5}|"(?:[^"\\\n]|\\.)*"|\'[^\'\n]*\')'
    r"|(?P<comment>\#[^\n]*)|(?P<open>[\[{])|(?P<close>[\]}])|(?P<newline>\n)",
    re.DOTALL,
)
_HEADER: Final = re.compile(r"\s*(\[\[?)([^\[\]]*)\]\]?")
_KEY: Final = re.compile(r"\s*([^=\n#]*?)\s*=")

Path = tuple[str | int, ...]


def lines_of(text: str) -> dict[Path, int]:
    """The line, from 1, of each table and key: ``("rules", 2, "plugin")``.

    Inline tables and arrays are found by their key's line.
    """
    found: dict[Path, int] = {}
    table: Path = ()
    counts: dict[Path, int] = {}
    for number, line in _statements(text):
        header = _HEADER.match(line)
        if header is None:
            key = _KEY.match(line)
            if key is not None:
                found.setdefault((*table, *_parts(key[1])), number)
            continue
        table = _resolve(_parts(header[2]), counts, new=header[1] == "[[")
        found.setdefault(table, number)
    return found


def line_for(lines: dict[Path, int], path: Path) -> int:
    """The line of the innermost thing on ``path`` that has one; 0: there is none."""
    for length in range(len(path), 0, -1):
        if path[:length] in lines:
            return lines[path[:length]]
    return 0


def _statements(text: str) -> Iterator[tuple[int, str]]:
    """The lines that begin a header or a key, with their numbers."""
    depth, number, start, begun = 0, 1, 0, 1
    for token in _TOKEN.finditer(text):
        kind = token.lastgroup
        if kind == "open":
            depth += 1
        elif kind == "close":
            depth = max(depth - 1, 0)
        elif kind == "text":
            number += token[0].count("\n")
        elif kind == "newline":
            number += 1
            if depth == 0:
                yield begun, text[start : token.start()]
                start, begun = token.end(), number
    yield begun, text[start:]


def _parts(dotted: str) -> Path:
    return tuple(part.strip().strip("\"'") for part in dotted.split("."))


def _resolve(parts: Path, counts: dict[Path, int], *, new: bool) -> Path:
    """A header's path with the index of each array of tables that it goes through."""
    at: Path = ()
    for position, part in enumerate(parts):
        at = (*at, part)
        if new and position == len(parts) - 1:
            counts[at] = counts.get(at, -1) + 1
        if at in counts:
            at = (*at, counts[at])
    return at
