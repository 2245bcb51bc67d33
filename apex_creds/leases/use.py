"""What a handle is used for: a value that says it, and nothing else."""

from __future__ import annotations

from typing import Final, NamedTuple

from apex_creds.model import Origin

REVEAL: Final = "reveal"


class Use(NamedTuple):
    """What a redeem is for.

    Attributes:
        method: An HTTP method, or ``reveal``.
        origin: Where the secret goes; None for ``reveal``.
        path: The request's raw path, without its query.
        scope: A scope that the lease must have; None: any lease will do.
    """

    method: str
    origin: Origin | None = None
    path: str = ""
    scope: str | None = None
