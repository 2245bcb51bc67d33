"""Security events: what can happen, and what is done about it.

Guarantee: closed and typed. An event holds names and numbers, never a secret. Which
actions an event leads to is decided by a table that is data.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Final, TypeAlias, get_args

import msgspec

from apex_creds.errors import InvalidInputError
from apex_creds.model import check_name
from apex_creds.scheduler.policy import Level

__all__ = [
    "DEFAULT_TABLE",
    "AuditTampered",
    "CompromiseSuspected",
    "DenialsExceeded",
    "Event",
    "LeakDetected",
    "OperatorRequest",
    "PluginRemoved",
    "Reaction",
    "Table",
    "fingerprint",
    "kind_of",
    "parse_event",
    "read_event",
]


class Reaction(StrEnum):
    """What can be done about an event."""

    ROTATE = "rotate"
    ROTATE_AND_DESTROY = "rotate_and_destroy"
    REVOKE_LEASES = "revoke_leases"
    LOCK_DOWN = "lock_down"
    REVOKE_GRANTS = "revoke_grants"
    NOTIFY = "notify"


class _Base(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="event"
):
    """What all events have.

    Attributes:
        source: Who says so; 1 to 256 bytes.
    """

    source: str = "operator"

    def __post_init__(self) -> None:
        """Checks every text.

        Raises:
            InvalidNameError: One has control characters, or is too long.
        """
        for name in self.__struct_fields__:
            value = getattr(self, name)
            if isinstance(value, str) and value:
                check_name(value, what=name)
            if isinstance(value, int) and value < 0:
                raise InvalidInputError(f"The {name} of an event is negative.")


class CompromiseSuspected(_Base, frozen=True, kw_only=True, tag="compromise_suspected"):
    """A key may be in wrong hands.

    Attributes:
        level: Which level. What it protects is taken as compromised too.
        service: For a DEK: the service; empty for every DEK.
        version: The version; 0 for the primary and everything older.
        credential: Leases on it are revoked; empty for all that are concerned.
    """

    level: Level = Level.DEK
    service: str = ""
    version: int = 0
    credential: str = ""

    def __post_init__(self) -> None:
        """Checks the fields.

        Raises:
            InvalidInputError: A version of no particular DEK.
        """
        super().__post_init__()
        if self.version and self.level is Level.DEK and not self.service:
            raise InvalidInputError("A version of which service?", hint="Name the service.")


class PluginRemoved(_Base, frozen=True, kw_only=True, tag="plugin_removed"):
    """A plugin was uninstalled."""

    plugin: str


class AuditTampered(_Base, frozen=True, kw_only=True, tag="audit_tampered"):
    """The audit log does not verify."""

    detail: str = ""


class DenialsExceeded(_Base, frozen=True, kw_only=True, tag="denials_exceeded"):
    """A plugin asks for more than it may have, again and again."""

    plugin: str
    count: int = 0


class LeakDetected(_Base, frozen=True, kw_only=True, tag="leak_detected"):
    """A secret was seen where it must not be."""

    plugin: str = ""
    credential: str = ""


class OperatorRequest(_Base, frozen=True, kw_only=True, tag="operator_request"):
    """The operator wants keys rotated.

    Attributes:
        level: Which level.
        service: For DEKs: of one service; empty for all.
    """

    level: Level = Level.DEK
    service: str = ""


Event: TypeAlias = (
    CompromiseSuspected
    | PluginRemoved
    | AuditTampered
    | DenialsExceeded
    | LeakDetected
    | OperatorRequest
)

Table = dict[str, tuple[Reaction, ...]]
"""Reactions by kind of event, in the order in which they are taken."""

DEFAULT_TABLE: Final[Table] = {
    "compromise_suspected": (
        Reaction.REVOKE_LEASES,
        Reaction.ROTATE_AND_DESTROY,
        Reaction.NOTIFY,
    ),
    # Which keys it had is told by its grants, so they go last.
    "plugin_removed": (Reaction.REVOKE_LEASES, Reaction.ROTATE, Reaction.REVOKE_GRANTS),
    "audit_tampered": (Reaction.LOCK_DOWN, Reaction.NOTIFY),
    "denials_exceeded": (Reaction.REVOKE_LEASES, Reaction.NOTIFY),
    "leak_detected": (Reaction.REVOKE_LEASES, Reaction.NOTIFY),
    "operator_request": (Reaction.ROTATE,),
}


def kind_of(event: Event) -> str:
    """The event's name in the table."""
    return str(event.__struct_config__.tag)


