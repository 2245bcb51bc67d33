"""Searches what is written outside of any invocation: forgotten tasks, bare threads.

Guarantee: everything that the broker released lately (``broker.recent``) is searched for,
opened for the search only. What may be in a text is known beforehand by marks: keyed hashes of
how each spelling begins, whose key lies in locked memory; so most texts open nothing.
What does not open any more, as it was deleted, is not searched for any more. In a lockdown
nothing opens: what may have a secret in it, by its marks, is withheld.
"""

from __future__ import annotations

import weakref
from contextlib import suppress

from apex_creds.audit.events import AuditEvent, EventKind
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
from apex_creds.redaction.matcher import LONG, SHORTEST, marks
from apex_creds.redaction.redactor import Key, OpenSecret, Redactor
from apex_creds.telemetry import instruments
from apex_creds.vault.grant_store import Revoked


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


def report_leak(
    broker: LeaseBroker,
    credential: str,
    where: str,
    *,
    plugin: str,
    version: str,
    action: str,
    invocation: str,
) -> None:
    """Audits and counts that a credential's secret was found in output.

    Raises:
        AuditUnavailableError: It can't be logged, so that nothing may pass.
    """
    event = AuditEvent(
        time=broker.clock.time(),
        kind=EventKind.LEAK,
        plugin=plugin,
        plugin_version=version,
        action=action,
        invocation=invocation,
        credential=credential,
        outcome="redacted",
        detail=where,
    )
    broker.log(event, flush=True)
    instruments.leaked(where)


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
