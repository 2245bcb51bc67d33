"""Searches what is written outside of any invocation: forgotten tasks, bare threads.

Guarantee: looks for everything that the broker released lately (``leases.recent``), opened
for the search only. What may be in a text is told beforehand by marks: keyed hashes of
how each spelling begins, whose key lies in locked memory; so most texts open nothing.
What does not open any more, as it was deleted, is not looked for any more. In a lockdown
nothing opens: what may have a secret in it, by its marks, is withheld.
"""

from __future__ import annotations

import weakref
from contextlib import suppress

from apex_creds.audit.events import AuditEvent, EventKind
from apex_creds.documents.records import Record
from apex_creds.errors import (
    ApexCredsError,
    IntegrityError,
    LockedDownError,
    SecretLeakError,
    SecretWipedError,
    VaultSealedError,
)
from apex_creds.leases.broker import LeaseBroker
from apex_creds.leases.recent import Key, Redeemed
from apex_creds.middleware.marks import LONG, SHORTEST, marks
from apex_creds.middleware.needles import Needles
from apex_creds.middleware.redact import Redactor
from apex_creds.telemetry import instruments
from apex_creds.vault.grant_store import Revoked


class StrayRedactor(Redactor):
    """Searches one piece of output of nobody in particular; closed after it."""

    __slots__ = ("_recent", "_suspects")

    def __init__(self, broker: LeaseBroker) -> None:
        self._broker = broker
        self._needles: Needles | None = None
        self._known: set[Key] = set()
        self._marks = broker.recent.marks
        self._holders = 0
        self._closed = False
        self.leaks: set[tuple[str, str]] = set()
        self._recent: dict[Key, Redeemed] = broker.recent.all()
        self._suspects: dict[Key, Record] = {}

    @property
    def idle(self) -> bool:
        """Whether nothing was redeemed lately."""
        return not self._recent

    def data(self, data: bytes, *, where: str) -> bytes:
        """Bytes without secrets; the same object if there is none."""
        if len(data) < SHORTEST:
            return data
        self._suspect(data)
        return super().data(data, where=where) if self._suspects else data

    def _suspect(self, data: bytes) -> None:
        found = marks(data, self._broker.recent.salt) if len(data) < LONG else None
        for key, redeemed in self._recent.items():
            known = self._marks.get(key)
            if known is None or found is None or not found.isdisjoint(known):
                self._suspects[key] = redeemed.record

    def mark_all(self) -> None:
        """Has marks made of everything, while it can be opened."""
        known = self._marks
        self._suspects = {k: r.record for k, r in self._recent.items() if k not in known}
        try:
            self.needles()
        finally:
            self.close()

    def _used(self) -> list[tuple[Key, Record]]:
        return list(self._suspects.items())

    def _add(self, needles: Needles, record: Record) -> None:
        key, recent = (record.info.name, record.info.version), self._broker.recent
        try:
            opened = self._broker.reopen(record)
        except (IntegrityError, SecretWipedError, VaultSealedError):
            recent.drop(key)
            return
        except LockedDownError:
            raise _unsearchable("End the lockdown: apex-creds unlock") from None
        except ApexCredsError:  # it may open later, so that it is still to be looked for
            raise _unsearchable("The vault's storage did not answer.") from None
        self._mark(record, self._take(needles, record, opened))

    def _report(self, name: str, where: str) -> None:
        recent = self._broker.recent
        for key, redeemed in self._recent.items():
            if key[0] != name or recent.told.get(key) == redeemed.invocation:
                continue
            self._broker.log(_event(self._broker.clock.time(), redeemed, where), flush=True)
            recent.told[key] = redeemed.invocation
            instruments.leaked(where)


def mark_before_sealing(broker: LeaseBroker) -> Revoked:
    """To be told of revocations: a lockdown takes the keys with which marks are made.

    Without them no record of nobody's could pass until it is over.
    """
    known = weakref.ref(broker)

    def told(plugin: str | None, credential: str | None) -> None:
        found = known()
        if found is not None and plugin is credential is None:
            with suppress(ApexCredsError):
                StrayRedactor(found).mark_all()

    return told


def _unsearchable(hint: str) -> SecretLeakError:
    return SecretLeakError(
        "What may have a secret in it can't be searched, so it is withheld.", hint=hint
    )


def _event(now: float, redeemed: Redeemed, where: str) -> AuditEvent:
    return AuditEvent(
        time=now,
        kind=EventKind.LEAK,
        plugin=redeemed.plugin,
        plugin_version=redeemed.version,
        action=redeemed.action,
        invocation=redeemed.invocation,
        credential=redeemed.record.info.name,
        outcome="redacted",
        detail=where,
    )
