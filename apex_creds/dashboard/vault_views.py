"""Keys and their states, and which plugin may use which credential, as the page draws them.

Guarantee: read from what is stored, and nothing changed; no key material is in it. A cell of
the permissions say what is stored (a grant, a refusal), what the policy file says where
nothing is, and the use that is in the log. What is sent does not grow with the vault: it is
counts, and pages of what is long. What grows with it is counted in a thread.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from operator import itemgetter
from typing import Final

import anyio.to_thread
import msgspec

from apex_creds.dashboard.lease_view import Names, listed, text
from apex_creds.dashboard.log_status import Use
from apex_creds.dashboard.paging import Page, PageQuery, page
from apex_creds.documents.keystore import DOCUMENTS_LABEL, Keystore
from apex_creds.keys.keyset import Keyset, KeyState
from apex_creds.model import (
    SECTION_NAMES,
    ConnectionState,
    CredentialInfo,
    RotationHealth,
    Sensitivity,
)
from apex_creds.policy.grants import GrantDecision, Grants
from apex_creds.policy.rules import EACH_LEASE, NEVER, Policy, Verdict
from apex_creds.scheduler import kek_rotation
from apex_creds.scheduler.credential_rotation import rotates_at
from apex_creds.scheduler.engine import Engine
from apex_creds.scheduler.reencryption import worker_runs
from apex_creds.scheduler.rotation_plan import (
    Action,
    MasterView,
    Reason,
    Step,
    View,
    next_due,
    plan,
)
from apex_creds.scheduler.rotation_state import kind_of
from apex_creds.scheduler.schedule import Level
from apex_creds.scheduler.worker import next_fire

# -- keys -----------------------------------------------------------------------------------


UNKNOWN: Final = -1
"""Only the provider, or another document, knows what it protects."""
_ROOT: Final = "root"
_NAMES: Final = {
    _ROOT: "The vault's own",
    "access/factors": "Second factors",
    DOCUMENTS_LABEL: "Documents",
}
"""Of keys that are not of a service."""


class VersionOf(msgspec.Struct, frozen=True, kw_only=True):
    """One version; times in Unix seconds.

    Attributes:
        parent: The version of the level above that wraps it.
        protects: Credentials or documents for a DEK; keys for a KEK (and the documents of an
            older program).
    """

    version: int
    state: str
    compromised: bool = False
    parent: int = 0
    protects: int = 0
    encryptions: int = 0
    created: float = 0.0
    changed: float = 0.0


class Key(msgspec.Struct, frozen=True, kw_only=True):
    """One key with the versions that are left.

    Attributes:
        label: ``section/service``; ``root`` for the vault's own; empty above the DEKs.
        name: What the page calls it.
        destroyed: How many versions are no more.
    """

    level: str
    versions: tuple[VersionOf, ...]
    label: str = ""
    name: str = ""
    destroyed: int = 0


class Hierarchy(msgspec.Struct, frozen=True, kw_only=True):
    """All keys.

    Attributes:
        master: Where the master key is kept: the provider's kind alone.
        keys: The master key, the KEK, then the DEKs, those that need attention first.
        due: When the next key of a level is due, Unix seconds.
        steps: What could be done now, in words.
        worker: Whether one runs; None where that is not known.
        waiting: Security events that nobody acted on yet.
    """

    master: str
    keys: tuple[Key, ...]
    due: dict[str, float]
    steps: tuple[str, ...]
    worker: bool | None = None
    waiting: tuple[str, ...] = ()


async def hierarchy(engine: Engine, *, names: Names) -> Hierarchy:
    """Reads how the keys are.

    Raises:
        IntegrityError: A document is not what this vault wrote.
    """
    view, state = await engine.view(), await engine.document.read()
    scan = await kek_rotation.scan(engine.store)
    sections = [await engine.store.sections.read(name) for name in SECTION_NAMES]
    keystore = await engine.store.keystore()
    worker = await worker_runs(engine.store.storage)
    now = engine.store.clock.time()

    def build() -> Hierarchy:
        records = (record for section in sections for record in section.records.values())
        counted = Counter((key.hex(), at) for key, at in (record.key for record in records))
        counted.update(scan.documents.values())
        keks = keystore.root_header.keks
        protected = {v.version: scan.protects(v.version) for v in keks.versions}
        keys = (
            _master(view.master),
            _key(Level.KEK, keks, protected),
            *sorted(_deks(keystore, view, counted, names), key=lambda k: (_weight(k), k.label)),
        )
        steps = plan(view, state.policies, now=now, next_fire=engine.next_fire)
        due = next_due(view, state.policies, next_fire=engine.next_fire)
        return Hierarchy(
            master=keystore.root_header.master.uri.partition(":")[0],
            keys=keys,
            due={level.value: at for level, at in due.items()},
            steps=tuple(_in_words(step, names.label(step.label)) for step in steps),
            worker=worker,
            waiting=tuple(kind_of(item.event) for item in state.queue),
        )

    return await anyio.to_thread.run_sync(build)


def _master(master: MasterView) -> Key:
    ages = {**master.left, master.version: master.created}
    versions = tuple(
        VersionOf(
            version=version,
            state=(KeyState.PRIMARY if version == master.version else KeyState.RETIRED).value,
            compromised=version <= master.compromised,
            protects=UNKNOWN if version == master.version else 0,
            created=at,
            changed=at,
        )
        for version, at in sorted(ages.items())
    )
    return Key(level=Level.MASTER.value, versions=versions)


def _deks(
    keystore: Keystore, view: View, counted: Counter[tuple[str, int]], names: Names
) -> Iterator[Key]:
    """The vault's own key, then those of the sections, then others."""
    uses = {key.keyset.id: key.encryptions for key in view.keys}
    unknown = dict.fromkeys((v.version for v in keystore.body.root.versions), UNKNOWN)
    yield _key(Level.DEK, keystore.body.root, unknown, label=_ROOT)
    for keyset in keystore.body.deks:
        known = keyset.label.partition("/")[0] in {*SECTION_NAMES, DOCUMENTS_LABEL}
        counts = {
            v.version: counted[keyset.id, v.version] if known else UNKNOWN
            for v in keyset.versions
        }
        label = names.label(keyset.label)
        yield _key(Level.DEK, keyset, counts, label=label, uses=uses.get(keyset.id))


