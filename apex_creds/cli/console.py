"""What the commands print and read: lines, tables, JSON, QR codes; secrets that are typed.

Guarantee: no text from outside reaches the terminal with control characters, direction
marks, invisible characters or markup in it: every character that is not plainly seen is
shown as an escape, and nothing is read as rich markup. JSON goes out as ASCII, for the same
reason. A secret is read only where nothing shows it; standard input is read up to the size
limit and no further.
"""

from __future__ import annotations

import getpass
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Final, NamedTuple, TextIO, TypeAlias

import typer

from apex_creds.errors import (
    ApexCredsError,
    InvalidInputError,
    NotInstalledError,
    ValueTooLargeError,
)
from apex_creds.model import (
    MAX_SECRET_BYTES,
    ApiKey,
    AwsKey,
    BasicAuth,
    CredentialKind,
    GenericSecret,
    OAuthToken,
    Secret,
)
from apex_creds.policy.display import escaped

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID
    from rich.text import Text as RichText

_UNLIMITED: Final = 10_000
_USUAL: Final = 80
_GAP: Final = 3
"""Characters between two columns, and one before the first."""
_HIDDEN: Final = " (not shown): "
_QUOTES: Final = frozenset(
    {
        *('""', "''", "``", "\xab\xbb"),
        *("\u201c\u201d", "\u201e\u201c", "\u2018\u2019", "\u201a\u2018"),
    }
)
"""What is at both ends of a text that is in quotation marks."""
_UNSEEN: Final = "The value has a character that can't be seen, or a line end."
_AROUND: Final = " \t\r\n\v\f\ufeff\u00a0\u200b"
"""White space, and the byte order mark that PowerShell writes to a pipe."""

Json: TypeAlias = "str | int | float | bool | Sequence[Json] | Mapping[str, Json] | None"
"""What can be printed with ``--json``."""


# -- what a command returns ----------------------------------------------------------------


class Line(NamedTuple):
    """A line on standard output."""

    text: str
    style: str = ""

    def show(self) -> None:
        """Prints it."""
        say(self.text, style=self.style)


class Note(NamedTuple):
    """A line on standard error."""

    text: str
    style: str = "yellow"

    def show(self) -> None:
        """Prints it."""
        note(self.text, style=self.style)


class Cell(NamedTuple):
    """What stands in a table, in a colour."""

    text: object
    style: str


class Rows(NamedTuple):
    """A table; a line in its place when it has no rows."""

    columns: Sequence[str]
    items: Sequence[Sequence[object]]
    empty: str = ""

    def show(self) -> None:
        """Prints it."""
        if self.empty and not self.items:
            say(self.empty)
        else:
            table(self.columns, self.items)


class Fields(NamedTuple):
    """Names and values in two columns."""

    items: Iterable[tuple[str, object]]

    def show(self) -> None:
        """Prints them."""
        fields(self.items)


Part: TypeAlias = "str | Line | Note | Rows | Fields"


class Text:
    """What a command prints.

    Args:
        parts: In this order; a plain string is a line.
        code: The exit code.
    """

    def __init__(self, *parts: Part, code: int = 0) -> None:
        self.parts, self.code = parts, code

    def show(self, *, as_json: bool) -> None:  # noqa: ARG002 - there is none
        """Prints it."""
        self._print(self.parts)

    def end(self) -> None:
        """Ends the command if it failed."""
        if self.code:
            raise typer.Exit(self.code)

    def _print(self, parts: Iterable[Part]) -> None:
        for part in parts:
            (Line(part) if isinstance(part, str) else part).show()


