"""ApexAgent's events as they stand in ``src/core/event_system`` of its public repository.

The manager holds one lock, which is not reentrant, while it logs and delivers; subscribers
filter by type, priority and source; what a logger or subscriber raises is logged. Cut are
statistics, patterns and files.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum, auto
from typing import Any


class EventPriority(Enum):
    LOW = auto()
    NORMAL = auto()
    HIGH = auto()
    CRITICAL = auto()


@dataclass
class Event:
    event_type: str
    source: str
    data: dict[str, Any] = field(default_factory=dict)
    priority: EventPriority = EventPriority.NORMAL
    timestamp: datetime = field(default_factory=datetime.now)
    id: str = field(default_factory=lambda: str(uuid.uuid4()))
    parent_id: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        if not self.event_type:
            raise ValueError("Event type cannot be empty")
        if not self.source:
            raise ValueError("Event source cannot be empty")

    def to_dict(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "event_type": self.event_type,
            "source": self.source,
            "timestamp": self.timestamp.isoformat(),
            "priority": self.priority.name,
            "data": self.data,
            "parent_id": self.parent_id,
            "metadata": self.metadata,
        }


class CallbackEventSubscriber:
    def __init__(self, callback, event_types, priority_filter=None, source_filter=None):
        self._callback = callback
        self._event_types = set(event_types)
        self.priority_filter = priority_filter
        self.source_filter = source_filter

    def matches_event(self, event: Event) -> bool:
        if event.event_type not in self._event_types and not any(
            each.endswith(".*") and event.event_type.startswith(each[:-1])
            for each in self._event_types
        ):
            return False
        if self.priority_filter is not None and event.priority not in self.priority_filter:
            return False
        return self.source_filter is None or event.source in self.source_filter

    async def handle_event(self, event: Event) -> None:
        if asyncio.iscoroutinefunction(self._callback):
            await self._callback(event)
        else:
            self._callback(event)


class EventLogger:
    def __init__(self) -> None:
        self.lines: list[str] = []

    async def log_event(self, event: Event) -> None:
        self.lines.append(json.dumps(event.to_dict()))


class EventManager:
    def __init__(self) -> None:
        self._subscribers: list[CallbackEventSubscriber] = []
        self._loggers: list[EventLogger] = []
        self._lock = asyncio.Lock()
        self.errors: list[Exception] = []

    async def register_subscriber(self, subscriber: CallbackEventSubscriber) -> None:
        async with self._lock:
            if subscriber not in self._subscribers:
                self._subscribers.append(subscriber)

    async def unregister_subscriber(self, subscriber: CallbackEventSubscriber) -> bool:
        async with self._lock:
            if subscriber in self._subscribers:
                self._subscribers.remove(subscriber)
                return True
            return False

    async def register_callback(
        self,
        callback: Callable[[Event], Any],
        event_types: list[str],
        priority_filter: set[EventPriority] | None = None,
        source_filter: set[str] | None = None,
    ) -> CallbackEventSubscriber:
        subscriber = CallbackEventSubscriber(
            callback, event_types, priority_filter, source_filter
        )
        await self.register_subscriber(subscriber)
        return subscriber

    async def register_logger(self, logger: EventLogger) -> None:
        async with self._lock:
            self._loggers.append(logger)

    async def emit(self, event: Event) -> int:
        async with self._lock:
            for logger in self._loggers:
                try:
                    await logger.log_event(event)
                except Exception as e:
                    self.errors.append(e)
            count = 0
            for subscriber in [s for s in self._subscribers if s.matches_event(event)]:
                try:
                    result = subscriber.handle_event(event)
                    if asyncio.iscoroutine(result):
                        await result
                    count += 1
                except Exception as e:
                    self.errors.append(e)
            return count

    def create_event(
        self,
        event_type: str,
        source: str,
        data: dict[str, Any] | None = None,
        priority: EventPriority = EventPriority.NORMAL,
        parent_id: str | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> Event:
        return Event(
            event_type=event_type,
            source=source,
            data=data or {},
            priority=priority,
            parent_id=parent_id,
            metadata=metadata or {},
        )