def _key(
    level: Level,
    keyset: Keyset,
    counts: Mapping[int, int],
    *,
    label: str = "",
    uses: Mapping[int, int] | None = None,
) -> Key:
    live = [v for v in keyset.versions if v.state is not KeyState.DESTROYED]
    return Key(
        level=level.value,
        label=label,
        name=_NAMES.get(label) or label.partition("/")[2] or label,
        versions=tuple(
            VersionOf(
                version=each.version,
                state=each.state.value,
                compromised=each.compromised,
                parent=each.parent,
                protects=counts.get(each.version, 0),
                encryptions=(uses or {}).get(each.version, 0),
                created=each.created,
                changed=each.changed,
            )
            for each in live
        ),
        destroyed=len(keyset.versions) - len(live),
    )


_WHY: Final = {
    Reason.INTERRUPTED: "it was interrupted",
    Reason.COMPROMISED: "it may be in wrong hands",
    Reason.TIME: "it is old enough",
    Reason.ENCRYPTIONS: "it was used often enough",
    Reason.REQUESTED: "somebody asked for it",
    Reason.REPLACED: "there is a newer one",
    Reason.UNUSED: "nothing needs it any more",
    Reason.GRACE_OVER: "its grace period is over",
}
_WHAT: Final = {
    Action.PROMOTE: "make {} the primary one",
    Action.ROTATE: "replace {}",
    Action.MOVE: "move what {} still protects",
    Action.RETIRE: "retire {}",
    Action.DESTROY: "destroy {}",
}


def _in_words(step: Step, label: str) -> str:
    """A step, as a person says it."""
    key = {Level.MASTER: "the master key", Level.KEK: "the KEK"}.get(step.level, label)
    key = "the vault's own key" if key == _ROOT else key
    return (
        f"{_WHAT[step.action].format(f'version {step.version} of {key}')}: {_WHY[step.reason]}"
    )


def summary(found: Hierarchy) -> dict[str, object]:
    """What the page gets of the keys without asking: all but the DEKs, of which the number."""
    deks = [key for key in found.keys if key.level == Level.DEK.value]
    return {
        "master": found.master,
        "upper": [key for key in found.keys if key.level != Level.DEK.value],
        "count": len(deks),
        "moving": sum(map(_moving, deks)),
        "due": found.due,
        "todo": len(found.steps),
        "worker": found.worker,
        "waiting": Counter(found.waiting),
    }


def keys_page(found: Hierarchy, asked: PageQuery) -> Page[Key]:
    """A window of the DEKs."""
    deks = [key for key in found.keys if key.level == Level.DEK.value]

    def words(key: Key) -> str:
        states = (
            f"v{v.version} {v.state}{', compromised' * v.compromised}" for v in key.versions
        )
        return " ".join((key.label, key.name, *states))

    return page(deks, asked, words)


