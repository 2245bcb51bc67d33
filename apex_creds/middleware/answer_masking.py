"""Has answers searched for the secrets that were sent, for the sending step of ``leases``.

Guarantee: an answer to a request with a credential that its plugin may only inject goes on
without its secret, in any spelling that redaction knows; that there was one is audited before,
as a leak at ``response``. One that can't be searched goes no further, unless manifest and grant
allow echoes. What is searched for is opened from what was redeemed, and wiped in a lockdown.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain

from apex_creds.documents.records import Record
from apex_creds.errors import AnswerWithheldError, ApexCredsError
from apex_creds.leases.broker import LeaseBroker
from apex_creds.leases.lease import Invocation, Lease, current_invocation
from apex_creds.middleware.call import WrappedCall
from apex_creds.model import DeliveryStyle
from apex_creds.redaction.answers import (
    Headers,
    RawHeaders,
    SearchedAnswer,
    SearchedMessages,
    ask,
)
from apex_creds.redaction.masks import Mask
from apex_creds.redaction.recent_masks import RecentMasks, SharedMask
from apex_creds.redaction.redactor import PUBLIC_PARTS
from apex_creds.redaction.spellings import collect, encoded


class _Answer(SearchedAnswer):
    """The search of one answer, which uses masks until it is closed."""

    __slots__ = ("close",)
    close: Callable[[], None]


class _Messages(SearchedMessages):
    """The search of the messages of one connection, likewise."""

    __slots__ = ("close",)
    close: Callable[[], None]


class AnswerSearch:
    """What a broker has its answers searched with.

    Args:
        broker: Opens what was redeemed.
    """

    def __init__(self, broker: LeaseBroker) -> None:
        self._broker = broker
        self._masks = RecentMasks(broker.clock.monotonic)

    def ask(self, leases: Sequence[Lease], headers: Headers) -> None:
        """See ``leases.http_messages``."""
        for lease in leases:
            permission = lease.permission
            if not (permission.reveal or permission.echoes):
                ask(headers)
                return

    def begin(
        self,
        leases: Sequence[Lease],
        records: Sequence[Record],
        method: str,
        status: int,
        headers: RawHeaders,
    ) -> _Answer | None:
        """See ``leases.http_messages``."""
        taken, masks = self._taken(leases, records)
        if not taken:
            return None
        try:
            made = _Answer(
                masks,
                status=status,
                headers=headers,
                method=method,
                on_found=partial(_report, current_invocation() or leases[0].invocation),
            )
        except BaseException:
            self._masks.give_back(taken)
            raise
        made.close = partial(self._masks.give_back, taken)
        return made

    def messages(self, leases: Sequence[Lease], records: Sequence[Record]) -> _Messages | None:
        """See ``leases.http_messages``."""
        taken, masks = self._taken(leases, records)
        if not taken:
            return None
        report = partial(_report, current_invocation() or leases[0].invocation)
        made = _Messages(masks, on_found=report)
        made.close = partial(self._masks.give_back, taken)
        return made

    def revoked(self, plugin: str | None, credential: str | None) -> None:  # noqa: ARG002
        """Something was revoked, or everything, by a lockdown: nothing is kept."""
        self.wipe()

    def wipe(self) -> None:
        """Forgets every secret that is searched for."""
        self._masks.wipe()

    def _taken(
        self, leases: Sequence[Lease], records: Sequence[Record]
    ) -> tuple[list[SharedMask], list[Mask]]:
        """What the plugin may only inject, and services may not send back."""
        taken: list[SharedMask] = []
        masks: list[Mask] = []
        try:
            for lease, record in zip(leases, records, strict=True):
                permission = lease.permission
                if not (permission.reveal or permission.echoes):
                    shared = self._masks.take(record.sealed, partial(self._mask, record))
                    taken.append(shared)
                    masks.append(shared.mask)
        except BaseException:
            self._masks.give_back(taken)
            raise
        return taken, masks

    def _mask(self, record: Record) -> Mask:
        try:
            opened = self._broker.reopen(record)
        except ApexCredsError:
            raise AnswerWithheldError(
                "The answer can't be searched for the secret that was sent, so it is withheld.",
                hint="The credential was deleted or the vault sealed meanwhile.",
            ) from None
        with opened:
            parts = [opened.view(part) for part in opened.names if part not in PUBLIC_PARTS]
            if record.info.delivery.style is not DeliveryStyle.BASIC:
                return Mask(record.info.key, parts)
            user = chain(opened.view("user"), b":") if "user" in opened.names else ()
            with (  # user and password as they are sent (RFC 7617)
                collect(chain(user, opened.view())) as pair,
                pair.view() as plain,
                encoded(plain) as sent,
                sent.view() as view,
            ):
                return Mask(record.info.key, [*parts, view])


def _report(invocation: Invocation, name: str) -> None:
    """Audits that a service has sent a secret back."""
    assert isinstance(invocation, WrappedCall)
    invocation.report_leak(name, where="response")
