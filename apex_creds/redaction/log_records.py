"""Where log records are searched: after the filters, and before a handler shows them.

Guarantee: while a search is hooked, it gets every record that a handler is about to show,
whatever filters add to it. ``redact`` cleans the message, the arguments, ``extra`` fields, the
stack, the text of an exception, and the names of logger, thread and task; it never raises: what
can't be searched is withheld. With the last search what was there before is restored. What is
``held_back`` is searched again, for what has become known meanwhile, and shown then.
"""

from __future__ import annotations

import logging
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final

from apex_creds.errors import ApexCredsError
from apex_creds.redaction.redactor import Redactor

_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}
_WHERE: Final = "log"
_NAMES: Final = (
    "name", "threadName", "taskName", "processName", "funcName", "levelname", "pathname",
    "filename", "module",
)  # fmt: skip
_WITHHELD: Final = "[withheld]"
_MOST_HELD: Final = 1000

Passed = bool | logging.LogRecord
"""What a filter says; since Python 3.12 also with another record in place of the one it got."""
Search = Callable[[logging.LogRecord], object]
"""Cleans a record in place; never raises."""

_lock = threading.RLock()  # garbage is collected anywhere, also while it is held
_searches: tuple[Search, ...] = ()
_hooked = False
_original: Callable[[logging.Filterer, logging.LogRecord], Passed] = logging.Filterer.filter
_original_handle: Callable[[logging.Handler, logging.LogRecord], Passed] = (
    logging.Handler.handle
)


def hook(search: Search) -> None:
    """Has ``search`` get each record from now on.

    Hooks ``logging.Filterer.filter``, which loggers and handlers both call: whatever their
    filters add, and however a record came to a handler, it is searched behind them. Where a
    handler overrides ``filter``, its record is searched in ``logging.Handler.handle``.
    """
    global _hooked, _original, _original_handle, _searches
    with _lock:
        _searches = (*_searches, search)
        if not _hooked:
            _hooked = True
            _original = logging.Filterer.filter
            logging.Filterer.filter = _filter  # type: ignore[assignment, method-assign]
            _original_handle = logging.Handler.handle
            logging.Handler.handle = _handle  # type: ignore[assignment, method-assign]


def unhook(search: Search) -> None:
    """Takes one ``hook`` back."""
    global _hooked, _searches
    with _lock:
        _searches = tuple(other for other in _searches if other != search)
        # Who hooked after this calls it still: then it stays, and searches nothing.
        ours = logging.Filterer.filter is _filter and logging.Handler.handle is _handle
        if _hooked and ours and not _searches:
            _hooked = False
            logging.Filterer.filter = _original  # type: ignore[assignment, method-assign]
            logging.Handler.handle = _original_handle  # type: ignore[assignment, method-assign]


def _filter(self: logging.Filterer, record: logging.LogRecord) -> Passed:
    passed = _original(self, record)
    if passed:
        shown = _passed_on(passed, record)
        _search(shown)
        if isinstance(self, logging.Handler) and _is_held(self, shown):
            return False
    return passed


def _handle(self: logging.Handler, record: logging.LogRecord) -> Passed:
    if getattr(self.filter, "__func__", None) is _filter:
        return _original_handle(self, record)
    passed = self.filter(record)  # overridden, so that it may call the hooked one or not
    if passed:
        shown = _passed_on(passed, record)
        _search(shown)
        if not _is_held(self, shown):
            _emit(self, shown)
    return passed


def _emit(handler: logging.Handler, record: logging.LogRecord) -> None:
    handler.acquire()
    try:
        handler.emit(record)
    finally:
        handler.release()


def _passed_on(passed: Passed, record: logging.LogRecord) -> logging.LogRecord:
    return passed if isinstance(passed, logging.LogRecord) else record


def _search(record: logging.LogRecord) -> None:
    for search in _searches:
        search(record)


