"""The one refusal that plugins see.

Guarantee: it is the same whether a credential is unknown, undeclared or not granted.
"""

from __future__ import annotations

from typing import NoReturn

from apex_creds.errors import AccessDeniedError
from apex_creds.leases.invocation import current_invocation


def denied(name: str) -> AccessDeniedError:
    """The one refusal: the same whether a credential is unknown, undeclared or ungranted."""
    return AccessDeniedError(
        f"The use of credential {name[:256]!r} was refused.",
        hint="The operator can see why in the audit log.",
    )


def refuse_unknown(name: str) -> NoReturn:
    """Refuses a name that the current invocation has no handle for; audited.

    Raises:
        AccessDeniedError: Always.
    """
    invocation = current_invocation()
    if invocation is not None:
        invocation.broker.refuse(invocation, name)
    raise denied(name)
