"""The one refusal that plugins see.

Guarantee: it is the same whether a credential is unknown, undeclared or not granted.
"""

from __future__ import annotations

from typing import Final, NoReturn

from apex_creds.errors import AccessDeniedError
from apex_creds.leases.invocation import current_invocation
from apex_creds.plain import text_or_none

_LONGEST: Final = 256


def denied(name: str) -> AccessDeniedError:
    """The one refusal: the same whether a credential is unknown, undeclared or ungranted."""
    return AccessDeniedError(
        f"The use of credential {name[:_LONGEST]!r} was refused.",
        hint="The operator can see why in the audit log.",
    )


def refuse_unknown(name: object) -> NoReturn:
    """Refuses a name that the current invocation has no handle for; audited.

    Args:
        name: Whatever was asked for; what is no text is shown by its type.

    Raises:
        AccessDeniedError: Always.
    """
    plain = text_or_none(name)
    text = f"<{type(name).__name__[:80]}>" if plain is None else plain[:_LONGEST]
    text = text.encode("utf-8", "backslashreplace").decode()
    invocation = current_invocation()
    if invocation is not None:
        text = invocation.shown(text)
        invocation.broker.refuse(invocation, text)
    raise denied(text)
