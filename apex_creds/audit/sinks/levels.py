"""Which events a destination gets.

Guarantee: an event of a kind that this module does not name goes to every level but
``denials``; a new kind is rather seen too often than not at all.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from apex_creds.audit.events import EventKind

__all__ = ["Level", "severity"]

_ROUTINE: Final = frozenset({EventKind.INVOCATION, EventKind.LEASE, EventKind.REDEEM})
_REFUSALS: Final = frozenset({EventKind.DENIAL, EventKind.LEAK})
_NO_CHANGE: Final = frozenset({EventKind.UNSEAL, EventKind.EXPOSE})
_EVERYDAY: Final = frozenset({EventKind.PUT})


class Level(StrEnum):
    """How much a destination gets.

    ``mutations`` is what changes the vault; ``denials`` is what was refused, and leaks;
    ``security`` is what someone on watch should see: refusals, unsealing, exposures,
    deletions, grants and their ends, and what the log says of itself.
    """

    ALL = "all"
    MUTATIONS = "mutations"
    DENIALS = "denials"
    SECURITY = "security"

    def takes(self, kind: EventKind) -> bool:
        """Whether events of ``kind`` are of this level."""
        if self is Level.DENIALS:
            return kind in _REFUSALS
        return kind not in _EXCLUDED[self]


_EXCLUDED: Final[dict[Level, frozenset[EventKind]]] = {
    Level.ALL: frozenset(),
    Level.MUTATIONS: _ROUTINE | _REFUSALS | _NO_CHANGE,
    Level.SECURITY: _ROUTINE | _EVERYDAY,
}

_INFO, _NOTICE, _WARNING, _ERROR = 6, 5, 4, 3
_SEVERITIES: Final[dict[EventKind, int]] = {
    **dict.fromkeys(_ROUTINE, _INFO),
    EventKind.DENIAL: _WARNING,
    EventKind.LEAK: _ERROR,
    EventKind.DROPPED: _ERROR,
    EventKind.ROLLBACK: _ERROR,
    EventKind.RECOVERED: _WARNING,
}


def severity(kind: EventKind) -> int:
    """The severity of ``kind`` in syslog and the journal (RFC 5424, section 6.2.1)."""
    return _SEVERITIES.get(kind, _NOTICE)
