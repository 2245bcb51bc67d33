"""Names as the page shows them: escaped, and as pseudonyms where the vault says so.

Guarantee: text from outside reaches the page with every character that is not plainly
seen as an escape, and cut; with pseudonyms configured, no credential's name reaches
it, unless the operator asked for names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

import msgspec

from apex_creds.audit.events import EventKind, Recorded
from apex_creds.audit.text import shown_label
from apex_creds.policy.display import shown as escaped
from apex_creds.vault import Vault
from apex_creds.vault.config import home_config

_LONGEST: Final = 400
# Computed, hexadecimal or numbers: nobody can put text there.
_PLAIN: Final = frozenset({"v", "seq", "time", "hash", "kind", "key_version", "duration_us"})


def text(value: str) -> str:
    """``value`` safe to show, and not too long."""
    return escaped(value, longest=_LONGEST)


class Names:
    """How credentials are called.

    Args:
        pseudonym: What the vault's log calls a name; None: by itself.
        named: Show names although the log has pseudonyms.
    """

    def __init__(
        self, pseudonym: Callable[[str], str] | None = None, *, named: bool = False
    ) -> None:
        self._pseudonym = pseudonym
        self._named = named
        self._known: dict[str, str] = {}

    @property
    def hidden(self) -> bool:
        """Whether credentials are shown by pseudonym."""
        return self._pseudonym is not None and not self._named

    def learn(self, names: Iterable[str]) -> None:
        """Remembers which names pseudonyms stand for, where they are to be shown."""
        if self._pseudonym is not None and self._named:
            self._known = {self._pseudonym(name): name for name in names}

    def credential(self, name: str) -> str:
        """A credential's or service's name, as it is in the vault."""
        if name and self._pseudonym is not None and not self._named:
            return self._pseudonym(name)
        return text(name)

    def logged(self, name: str) -> str:
        """A credential's name, as it is in the log."""
        return text(self._known.get(name, name))

    def as_logged(self, name: str) -> str:
        """What the log calls a credential of the vault."""
        return name if self._pseudonym is None else self._pseudonym(name)

    def label(self, label: str) -> str:
        """A keyset's label, ``section/service``."""
        return text(shown_label(label, self.credential))

    def event(self, event: Recorded) -> dict[str, object]:
        """An event of the log, as the page gets it: empty fields are left out."""
        found: dict[str, object] = {}
        for name, value in msgspec.to_builtins(event).items():
            if name == "hash":
                continue
            plain = name in _PLAIN or not isinstance(value, str)
            found[name] = value if plain else text(value)
        if event.credential:
            found["credential"] = self.logged(event.credential)
        if event.kind is EventKind.ROTATION and event.detail:
            found["detail"] = text(shown_label(event.detail, self.logged))
        return found


async def names_of(vault: Vault, *, named: bool) -> Names:
    """How a vault's credentials are called, as its configuration says."""
    config = (await home_config(vault.home)).audit
    return Names(vault.audit.shown if config.pseudonyms else None, named=named)
