"""Rotation as stored in the vault: policies, events to act on, orders to renew keys.

Guarantee: nothing here decides whether a credential can be read. Lost or rolled back, it
costs a rotation done twice or a policy at its default, never a key. An event that was
accepted is anchored at once, so that no older copy silences an alarm.

An order names key versions by number: those that there were when it was given. Numbers only
grow, so it means the same whatever a clock said. It is done when every key that it names has a
newer primary, and whether it is, is read from the key store.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Final, TypeAlias, get_args

import msgspec
from msgspec import UNSET, UnsetType
from msgspec.structs import replace

from apex_creds.auth.access_document import DEK_LABEL
from apex_creds.clocks import Moment
from apex_creds.documents.cached import Document
from apex_creds.documents.keystore import DOCUMENTS_LABEL, Keystore
from apex_creds.documents.store import DocumentStore
from apex_creds.errors import CredentialNotFoundError, InvalidInputError
from apex_creds.keys.keyset import KeyState
from apex_creds.model import SECTION_NAMES, check_name, key_of
from apex_creds.scheduler.schedule import Level, Policies

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
        principal: Whose credential that is; left out: the shared one.
    """

    level: Level = Level.DEK
    service: str = ""
    version: int = 0
    credential: str = ""
    principal: str | UnsetType = UNSET  # left out, a program of before reads the event, too

    def __post_init__(self) -> None:
        """Checks the fields.

        Raises:
            InvalidInputError: A version of no particular DEK, or a principal of none.
        """
        super().__post_init__()
        _check_principal(self)
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
    """A secret was seen where it must not be.

    Attributes:
        plugin: Whose leases end; empty for all.
        credential: The secret's; empty for all.
        principal: Whose credential that is; left out: the shared one.
    """

    plugin: str = ""
    credential: str = ""
    principal: str | UnsetType = UNSET  # left out, a program of before reads the event, too

    def __post_init__(self) -> None:
        """Checks the fields.

        Raises:
            InvalidInputError: A principal of no credential.
        """
        super().__post_init__()
        _check_principal(self)


def _check_principal(event: CompromiseSuspected | LeakDetected) -> None:
    if event.principal and not event.credential:
        raise InvalidInputError("Which credential of that principal?", hint="Name it.")


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
    # Its grants say which keys it had, so they go last.
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
        problem = str(error) if kind in DEFAULT_TABLE else "there is none of that name."
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


def concerned(event: Event) -> tuple[str | None, str | None]:
    """The plugin of an event, and the key of its credential; None for all."""
    plugin, credential = getattr(event, "plugin", ""), getattr(event, "credential", "")
    key = key_of(credential, getattr(event, "principal", "") or "") if credential else None
    return plugin or None, key


DOCUMENT: Final = "rotation"