def _moving(key: Key) -> bool:
    """Whether something is not under its primary version yet."""
    primary = KeyState.PRIMARY.value
    return any(v.state != primary and v.protects > 0 for v in key.versions)


def _weight(key: Key) -> int:
    """Places what needs attention first, and what is always there last."""
    if any(v.compromised for v in key.versions):
        return 0
    if _moving(key) or any(v.state == KeyState.PENDING.value for v in key.versions):
        return 1
    return 3 if key.label == _ROOT else 2


# -- permissions ----------------------------------------------------------------------------


_SERIOUS: Final = "critical"


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One credential.

    Attributes:
        kind: Empty: there is none of that name (any more).
        rule: What its level decides where no rule matches: ``allow``, ``ask``, ``deny``.
        factor: Whether its level takes a second factor: ``each``, ``window`` or empty.
        connection: Of a token that is renewed: its state, and ``renewed``, ``outcome``, ``by``.
        rotation: Of a secret that is replaced at its provider: ``works``, ``failed`` or
            ``needs_person``; then ``stage``, its next step, ``step_outcome``, of its last one,
            and ``replaced``, when the current value became the current one; ``due``, when the
            next one does by the clock; None: not by that.
        badges: What stands beside its name, and how serious it is.
    """

    name: str
    kind: str = ""
    level: str = ""
    expires: float | None = None
    origins: tuple[str, ...] = ()
    rule: str = ""
    factor: str = ""
    connection: str = ""
    renewed: float = 0.0
    outcome: str = ""
    by: str = ""
    rotation: str = ""
    stage: str = ""
    step_outcome: str = ""
    replaced: float = 0.0
    due: float | None = None
    badges: tuple[tuple[str, str], ...] = ()


class Cell(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is known of one plugin (``p``) and one credential (``c``), by their places.

    Attributes:
        grant: ``allow``, ``deny``, ``over``, or empty: there is none.
        bound: Whether the grant is for one version of the plugin alone.
        verdict: What the policy file says, where it says more than the level.
        use: What is in the log.
    """

    p: int
    c: int
    grant: str = ""
    scopes: tuple[str, ...] = ()
    reveal: bool = False
    until: float | None = None
    created: float = 0.0
    by: str = ""
    bound: bool = False
    verdict: str = ""
    rule: str = ""
    use: Use | None = None


class Matrix(msgspec.Struct, frozen=True, kw_only=True):
    """A window of it: cells are placed in these plugins and credentials."""

    plugins: Page[str]
    credentials: Page[Row]
    cells: tuple[Cell, ...]


