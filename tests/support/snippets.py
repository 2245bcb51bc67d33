"""Runs the fenced code blocks of a Markdown page, so that what the docs say is so.

What each kind of block does, in the order of the page, in one empty folder that is also
``HOME``:

* ``python``: a script of its own, warnings are errors.
* ``bash``: a script of its own under ``set -euo pipefail``.
* ``console``: lines that begin with ``$ `` are commands (``> `` goes on with one); the
  lines under a command, if any, are what it prints (``...`` stands for anything). A block
  without a ``$ `` is run as ``bash``.

A block of another language is only text. Two marks go on the line before a block:
``<!-- file: NAME -->`` writes the block to that file instead, and
``<!-- no-test: REASON -->`` skips it; a mark without a reason is an error.
"""

from __future__ import annotations

import doctest
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

_FENCE = re.compile(r"^(?P<indent> {0,3})```(?P<language>[\w+-]*)[^`]*$")
_MARK = re.compile(r"^\s*<!--\s*(?P<kind>no-test|file)\s*:?\s*(?P<text>.*?)\s*-->\s*$")
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_RUNNABLE = frozenset({"python", "bash", "console"})
_OUTPUT = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
_TIMEOUT = 120


class SnippetError(AssertionError):
    """A block that does not do what its page says."""


@dataclass(frozen=True, slots=True)
class Block:
    """One fenced block: where it begins, its language, its text, and the mark before it."""

    line: int
    language: str
    text: str
    mark: str = ""
    argument: str = ""


def blocks(page: str) -> list[Block]:
    """All fenced blocks of a page, in order.

    Raises:
        SnippetError: a fence is left open, or a mark has no reason or file name.
    """
    found: list[Block] = []
    lines = page.splitlines()
    number = 0
    while number < len(lines):
        fence = _FENCE.match(lines[number])
        if fence is None:
            number += 1
            continue
        end = _closing(lines, number)
        kind, argument = _mark_before(lines, number)
        inside = (line.removeprefix(fence["indent"]) for line in lines[number + 1 : end])
        text = "".join(f"{line}\n" for line in inside)
        found.append(Block(number + 1, fence["language"], text, kind, argument))
        number = end + 1
    return found


def local_links(page: str) -> list[str]:
    """The targets of a page's links to files beside it, without their ``#fragments``."""
    targets = (match.split("#")[0] for match in _LINK.findall(page))
    return [target for target in targets if target and "://" not in target]


def _closing(lines: list[str], start: int) -> int:
    for number in range(start + 1, len(lines)):
        if lines[number].strip() == "```":
            return number
    raise SnippetError(f"line {start + 1}: this block is never closed")


def _mark_before(lines: list[str], number: int) -> tuple[str, str]:
    above = next((line for line in reversed(lines[:number]) if line.strip()), "")
    mark = _MARK.match(above)
    if mark is None:
        return "", ""
    if not mark["text"]:
        raise SnippetError(f"line {number}: `{mark['kind']}` says no reason or name")
    return mark["kind"], mark["text"]


def run_page(page: str, home: Path, env: dict[str, str] | None = None) -> int:
    """Runs every block of a page in ``home``; returns how many were run.

    Raises:
        SnippetError: a block failed, or printed something else than the page says.
    """
    environment = {**_environment(home), **(env or {})}
    count = 0
    for block in blocks(page):
        if block.mark == "file":
            _write(home, block)
        elif block.language in _RUNNABLE and block.mark != "no-test":
            _run(block, home, environment)
            count += 1
    return count


def _environment(home: Path) -> dict[str, str]:
    return {
        "HOME": str(home),
        "LANG": "C.UTF-8",
        "NO_COLOR": "1",
        "COLUMNS": "100",
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
    }


def _write(home: Path, block: Block) -> None:
    path = (home / block.argument).resolve()
    if not path.is_relative_to(home.resolve()):
        raise SnippetError(f"line {block.line}: a file outside of the page's folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(block.text, encoding="utf-8")


def _run(block: Block, home: Path, env: dict[str, str]) -> None:
    if block.language == "python":
        _execute(block, [sys.executable, "-W", "error", "-c", block.text], home, env)
    elif block.language == "bash" or "\n$ " not in f"\n{block.text}":
        _execute(block, _bash(block.text), home, env)
    else:
        _run_console(block, home, env)


def _bash(script: str) -> list[str]:
    return ["bash", "-euo", "pipefail", "-c", script]


def _run_console(block: Block, home: Path, env: dict[str, str]) -> None:
    checker = doctest.OutputChecker()
    for command, expected in commands(block.text):
        printed = _execute(block, _bash(command), home, env)
        if expected and not checker.check_output(expected, printed, _OUTPUT):
            raise SnippetError(
                f"line {block.line}: $ {command}\nthe page says:\n{expected}\nbut:\n{printed}"
            )


def commands(text: str) -> list[tuple[str, str]]:
    """The commands of a console block, each with the output that the page shows for it."""
    found: list[tuple[str, str]] = []
    for line in text.splitlines():
        if line.startswith("$ "):
            found.append((line[2:], ""))
        elif found and line.startswith("> ") and not found[-1][1]:
            found[-1] = (f"{found[-1][0]}\n{line[2:]}", "")
        elif found:
            found[-1] = (found[-1][0], f"{found[-1][1]}{line}\n")
    return found


def _execute(block: Block, argv: list[str], home: Path, env: dict[str, str]) -> str:
    done = subprocess.run(
        argv,
        cwd=home,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=_TIMEOUT,
        check=False,
    )
    if done.returncode != 0:
        raise SnippetError(
            f"line {block.line}: this block ended with {done.returncode}:\n{block.text}\n"
            f"it printed:\n{done.stdout}"
        )
    return done.stdout
