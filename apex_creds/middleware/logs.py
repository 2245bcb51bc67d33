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

from apex_creds.errors import SecretLeakError
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
            setattr(record, name, redactor.value(getattr(record, name), where=_WHERE))
    except SecretLeakError as withheld:
        record.msg, record.args = str(withheld), ()
        record.exc_info = record.exc_text = record.stack_info = None


def _redact_message(record: logging.LogRecord, redactor: Redactor) -> None:
    try:
        text = record.getMessage()
    except Exception:  # a wrong format string: the handler will say so, with the arguments
        text = ""
    clean = redactor.text(text, where=_WHERE)
    if clean != text:
        record.msg, record.args = clean, ()
        return
    record.msg = redactor.value(record.msg, where=_WHERE)
    record.args = redactor.value(record.args, where=_WHERE)  # type: ignore[assignment]


def _redact_exception(record: logging.LogRecord, redactor: Redactor) -> None:
    if record.stack_info:
        record.stack_info = redactor.text(record.stack_info, where=_WHERE)
    if record.exc_text:
        record.exc_text = redactor.text(record.exc_text, where=_WHERE)
    if not record.exc_info or record.exc_info[1] is None:
        return
    text = "".join(traceback.format_exception(*record.exc_info)).rstrip("\n")
    clean = redactor.text(text, where=_WHERE)
    if clean != text:
        record.exc_info, record.exc_text = None, clean