class Report(Text):
    """What a command prints, or its JSON with ``--json``.

    Args:
        data: For ``--json``.
        parts: Without it.
        notes: Either way, afterwards.
        error: Either way, at the end.
        code: The exit code.
    """

    def __init__(
        self,
        data: Json,
        *parts: Part,
        notes: Iterable[Note] = (),
        error: ApexCredsError | None = None,
        code: int = 0,
    ) -> None:
        super().__init__(*parts, code=code)
        self.data, self._notes, self._error = data, notes, error

    def show(self, *, as_json: bool) -> None:
        """Prints it."""
        if as_json:
            json_out(self.data)
        else:
            self._print(self.parts)
        self._print(self._notes)

    def end(self) -> None:
        """Ends the command if it failed."""
        if self._error is not None:
            raise self._error
        super().end()


def done(data: Json, text: str, *parts: Part, notes: Iterable[Note] = ()) -> Report:
    """What was done, in green, and more; ``data`` says it to a program."""
    return Report(data, Line(text, "green"), *parts, notes=notes)


# -- printing ------------------------------------------------------------------------------

as_json = False
"""Whether JSON was asked for: errors are JSON, too, and nothing else is on standard output."""


def for_people() -> TextIO:
    """Where what people read goes: standard output, if that is not for a program."""
    return sys.stderr if as_json else sys.stdout


def safe(text: object) -> str:
    """``text`` with every character that is not plainly seen, or not written here, escaped."""
    encoding = sys.stdout.encoding or "utf-8"
    return escaped(str(text)).encode(encoding, "backslashreplace").decode(encoding)


def terminal(stream: TextIO | None = None) -> Console:
    """A console on a stream (standard output by default), resolved now.

    Where that is not a terminal, lines are never folded or cut.
    """
    from rich.console import Console

    stream = stream or sys.stdout
    width = None if stream.isatty() else _UNLIMITED
    made = Console(file=stream, width=width, markup=False, highlight=False, emoji=False)
    if made.width < 1:  # COLUMNS=0: nothing at all would be shown
        made.width = _USUAL
    return made


def _styled(text: object, style: str = "") -> RichText:
    from rich.text import Text as RichText

    return RichText(safe(text), style=style)


def _line(stream: TextIO, *parts: tuple[str, str], fold: bool = False) -> None:
    """Prints a line of texts and their styles; rich is loaded where there are styles to see."""
    if stream.isatty() or "FORCE_COLOR" in os.environ:
        whole = _styled("")
        for text, style in parts:
            whole.append(safe(text), style=style)
        terminal(stream).print(whole, soft_wrap=not fold)
    else:
        stream.write("".join(safe(text) for text, _ in parts) + "\n")
        stream.flush()


def say(text: str, *, style: str = "") -> None:
    """Prints a line."""
    _line(for_people(), (text, style))


def note(text: str, *, style: str = "yellow") -> None:
    """Prints a line on standard error."""
    _line(sys.stderr, (text, style))


def fail(message: str, hint: str = "", *, kind: str, code: int) -> None:
    """Prints an error and what to do about it on standard error.

    Args:
        message: What happened.
        hint: What to do next.
        kind: The error's class, for programs.
        code: What the process ends with.
    """
    if as_json:
        what: dict[str, Json] = {"error": kind, "message": message, "hint": hint, "code": code}
        sys.stderr.write(json.dumps(what, ensure_ascii=True) + "\n")
        return
    _line(sys.stderr, ("error: ", "bold red"), (message, ""), fold=True)
    if hint:
        _line(sys.stderr, ("hint: ", "bold"), (hint, ""), fold=True)


