"""Log records written inside an invocation, redacted before any handler sees them.

Guarantee: while a ``LogGuard`` is installed, no secret redeemed in the invocation that a
record was written in reaches a handler: not in the message, the arguments, ``extra``
fields, the stack, or the text of an exception. Installing twice counts; the last
``uninstall`` restores what was there.
"""

from __future__ import annotations

import logging
import threading
import traceback
from collections.abc import Callable
from typing import Final

from apex_creds.errors import ApexCredsError
from apex_creds.leases.invocation import current_invocation
from apex_creds.middleware.call import GuardedInvocation
from apex_creds.middleware.redact import Redactor

_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}
_WHERE: Final = "log"

_lock = threading.Lock()
_installed = 0
_original: Callable[..., None] = logging.Logger.handle


def install() -> None:
    """Redacts from now on.

    Hooks ``logging.Logger.handle``: a record factory does not see ``extra``, and a filter
    on a logger does not see its children's records.
    """
    global _installed, _original
    with _lock:
        _installed += 1
        if _installed == 1:
            _original = logging.Logger.handle
            logging.Logger.handle = _handle  # type: ignore[method-assign]


def uninstall() -> None:
    """Takes one ``install`` back."""
    global _installed
    with _lock:
        _installed -= 1
        if _installed == 0 and logging.Logger.handle is _handle:
            logging.Logger.handle = _original  # type: ignore[method-assign]


def _handle(self: logging.Logger, record: logging.LogRecord) -> None:
    invocation = current_invocation()
    while invocation is not None:
        if isinstance(invocation, GuardedInvocation) and not invocation.redactor.idle:
            _redact(record, invocation.redactor)
        invocation = invocation.parent
    _original(self, record)


def _redact(record: logging.LogRecord, redactor: Redactor) -> None:
    try:
        _redact_message(record, redactor)
        _redact_exception(record, redactor)
        for name in set(vars(record)) - _STANDARD:
            setattr(record, name, _redact_extra(getattr(record, name), redactor))
    except ApexCredsError as withheld:
        record.msg, record.args = str(withheld), ()
        record.exc_info = record.exc_text = record.stack_info = None


def _redact_message(record: logging.LogRecord, redactor: Redactor) -> None:
    text, usable = _message(record)
    clean = redactor.text(text, where=_WHERE)
    if clean != text or not usable:
        record.msg, record.args = clean, ()
        return
    record.msg = redactor.value(record.msg, where=_WHERE)
    record.args = redactor.value(record.args, where=_WHERE)  # type: ignore[assignment]


def _message(record: logging.LogRecord) -> tuple[str, bool]:
    """The text of a record, and whether its format string fits its arguments."""
    try:
        return record.getMessage(), True
    except Exception as error:
        wrong = type(error).__name__  # a handler would print the arguments themselves
    return f"(wrong log format: {wrong}) {_shown(record.msg)} {_shown(record.args)}", False


def _redact_extra(value: object, redactor: Redactor) -> object:
    """A field as it may be shown: also of objects that are only seen by their text."""
    clean = redactor.value(value, where=_WHERE)
    shown = str(clean) if isinstance(clean, str) else _shown(clean)
    found = redactor.text(shown, where=_WHERE)
    return clean if found == shown else found


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
