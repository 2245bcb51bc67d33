"""The events of the hot path as text: what repeats is encoded once.

Guarantee: each function returns the JSON of an ``AuditEvent`` that the log would accept, of
one line and less than 32 KiB; whatever a plugin has a say in (names, methods, the class of
its error) goes through the log's own encoder, escaped and trimmed. Everything else is a
number or an identifier of hexadecimal digits, which needs neither.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar, final

import msgspec

from apex_creds.audit import line
from apex_creds.audit.events import AuditEvent, EventKind
from apex_creds.model import MAX_NAME_BYTES

_BARE: Final = AuditEvent(0.0, EventKind.LEASE)
_EMPTY: Final = len(b'{"time":0.0,"kind":"lease"')
_MANY: Final = 4096
_Key = TypeVar("_Key", str, tuple[str, str])


@final
class Actor:
    """A plugin's action, as the beginning of its events.

    Args:
        plugin: Its id.
        version: Its version; may be empty.
        action: The action's name.
        shown: Gives a credential's name as the log shows it.
    """

    __slots__ = ("_credentials", "_end", "_lease", "_redeem", "_shown", "_uses")

    def __init__(
        self, plugin: str, version: str, action: str, *, shown: Callable[[str], str] = str
    ) -> None:
        self._shown = shown
        who = _fields(plugin=plugin, plugin_version=version, action=action)
        self._lease = f',"kind":"lease"{who},"decision":"allow","reason":"granted"'
        self._redeem = f',"kind":"redeem"{who},"decision":"allow","reason":"granted"'
        self._end = f',"kind":"invocation"{who}'
        self._credentials: dict[str, str] = {}
        self._uses: dict[tuple[str, str], str] = {}

    def lease(
        self, time: float, *, invocation: str, lease: str, parent: str, credential: str
    ) -> bytes:
        """A lease was made."""
        name = self._credentials.get(credential) or self._name(credential)
        link = f',"parent":"{parent}"' if parent else ""
        return (
            f'{{"time":{time!r}{self._lease}{name},"invocation":"{invocation}"'
            f',"lease":"{lease}"{link}}}'
        ).encode()

    def redeem(
        self,
        time: float,
        *,
        invocation: str,
        lease: str,
        parent: str,
        credential: str,
        key: tuple[bytes, int],
        method: str,
        origin: str,
        ids: tuple[str, str],
    ) -> bytes:
        """A lease is redeemed."""
        name = self._credentials.get(credential) or self._name(credential)
        use = self._uses.get((method, origin)) or self._use(method, origin)
        more = f',"parent":"{parent}"' if parent else ""
        if ids[0]:
            more += f',"trace_id":"{ids[0]}","span_id":"{ids[1]}"'
        return (
            f'{{"time":{time!r}{self._redeem}{name},"invocation":"{invocation}"'
            f',"lease":"{lease}","key_id":"{key[0].hex()}","key_version":{key[1]}'
            f"{use}{more}}}"
        ).encode()

    def end(
        self, time: float, *, invocation: str, parent: str, outcome: str, duration_us: int
    ) -> bytes:
        """An invocation is over."""
        link = f',"parent":"{parent}"' if parent else ""
        how = _OK if outcome == "ok" else _fields(outcome=outcome)
        return (
            f'{{"time":{time!r}{self._end},"invocation":"{invocation}"{link}'
            f'{how},"duration_us":{duration_us}}}'
        ).encode()

    def _name(self, credential: str) -> str:
        text = _fields(credential=self._shown(credential))
        return _remember(self._credentials, credential, text)

    def _use(self, method: str, origin: str) -> str:
        text = _fields(method=method, origin=origin)
        return _remember(self._uses, (method, origin), text)


def _remember(known: dict[_Key, str], key: _Key, text: str) -> str:
    if len(known) >= _MANY:
        known.clear()
    known[key] = text
    return text


def _fields(**values: str) -> str:
    """The fields after time and kind, as they stand in JSON."""
    cut = {name: _cut(value) for name, value in values.items()}
    event = msgspec.structs.replace(_BARE, **cut)
    return line.encode(event)[_EMPTY:-1].decode()


def _cut(text: str) -> str:
    """Whatever can name a credential or a plugin is kept whole."""
    return text if len(text) <= MAX_NAME_BYTES else text[:MAX_NAME_BYTES] + "…"


_OK: Final = _fields(outcome="ok")


def shown_label(label: str, shown: Callable[[str], str]) -> str:
    """A keyset's label, ``section/service``, with its service as ``shown`` shows names."""
    section, slash, service = label.partition("/")
    return f"{section}/{shown(service)}" if slash and section != "access" else label
