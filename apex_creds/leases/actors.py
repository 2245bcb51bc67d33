"""The beginnings of audit events, by plugin and action; remembered."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from apex_creds.audit.line import Actor
from apex_creds.policy.manifest import Manifest

_MANY: Final = 10_000


class Actors:
    """What a broker's events begin with.

    Args:
        shown: How the log shows a name.
    """

    __slots__ = ("_known", "_shown")

    def __init__(self, shown: Callable[[str], str]) -> None:
        self._shown = shown
        self._known: dict[tuple[str, str, str], Actor] = {}

    def __call__(self, manifest: Manifest, action: str) -> Actor:
        """The beginning of the events of a plugin's action."""
        key = (manifest.plugin, manifest.version, action)
        found = self._known.get(key)
        if found is None:
            if len(self._known) >= _MANY:
                self._known.clear()
            found = self._known[key] = Actor(*key, shown=self._shown)
        return found
