"""Log records of invocations, redacted before a handler shows them.

Guarantee: while it is installed, no secret redeemed in the invocation that a record was
written in reaches a handler: not in the message, the arguments, ``extra`` fields, the
stack, the text of an exception, or the names of logger, thread and task. A record written
in no invocation (a forgotten task, a bare thread, an executor) is searched for what was
redeemed lately in any. Logging never raises for it: what can't be searched is withheld.
Installing twice counts; the last ``uninstall`` restores what was there.
"""

from __future__ import annotations

import logging
import sys
import threading
import weakref
from typing import Final

from apex_creds.leases.broker import LeaseBroker
from apex_creds.leases.lease import current_invocation
from apex_creds.middleware.call import WrappedCall
from apex_creds.middleware.unscoped_output import UnscopedRedactor
from apex_creds.redaction import log_records

_OF_OTHERS: Final = frozenset({"asyncio", "concurrent.futures"})
"""Loggers that report a failed task where it is collected: in any invocation."""
_OWN: Final = "apex_creds."

_lock = threading.RLock()  # garbage is collected anywhere, also while it is held
_brokers: list[weakref.ref[LeaseBroker]] = []
_searching = threading.local()


def install(broker: LeaseBroker) -> None:
    """Redacts from now on; what is written outside of invocations, of this broker too."""
    global _brokers
    with _lock:
        _brokers = [*_brokers, weakref.ref(broker, _forget)]
        if len(_brokers) == 1:
            log_records.hook(_search)


def uninstall(broker: LeaseBroker) -> None:
    """Takes one ``install`` back; one that is dropped takes its own back."""
    for other in _brokers:
        if other() is broker:
            _forget(other)


def _forget(broker: weakref.ref[LeaseBroker]) -> None:
    global _brokers
    with _lock:
        _brokers = [other for other in _brokers if other is not broker]
        if not _brokers:
            log_records.unhook(_search)


def _search(record: logging.LogRecord) -> None:
    invocation = current_invocation()
    if invocation is None or str(record.name) in _OF_OTHERS:
        _redact_unscoped(record)
    while invocation is not None:
        if isinstance(invocation, WrappedCall) and invocation.redeemed:
            log_records.redact(record, invocation.redactor)
        invocation = invocation.parent


def _redact_unscoped(record: logging.LogRecord) -> None:
    """Searches for all that was redeemed lately, in any invocation."""
    # The vault's own records hold no secret, and may be written under its locks.
    own = str(record.name).startswith(_OWN) and record.name in sys.modules
    if own or getattr(_searching, "now", False):
        return
    for known in _brokers:
        broker = known()
        if broker is not None and broker.recent:
            _searching.now = True
            redactor = UnscopedRedactor(broker)
            try:
                log_records.redact(record, redactor)
            finally:
                redactor.close()
                _searching.now = False