def json_out(value: Json) -> None:
    """Prints a value as JSON."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=True) + "\n")


def json_line(value: Json) -> None:
    """Prints a value as JSON in one line."""
    sys.stdout.write(json.dumps(value, separators=(",", ":"), ensure_ascii=True) + "\n")


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Prints a table; its cells are a ``Cell``, or anything with a ``str``.

    On a terminal that is too narrow for it without breaking words, each row is a list of
    names and the values that there are.
    """
    from rich import box
    from rich.table import Table

    cells = [
        [item if isinstance(item, Cell) else Cell(item, "") for item in row] for row in rows
    ]
    console = terminal()
    texts = zip(columns, *([str(cell.text) for cell in row] for row in cells), strict=True)
    words = [max(map(len, " ".join(column).split())) for column in texts]
    if sum(words) + _GAP * len(words) - 1 > console.width:
        for number, row in enumerate(cells):
            if number:
                say("")
            pairs = zip(columns, row, strict=True)
            fields((name, cell) for name, cell in pairs if str(cell.text) not in ("", "-"))
        return
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for name in columns:
        made.add_column(name, overflow="fold")
    for row in cells:
        made.add_row(*(_styled(*cell) for cell in row))
    console.print(made)


def fields(rows: Iterable[tuple[str, object]]) -> None:
    """Prints names and values in two columns."""
    pairs = list(rows)
    width = max((len(name) for name, _ in pairs), default=0)
    for name, value in pairs:
        text, style = value if isinstance(value, Cell) else (value, "")
        _line(sys.stdout, (f"{name.ljust(width)}  ", "bold"), (str(text), style))


@contextmanager
def bars(
    *, least: int = 0, transient: bool = False
) -> Iterator[Callable[[str, int, int], None]]:
    """Bars on a terminal's standard error, one for each name.

    Args:
        least: None for what is smaller.
        transient: They go away at the end.

    Yields:
        To be called with a name, how much of it is done, and all of it.
    """
    with ExitStack() as stack:
        display: Progress | None = None
        tasks: dict[str, TaskID] = {}

        def update(name: str, done: int, total: int) -> None:
            nonlocal display
            if total < least or not sys.stderr.isatty():
                return
            if display is None:
                from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

                columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
                made = Progress(*columns, console=terminal(sys.stderr), transient=transient)
                display = stack.enter_context(made)
            if name not in tasks:
                tasks[name] = display.add_task(safe(name))
            display.update(tasks[name], total=total, completed=done)

        yield update


def draw_qr(text: str, stream: TextIO) -> None:
    """Draws ``text`` on ``stream``: in half blocks where it can, else in reversed spaces.

    Raises:
        NotInstalledError: segno is not there.
    """
    try:
        import segno
    except ImportError:
        raise NotInstalledError(
            "QR codes need the package segno, which is not installed.",
            hint="Run: pip install 'apex-creds[factors]', or add --no-qr.",
        ) from None
    code = segno.make(text, micro=False, error="l")
    blocks = (stream.encoding or "").lower().replace("-", "") == "utf8"
    code.terminal(out=stream, compact=blocks, border=2)


# -- reading -------------------------------------------------------------------------------


def read_input(limit: int) -> bytes:
    """All of standard input.

    Raises:
        ValueTooLargeError: It is longer than ``limit``.
    """
    data = sys.stdin.buffer.read(limit + 1)
    if len(data) > limit:
        raise ValueTooLargeError(f"Standard input is larger than {limit // 1024} KiB.")
    return data


def read_reason(given: str) -> str:
    """Why something is done: as given, or as typed.

    Raises:
        InvalidInputError: Neither.
    """
    if not given and sys.stdin.isatty():
        given = typer.prompt("Reason", err=True)
    if not given.strip():
        raise InvalidInputError("There is no reason.", hint="Say why, with --reason.")
    return given


def confirmed(question: str, *, about: str) -> bool:
    """Whether a person says yes.

    Raises:
        InvalidInputError: There is no terminal to ask ``about`` on.
    """
    if not sys.stdin.isatty():
        raise InvalidInputError(f"There is no terminal to ask {about}.", hint="Add --yes.")
    return typer.confirm(question, err=True)


