"""Events in the form of an agent runtime: its own class where it has one.

Guarantee: what is made has the runtime's own priorities, so that its subscribers' filters and
its loggers understand it. ``SecurityEvent`` stands in where the runtime has no class.
"""

from __future__ import annotations

import inspect
import sys
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum, IntEnum
from typing import Final

from apex_creds.model import new_id

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
        found = (each for each in _candidates(manager) if _takes_the_fields(each))
        self._make: Callable[..., object] = make_event or next(found, SecurityEvent)
        self._priorities = _priorities_of(self._make)

    def __call__(self, kind: str, data: Mapping[str, object]) -> object:
        """The event of a kind, as this package calls it."""
        priority: Enum = _PRIORITIES.get(kind, Priority.NORMAL)
        priority = self._priorities.__members__.get(priority.name, priority)
        return self._make(
            event_type=PREFIX + kind, source=SOURCE, data=dict(data), priority=priority
        )


def _candidates(manager: object) -> list[object]:
    hints = _hints(getattr(manager, "emit", None))
    module = sys.modules.get(type(manager).__module__)
    taken = [hint for name, hint in hints.items() if name != "return"]
    return [getattr(manager, "create_event", None), *taken, getattr(module, "Event", None)]


def _takes_the_fields(make: object) -> typing.TypeGuard[Callable[..., object]]:
    if not callable(make) or make is object:
        return False
    try:
        inspect.signature(make).bind(**dict.fromkeys(_FIELDS))
    except (TypeError, ValueError):
        return False
    return True


def _priorities_of(make: Callable[..., object]) -> type[Enum]:
    """The enumeration that ``make`` wants: of its default, else of its annotation."""
    try:
        default = inspect.signature(make).parameters["priority"].default
    except (TypeError, ValueError, KeyError):
        default = None
    annotated = _hints(make).get("priority")
    for found in (type(default), annotated):
        if isinstance(found, type) and issubclass(found, Enum):
            return found
    return Priority


def _hints(thing: object) -> dict[str, object]:
    try:
        return typing.get_type_hints(thing)
    except Exception:  # noqa: BLE001 - whatever a runtime's annotations come to
        return {}
