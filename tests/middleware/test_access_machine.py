"""No sequence of grants, revocations, upgrades and attenuations ever widens access.

Nor of removals, lockdowns and marks: what is marked for a challenge is used by nobody for
whom no client signs.

The model is what people said yes to and have not taken back: a set of (scope, origin, read)
for each credential. Whatever a plugin can do after any sequence must be in it.
"""

from __future__ import annotations

import asyncio
import itertools
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
)

from apex_creds.auth.challenge_client import ClientKey
from apex_creds.auth.challenge_issuer import Challenger
from apex_creds.auth.step_up import LocalResponder, answering
from apex_creds.errors import AccessDeniedError
from apex_creds.leases.broker import find_open
from apex_creds.leases.handle import CredentialHandle, current_credentials
from apex_creds.middleware import CredentialMiddleware
from apex_creds.model import ApiKey
from apex_creds.policy.consent import CallbackConsent, Choice, ConsentAnswer, ConsentRequest
from apex_creds.policy.decide import UNVERIFIED
from apex_creds.policy.manifest import Access, Manifest, Need, parse_manifest
from apex_creds.vault import Vault
from tests.support.clocks import FakeClock

NAMES = ("a", "b")
SCOPES = ("read", "write")
ORIGINS = ("https://one.test", "https://two.test")
CHECKSUMS = ("", "sha256:1", "sha256:2", "unverified:sha256:3", "unverified:sha256:4")

needs = st.builds(
    dict,
    name=st.sampled_from(NAMES),
    scopes=st.lists(st.sampled_from(SCOPES), unique=True),
    origins=st.lists(st.sampled_from(ORIGINS), unique=True),
    access=st.sampled_from(list(Access)),
    required=st.just(False),
)
answers = st.sampled_from([*Choice, None, None, None])
narrowed = st.lists(st.sampled_from(SCOPES), unique=True)
manifests = st.lists(needs, unique_by=lambda need: need["name"], min_size=1, max_size=2)


class Right(NamedTuple):
    """One thing that can be done."""

    scope: str
    origin: str
    read: bool


def rights(scopes, origins, *, reveal: bool) -> set[Right]:
    """All that a use with these comes to; of no scope at all, too."""
    reads = (False, True) if reveal else (False,)
    return {
        Right(*one)
        for one in itertools.product(("", *scopes), map(str, origins or ORIGINS), reads)
    }


def asked(need: Need) -> set[Right]:
    return rights(need.scopes, need.origins, reveal=need.access is Access.REVEAL)


async def reads(handle: CredentialHandle) -> bool:
    """Whether the secret can be had, really."""
    try:
        async with handle.reveal():
            return True
    except AccessDeniedError:
        return False