def read_secret(kind: CredentialKind, *, aws: bool = False) -> Secret:
    """Asks for the parts of a secret, or reads them from standard input.

    Standard input is the value itself (one line feed at its end is taken off, except for
    ``generic``). For ``basic`` it is two lines: user, password. For a key of AWS two or three:
    its id, the key, the session token of temporary ones. For ``oauth_token`` up to three:
    access token, refresh token, scope.

    Raises:
        InvalidInputError: Empty, not text, or without the parts of its kind.
        ValueTooLargeError: Larger than 64 KiB.
    """
    if not sys.stdin.isatty():
        return _secret_of(kind, read_input(MAX_SECRET_BYTES), aws=aws)
    if aws:
        key_id = typer.prompt("Access key id", err=True)
        key = getpass.getpass("Secret access key" + _HIDDEN)
        token = getpass.getpass("Session token (not shown; Enter for none): ")
        return AwsKey(_trimmed(key_id), _trimmed(key), _trimmed(token))
    if kind is CredentialKind.BASIC:
        user = typer.prompt("User", err=True)
        return BasicAuth(_seen(user), _seen(getpass.getpass("Password" + _HIDDEN)))
    if kind is CredentialKind.OAUTH_TOKEN:
        access = getpass.getpass("Access token" + _HIDDEN)
        refresh = getpass.getpass("Refresh token (not shown; Enter for none): ")
        scope = typer.prompt("Scope (Enter for none)", default="", show_default=False, err=True)
        return OAuthToken(_trimmed(access), refresh_token=_trimmed(refresh), scope=scope)
    value = getpass.getpass("Value" + _HIDDEN)
    if kind is CredentialKind.GENERIC:
        return GenericSecret(ApiKey(value).parts["value"])
    return ApiKey(_trimmed(value))


def _secret_of(kind: CredentialKind, data: bytes, *, aws: bool) -> Secret:
    if kind is CredentialKind.GENERIC:
        return GenericSecret(data)
    text = data.decode(errors="replace")
    if "\0" in text or text.encode() != data:
        raise InvalidInputError(
            "Standard input is not text.", hint="For other bytes use --kind generic."
        )
    text = text.replace("\r\n", "\n").removesuffix("\n")
    if kind is CredentialKind.API_KEY:
        return ApiKey(_trimmed(text))
    lines = text.split("\n")
    if aws:
        if len(lines) not in (2, 3) or not all(lines[:2]):
            raise InvalidInputError(
                "Standard input must be two or three lines: access key id, secret access key, "
                "session token."
            )
        return AwsKey(*map(_trimmed, lines))
    if kind is CredentialKind.BASIC:
        if len(lines) != 2:
            raise InvalidInputError("Standard input must be two lines: user, password.")
        return BasicAuth(*map(_seen, lines))
    if len(lines) > 3:
        raise InvalidInputError(
            "Standard input must be at most three lines: access token, refresh token, scope."
        )
    access, refresh, scope = (*lines, "", "")[:3]
    return OAuthToken(_trimmed(access), refresh_token=_trimmed(refresh), scope=scope)


def _trimmed(text: str) -> str:
    """A key without what a shell or a page put around it, and says so.

    Raises:
        InvalidInputError: It is in quotation marks, or has characters that can't be seen.
    """
    trimmed = text.strip(_AROUND)
    if trimmed != text:
        note("White space around the value was left out.")
    if wrong := objection(trimmed):
        raise InvalidInputError(wrong, hint="If that is the value: --kind generic.")
    return trimmed


def _seen(text: str) -> str:
    """A user or a password as it is: white space and quotation marks may belong to it.

    Raises:
        InvalidInputError: It has characters that can't be seen.
    """
    if escaped(text) != text:
        raise InvalidInputError(_UNSEEN, hint="If that is the value: --kind generic.")
    return text


def objection(key: str) -> str:
    """Why this can hardly be a key as a service gave it; nothing where it can."""
    if key[:1] + key[1:][-1:] in _QUOTES:
        return "The value is in quotation marks, which are seldom a part of a key."
    if escaped(key) != key:
        return _UNSEEN
    return ""
