"""Requests of rotators to providers that speak JSON over HTTP.

Guarantee: what ``outbound`` guarantees; an answer that is no JSON object of the fields asked
for is an error that repeats nothing of it. Refusals (4xx) are kept apart from
failures (5xx, 429, no answer), which are worth another try.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final, TypeVar

import msgspec

from apex_creds import outbound
from apex_creds.errors import RotatorError, RotatorRefusedError
from apex_creds.model import Origin
from apex_creds.outbound import Answer, NoAnswerError

_T = TypeVar("_T")
_AGAIN: Final = frozenset({408, 423, 425, 429})
_ANY: Final = range(200, 300)


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """A provider's API.

    Attributes:
        name: For people.
        origin: Where it is.
        ca: A file of certificates that its own must be by; empty: the system's.
    """

    name: str
    origin: Origin
    ca: str = ""

    async def ask(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str],
        body: bytes = b"",
        fine: Collection[int] = _ANY,
    ) -> Answer:
        """Sends a request; returns an answer whose status is in ``fine``.

        Raises:
            RotatorRefusedError: It refused.
            RotatorError: No answer came, or it failed.
        """
        failed: RotatorError | None = None
        try:
            answer = await outbound.ask(
                method, f"{self.origin}{path}", headers=headers, body=body, ca=self.ca
            )
        except NoAnswerError as error:
            failed = RotatorError(
                f"{self.name} at {self.origin} did not answer as it should ({error.why}).",
                hint="Check the network, and the rotator's address.",
            )
        else:
            if answer.status in fine:
                return answer
            failed = self.refusal(answer.status)
        raise failed

    def refusal(self, status: int, code: str = "") -> RotatorError:
        """What a status that was not hoped for means."""
        said = f"{status} {code}".rstrip()
        if status >= 500 or status in _AGAIN or not status >= 400:
            return RotatorError(f"{self.name} failed ({said}).", hint="It is tried again.")
        return RotatorRefusedError(
            f"{self.name} refused ({said}).",
            hint="Check the rights of the credential that the rotator logs in with.",
        )

    def read(self, answer: Answer, kind: type[_T]) -> _T:
        """What an answer says.

        Raises:
            RotatorError: It is not of that form.
        """
        try:
            return msgspec.json.decode(answer.body, type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError):
            pass
        raise RotatorError(f"{self.name} answered something that is not understood.")
