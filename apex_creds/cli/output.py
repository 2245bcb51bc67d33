"""What the commands print: text, tables, JSON, errors.

Guarantee: no text from outside reaches the terminal with control characters, direction
marks, invisible characters or markup in it: every character that is not plainly seen is
shown as an escape, and nothing is read as rich markup. JSON goes out as ASCII,
for the same reason.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Final, TextIO, TypeAlias

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from apex_creds.policy.display import escaped

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_UNLIMITED: Final = 10_000

Json: TypeAlias = "str | int | float | bool | Sequence[Json] | Mapping[str, Json] | None"
"""What can be printed with ``--json``."""


def safe(text: object) -> str:
    """``text`` with every character that is not plainly seen as a Python escape."""
    return escaped(str(text))


def console(stream: TextIO | None = None) -> Console:
    """A console on a stream (standard output by default), resolved now.

    Where that is not a terminal, lines are never folded or cut.
    """
    stream = stream or sys.stdout
    width = None if stream.isatty() else _UNLIMITED
    return Console(file=stream, width=width, markup=False, highlight=False, emoji=False)


def say(text: str, *, style: str = "") -> None:
    """Prints a line."""
    console().print(Text(safe(text), style=style), soft_wrap=True)


def note(text: str, *, style: str = "yellow") -> None:
    """Prints a line on standard error."""
    console(sys.stderr).print(Text(safe(text), style=style), soft_wrap=True)


def fail(message: str, hint: str = "") -> None:
    """Prints an error and what to do about it on standard error."""
    out = console(sys.stderr)
    out.print(Text("error: ", style="bold red").append(safe(message), style="not bold default"))
    if hint:
        out.print(Text("hint: ", style="bold").append(safe(hint), style="not bold"))


def json_out(value: Json) -> None:
    """Prints a value as JSON."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=True) + "\n")


def json_line(value: Json) -> None:
    """Prints a value as JSON in one line."""
    sys.stdout.write(json.dumps(value, separators=(",", ":"), ensure_ascii=True) + "\n")


def cell(text: object, *, style: str = "") -> Text:
    """A table's cell."""
    return Text(safe(text), style=style)


def table(columns: Iterable[str], rows: Iterable[Sequence[object]]) -> None:
    """Prints a table; cells may be ``cell(…)`` or anything with a ``str``."""
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for name in columns:
        made.add_column(name, overflow="fold")
    for row in rows:
        made.add_row(*(item if isinstance(item, Text) else cell(item) for item in row))
    console().print(made)


def fields(rows: Iterable[tuple[str, object]]) -> None:
    """Prints names and values in two columns."""
    pairs = [(name, safe(value)) for name, value in rows]
    width = max((len(name) for name, _ in pairs), default=0)
    for name, value in pairs:
        line = Text(safe(name).ljust(width), style="bold").append(f"  {value}", "not bold")
        console().print(line, soft_wrap=True)


@contextmanager
def bars(
    *, least: int = 0, transient: bool = False
) -> Iterator[Callable[[str, int, int], None]]:
    """Progress bars on standard error, where that is a terminal; gives what moves them.

    Args:
        least: A total from which on there is a bar.
        transient: Nothing is left of them at the end.
    """
    tasks: dict[str, TaskID] = {}
    shown = sys.stderr.isatty()
    with ExitStack() as stack:
        progress: Progress | None = None

        def move(name: str, done: int, total: int) -> None:
            nonlocal progress
            if total < least or not shown:
                return
            progress = progress or stack.enter_context(_progress(transient=transient))
            if name not in tasks:
                tasks[name] = progress.add_task(safe(name))
            progress.update(tasks[name], total=total, completed=done)

        yield move


def _progress(*, transient: bool) -> Progress:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    return Progress(*columns, console=console(sys.stderr), transient=transient)
