"""However handles are narrowed, in whatever order, none is wider than what it came from."""

from __future__ import annotations

import tempfile
from pathlib import Path

import anyio
from anyio.from_thread import start_blocking_portal
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    rule,
)

from apex_creds.errors import AccessDeniedError, LeaseEndedError
from tests.support.worlds import KEY, world_in

SCOPES = ("a", "b", "c")


class Model:
    """What a handle may do, worked out by other means than the lease's."""

    def __init__(self, handle, parent, scopes, expires, uses) -> None:
        self.handle, self.parent = handle, parent
        self.scopes, self.expires, self.uses = frozenset(scopes), expires, uses

    def line(self):
        step = self
        while step is not None:
            yield step
            step = step.parent

    def may(self, now: float, scope: str | None) -> bool:
        alive = all(now < each.expires and each.uses != 0 for each in self.line())
        return alive and (scope is None or all(scope in each.scopes for each in self.line()))

    def use(self) -> None:
        for each in self.line():
            if each.uses is not None:
                each.uses -= 1


class Narrowing(RuleBasedStateMachine):
    """One invocation, held open by a thread with an event loop, in which handles are made."""

    handles = Bundle("handles")

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.portal_of = start_blocking_portal()
        self.portal = self.portal_of.__enter__()
        self.ask, self.answers = None, None
        ready = self.portal.start_task(self.live)
        self.life, (self.world, self.root) = ready
        self.models: list[Model] = []

    async def live(self, *, task_status) -> None:
        async with world_in(Path(self.folder.name)) as world:
            send, receive = anyio.create_memory_object_stream[object](1)
            back, self.answers = anyio.create_memory_object_stream[object](1)
            self.ask = send
            await world.vault.grant("demo", "key", scopes=SCOPES, reveal=True)

            async def plugin(credentials):
                task_status.started((world, credentials["key"]))
                async with receive, back:
                    async for work in receive:
                        await back.send(await self.outcome(work))

            need = {"name": "key", "access": "reveal", "scopes": list(SCOPES)}
            await world.call(plugin, needs=(need,))

    @staticmethod
    async def outcome(work) -> object:
        try:
            return await work()
        except AccessDeniedError as error:
            return error

    def inside(self, work) -> object:
        """Runs in the invocation; the result, or the refusal."""

        async def there():
            await self.ask.send(work)
            return await self.answers.receive()

        return self.portal.call(there)

    @initialize(target=handles)
    def begin(self):
        expires = self.world.clock.now + 300
        self.models.append(Model(self.root, None, SCOPES, expires, None))
        return self.models[0]

    @rule(
        target=handles,
        model=handles,
        scopes=st.none() | st.lists(st.sampled_from((*SCOPES, "d")), unique=True),
        ttl=st.none() | st.integers(1, 500),
        uses=st.none() | st.integers(1, 4),
    )
    def attenuate(self, model, scopes, ttl, uses):
        async def work():
            chosen = None if scopes is None else tuple(scopes)
            return model.handle.attenuate(scopes=chosen, ttl=ttl, max_uses=uses)

        now, made = self.world.clock.now, self.inside(work)
        wanted = model.scopes if scopes is None else frozenset(scopes)
        if not model.may(now, None) or not wanted <= model.scopes:
            assert isinstance(made, AccessDeniedError)
            return multiple()
        assert frozenset(made.scopes) == wanted
        expires = min(model.expires, now + ttl) if ttl else model.expires
        assert made.expires <= model.expires
        assert made.expires == expires
        self.models.append(Model(made, model, wanted, expires, uses))
        return self.models[-1]

    @rule(model=handles, scope=st.none() | st.sampled_from(SCOPES))
    def use(self, model, scope):
        async def work():
            async with model.handle.reveal(scope=scope) as secret:
                return secret.equals(KEY.encode())

        outcome = self.inside(work)
        if model.may(self.world.clock.now, scope):
            assert outcome is True
            model.use()
        else:
            assert isinstance(outcome, AccessDeniedError)
            alive = model.may(self.world.clock.now, None)
            assert isinstance(outcome, LeaseEndedError) is not alive

    @rule(seconds=st.integers(1, 200))
    def wait(self, seconds):
        self.world.clock.now += seconds

    @invariant()
    def what_a_handle_says_is_so(self):
        for model in self.models:
            assert model.handle.active is model.may(self.world.clock.now, None)

    def teardown(self):
        async def end():
            await self.ask.aclose()
            self.answers.close()

        self.portal.call(end)
        self.life.result(60)
        self.portal_of.__exit__(None, None, None)
        self.folder.cleanup()


Narrowing.TestCase.settings = settings(
    max_examples=15,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
TestNarrowing = Narrowing.TestCase
