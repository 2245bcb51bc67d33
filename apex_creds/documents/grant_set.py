"""Grants as stored: documents by plugin, so that a grant does not rewrite others.

Guarantee: those of ``store``. The first document, ``grants``, has the grants themselves
while they are few; when they are many, it has the generation of each shard, and a plugin's
are in the shard that a keyed hash of its id names. Every commit writes the first document,
together with the shards that change and, where it takes a permission back, with the key
store's mark of that. So one token says whether what is in memory is current, one anchored
generation covers them all, and a shard that is missing, older or newer than it is listed is
an error. A shard that nothing was put in does not exist.

An older program's grants are in the key store; the next commit moves them. Specified in
docs/FORMAT.md, "Grants"; why so, in docs/adr/0010-grants-by-plugin.md.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Final, TypeVar

import msgspec

from apex_creds.concurrency import SingleFlight, off_loop, until_committed
from apex_creds.documents.document import Header, KeyName, Packed, mac_of, pack, unpack
from apex_creds.documents.keystore import (
    DOCUMENTS_LABEL,
    Keystore,
    KeystoreBody,
    allows_less,
    shard_names,
)
from apex_creds.documents.rollback import missing, refuse_rollback
from apex_creds.documents.sections import Documents, ShardNames
from apex_creds.errors import (
    ConflictError,
    CorruptDocumentError,
    IntegrityError,
    LockedDownError,
    SecretWipedError,
)
from apex_creds.keys.hierarchy import DocumentKeys
from apex_creds.policy.grants import Grant, GrantDecision, Grants, SeenManifest
from apex_creds.storage.base import (
    GRANTS,
    Data,
    Divides,
    Token,
    Write,
)

T = TypeVar("T")
MANY: Final = 32
"""More grants than this are divided, where the storage does that."""
SHARDS: Final = 1_024


class PluginGrants(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """What was decided for one plugin.

    Attributes:
        plugin: Its id.
        grants: Its grants.
        manifests: Those that they are bound to.
    """

    plugin: str
    grants: tuple[Grant, ...] = ()
    manifests: tuple[SeenManifest, ...] = ()


class _First(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """The first document: the plugins, or the generation of each shard; 0: it has none."""

    plugins: tuple[PluginGrants, ...] = ()
    shards: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class _Document:
    """One document, as of one change token."""

    token: Token | None
    generation: int
    key: KeyName | None
    first: _First = field(default_factory=_First)
    plugins: tuple[PluginGrants, ...] = ()


@dataclass(frozen=True, slots=True)
class _State:
    """All of them: the first document, the shards that exist, and what is in them."""

    first: _Document
    shards: Mapping[str, _Document] = field(default_factory=dict)
    plugins: Mapping[str, PluginGrants] = field(default_factory=dict)


_NOTHING: Final = _Document(None, 0, None)

Changed = Mapping[str, PluginGrants]
"""The plugins whose grants are to be others; one without grants is removed."""
ChangeGrants = Callable[[Mapping[str, PluginGrants], Keystore], tuple[Changed, KeystoreBody]]


class GrantSet:
    """The grants of one vault.

    Args:
        store: Loads and commits their documents.
        names: Says which shard has a plugin.
    """

    def __init__(self, store: Documents, names: Callable[[], ShardNames]) -> None:
        self._store = store
        self._names = names
        self._flights: SingleFlight[str, Grants] = SingleFlight()
        self._state = _State(_NOTHING)
        self._made: tuple[Keystore, _State, Grants] | None = None

    # -- reading -----------------------------------------------------------------

    def now(self, keystore: Keystore) -> Grants | None:
        """The grants beside a current key store, without waiting; None: read them."""
        made, token = self._made, self._store.storage.change_token(GRANTS)
        if made is not None and made[0] is keystore and made[1].first.token == token:
            return made[2]
        state, unread = self._state, token is None and GRANTS in keystore.body.sections
        wiped = keystore.body.lockdown is not None and keystore.hierarchy.closed
        if (state.first.token == token and not unread) or wiped:  # then none has any force
            return self._with(keystore, state)
        return None

    async def read(self) -> Grants:
        """The grants as stored now; in a lockdown that wiped the keys, as far as known.

        Raises:
            IntegrityError: What is stored is not what this vault wrote.
        """
        keystore = await self._store.keystore()
        try:
            return await self._flights.fresh(
                GRANTS, now=partial(self.now, keystore), load=partial(self._load, keystore)
            )
        except LockedDownError:  # the keys were wiped as it was read; no grant has any force
            return self._with(await self._store.keystore(), self._state)

    async def keys(self) -> dict[str, KeyName]:
        """The key version that each shard is under."""
        await self.read()
        return {name: shard.key for name, shard in self._state.shards.items() if shard.key}

    def existing(self) -> list[str]:
        """The shards that exist, as of the last read."""
        return list(self._state.shards)

    def open(self, keystore: Keystore) -> None:
        """Derives the keys of the first document, which every invocation needs."""
        if DOCUMENTS_LABEL in keystore.by_label:
            keystore.document_keys(keystore.next_header(GRANTS, after=0, written=0.0))

    # -- writing -----------------------------------------------------------------

    async def commit(self, change: ChangeGrants) -> Grants:
        """Applies ``change``; durable on return, and anchored where it allows less.

        Args:
            change: Given the grants of each plugin and the key store, returns the plugins that
                change, and the key store's body: the old one if it is to stay.

        Raises:
            ConflictError: Other writers were first, a hundred times.
        """
        await self._store.move_forward()

        async def attempt() -> tuple[Grants, bool] | None:
            before = await self.read()
            keystore, state = await self._store.keystore(refresh=False), self._state
            if self.now(keystore) is not before:
                return None
            plugins = _in_force(keystore, state)
            changed, body = change(plugins, keystore)
            if not changed and body is keystore.body:
                return before, False
            narrower = body.revocations != keystore.body.revocations or any(
                allows_less(plugins[name].grants if name in plugins else (), each.grants)
                for name, each in changed.items()
            )
            if body.grants or body.manifests or body.grants_void:  # now they are as in force
                body = msgspec.structs.replace(body, grants=(), manifests=(), grants_void=False)
            if GRANTS not in body.sections:
                noted = {**body.sections, GRANTS: 1}
                body = msgspec.structs.replace(body, sections=noted)
            every = plugins is not state.plugins
            wanted = {**plugins, **changed}
            for name in [name for name, each in changed.items() if not each.grants]:
                del wanted[name]
            moved = {**wanted, **state.plugins} if every else changed
            after = await self._write(state, wanted, keystore, body, moved=moved)
            return None if after is None else (after, narrower)

        async with self._store.writing.held():
            after, narrower = await until_committed(GRANTS, attempt)
        if narrower:
            await self._store.anchor()
        return after

    async def recommit(self) -> None:
        """Commits all of them again as they are, under the keys of now.

        Raises:
            ConflictError: Other writers were first, a hundred times.
        """
        await self._store.move_forward()

        async def attempt() -> Grants | None:
            await self.read()
            keystore, state = await self._store.keystore(refresh=False), self._state
            if state.first.token is None:
                return self._with(keystore, state)
            plugins, body = state.plugins, keystore.body
            every = state.shards  # of which some may have lost all that was in them
            return await self._write(
                state, plugins, keystore, body, moved=plugins, shards=every
            )

        async with self._store.writing.held():
            await until_committed(GRANTS, attempt)

    # -- inside ------------------------------------------------------------------

    def _with(self, keystore: Keystore, state: _State) -> Grants:
        made = self._made
        if made is not None and made[0] is keystore and made[1] is state:
            return made[2]
        plugins = _in_force(keystore, state)
        grants = Grants(
            [grant for each in plugins.values() for grant in each.grants],
            lockdown=keystore.body.lockdown,
            revocations=keystore.body.revocations,
            manifests=[seen for each in plugins.values() for seen in each.manifests],
        )
        self._made = keystore, state, grants
        return grants

    async def _load(self, keystore: Keystore) -> Grants:
        suspect: tuple[Token | None, str] | None = None
        while True:
            first = (await self._store.load([GRANTS], _open)).get(GRANTS, _NOTHING)
            reached = first.first.shards
            names = shard_names(GRANTS, len(reached)) if reached else ()
            listed = {name: at for name, at in zip(names, reached, strict=True) if at}
            known = {
                name: each
                for name, each in self._state.shards.items()
                if listed.get(name) == each.generation
            }
            wanted = [name for name in listed if name not in known]
            found = known | (await self._store.load(wanted, _open) if wanted else {})
            wrong = [
                name
                for name, generation in listed.items()
                if name not in found or found[name].generation != generation
            ]
            if not wrong:
                break
            if suspect == (first.token, wrong[0]):
                raise _misfit(wrong[0], listed[wrong[0]], found.get(wrong[0]))
            suspect = (first.token, wrong[0])
            await self._store.stored_keystore()  # what a killed writer began is finished
        documents = [first.first.plugins, *(found[name].plugins for name in listed)]
        plugins = {each.plugin: each for some in documents for each in some}
        self._state = _State(first, {name: found[name] for name in listed}, plugins)
        return self._with(keystore, self._state)

    async def _write(
        self,
        state: _State,
        plugins: Mapping[str, PluginGrants],
        keystore: Keystore,
        body: KeystoreBody,
        *,
        moved: Collection[str],
        shards: Collection[str] = (),
    ) -> Grants | None:
        """The grants as written, with those shards anyway; None: another writer was first."""
        count = len(state.first.first.shards)
        able = self._store.shared is not None or isinstance(self._store.storage, Divides)
        if not count and able and sum(len(each.grants) for each in plugins.values()) > MANY:
            count = SHARDS  # from now on
        parts = self._parts(state, plugins, count, moved, shards)
        reached = list(state.first.first.shards) or [0] * count
        numbers = {name: int(name.rpartition("_")[2], 16) for name in sorted(parts)}
        for number in numbers.values():
            reached[number] = keystore.next_generation(reached[number])
        first = _First(plugins=() if count else tuple(plugins.values()), shards=tuple(reached))

        def sealed() -> list[tuple[Data, Header]]:
            made = [
                _seal(keystore, name, reached[number], parts[name], now)
                for name, number in numbers.items()
            ]
            at = keystore.next_generation(state.first.generation)
            return [*made, _seal(keystore, GRANTS, at, first, now)]

        now = self._store.clock.time()
        try:
            made = await off_loop(sum(map(len, parts.values())), sealed)
            before = {**state.shards, GRANTS: state.first}
            writes = [
                Write(h.section, data, before.get(h.section, _NOTHING).token)
                for data, h in made
            ]
            after, results = await self._store.commit_with_keystore(writes, keystore, body)
        except (ConflictError, SecretWipedError):  # wiped: its key was destroyed
            return None
        stored = dict(state.shards)
        for (data, header), result in zip(made, results, strict=True):
            self._store.rollback.register(header.section, (header.generation, mac_of(data)))
            if header.section != GRANTS:
                stored[header.section] = _Document(
                    result.token,
                    header.generation,
                    header.key,
                    plugins=parts[header.section],
                )
        _, last = made[-1]
        written = _Document(results[-1].token, last.generation, last.key, first)
        self._state = now_stored = _State(written, stored, plugins)
        known = self._made
        if (
            known is not None and known[0] is after and known[1] is state
        ):  # as of before, and no more moved
            old = [state.plugins[name] for name in moved if name in state.plugins]
            new = [plugins[name] for name in moved if name in plugins]
            grants = known[2].updated(
                [grant for each in old for grant in each.grants],
                [grant for each in new for grant in each.grants],
                forgotten=[seen for each in old for seen in each.manifests],
                seen=[seen for each in new for seen in each.manifests],
            )
            self._made = after, now_stored, grants
        return self._with(after, now_stored)

    def _parts(
        self,
        state: _State,
        plugins: Mapping[str, PluginGrants],
        count: int,
        moved: Collection[str],
        shards: Collection[str],
    ) -> dict[str, tuple[PluginGrants, ...]]:
        """The new content of those shards, and of each that has, or is to have, what moved."""
        if not count:
            return {}
        place = self._names().of
        if not state.first.first.shards:  # from now on they are divided
            moved = plugins
        chosen = {*shards, *(place(GRANTS, name, count) for name in moved)}
        parts: dict[str, list[PluginGrants]] = {name: [] for name in chosen}
        for name in parts.keys() & state.shards.keys():
            kept = (plugins.get(each.plugin) for each in state.shards[name].plugins)
            parts[name] = [each for each in kept if each is not None]
        there = {each.plugin for part in parts.values() for each in part}
        for plugin in moved:
            if plugin not in there and plugin in plugins:
                parts[place(GRANTS, plugin, count)].append(plugins[plugin])
        return {name: tuple(part) for name, part in parts.items()}


def grant_shards() -> tuple[str, ...]:
    """The names of all shards that there may be."""
    return shard_names(GRANTS, SHARDS)


def is_shard(document: str) -> bool:
    """Whether a document is a shard of the grants."""
    return document.startswith(f"{GRANTS}_")


def _in_force(keystore: Keystore, state: _State) -> Mapping[str, PluginGrants]:
    """With what an older program has left in the key store, and without what is void."""
    body, plugins = keystore.body, state.plugins
    if body.grants:
        plugins = {**plugins, **by_plugin(body.grants, body.manifests)}
    if body.grants_void:  # a lockdown leaves what denies
        denied = (
            of_plugin(
                each.plugin,
                (grant for grant in each.grants if grant.decision is GrantDecision.DENY),
                {seen.digest: seen for seen in each.manifests},
            )
            for each in plugins.values()
        )
        plugins = {each.plugin: each for each in denied if each.grants}
    return plugins


def by_plugin(
    grants: Iterable[Grant], manifests: Iterable[SeenManifest]
) -> dict[str, PluginGrants]:
    """Grants, and the manifests that they are bound to, by plugin."""
    found: dict[str, list[Grant]] = {}
    for grant in grants:
        found.setdefault(grant.plugin, []).append(grant)
    seen = {each.digest: each for each in manifests}
    return {plugin: of_plugin(plugin, some, seen) for plugin, some in found.items()}


def of_plugin(
    plugin: str, grants: Iterable[Grant], seen: Mapping[str, SeenManifest]
) -> PluginGrants:
    """A plugin's grants, with those of the manifests that they are bound to."""
    kept = tuple(grants)
    digests = dict.fromkeys(grant.manifest for grant in kept)
    manifests = tuple(seen[digest] for digest in digests if digest in seen)
    return PluginGrants(plugin=plugin, grants=kept, manifests=manifests)