class Machine(RuleBasedStateMachine):
    """One plugin, two credentials, a person, and a vault that is really there."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.folder = tempfile.TemporaryDirectory()
        self.clock = FakeClock()
        self.answer: Choice | None = None
        self.questions: list[ConsentRequest] = []
        # What was said yes to and stands: for good, and for the session.
        self.stored: dict[str, set[Right]] = {}
        self.session: dict[str, set[Right]] = {}
        self.forbidden: set[str] = set()
        # Grants by command, which are bound to the version that uses them first.
        self.loose: dict[str, set[Right]] = {}
        self.manifest = Manifest(plugin="p")
        self.locked = False
        self.marked: set[str] = set()

    def run(self, work):
        return self.loop.run_until_complete(work)

    @initialize()
    def start(self) -> None:
        where = Path(self.folder.name)

        async def begin() -> None:
            self.vault = await Vault.create(
                where / "home", master=f"file:{where}/key", clock=self.clock
            )
            for name in NAMES:
                await self.vault.put(name, ApiKey(f"secret-{name}"), origins=list(ORIGINS))
            self.key = ClientKey.generate(where / "client.key", clock=self.clock)
            await Challenger(self.vault).enrol("c", self.key.public, credentials=["*"])
            self.open_middleware()

        self.run(begin())

    def open_middleware(self) -> None:
        self.middleware = CredentialMiddleware(self.vault, consent=CallbackConsent(self.person))

    def person(self, request: ConsentRequest) -> ConsentAnswer | None:
        self.questions.append(request)
        if self.answer is None:
            return None
        until = self.clock.now + 100 if self.answer is Choice.UNTIL else None
        need = self.manifest.need(request.credential)
        assert need is not None
        said = rights(request.scopes, request.origins, reveal=request.access is Access.REVEAL)
        assert said == asked(need)  # the question says all that its answer allows
        if self.answer in (Choice.ALWAYS, Choice.UNTIL):
            self.stored[request.credential] = said
            self.loose.pop(request.credential, None)
        elif self.answer is Choice.SESSION:
            self.session[request.credential] = said
        elif self.answer is Choice.ONCE:
            self.once[request.credential] = said
        elif self.answer is Choice.NEVER:
            self.forbidden.add(request.credential)
        return ConsentAnswer(choice=self.answer, until=until)

    # -- what people and plugins do ----------------------------------------------------

    # After each of these the plugin is used: what it has then is what counts.

    @rule(
        declared=manifests,
        checksum=st.sampled_from(CHECKSUMS),
        answer=answers,
        narrow=narrowed,
    )
    def upgrade(self, declared: list[dict[str, object]], checksum: str, answer, narrow) -> None:
        made = parse_manifest({"id": "p", "credentials": declared})
        self.manifest = msgspec.structs.replace(made, checksum=checksum)
        self.use(answer, narrow)

    @rule(
        name=st.sampled_from(NAMES),
        scopes=st.lists(st.sampled_from(SCOPES), unique=True),
        reveal=st.booleans(),
        answer=answers,
        narrow=narrowed,
    )
    def grant(self, name: str, scopes: list[str], reveal: bool, answer, narrow) -> None:
        self.run(self.vault.grant("p", name, scopes=scopes, reveal=reveal))
        self.stored[name] = rights(scopes, (), reveal=reveal)
        self.loose[name] = self.stored[name]
        self.forbidden.discard(name)
        self.use(answer, narrow)

    @rule(name=st.sampled_from([*NAMES, None]), answer=answers, narrow=narrowed)
    def revoke(self, name: str | None, answer, narrow) -> None:
        self.run(self.vault.revoke(plugin="p", credential=name))
        for each in NAMES if name is None else (name,):
            self.stored.pop(each, None)
            self.session.pop(each, None)
            self.loose.pop(each, None)
            self.forbidden.discard(each)
        self.use(answer, narrow)

    @rule(answer=answers, narrow=narrowed)
    def lock_and_unlock(self, answer, narrow) -> None:
        self.run(self.vault.lockdown())
        for table in (self.session, self.stored, self.loose):
            table.clear()  # what is forbidden stays so
        self.locked = True
        self.use(answer, narrow)
        self.run(self.vault.unlock())
        self.locked = False
        self.use(None, narrow)

    @rule(answer=answers, narrow=narrowed)
    def remove(self, answer, narrow) -> None:
        self.run(self.middleware.remove_plugin("p"))
        for table in (self.session, self.stored, self.loose):
            table.clear()  # what is forbidden stays so, should it come back
        self.use(answer, narrow)

    @rule(name=st.sampled_from(NAMES), on=st.booleans(), answer=answers, narrow=narrowed)
    def mark(self, name: str, on: bool, answer, narrow) -> None:
        self.run(self.vault.edit(name, challenge=on))
        (self.marked.add if on else self.marked.discard)(name)
        self.use(answer, narrow)

    @rule(answer=answers, narrow=narrowed)
    def restart(self, answer, narrow) -> None:
        async def again() -> None:
            await self.middleware.close()
            self.open_middleware()

        self.run(again())
        self.session.clear()
        self.use(answer, narrow)

    @rule(answer=answers, narrow=narrowed)
    def use(self, answer: Choice | None, narrow: list[str]) -> None:
        if not self.manifest.needs:
            return
        self.answer, self.once, self.questions = answer, {}, []
        before = {name: set(self.stored.get(name, ())) for name in NAMES}
        session = {name: set(self.session.get(name, ())) for name in NAMES}
        with answering(self.client()) if len(narrow) == 1 else nullcontext():
            had = self.run(self.middleware.invoke(self.manifest, self.plugin, narrow))
        for name, can in had.items():
            allowed = before[name] | session[name]
            allowed |= self.once.get(name, set()) | self.stored.get(name, set())
            allowed |= self.session.get(name, set())
            need = self.manifest.need(name)
            assert need is not None
            assert not self.locked
            assert can <= asked(need)
            assert name not in self.forbidden
            assert can <= allowed
            self.bind(name, need)

    def client(self) -> LocalResponder:
        return LocalResponder(self.key, vault_id=self.vault.vault_id, allow=lambda _: True)

    def bind(self, name: str, need: Need) -> None:
        """A grant by command is from now on one for what its first user asks for.

        Code that does not match its checksum is no such user: no grant counts for it, so
        what it had rests on an answer, and the grant stays open for the first sound version.
        """
        if self.manifest.checksum.startswith(UNVERIFIED):
            return
        if name in self.loose and name not in self.once:
            del self.loose[name]
            self.stored[name] &= asked(need)

    async def plugin(self, narrow: list[str]) -> dict[str, set[Right]]:
        had = {}
        for name, handle in current_credentials().items():
            permission = find_open(handle.id)[0].permission
            can = rights(handle.scopes, permission.origins, reveal=permission.reveal)
            had[name] = can
            signed = name not in self.marked or len(narrow) == 1
            assert await reads(handle) is (permission.reveal and signed)
            try:
                child = handle.attenuate(scopes=narrow)
            except AccessDeniedError:
                assert not set(narrow) <= set(handle.scopes)
                continue
            inner = find_open(child.id)[0].permission
            assert rights(child.scopes, inner.origins, reveal=inner.reveal) <= can
            assert set(child.scopes) == set(narrow)
            # What is narrow stays narrow.
            more = [scope for scope in SCOPES if scope not in narrow]
            try:
                child.attenuate(scopes=[*narrow, *more])
            except AccessDeniedError:
                continue
            assert not more
        return had

    @invariant()
    def nothing_stays_open(self) -> None:
        if hasattr(self, "middleware"):
            assert self.middleware.broker.open_leases == 0

    def teardown(self) -> None:
        async def end() -> None:
            await self.middleware.close()
            await self.vault.close()
            self.key.close()

        if hasattr(self, "middleware"):
            self.run(end())
        self.loop.close()
        self.folder.cleanup()


TestAccess = pytest.mark.slow(Machine.TestCase)
TestAccess.settings = settings(
    max_examples=60,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
