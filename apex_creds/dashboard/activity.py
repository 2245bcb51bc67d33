"""What plugins did with credentials, and what was refused, as the log tells.

Guarantee: pure; bounded, however many names there are.
"""

from __future__ import annotations

from typing import Final

import msgspec

from apex_creds.audit.events import EventKind, Recorded

MAX_PAIRS: Final = 20_000
_ASKED: Final = "consent_"


class Use(msgspec.Struct):
    """One plugin and one credential.

    Attributes:
        used: When it was last redeemed; ``denied`` likewise; 0: never.
        why: The reason of the last denial.
        answer: What a person last answered, and when.
    """

    redeems: int = 0
    used: float = 0.0
    denials: int = 0
    denied: float = 0.0
    why: str = ""
    answer: str = ""
    answered: float = 0.0


class Activity:
    """Takes events in their order; knows what was done."""

    def __init__(self) -> None:
        self.pairs: dict[tuple[str, str], Use] = {}
        self.changes = 0

    def take(self, event: Recorded) -> None:
        """One more event."""
        if not event.plugin or not event.credential:
            return
        if event.kind is EventKind.REDEEM:
            use = self._pair(event)
            use.redeems, use.used = use.redeems + 1, event.time
        elif event.kind is EventKind.DENIAL:
            use = self._pair(event)
            use.denials, use.denied, use.why = use.denials + 1, event.time, event.reason
        elif event.kind is EventKind.GRANT and event.reason.startswith(_ASKED):
            use = self._pair(event)
            use.answer, use.answered = event.reason.removeprefix(_ASKED), event.time

    def _pair(self, event: Recorded) -> Use:
        self.changes += 1
        key = (event.plugin, event.credential)
        found = self.pairs.get(key)
        if found is None:
            if len(self.pairs) >= MAX_PAIRS:
                self.pairs.pop(next(iter(self.pairs)))
            found = self.pairs[key] = Use()
        return found
