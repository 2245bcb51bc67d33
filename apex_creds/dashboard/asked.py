"""Questions that wait for a person: shown, and answered where that was asked for.

Guarantee: an answer is given to the question that was shown, once, and not while the vault
is locked down; where the question says that a second factor is needed, it is checked before
a yes is stored. What a plugin says of itself is shown escaped.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
from msgspec import Meta

from apex_creds.dashboard.shown import Names, text
from apex_creds.errors import SecondFactorError
from apex_creds.policy.access_state import PendingRequest
from apex_creds.policy.consent import UNKNOWN, Choice, ConsentAnswer
from apex_creds.policy.factors import Subject
from apex_creds.policy.manifest import Access
from apex_creds.vault import Vault
from apex_creds.vault.factors import Factors
from apex_creds.vault.requests import Requests

BY: Final = "dashboard"
_MANY: Final = 50
_YEAR: Final = 366 * 86_400.0


class Answer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the page sends.

    Attributes:
        seconds: How long a yes ``until`` lasts, from now.
        code: Of the second factor, where one is needed.
    """

    choice: Choice
    seconds: Annotated[float, Meta(ge=60, le=10 * _YEAR)] | None = None
    code: Annotated[str, Meta(max_length=200)] = ""


def question(item: PendingRequest, *, names: Names) -> dict[str, object]:
    """A question as the page gets it."""
    request = item.request
    hidden = names.hidden
    return {
        "id": item.id,
        "asked": item.asked,
        "expires": item.expires,
        "plugin": text(request.plugin),
        "version": text(request.version),
        "action": text(request.action),
        "credential": names.credential(request.credential),
        "level": text(request.level),
        "reveal": request.access is Access.REVEAL,
        "scopes": _listed(request.scopes),
        "origins": _listed(request.origins),
        "methods": _listed(request.methods),
        "paths": _listed(request.paths),
        "reason": text(request.reason),
        "unknown": request.why == UNKNOWN,
        "why": text(request.why),
        # These may name credentials, in words.
        "before": "" if hidden else text(request.before),
        "changes": [] if hidden else _listed(request.changes),
        "unverified": request.unverified,
        "factor": request.second_factor,
    }


async def answer(vault: Vault, request_id: str, said: Answer) -> PendingRequest:
    """Answers a question.

    Raises:
        InvalidInputError: There is none of that id any more, or the answer makes no sense.
        LockedDownError: The vault is locked down.
        SecondFactorError: One is needed, and was not shown.
    """
    until = None if said.seconds is None else vault.clock.time() + said.seconds
    made = ConsentAnswer(choice=said.choice, until=until, by=BY)
    requests = Requests(vault)
    found = await requests.find(request_id)
    if said.choice.allows:
        await vault.refuse_lockdown()
        await _show_factor(vault, found, said.code)
    return await requests.answer(request_id, made)


async def _show_factor(vault: Vault, found: PendingRequest, code: str) -> None:
    if not found.request.second_factor:
        return
    factors = Factors(vault)
    if not code and await factors.enrolled():
        raise SecondFactorError("A code of the second factor is needed.")
    subject = Subject(plugin=found.request.plugin, credential=found.request.credential)
    await factors.verify(code, subject=subject)


def _listed(values: tuple[str, ...]) -> list[str]:
    more = [f"and {len(values) - _MANY} more"] if len(values) > _MANY else []
    return [*(text(value) for value in values[:_MANY]), *more]
