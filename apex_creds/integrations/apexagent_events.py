"""ApexAgent's events to rotation triggers, and security events to ApexAgent's event manager.

Guarantee: what the runtime says is accepted as durably as anything else. An alarm is never
passed over for what is odd in it: what can't be read is left out, and named in the log. What
is said elsewhere, also in another process, is relayed from a task that holds no lock; what
came from this runtime does not come back to it. What is made has the runtime's own priorities
and its own class where it has one, so that its subscribers' filters and its loggers understand
it; ``SecurityEvent`` stands in where it has none.

The manager needs ``await register_callback(callback, event_types)`` and ``await
emit(event)``, as ApexAgent's ``EventManager`` has; an event has ``event_type``, ``source``,
``data`` and ``priority``.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import sys
import typing
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum, IntEnum
from typing import Final, Protocol, Self, cast, final

import msgspec

from apex_creds.concurrency import CHECK_EVERY
from apex_creds.errors import ApexCredsError, InvalidInputError
from apex_creds.model import new_id
from apex_creds.scheduler.event_queue import EventQueue
from apex_creds.scheduler.rotation_state import DEFAULT_TABLE, Event, kind_of, read_event

__all__ = ["Connection", "EventManager", "SecurityEvent", "connect"]

# -- events in the form of a runtime ------------------------------------------------------


SOURCE: Final = "apex-creds"
PREFIX: Final = "security."
_FIELDS: Final = ("event_type", "source", "data", "priority")


class Priority(IntEnum):
    """How urgent, where the runtime has no enumeration for it."""

    LOW = 1
    NORMAL = 2
    HIGH = 3
    CRITICAL = 4


_PRIORITIES: Final[Mapping[str, Priority]] = {
    "compromise_suspected": Priority.CRITICAL,
    "audit_tampered": Priority.CRITICAL,
    "denials_exceeded": Priority.HIGH,
    "leak_detected": Priority.HIGH,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SecurityEvent:
    """An event as the runtime sees it: what ApexAgent's ``Event`` has."""

    event_type: str
    source: str = SOURCE
    data: Mapping[str, object] = field(default_factory=dict)
    priority: Priority = Priority.NORMAL
    timestamp: datetime = field(default_factory=lambda: datetime.now(UTC))
    id: str = field(default_factory=new_id)
    parent_id: str | None = None
    metadata: Mapping[str, object] = field(default_factory=dict)

    def to_dict(self) -> dict[str, object]:
        """The event in plain values, for a runtime's log."""
        return {
            "id": self.id,
            "event_type": self.event_type,
            "source": self.source,
            "timestamp": self.timestamp.isoformat(),
            "priority": self.priority.name,
            "data": dict(self.data),
            "parent_id": self.parent_id,
            "metadata": dict(self.metadata),
        }


class Maker:
    """Makes a runtime's events.

    Args:
        manager: The runtime's event manager. Its ``create_event``, else the class that its
            ``emit`` takes, else the ``Event`` of its module is used.
        make_event: Used instead; called with the keywords ``event_type``, ``source``,
            ``data`` and ``priority``.
    """

    def __init__(
        self, manager: object, make_event: Callable[..., object] | None = None
    ) -> None:
        hints = _hints(getattr(manager, "emit", None))
        taken = [hint for name, hint in hints.items() if name != "return"]
        module = sys.modules.get(type(manager).__module__)
        makers = [
            getattr(manager, "create_event", None),
            *taken,
            getattr(module, "Event", None),
        ]
        found = (each for each in makers if _takes_the_fields(each))
        self._make: Callable[..., object] = make_event or next(found, SecurityEvent)
        # The enumeration that it wants: of its default, else of its annotation.
        default: object = None
        with suppress(TypeError, ValueError, KeyError):
            default = inspect.signature(self._make).parameters["priority"].default
        wanted = (type(default), _hints(self._make).get("priority"))
        enumerations = (it for it in wanted if isinstance(it, type) and issubclass(it, Enum))
        self._priorities: type[Enum] = next(enumerations, Priority)

    def __call__(self, kind: str, data: Mapping[str, object]) -> object:
        """The event of a kind, as this package calls it."""
        priority: Enum = _PRIORITIES.get(kind, Priority.NORMAL)
        priority = self._priorities.__members__.get(priority.name, priority)
        return self._make(
            event_type=PREFIX + kind, source=SOURCE, data=dict(data), priority=priority
        )


def _takes_the_fields(make: object) -> typing.TypeGuard[Callable[..., object]]:
    if not callable(make) or make is object:
        return False
    try:
        inspect.signature(make).bind(**dict.fromkeys(_FIELDS))
    except (TypeError, ValueError):
        return False
    return True


def _hints(thing: object) -> dict[str, object]:
    try:
        return typing.get_type_hints(thing)
    except Exception:  # noqa: BLE001 - whatever a runtime's annotations come to
        return {}


# -- both ways ----------------------------------------------------------------------------