def fingerprint(event: Event) -> str:
    """What makes two events the same for debouncing: all but who says so, and counts.

    That a second one suspects a compromise is another suspicion, though: it may be about the
    key that was made after the first.
    """
    fields = msgspec.to_builtins(event)
    left_out = {"count", "detail"}
    if not isinstance(event, CompromiseSuspected):
        left_out.add("source")
    kept = {k: v for k, v in fields.items() if k not in left_out}
    return msgspec.json.encode(kept, order="sorted").decode()


def parse_event(kind: str, fields: dict[str, object]) -> Event:
    """Makes an event from a name and fields of plain values.

    Raises:
        InvalidInputError: There is no such event, or a field is not acceptable.
    """
    try:
        made: Event = msgspec.convert({**fields, "event": kind}, Event, strict=False)
    except msgspec.ValidationError as error:
        problem = str(error)
    else:
        if not isinstance(made, PluginRemoved | DenialsExceeded) or made.plugin:
            return made
        problem = "of which plugin?"  # an empty id would stand for all of them
    raise InvalidInputError(
        f"That is no event: {problem[:200]}", hint=f"Events: {', '.join(DEFAULT_TABLE)}."
    )


ALIASES: Final[Mapping[str, str]] = {
    "plugin_id": "plugin",
    "plugin_name": "plugin",
    "service_name": "service",
    "credential_name": "credential",
}
"""What a runtime calls a field, where it does not call it as it is called here."""


def read_event(kind: str, fields: Mapping[str, object]) -> tuple[Event, tuple[str, ...]]:
    """As ``parse_event``, for an event that somebody else made.

    What it has more is left out; so is what can't be read, of an alarm: it then is about all
    that could be meant.

    Returns:
        The event, and what was left out of it, as it may be logged.

    Raises:
        InvalidInputError: There is no such event, or it lacks what can't be done without, or
            it is a request, and a field of it is not acceptable.
    """
    known = _NAMES.get(kind, ())
    given, left_out = dict[str, object](), list[str]()
    for name, value in fields.items():
        field = name if name in known else ALIASES.get(name, "")
        if field in known and (field == name or field not in fields):
            given[field] = value.get("id") if isinstance(value, Mapping) else value
        else:
            left_out.append(name)
    try:
        return parse_event(kind, given), _shown(left_out)
    except InvalidInputError:
        if kind not in _ALARMS:
            raise
    kept: dict[str, object] = {}
    for name in _NAMES[kind]:  # in the order in which one makes sense of the next
        if name in given:
            try:
                parse_event(kind, {**_LEAST[kind], **kept, name: given[name]})
            except InvalidInputError:
                left_out.append(name)
            else:
                kept[name] = given[name]
    return parse_event(kind, kept), _shown(left_out)


def _shown(names: list[str]) -> tuple[str, ...]:
    return tuple(ascii(name)[:80] for name in names[:20])


_NAMES: Final[Mapping[str, tuple[str, ...]]] = {
    str(each.__struct_config__.tag): each.__struct_fields__ for each in get_args(Event)
}
_ALARMS: Final = frozenset(_NAMES) - {"operator_request"}
_LEAST: Final[Mapping[str, dict[str, object]]] = {
    kind: {"plugin": "any"} if "plugin" in names else {} for kind, names in _NAMES.items()
}
"""With these fields, any event is one."""
