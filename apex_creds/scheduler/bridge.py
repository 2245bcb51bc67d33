"""Security events to and from an agent runtime's own event manager.

Guarantee: what the runtime says is accepted as durably as anything else; what cannot be
read as an event is logged and passed over. Events that came from here do not come back.
The manager needs ``await register_callback(callback, event_types)`` and ``await
emit(event)``, as ApexAgent's ``EventManager`` has; an event has ``event_type``,
``source``, ``data`` and ``priority``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

import msgspec

from apex_creds.errors import InvalidInputError
from apex_creds.scheduler.bus import EventBus
from apex_creds.scheduler.events import DEFAULT_TABLE, Event, kind_of, parse_event

SOURCE: Final = "apex-creds"
PREFIX: Final = "security."
_URGENT: Final = frozenset({"compromise_suspected", "audit_tampered"})
_log: Final = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class SecurityEvent:
    """An event as the runtime sees it."""

    event_type: str
    source: str = SOURCE
    data: Mapping[str, object] = field(default_factory=dict)
    priority: int = 1


class EventManager(Protocol):
    """What the runtime has."""

    async def register_callback(
        self, callback: Callable[..., object], event_types: list[str]
    ) -> object:
        """Has ``callback`` called with each event of these types."""

    async def emit(self, event: object) -> object:
        """Tells everybody."""


async def connect(
    manager: EventManager,
    bus: EventBus,
    *,
    make_event: Callable[..., object] = SecurityEvent,
) -> None:
    """Lets security events pass both ways.

    Args:
        manager: The runtime's.
        bus: The worker's: ``worker.bus``.
        make_event: The runtime's own class, where it insists on one.
    """

    async def incoming(event: object) -> None:
        read = _read(event)
        if read is not None:
            await bus.accept(read)

    async def outgoing(event: Event) -> None:
        if not event.source.startswith(_FROM_RUNTIME):
            await manager.emit(_written(event, make_event))

    bus.subscribe(outgoing)
    await manager.register_callback(incoming, [PREFIX + kind for kind in DEFAULT_TABLE])


_FROM_RUNTIME: Final = "runtime:"


def _read(event: object) -> Event | None:
    kind = getattr(event, "event_type", "")
    kind = str(getattr(kind, "value", kind)).removeprefix(PREFIX)
    source, data = getattr(event, "source", ""), getattr(event, "data", None)
    if source == SOURCE or not isinstance(data, Mapping):
        return None
    fields = {str(name): value for name, value in data.items() if name != "source"}
    try:
        return parse_event(kind, {**fields, "source": f"{_FROM_RUNTIME}{source}"[:200]})
    except InvalidInputError as error:
        _log.warning("an event of the runtime was passed over: %s", error.message)
    return None


def _written(event: Event, make_event: Callable[..., object]) -> object:
    kind = kind_of(event)
    data = {k: v for k, v in msgspec.to_builtins(event).items() if k not in ("event", "source")}
    return make_event(
        event_type=PREFIX + kind,
        source=SOURCE,
        data=data,
        priority=3 if kind in _URGENT else 1,
    )