class WorkerLease(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Read where an earlier program wrote it; who rotates holds a lock now."""

    holder: str
    until: float


class Accepted(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An event that will be acted on.

    Attributes:
        id: 32 hexadecimal digits.
        event: What happened.
        at: When it was accepted, Unix seconds.
        reactions: What is left to do, in order.
        concerns: The key versions that there were then, which it is about; None where an
            earlier program accepted it.
    """

    id: str
    event: Event
    at: float
    reactions: tuple[Reaction, ...]
    concerns: dict[str, int] | None = None


class RotationState(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The document ``rotation``.

    Attributes:
        policies: When keys rotate.
        table: What is done about events.
        debounce: Seconds in which the same event is accepted once.
        lease: Not used any more.
        queue: Events that are not yet acted on, oldest first.
        acted: The last events that were acted on.
        heard: When an event was last accepted, by fingerprint.
        recent: Not used any more.
        renew: Keys (``level`` or ``level label``) whose primary is of this version, or an
            earlier one, are to be rotated.
        requested: The same by time, where an earlier program wrote it.
        discarded: Master keys up to this version were deleted at their provider.
        discarded_at: When each of them was, Unix seconds.
        compromised_master: Master keys up to this version may be in wrong hands.
        tampering: What was found wrong with audit logs, the newest last. It stays wrong, and
            each is one event, however often it is found again.
        documents: What the generations of all documents came to when the last one had got
            that version of their key; from then on their writes are counted for it.
    """

    policies: Policies = Policies()
    table: Table = msgspec.field(default_factory=lambda: dict(DEFAULT_TABLE))
    debounce: float = 60.0
    lease: WorkerLease | None = None
    queue: tuple[Accepted, ...] = ()
    acted: tuple[Accepted, ...] = ()
    heard: dict[str, Moment] = {}
    recent: dict[str, float] = {}
    renew: dict[str, int] = {}
    requested: dict[str, float] = {}
    discarded: int = 0
    discarded_at: dict[int, float] = {}
    compromised_master: int = 0
    tampering: tuple[str, ...] = ()
    documents: dict[int, int] = {}


def rotation_document(store: DocumentStore) -> Document[RotationState]:
    """The document of a vault."""
    return Document(store, name=DOCUMENT, empty=RotationState(), takes_away=_alarms)


def _alarms(before: RotationState, after: RotationState) -> bool:
    """An alarm that was accepted, or a key that is not to be trusted, is not to be undone."""
    known = {accepted.id for accepted in before.queue}
    return before.compromised_master != after.compromised_master or any(
        accepted.id not in known for accepted in after.queue
    )


Numbers = Mapping[str, int]
"""By ``request_key``: versions of that number and older ones."""

_LEVELS: Final = tuple(Level)


def request_key(level: Level, label: str = "") -> str:
    """How a key is named in an order: its level and, for a DEK, its label."""
    return f"{level.value} {label}" if label else level.value


def labels_of(keystore: Keystore, service: str = "") -> list[str]:
    """The labels of a service's DEKs; without one, of all that are rotated.

    Raises:
        CredentialNotFoundError: No credential is of that service.
    """
    known = keystore.by_label
    if not service:
        kinds = {*SECTION_NAMES, DEK_LABEL}
        found = [name for name in known if name in kinds or name.partition("/")[0] in kinds]
        return found + [DOCUMENTS_LABEL] * (DOCUMENTS_LABEL in known)
    found = [f"{name}/{service}" for name in SECTION_NAMES if f"{name}/{service}" in known]
    if not found:
        raise CredentialNotFoundError(
            "No credential is of that service.", hint="See: apex-creds list"
        )
    return found


def newest(keystore: Keystore, level: Level, labels: Iterable[str] = ()) -> dict[str, int]:
    """The newest version of each key: of the level or, of DEKs, of these labels."""
    if level is Level.MASTER:
        return {request_key(level): keystore.root_header.master.version}
    if level is Level.KEK:
        return {request_key(level): keystore.root_header.keks.versions[-1].version}
    return {
        request_key(level, label): keystore.by_label[label].versions[-1].version
        for label in labels
    }


def newest_below(keystore: Keystore, level: Level, labels: Iterable[str]) -> dict[str, int]:
    """As ``newest``, with every key that is opened by those of the level."""
    if level is Level.DEK:
        return newest(keystore, level, labels)
    found: dict[str, int] = {}
    for each in _LEVELS[_LEVELS.index(level) :]:
        found |= newest(keystore, each, keystore.by_label)
    return found


async def order(document: Document[RotationState], numbers: Numbers) -> None:
    """Has keys renewed that are of these versions, or older; durable on return."""
    await document.change(lambda state: with_orders(state, numbers))


def with_orders(state: RotationState, numbers: Numbers) -> RotationState:
    """The state with keys that are to be renewed."""
    renew = dict(state.renew)
    for name, number in numbers.items():
        renew[name] = max(number, renew.get(name, 0))
    return state if renew == state.renew else replace(state, renew=renew)


def with_discarded(state: RotationState, *, version: int, now: float) -> RotationState:
    """The state when the next master key was deleted at its provider."""
    if version != state.discarded + 1:
        return state
    return replace(state, discarded=version, discarded_at={**state.discarded_at, version: now})


def undone(keystore: Keystore, numbers: Numbers) -> list[str]:
    """The keys whose primary is not newer than that; one that is gone needs no renewal."""
    return [name for name, number in numbers.items() if 0 < _primary(keystore, name) <= number]


def surviving(
    keystore: Keystore,
    state: RotationState,
    numbers: Numbers,
    *,
    level: Level,
    version: int = 0,
) -> list[str]:
    """The keys of which such a version is not destroyed; of the level, that one alone."""
    found = []
    for name, number in numbers.items():
        of, _, label = name.partition(" ")
        only = version if of == level else 0
        if of == Level.MASTER:
            alive = state.discarded < (only or number)
        else:
            keyset = keystore.by_label.get(label) if label else keystore.root_header.keks
            alive = keyset is not None and any(
                v.version <= number
                and only in (0, v.version)
                and v.state is not KeyState.DESTROYED
                for v in keyset.versions
            )
        if alive:
            found.append(name)
    return found


def _primary(keystore: Keystore, name: str) -> int:
    level, _, label = name.partition(" ")
    if level == Level.MASTER:
        return keystore.root_header.master.version
    if level == Level.KEK:
        return keystore.root_header.keks.primary.version
    keyset = keystore.by_label.get(label)
    return 0 if keyset is None else keyset.primary.version


async def adopt(store: DocumentStore, document: Document[RotationState]) -> None:
    """Turns orders of an earlier program, which were by time, into orders by number.

    Its clock may have been wrong, so they are about every version that there is.
    """
    requested = (await document.read()).requested
    if not requested:
        return
    numbers = by_time(await store.keystore(), requested)
    await document.change(
        lambda state: (
            replace(with_orders(state, numbers), requested={})
            if state.requested == requested
            else state
        )
    )


def by_time(keystore: Keystore, requested: Iterable[str]) -> dict[str, int]:
    """Orders by time as orders by number; without a label they are about the whole level."""
    found: dict[str, int] = {}
    for name in requested:
        level, _, label = name.partition(" ")
        if not label:
            found |= newest(keystore, Level(level), labels_of(keystore))
        elif label in keystore.by_label:
            found |= newest(keystore, Level.DEK, [label])
    return found