class _Held:
    """What handlers are not shown yet."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._records: list[tuple[logging.Handler, logging.LogRecord]] | None = []

    def take(self, handler: logging.Handler, record: logging.LogRecord) -> bool:
        with self._lock:
            if self._records is None:
                return False
            if len(self._records) < _MOST_HELD:
                self._records.append((handler, record))
                return True
        _withhold(record, "A log record is withheld: too many are held back.")
        return False

    def release(self) -> None:
        with self._lock:
            records, self._records = self._records, None
        for handler, record in records or ():
            _search(record)
            try:
                _emit(handler, record)
            except Exception:
                handler.handleError(record)


_held: ContextVar[_Held | None] = ContextVar("held log records", default=None)


@contextmanager
def held_back() -> Iterator[Callable[[], None]]:
    """Keeps from handlers, inside of ``with``, what this context logs while a search is hooked.

    Tasks and threads that are started with its context belong to it.

    Yields:
        What shows it all, searched again; at the latest the end of the block does.
    """
    held = _Held()
    token = _held.set(held)
    try:
        yield held.release
    finally:
        _held.reset(token)
        held.release()


def _is_held(handler: logging.Handler, record: logging.LogRecord) -> bool:
    held = _held.get()
    return held is not None and held.take(handler, record)


def redact(record: logging.LogRecord, redactor: Redactor) -> None:
    """Never raises: a record that can't be searched is withheld."""
    try:
        with redactor.held():
            _redact_message(record, redactor)
            _redact_exception(record, redactor)
            # What says where a record is from: a plugin names its loggers and threads itself.
            names = {name: getattr(record, name, None) for name in _NAMES}
            own = {name: text for name, text in names.items() if isinstance(text, str)}
            for name, clean_text in _cleaned(own, redactor).items():
                setattr(record, name, clean_text)
            extra = {name: str(name) for name in set(vars(record)) - _STANDARD}
            for name, clean_name in _cleaned(extra, redactor).items():
                vars(record)[clean_name] = vars(record).pop(name)
            for name in set(vars(record)) - _STANDARD:
                clean = redactor.value(getattr(record, name), where=_WHERE)
                # An object may have a secret in its text alone.
                text = str(clean) if isinstance(clean, str) else _shown(clean)
                found = redactor.text(text, where=_WHERE)
                setattr(record, name, clean if found == text else found)
    except ApexCredsError as refused:
        _withhold(record, str(refused))
    except Exception as failed:
        _withhold(record, f"A log record is withheld: {type(failed).__name__[:80]}.")


def _withhold(record: logging.LogRecord, why: str) -> None:
    record.msg, record.args = why, ()
    record.exc_info = record.exc_text = record.stack_info = None
    for name in (set(vars(record)) - _STANDARD) | (set(_NAMES) & set(vars(record))):
        setattr(record, name, _WITHHELD)


def _cleaned(texts: dict[str, str], redactor: Redactor) -> dict[str, str]:
    """Texts without secrets; none of them where one search finds nothing in all."""
    whole = "\n".join(texts.values())
    if redactor.text(whole, where=_WHERE) == whole:
        return {}
    return {name: redactor.text(text, where=_WHERE) for name, text in texts.items()}


def _redact_message(record: logging.LogRecord, redactor: Redactor) -> None:
    try:
        text, usable = record.getMessage(), True
    except Exception as error:  # a handler would print the arguments themselves
        wrong = f"(wrong log format: {type(error).__name__})"
        text, usable = f"{wrong} {_shown(record.msg)} {_shown(record.args)}", False
    clean = redactor.text(text, where=_WHERE)
    if clean != text or not usable or _shows(redactor, record.msg, record.args):
        record.msg, record.args = clean, ()
        return
    record.msg = redactor.value(record.msg, where=_WHERE)
    record.args = redactor.value(record.args, where=_WHERE)  # type: ignore[assignment]


def _shows(redactor: Redactor, *values: object) -> bool:
    """Whether an object among them has a secret in its other text than the message's.

    A formatter of JSON shows arguments by ``repr``, whatever the format string says.
    """
    found = False
    for value in values:
        if isinstance(value, dict | list | tuple):
            items = [*value, *value.values()] if isinstance(value, dict) else value
            found |= _shows(redactor, *items)
        elif not isinstance(value, str | bytes | int | float | None):
            text = _shown(value)
            found |= redactor.text(text, where=_WHERE) != text
    return found


def _shown(value: object) -> str:
    try:
        return f"{value!s} {value!r}" if not isinstance(value, tuple) else repr(value)
    except Exception as error:
        return f"<{type(value).__name__}: {type(error).__name__}>"


def _redact_exception(record: logging.LogRecord, redactor: Redactor) -> None:
    if record.stack_info:
        record.stack_info = redactor.text(record.stack_info, where=_WHERE)
    if record.exc_text:
        record.exc_text = redactor.text(record.exc_text, where=_WHERE)
    if not record.exc_info or record.exc_info[1] is None:
        return
    # Always as text: its frames are running, and have the plugin's variables.
    text = "".join(traceback.format_exception(*record.exc_info)).rstrip("\n")
    record.exc_info, record.exc_text = None, redactor.text(text, where=_WHERE)