def _misfit(name: str, generation: int, found: _Document | None) -> IntegrityError:
    if found is None:
        return missing(name)
    try:
        refuse_rollback(name, floor=generation, found=(found.generation, ""))
        refuse_rollback(GRANTS, floor=found.generation, found=(generation, ""))
    except IntegrityError as error:
        return error
    return missing(name)


def _seal(
    keystore: Keystore,
    name: str,
    generation: int,
    value: _First | tuple[PluginGrants, ...],
    now: float,
) -> tuple[Data, Header]:
    header = keystore.next_header(name, after=generation - 1, written=now)
    return pack(header, msgspec.msgpack.encode(value), keystore.document_keys(header)), header


def _open(packed: Packed, token: Token, keys: DocumentKeys) -> _Document:
    body, header = unpack(packed, keys), packed.header
    made = partial(_Document, token, header.generation, header.key)
    if header.section != GRANTS:
        return made(plugins=_decoded(body, tuple[PluginGrants, ...], header))
    return made(_decoded(body, _First, header) if body else _First())


def _decoded(body: Data, kind: type[T], header: Header) -> T:
    try:
        return msgspec.msgpack.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, IntegrityError):
        pass
    raise CorruptDocumentError(
        f"The body of {header.section!r} is malformed.", hint="Restore it from a backup."
    )
