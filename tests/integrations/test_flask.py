"""Each build of ApexAgent under Flask: a loop for each request, events both ways.

The vault, worker and hook live in the loop of one thread, as docs/APEXAGENT.md has it.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from apex_creds import (
    AccessDeniedError,
    ApiKey,
    CredentialMiddleware,
    Vault,
    current_credentials,
)
from apex_creds.integrations.apexagent import install
from apex_creds.integrations.apexagent_events import connect
from apex_creds.scheduler.rotation_state import LeakDetected
from apex_creds.scheduler.worker import Rhythm, RotationWorker
from tests.support import apexagent_builds as builds
from tests.support import apexagent_events as events
from tests.support import apexagent_real as real
from tests.support.loops import WITHIN

flask = pytest.importorskip("flask")

SECRET = "sk-under-flask-0123456789"


class Actions:
    async def used(self, q, credentials):
        async with credentials["openai"].reveal() as secret:
            return f"{q} {secret.expose_str() == SECRET}"

    def here(self, q):
        with current_credentials()["openai"].reveal() as secret:
            return f"{q} {secret.expose_str() == SECRET}"

    async def leak(self, q, credentials):
        async with credentials["openai"].reveal() as secret:
            return secret.expose_str()


class Enhanced(Actions, real.BaseEnhancedPlugin):
    pass


class Plain(Actions):
    def __init__(self, plugin_id, plugin_name, version, description, config):
        pass

    def initialize(self):
        pass

    shutdown = get_metadata = get_actions = execute_action = initialize


BUILDS = {
    "async": (real.AsyncPluginManager, Enhanced, "invoke_plugin_action"),
    "sync": (real.SyncPluginManager, Plain, "execute_action"),
    "system": (real.PluginSystem, Plain, "execute_plugin_action"),
}


class Agent:
    """A program around a manager: its web application, and what it heard."""

    def __init__(self, build: str, home: Path) -> None:
        make, plugin_class, method = BUILDS[build]
        self.manager = make()
        metadata = builds.metadata("demo", "openai", keyed=build == "sync")
        self.manager.register(metadata, plugin_class)
        self.invoke = method
        self.events = events.EventManager()
        self.heard: list[events.Event] = []
        self.changed = threading.Condition()
        self.home = home
        self.app = flask.Flask("agent")
        self.app.errorhandler(AccessDeniedError)(lambda error: ("denied", 403))
        self.app.add_url_rule("/<action>/<q>", view_func=self.page)
        self.app.add_url_rule("/async/<action>/<q>", view_func=self.page_async)
        self.app.add_url_rule("/emit/<kind>", view_func=self.emit, methods=["POST"])
        self._ready: Future[asyncio.AbstractEventLoop] = Future()
        self._end = asyncio.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))

    async def _serve(self) -> None:
        master = f"file:{self.home}/master"
        try:
            async with await Vault.create(self.home / "apex", master=master) as self.vault:
                await self.vault.put("openai", ApiKey(SECRET), service="openai")
                await self.vault.grant("demo", "openai", reveal=True)
                async with (
                    CredentialMiddleware(self.vault) as self.middleware,
                    RotationWorker(self.vault, rhythm=Rhythm(events=0.05)) as self.worker,
                    await connect(self.events, self.worker.bus),
                ):
                    await self.events.register_callback(self.hear, ["security.*"])
                    with install(self.manager, self.middleware):
                        self._ready.set_result(asyncio.get_running_loop())
                        await self._end.wait()
        except BaseException as error:
            if not self._ready.done():
                self._ready.set_exception(error)
            raise

    def __enter__(self) -> Agent:
        self._thread.start()
        self.loop = self._ready.result(WITHIN)
        return self

    def __exit__(self, *_: object) -> None:
        self.loop.call_soon_threadsafe(self._end.set)
        self._thread.join(WITHIN)
        assert not self._thread.is_alive()

    def hear(self, event: events.Event) -> None:
        with self.changed:
            self.heard.append(event)
            self.changed.notify_all()

    def hears(self, kind: str, source: str) -> events.Event:
        def found() -> list[events.Event]:
            wanted = (f"security.{kind}", source)
            return [each for each in self.heard if (each.event_type, each.source) == wanted]

        with self.changed:
            assert self.changed.wait_for(found, WITHIN)
            return found()[0]

    async def act(self, action: str, q: str) -> str:
        result = getattr(self.manager, self.invoke)("demo", action, q=q)
        return await result if inspect.isawaitable(result) else result

    def page(self, action: str, q: str) -> str:
        loop = asyncio.new_event_loop()  # as ApexAgent does it
        try:
            return loop.run_until_complete(self.act(action, q))
        finally:
            loop.close()

    async def page_async(self, action: str, q: str) -> str:
        return await self.act(action, q)

    def emit(self, kind: str) -> str:
        made = events.Event(f"security.{kind}", "page", flask.request.get_json())
        # Its lock is of one loop: whoever emits does it there.
        emitting = asyncio.run_coroutine_threadsafe(self.events.emit(made), self.loop)
        return str(emitting.result(WITHIN))

    def get(self, path: str) -> tuple[int, str]:
        response = self.app.test_client().get(path)
        return response.status_code, response.text

    def post(self, kind: str, data: dict[str, object]) -> None:
        assert self.app.test_client().post(f"/emit/{kind}", json=data).status_code == 200

    def wait(self, condition) -> None:
        """Returns when something that the worker does in the background is done."""

        async def until() -> None:
            while not await condition():
                await asyncio.sleep(0.01)

        asyncio.run_coroutine_threadsafe(until(), self.loop).result(WITHIN)


@pytest.fixture(params=BUILDS)
def agent(request: pytest.FixtureRequest, fresh_home: Path) -> Iterator[Agent]:
    with Agent(request.param, fresh_home) as made:
        yield made


def test_requests_in_many_threads_and_loops_use_one_vault(agent: Agent) -> None:
    paths = [f"{kind}/{n}" for n in range(8) for kind in ("/used", "/here", "/async/used")]
    with ThreadPoolExecutor(8) as pool:
        found = dict(zip(paths, pool.map(agent.get, paths), strict=True))
    assert {path: (200, f"{path[-1]} True") for path in paths} == found
    assert agent.get("/leak/x") == (200, "[redacted:openai]")
    assert agent.middleware.broker.open_leases == 0


def test_events_of_a_request_are_acted_on(agent: Agent) -> None:
    agent.post("compromise_suspected", {"service": "openai", "reason": "a laptop"})

    async def destroyed() -> bool:
        keyset = (await agent.vault.store.keystore()).by_label["api_keys/openai"]
        return [version.state.value for version in keyset.versions] == ["destroyed", "primary"]

    agent.wait(destroyed)
    assert agent.get("/used/x") == (200, "x True")
    agent.post("plugin_removed", {"plugin_id": "demo"})

    async def gone() -> bool:
        return not list(await agent.vault.grants())

    agent.wait(gone)
    assert agent.get("/used/x") == (403, "denied")
    assert agent.events.errors == []


def test_events_of_the_vault_are_heard(agent: Agent) -> None:
    emitting = agent.worker.emit(LeakDetected(plugin="demo"))
    assert asyncio.run(emitting)  # from another loop, and thread, than the worker's
    heard = agent.hears("leak_detected", "apex-creds")
    assert type(heard) is events.Event
    assert heard.priority is events.EventPriority.HIGH
    assert heard.data == {"plugin": "demo", "credential": ""}
