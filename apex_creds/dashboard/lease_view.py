"""What the page shows of leases and of questions that wait for a person, and by which names.

Guarantee: text from outside reaches the page with every character that is not plainly seen
as an escape, and cut; with pseudonyms configured, no credential's name reaches it, unless
the operator asked for names. Open leases follow from the log's events alone: it does not say
which process a lease is of, nor that a process was killed. An answer is given to the question
that was shown, once, and not while the vault is locked down; where the question says that a
second factor is needed, it is checked before a yes is stored.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from apex_creds.audit.events import EventKind, Recorded
from apex_creds.audit.line import SHARED, shown_label
from apex_creds.auth.access_document import PendingRequest
from apex_creds.auth.consent_queue import Requests
from apex_creds.auth.enrolment import Factors
from apex_creds.auth.second_factor import Subject
from apex_creds.errors import SecondFactorError
from apex_creds.model import key_of, split_key
from apex_creds.policy.consent import UNKNOWN, Choice, ConsentAnswer
from apex_creds.policy.display import shown as escaped
from apex_creds.policy.manifest import Access
from apex_creds.vault import Vault
from apex_creds.vault.config import home_config

# -- names ----------------------------------------------------------------------------------


_LONGEST: Final = 400
# Computed, hexadecimal or numbers: nobody can put text there.
_PLAIN: Final = frozenset({"v", "seq", "time", "hash", "kind", "key_version", "duration_us"})


def text(value: str) -> str:
    """``value`` safe to show, and not too long."""
    return escaped(value, longest=_LONGEST)


class Names:
    """How credentials are called.

    Args:
        pseudonym: What the vault's log calls a name; None: the name.
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
            parts = {part for name in names for part in split_key(name) if part}
            self._known = {self._pseudonym(part): part for part in parts}

    def credential(self, key: str) -> str:
        """A credential's or service's name, as it is in the vault, and whose it is."""
        name, principal = split_key(key)
        if name and self._pseudonym is not None and not self._named:
            name, principal = self._pseudonym(name), principal and self._pseudonym(principal)
        return text(f"{name} (of {principal})" if principal else name)

    def logged(self, name: str) -> str:
        """A credential's name, as it is in the log."""
        return text(self._known.get(name, name))

    def stored(self, part: str) -> list[str] | None:
        """What the log calls names that are shown instead and have ``part`` in them.

        None: more than somebody can mean.
        """
        found = [of for of, name in self._known.items() if part in text(name).lower()]
        return found if len(found) <= _MANY else None

    def as_logged(self, key: str) -> tuple[str, str]:
        """What the log calls a credential of the vault, and whose it is."""
        name, principal = split_key(key)
        if self._pseudonym is None:
            return name, principal
        return self._pseudonym(name), principal and self._pseudonym(principal)

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
        for name in ("credential", "principal"):
            if name in found:
                found[name] = self.logged(getattr(event, name))
        if event.kind is EventKind.ROTATION and event.detail:
            found["detail"] = text(shown_label(event.detail, self.logged))
        return found


async def names_of(vault: Vault, *, named: bool) -> Names:
    """How a vault's credentials are called, as its configuration says."""
    config = (await home_config(vault.home)).audit
    return Names(vault.audit.shown if config.pseudonyms else None, named=named)


# -- leases ---------------------------------------------------------------------------------


LIFETIME: Final = 300.0
"""Seconds that a lease lives where its runtime says nothing else."""
MAX_OPEN: Final = 2000
_MANY_ENDED: Final = 512


class OpenLease(msgspec.Struct):
    """One lease.

    Attributes:
        since: When it was made, Unix seconds; 0: before what was read of the log.
        parent: The lease that it was attenuated from.
        uses: Redeems since then.
        revoked: When what it rests on was taken back; 0: it was not.
        principal: Who the plugin acts for.
        shared: Whether it is on the shared credential all the same.
    """

    lease: str
    invocation: str
    plugin: str
    credential: str
    action: str = ""
    version: str = ""
    parent: str = ""
    principal: str = ""
    shared: bool = False
    since: float = 0.0
    uses: int = 0
    last: float = 0.0
    method: str = ""
    origin: str = ""
    revoked: float = 0.0

    @property
    def begun(self) -> float:
        """When it was first heard of."""
        return self.since or self.last