class Permissions:
    """All of it, at one moment.

    Args:
        infos: All credentials.
        grants: All grants.
        uses: By plugin and by credential as the log calls it.
        policy: In force; None: it can't be read.
        names: How credentials are called.
        now: Unix seconds.
    """

    def __init__(
        self,
        infos: Iterable[CredentialInfo],
        grants: Grants,
        uses: Mapping[tuple[str, str, str], Use],
        policy: Policy | None,
        *,
        names: Names,
        now: float,
    ) -> None:
        self._known = known = {info.key: info for info in infos}
        logged = {names.as_logged(key): key for key in known}
        self._used = {
            (p, logged[c]): use
            for (p, *whose), use in uses.items()
            if (c := tuple(whose)) in logged
        }
        self._granted = {(grant.plugin, grant.key): grant for grant in grants}
        self._policy, self._names, self._now = policy, names, now
        busy = {c for _, c in (*self._granted, *self._used)}
        ordered = sorted(known.keys() | busy, key=lambda name: (name not in busy, name))
        self._credentials = [(names.credential(name), name) for name in ordered]
        plugins = sorted({each[0] for each in (*self._granted, *uses)})
        self._plugins = [(text(plugin), plugin) for plugin in plugins]

    def summary(self) -> dict[str, object]:
        """How much of it there is; ``rules`` are -1: the policy file can't be read."""
        return {
            "credentials": len(self._credentials),
            "plugins": len(self._plugins),
            "rules": -1 if self._policy is None else len(self._policy.rules),
        }

    def page(self, credentials: PageQuery, plugins: PageQuery) -> Matrix:
        """A window of it."""
        down = page(self._credentials, credentials, self._words)
        across = page(self._plugins, plugins, itemgetter(0))
        rows = tuple(self._row(shown, self._known.get(key)) for shown, key in down.items)
        return Matrix(
            plugins=Page(tuple(shown for shown, _ in across.items), across.at, across.of),
            credentials=Page(rows, down.at, down.of),
            cells=tuple(
                cell
                for p, (_, plugin) in enumerate(across.items)
                for c, (_, name) in enumerate(down.items)
                if (cell := self._cell(p, plugin, c, name)) is not None
            ),
        )

    def _cell(self, p: int, plugin: str, c: int, name: str) -> Cell | None:
        grant, use = self._granted.get((plugin, name)), self._used.get((plugin, name))
        verdict, rule = _verdict(self._policy, plugin, self._known.get(name), self._now)
        if grant is None and use is None and not rule:
            return None
        cell = Cell(p=p, c=c, verdict=verdict, rule=text(rule), use=use)
        if grant is None:
            return cell
        over = grant.until is not None and grant.until <= self._now
        deny = grant.decision is GrantDecision.DENY
        return msgspec.structs.replace(
            cell,
            grant="over" if over else "deny" if deny else "allow",
            scopes=tuple(listed(grant.scopes)),
            reveal=grant.reveal,
            until=grant.until,
            created=grant.created,
            by=text(grant.created_by),
            bound=bool(grant.manifest or grant.checksum),
        )

    def _words(self, each: tuple[str, str]) -> str:
        """What is read of a credential."""
        shown, key = each
        return " ".join((shown, *(word for word, _ in self._badges(self._known.get(key)))))

    def _badges(self, info: CredentialInfo | None) -> Iterator[tuple[str, str]]:
        """What stands beside a credential's name, and how serious it is."""
        if info is None:
            yield "not there", ""
            return
        yield info.sensitivity.value, info.sensitivity.value
        if self._factor(info):
            yield "2nd factor", "factor"
        if (
            info.connection is not None
            and info.connection.state is ConnectionState.NEEDS_RECONNECT
        ):
            yield "needs reconnect", _SERIOUS
        if info.rotation is not None:
            health, due = info.rotation.health, rotates_at(info, next_fire=next_fire)
            if health is not RotationHealth.WORKS:
                failed = health is RotationHealth.FAILED
                yield "not rotated" if failed else "needs a person", _SERIOUS
            elif due is not None and due < self._now:
                yield "rotation overdue", _SERIOUS
        if info.ends is not None and info.ends < self._now:
            yield "expired", _SERIOUS

    def _factor(self, info: CredentialInfo) -> str:
        """Whether its level takes a second factor: ``each``, ``window`` or empty."""
        factor = (
            NEVER
            if self._policy is None
            else self._policy.levels[info.sensitivity].second_factor
        )
        return "" if factor == NEVER else "each" if factor == EACH_LEASE else "window"

    def _row(self, name: str, info: CredentialInfo | None) -> Row:
        badges = tuple(self._badges(info))
        if info is None:
            return Row(name=name, badges=badges)
        found, turned = info.connection, info.rotation
        origins = () if self._names.hidden else listed(tuple(map(str, info.origins)))
        return Row(
            name=name,
            kind=info.kind.value,
            level=info.sensitivity.value,
            expires=info.ends,
            connection="" if found is None else found.state.value,
            renewed=0.0 if found is None else found.refreshed,
            outcome="" if found is None else text(found.outcome),
            by="" if found is None else text(found.by),
            rotation="" if turned is None else turned.health.value,
            stage="" if turned is None else turned.stage.value,
            step_outcome="" if turned is None else text(turned.outcome),
            replaced=0.0 if turned is None else turned.changed,
            due=rotates_at(info, next_fire=next_fire),
            origins=tuple(origins),
            rule=""
            if self._policy is None
            else self._policy.levels[info.sensitivity].decision.value,
            factor=self._factor(info),
            badges=badges,
        )


def _verdict(
    policy: Policy | None, plugin: str, info: CredentialInfo | None, now: float
) -> tuple[str, str]:
    """What a rule of the file says, and which; empty where only the level does."""
    if policy is None or not policy.rules or info is None:
        return "", ""
    ruling = policy.rule_on(
        plugin=plugin,
        action="",
        credential=info.name,
        level=info.sensitivity,
        origins=info.origins,
        now=now,
        principal=info.principal,
    )
    by_level = ruling.rule == f"levels.{Sensitivity(info.sensitivity).value}"
    return ("", "") if by_level else (Verdict(ruling.decision).value, ruling.rule)
