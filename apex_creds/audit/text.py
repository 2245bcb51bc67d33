"""The events of the hot path as text: what repeats is encoded once.

Guarantee: each function returns the JSON of an ``AuditEvent`` that the log would accept;
names go through the log's own encoder (escaped, trimmed), and everything else is a number
or an identifier of hexadecimal digits, which needs neither.
"""

from __future__ import annotations

from typing import Final, final

from apex_creds.audit import chain
from apex_creds.audit.events import AuditEvent, EventKind

_EMPTY: Final = len(b'{"time":0.0,"kind":"lease"')
_MANY: Final = 4096


@final
class Actor:
    """A plugin's action, as the beginning of its events.

    Args:
        plugin: Its id.
        version: Its version; may be empty.
        action: The action's name.
    """

    __slots__ = ("_credentials", "_end", "_lease", "_redeem")

    def __init__(self, plugin: str, version: str, action: str) -> None:
        event = AuditEvent(
            0.0, EventKind.LEASE, plugin=plugin, plugin_version=version, action=action
        )
        who = _fields(event)
        self._lease = f',"kind":"lease"{who},"decision":"allow","reason":"granted"'
        self._redeem = f',"kind":"redeem"{who},"decision":"allow","reason":"granted"'
        self._end = f',"kind":"invocation"{who}'
        self._credentials: dict[str, str] = {}

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
        """A lease is redeemed; ``method`` and ``origin`` have been checked."""
        name = self._credentials.get(credential) or self._name(credential)
        more = f',"parent":"{parent}"' if parent else ""
        if origin:
            more += f',"origin":"{origin}"'
        if ids[0]:
            more += f',"trace_id":"{ids[0]}","span_id":"{ids[1]}"'
        return (
            f'{{"time":{time!r}{self._redeem}{name},"invocation":"{invocation}"'
            f',"lease":"{lease}","key_id":"{key[0].hex()}","key_version":{key[1]}'
            f',"method":"{method}"{more}}}'
        ).encode()

    def end(
        self, time: float, *, invocation: str, parent: str, outcome: str, duration_us: int
    ) -> bytes:
        """An invocation is over; ``outcome`` is a word."""
        link = f',"parent":"{parent}"' if parent else ""
        return (
            f'{{"time":{time!r}{self._end},"invocation":"{invocation}"{link}'
            f',"outcome":"{outcome}","duration_us":{duration_us}}}'
        ).encode()

    def _name(self, credential: str) -> str:
        if len(self._credentials) >= _MANY:
            self._credentials.clear()
        text = _fields(AuditEvent(0.0, EventKind.LEASE, credential=credential))
        self._credentials[credential] = text
        return text


def _fields(event: AuditEvent) -> str:
    """The fields after time and kind, as they stand in JSON."""
    return chain.encode(event)[_EMPTY:-1].decode()