class OpenLeases:
    """Takes events in their order; knows what is open."""

    def __init__(self) -> None:
        self._open: dict[str, OpenLease] = {}
        self._of: dict[str, set[str]] = {}
        self._ended: dict[str, None] = {}
        self.made = 0
        self.changes = 0
        self.recent: deque[float] = deque(maxlen=10_000)

    def take(self, event: Recorded) -> None:
        """One more event."""
        before = self.changes
        self.changes += 1
        if event.kind is EventKind.LEASE:
            self._begin(event, since=event.time)
        elif event.kind in (EventKind.REDEEM, EventKind.EXPOSE) and event.lease:
            found = self._open.get(event.lease) or self._begin(event, since=0.0)
            found.uses += event.kind is EventKind.REDEEM
            found.last, found.method, found.origin = event.time, event.method, event.origin
        elif event.kind is EventKind.INVOCATION:
            for lease in self._of.pop(event.invocation, ()):
                self._open.pop(lease, None)
            self._ended[event.invocation] = None
            while len(self._ended) > _MANY_ENDED:
                self._ended.pop(next(iter(self._ended)))
        elif event.kind is EventKind.REVOKE:
            for open_ in self._open.values():
                plugin = event.plugin in ("", open_.plugin)
                whose = "" if open_.shared else open_.principal
                meant = (event.credential, event.principal) == (open_.credential, whose)
                if plugin and (meant or not event.credential):
                    open_.revoked = open_.revoked or event.time
        else:
            self.changes = before

    def open(self, now: float) -> list[OpenLease]:
        """Those that are open, newest first; but those that were silent for a day."""
        old = [k for k, v in self._open.items() if now - max(v.begun, v.last) > 86_400]
        for lease in old:
            self._forget(lease)
        return sorted(self._open.values(), key=lambda item: item.begun, reverse=True)

    def _begin(self, event: Recorded, *, since: float) -> OpenLease:
        made = OpenLease(
            lease=event.lease,
            invocation=event.invocation,
            plugin=event.plugin,
            credential=event.credential,
            principal=event.principal,
            shared=event.detail == SHARED,
            action=event.action,
            version=event.plugin_version,
            parent=event.parent,
            since=since,
        )
        self.made += 1
        if event.invocation in self._ended:  # its last words came first
            return made
        self._open[event.lease] = made
        self._of.setdefault(event.invocation, set()).add(event.lease)
        while len(self._open) > MAX_OPEN:
            self._forget(next(iter(self._open)))
        return made

    def _forget(self, lease: str) -> None:
        gone = self._open.pop(lease, None)
        if gone is not None:
            kin = self._of.get(gone.invocation, set())
            kin.discard(lease)
            if not kin:
                self._of.pop(gone.invocation, None)


# -- questions ------------------------------------------------------------------------------


BY: Final = "dashboard"
_MANY: Final = 50
_YEAR: Final = 366 * 86_400.0


class Answer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the page sends.

    Attributes:
        seconds: How long a yes ``until`` lasts, from now.
        code: Of the second factor, where one is needed.
    """

    choice: Choice
    seconds: Annotated[float, Meta(ge=60, le=10 * _YEAR)] | None = None
    code: Annotated[str, Meta(max_length=200)] = ""


def question(item: PendingRequest, *, names: Names) -> dict[str, object]:
    """A question as the page gets it."""
    request = item.request
    hidden = names.hidden
    return {
        "id": item.id,
        "asked": item.asked,
        "expires": item.expires,
        "plugin": text(request.plugin),
        "version": text(request.version),
        "action": text(request.action),
        "credential": names.credential(key_of(request.credential, request.owner)),
        "principal": names.credential(request.principal),
        "level": text(request.level),
        "reveal": request.access is Access.REVEAL,
        "scopes": listed(request.scopes),
        "origins": listed(request.origins),
        "methods": listed(request.methods),
        "paths": listed(request.paths),
        "reason": text(request.reason),
        "unknown": request.why == UNKNOWN,
        "why": text(request.why),
        # These may name credentials, in words.
        "before": "" if hidden else text(request.before),
        "changes": [] if hidden else listed(request.changes),
        "unverified": request.unverified,
        "factor": request.second_factor,
    }


def words_of(asked: Mapping[str, object]) -> str:
    """What is read of a question, as the page gets it."""
    wants = "wants to read" if asked["reveal"] else "wants to use"
    whose = f"for {asked['principal']}" if asked["principal"] else ""
    parts = [
        asked["plugin"],
        asked["version"],
        wants,
        asked["credential"],
        whose,
        asked["level"],
    ]
    parts += [asked[name] for name in ("reason", "action", "before", "id")]
    for name in ("origins", "methods", "paths", "scopes", "changes"):
        values = asked[name]
        assert isinstance(values, list)
        parts += values
    return " ".join(str(part) for part in parts if part)


async def answer(vault: Vault, request_id: str, said: Answer) -> PendingRequest:
    """Answers a question.

    Raises:
        NotFoundError: There is none of that id any more.
        InvalidInputError: The answer makes no sense.
        LockedDownError: The vault is locked down.
        SecondFactorError: One is needed, and was not shown.
    """
    until = None if said.seconds is None else vault.clock.time() + said.seconds
    made = ConsentAnswer(choice=said.choice, until=until, by=BY)
    requests = Requests(vault)
    found = await requests.find(request_id)
    if said.choice.allows:
        await vault.check_not_locked_down()
        if found.request.second_factor:
            factors = Factors(vault)
            if not said.code and await factors.enrolled():
                raise SecondFactorError("A code of the second factor is needed.")
            key = key_of(found.request.credential, found.request.owner)
            subject = Subject(plugin=found.request.plugin, credential=key)
            await factors.verify(said.code, subject=subject)
    return await requests.answer(found.id, made)


def listed(values: tuple[str, ...]) -> list[str]:
    """Texts safe to show; of many, the first ones and how many there are besides."""
    more = [f"and {len(values) - _MANY} more"] if len(values) > _MANY else []
    return [*(text(value) for value in values[:_MANY]), *more]