_FROM_RUNTIME: Final = "runtime:"
_UNREGISTER: Final = ("unregister_subscriber", "unregister_callback", "unsubscribe")
_ATTEMPTS: Final = 100
_log: Final = logging.getLogger(__name__)


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
    bus: EventQueue,
    *,
    make_event: Callable[..., object] | None = None,
) -> Connection:
    """Lets security events pass both ways, until ``disconnect``.

    Args:
        manager: The runtime's. Call this in the event loop that it is used in: what is
            relayed to it is relayed there.
        bus: The worker's: ``worker.bus``.
        make_event: Makes the runtime's events; by default, its own class is found (see
            ``Maker``).

    Raises:
        InvalidInputError: It lacks what is needed.
    """
    for name in ("register_callback", "emit"):
        if not callable(getattr(manager, name, None)):
            raise InvalidInputError(
                f"{type(manager).__name__} is no event manager that is known.",
                hint=f"It has no method {name}; give an adapter that has.",
            )
    connection = Connection(manager, bus, Maker(manager, make_event))
    await connection.begin()
    return connection


@final
class Connection:
    """What ``connect`` made; a context manager that disconnects."""

    def __init__(self, manager: EventManager, bus: EventQueue, make: Maker) -> None:
        """Use ``connect``."""
        self._manager = manager
        self._bus = bus
        self._make = make
        self._outgoing = bus.subscribe(self._emit)
        self._registered: object = None
        self._ending: asyncio.Task[object] | None = None

    async def begin(self) -> None:
        """Registers with the runtime; relays what still waits to be acted on."""
        types = [PREFIX + kind for kind in DEFAULT_TABLE]

        async def incoming(event: object) -> None:  # some managers ask what kind it is
            await self._accept(event)

        self._registered = await self._manager.register_callback(incoming, types) or incoming
        with suppress(ApexCredsError):  # sealed: the worker reads as soon as it can
            await self._bus.refresh()

    async def disconnect(self) -> None:
        """Nothing passes from now on; idempotent. May be called by a subscriber, too."""
        if not self._outgoing.active:
            return
        self._outgoing.cancel()
        methods = (getattr(self._manager, name, None) for name in _UNREGISTER)
        unregister = next(filter(callable, methods), None)

        async def end() -> None:
            result = unregister and unregister(self._registered)
            if inspect.isawaitable(result):
                await result

        # Not waited for: where a subscriber calls this, the manager waits for it.
        self._ending = asyncio.get_running_loop().create_task(end())
        await asyncio.sleep(0)

    async def _accept(self, event: object) -> None:
        read = _read(event) if self._outgoing.active else None
        if read is not None:
            await self._bus.accept(read, heard_by=self._outgoing)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.disconnect()

    async def _emit(self, event: Event) -> None:
        fields = cast("dict[str, object]", msgspec.to_builtins(event))
        data = {name: value for name, value in fields.items() if name not in _OWN}
        made = self._make(kind_of(event), data)
        for _ in range(_ATTEMPTS):
            try:
                await _awake(self._manager.emit(made))
                return
            except RuntimeError as error:
                # A manager's lock belongs to one loop, and may be taken in another while
                # nobody else wants it.
                if "different event loop" not in str(error):
                    raise
            await asyncio.sleep(CHECK_EVERY)
        _log.error("the runtime's event manager is in use by another event loop all the time")


_OWN: Final = frozenset({"event", "source"})


async def _awake(emitting: Awaitable[object]) -> None:
    """Waits for it, with a timer that wakes the loop every now and then.

    What it waits for may be a lock that another loop releases, which does not wake this one.
    """
    loop, timers = asyncio.get_running_loop(), list[asyncio.TimerHandle]()

    def wake() -> None:
        timers[:] = [loop.call_later(CHECK_EVERY, wake)]

    wake()
    try:
        await emitting
    finally:
        timers[0].cancel()


def _read(event: object) -> Event | None:
    """The event as this package knows it; None if it is none, or one of ours."""
    kind = _part(event, "event_type")
    kind = _text(_part(kind, "value") or kind).removeprefix(PREFIX)
    source = _text(_part(event, "source"))
    if source == SOURCE or kind not in DEFAULT_TABLE:
        return None
    data, named = _part(event, "data"), dict[object, object]()
    with suppress(Exception):
        named = dict(data) if isinstance(data, Mapping) else {}
    fields = {_text(name): value for name, value in named.items()}
    fields["source"] = f"{_FROM_RUNTIME}{source}".encode(errors="replace")[:200].decode(
        errors="ignore"
    )
    try:
        read, left_out = read_event(kind, fields)
    except InvalidInputError as error:
        _log.error("an event of the runtime, %s, can't be acted on: %s", kind, error)
        return None
    if left_out:
        _log.warning("of an event of the runtime, %s, was left out: %s", kind, left_out)
    return read


# What a runtime has in an event may raise; an alarm is no less one for it.


def _part(event: object, name: str) -> object:
    try:
        return getattr(event, name, "")
    except Exception:  # noqa: BLE001
        return ""


def _text(value: object) -> str:
    try:
        return str(value)
    except Exception:  # noqa: BLE001
        return f"<{type(value).__name__[:80]}>"
