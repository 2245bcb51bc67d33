"""Log records of invocations, redacted before a handler shows them.

Guarantee: while it is installed, no secret redeemed in the invocation that a record was
written in reaches a handler: not in the message, the arguments, ``extra`` fields, the
stack, the text of an exception, or the names of logger, thread and task. Logging never raises
for it: what can't be searched is withheld. Installing twice counts; the last ``uninstall``
restores what was there.

A record written in no invocation (a forgotten task, a bare thread, an executor) is searched
for everything that the broker released lately in any (``broker.recent``), opened for the
search only. What may be in a text is known beforehand by marks: keyed hashes of how each
spelling begins, whose key lies in locked memory; so most texts open nothing. What does not open
any more, as it was deleted, is not searched for any more. In a lockdown nothing opens: what may
have a secret in it, by its marks, is withheld.
"""

from __future__ import annotations

import logging
import sys
import threading
import weakref
from contextlib import suppress
from typing import Final

from apex_creds.crypto.memory import SecretBytes
from apex_creds.errors import (
    ApexCredsError,
    IntegrityError,
    LockedDownError,
    SecretLeakError,
    SecretWipedError,
    VaultSealedError,
)
from apex_creds.leases.broker import LeaseBroker
from apex_creds.leases.lease import current_invocation
from apex_creds.middleware.call import WrappedCall, report_leak
from apex_creds.redaction import log_records
from apex_creds.redaction.matcher import LONG, SHORTEST, marks
from apex_creds.redaction.redactor import Key, OpenSecret, Redactor
from apex_creds.vault.grant_store import Revoked

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


class _Suspects:
    """The recent redeems that may be in a text."""

    def __init__(self, broker: LeaseBroker) -> None:
        self._broker = broker
        self.salt: SecretBytes = broker.recent.salt
        self.recent = broker.recent.all()
        self.chosen: set[Key] = set()

    def __bool__(self) -> bool:
        return bool(self.recent)

    def names(self) -> list[Key]:
        return list(self.chosen)

    def open(self, key: Key) -> OpenSecret | None:
        try:
            return self._broker.reopen(self.recent[key].record)
        except (IntegrityError, SecretWipedError, VaultSealedError):
            self._broker.recent.drop(key)
            return None
        except LockedDownError:
            hint = "End the lockdown: apex-creds unlock"
        except ApexCredsError:  # it may open later, so that it is still to be searched for
            hint = "The vault's storage did not answer."
        raise SecretLeakError(
            "What may have a secret in it can't be searched, so it is withheld.", hint=hint
        )


class UnscopedRedactor(Redactor):
    """Searches one piece of output of nobody in particular; closed after it."""

    __slots__ = ("_broker", "_suspects")

    def __init__(self, broker: LeaseBroker) -> None:
        self._broker = broker
        self._suspects = _Suspects(broker)
        super().__init__(self._suspects, on_found=self._report, marks=broker.recent.marks)

    def data(self, data: bytes, *, where: str) -> bytes:
        """Bytes without secrets; the same object if there is none."""
        if len(data) < SHORTEST:
            return data
        suspects = self._suspects
        found = marks(data, suspects.salt) if len(data) < LONG else None
        for key in suspects.recent:
            known = self._marks.get(key)
            if known is None or found is None or not found.isdisjoint(known):
                suspects.chosen.add(key)
        return super().data(data, where=where) if suspects.chosen else data

    def mark_all(self) -> None:
        """Has marks made of everything, while it can be opened."""
        self._suspects.chosen = self._suspects.recent.keys() - self._marks.keys()
        try:
            self.needles()
        finally:
            self.close()

    def _report(self, name: str, where: str) -> None:
        """Audits a leak of a credential, once for each invocation that redeemed it."""
        reported = self._broker.recent.reported
        for key, redeemed in self._suspects.recent.items():
            if key[0] != name or reported.get(key) == redeemed.invocation:
                continue
            report_leak(
                self._broker,
                name,
                where,
                plugin=redeemed.plugin,
                version=redeemed.version,
                action=redeemed.action,
                invocation=redeemed.invocation,
            )
            reported[key] = redeemed.invocation


def mark_before_sealing(broker: LeaseBroker) -> Revoked:
    """Watches revocations: a lockdown takes the keys with which marks are made.

    Without them no record of nobody's could pass until it is over.
    """
    known = weakref.ref(broker)

    def revoked(plugin: str | None, credential: str | None) -> None:
        found = known()
        if found is not None and plugin is credential is None:
            with suppress(ApexCredsError):
                UnscopedRedactor(found).mark_all()

    return revoked
