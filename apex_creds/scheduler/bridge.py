"""Security events to and from an agent runtime's own event manager.

Guarantee: what the runtime says is accepted as durably as anything else. An alarm is never
passed over for what is odd in it: what can't be read is left out, and named in the log. What
is said elsewhere, also in another process, is relayed from a task that holds no lock; what
came from this runtime does not come back to it.

The manager needs ``await register_callback(callback, event_types)`` and ``await
emit(event)``, as ApexAgent's ``EventManager`` has; an event has ``event_type``, ``source``,
``data`` and ``priority``.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Final, Protocol, Self, cast, final

import msgspec

from apex_creds.concurrency import LOOK
from apex_creds.errors import ApexCredsError, InvalidInputError
from apex_creds.scheduler.bus import EventBus
from apex_creds.scheduler.events import DEFAULT_TABLE, Event, kind_of, read_event
from apex_creds.scheduler.runtime_events import PREFIX, SOURCE, Maker, SecurityEvent

__all__ = ["Connection", "EventManager", "SecurityEvent", "connect"]

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
    bus: EventBus,
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

    def __init__(self, manager: EventManager, bus: EventBus, make: Maker) -> None:
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
        with suppress(ApexCredsError):  # sealed: the worker looks as soon as it can
            await self._bus.look()

    async def disconnect(self) -> None:
        """Nothing passes from now on; idempotent. May be called by a subscriber, too."""
        if not self._outgoing.active:
            return
        self._outgoing.cancel()
        # Not waited for: where a subscriber calls this, the manager waits for it.
        self._ending = asyncio.get_running_loop().create_task(self._unregister())
        await asyncio.sleep(0)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.disconnect()

    async def _unregister(self) -> None:
        for name in _UNREGISTER:
            method = getattr(self._manager, name, None)
            if callable(method):
                result = method(self._registered)
                if inspect.isawaitable(result):
                    await result
                return

    async def _accept(self, event: object) -> None:
        read = _read(event) if self._outgoing.active else None
        if read is not None:
            await self._bus.accept(read, heard_by=self._outgoing)

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
            await asyncio.sleep(LOOK)
        _log.error("the runtime's event manager is in use by another event loop all the time")


_OWN: Final = frozenset({"event", "source"})


async def _awake(emitting: Awaitable[object]) -> None:
    """Waits for it, and has the loop look up now and then.

    What it waits for may be a lock that is given back in another loop, which wakes nobody here.
    """
    loop, looks = asyncio.get_running_loop(), list[asyncio.TimerHandle]()

    def look() -> None:
        looks[:] = [loop.call_later(LOOK, look)]

    look()
    try:
        await emitting
    finally:
        looks[0].cancel()


def _read(event: object) -> Event | None:
    """The event as this package knows it; None if it is none, or one of ours."""
    kind = _part(event, "event_type")
    kind = _text(_part(kind, "value") or kind).removeprefix(PREFIX)
    source = _text(_part(event, "source"))
    if source == SOURCE or kind not in DEFAULT_TABLE:
        return None
    fields = _fields(_part(event, "data"))
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


def _fields(data: object) -> dict[str, object]:
    try:
        named = dict(data) if isinstance(data, Mapping) else {}
    except Exception:  # noqa: BLE001
        named = {}
    return {_text(name): value for name, value in named.items()}
