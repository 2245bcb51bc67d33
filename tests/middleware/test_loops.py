"""A middleware in several event loops: under Flask and FastAPI, and past loops that ended."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from apex_creds import ApiKey, CredentialMiddleware, Vault
from apex_creds.auth.second_factor import Subject
from apex_creds.auth.step_up import PER_CLIENT, ClientQueue, SecondFactorGate
from apex_creds.concurrency import BACKGROUND, Event
from apex_creds.errors import EventLoopError
from apex_creds.integrations.plugin_removal import Removals
from apex_creds.middleware import report_denials
from apex_creds.policy import rate_limits
from apex_creds.policy.consent import Choice, ConsentAnswer, ConsentRequest
from apex_creds.scheduler.rotation_state import DenialsExceeded
from apex_creds.scheduler.worker import RotationWorker
from tests.support.clocks import FakeClock
from tests.support.loops import WITHIN, Running, running, threads
from tests.support.worlds import manifest_for

pytestmark = pytest.mark.filterwarnings(
    # A loop that is closed as it is leaves its tasks behind: that is what is tried here.
    "ignore::pytest.PytestUnraisableExceptionWarning",
    "ignore:coroutine:RuntimeWarning",
)
KEY = "sk-loops-0123456789"
MANIFEST = manifest_for("key")


class Opened:
    """A vault that was opened in a loop which has ended."""

    def __init__(self, where: Path) -> None:
        self.where = where
        self.clock = FakeClock()
        self.vault = asyncio.run(self._made())
        self.middleware = CredentialMiddleware(self.vault)

    async def _made(self) -> Vault:
        master = f"file:{self.where}/master.key"
        vault = await Vault.create(self.where / "home", master=master, clock=self.clock)
        await vault.put("key", ApiKey(KEY))
        await vault.grant("demo", "key", reveal=True)
        return vault

    async def invoke(self, plugin: object, *args: object) -> object:
        return await self.middleware.invoke(MANIFEST, plugin, *args)

    def close(self) -> None:
        asyncio.run(self.middleware.close())
        asyncio.run(self.vault.close())


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Opened]:
    made = Opened(tmp_path)
    yield made
    made.close()


async def tell_length(credentials: object) -> int:
    async with credentials["key"].reveal() as secret:
        await asyncio.sleep(0)
        return len(secret)


def tell_length_sync(credentials: object) -> int:
    with credentials["key"].reveal() as secret:
        return len(secret)


# -- frameworks ----------------------------------------------------------------------


def test_flask_with_asynchronous_views(opened: Opened) -> None:
    """Flask makes a loop for each request, in the thread that serves it."""
    flask = pytest.importorskip("flask")
    pytest.importorskip("asgiref")
    app = flask.Flask("test")

    @app.get("/use")
    async def use() -> dict[str, object]:
        return {"length": await opened.invoke(tell_length)}

    @app.get("/sync")
    def use_sync() -> dict[str, object]:
        return {"length": opened.middleware.invoke_sync(MANIFEST, "sync", tell_length_sync)}

    @app.post("/put/<name>")
    async def put(name: str) -> dict[str, object]:
        return {"version": (await opened.vault.put(name, ApiKey(KEY))).version}

    def client(number: int) -> list[object]:
        with app.test_client() as browser:
            found = [browser.post(f"/put/{number}").json["version"] for _ in range(3)]
            return found + [browser.get(f"/{p}").json["length"] for p in ("use", "sync")]

    answers = threads(*(functools.partial(client, number) for number in range(3)))
    assert answers == [[1, 2, 3, len(KEY), len(KEY)]] * 3
    assert opened.middleware.broker.open_leases == 0


def test_fastapi_beside_loops_of_its_own(opened: Opened) -> None:
    """FastAPI has one loop, and a pool of threads for views that are not asynchronous."""
    fastapi = pytest.importorskip("fastapi")
    app = fastapi.FastAPI()

    @app.get("/use")
    async def use() -> dict[str, object]:
        return {"length": await opened.invoke(tell_length)}

    @app.get("/own")
    def own() -> dict[str, object]:
        return {"length": asyncio.run(opened.invoke(tell_length_sync))}

    @app.post("/put/{name}")
    async def put(name: str) -> dict[str, object]:
        return {"version": (await opened.vault.put(name, ApiKey(KEY))).version}

    async def main() -> None:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://app") as browser:
            paths = ["/use", "/own"] * 4
            found = await asyncio.gather(
                *(browser.get(path) for path in paths),
                *(browser.post(f"/put/{number}") for number in range(4)),
            )
        assert [answer.json() for answer in found] == [{"length": len(KEY)}] * 8 + [
            {"version": 1}
        ] * 4

    asyncio.run(main())


# -- what does not end with the loop that began it -----------------------------------


@pytest.mark.parametrize("how", ["stop", "close"])
def test_a_deadline_holds_when_the_loop_has_ended(opened: Opened, how: str) -> None:
    gone, has, secrets = Running(), threading.Event(), []

    async def plugin(credentials: object) -> None:
        narrow = credentials["key"].attenuate(ttl=0.01)
        async with narrow.reveal() as secret:
            secrets.append(secret)
            has.set()
            await Event().wait()

    gone.begin(opened.invoke(plugin))
    assert has.wait(WITHIN)
    getattr(gone, how)()
    opened.clock.now += 0.01
    while not secrets[0].closed:
        threading.Event().wait(0.001)
    gone.end()


def test_a_plugin_that_is_removed_is_removed_when_the_loop_has_ended(opened: Opened) -> None:
    removals = Removals(opened.middleware)

    async def remove() -> None:
        removals.removed_sync("demo")

    asyncio.run(remove())
    asyncio.run(removals.finish("demo"))
    assert not list(asyncio.run(opened.vault.grants()))


def test_denials_reach_the_worker_when_the_loop_has_ended(opened: Opened) -> None:
    heard, worker = threading.Event(), RotationWorker(opened.vault)

    async def hear(event: DenialsExceeded) -> None:
        heard.set()

    async def begin() -> None:
        worker.bus.subscribe(hear, ["denials_exceeded"])
        report_denials(opened.middleware, worker)

    asyncio.run(begin())
    opened.middleware.broker.authorizer.on_denials(
        rate_limits.DenialsExceeded("rule", "plugin", "demo", "key", 2, 60, opened.clock.time())
    )
    assert heard.wait(WITHIN)
    BACKGROUND.call(functools.partial(asyncio.sleep, 0))


# -- a person is asked once ----------------------------------------------------------


class Person:
    """Answers when it is told, in whatever loop it is asked."""

    def __init__(self) -> None:
        self.asked = [threading.Event() for _ in range(5)]
        self.answers = [Event() for _ in range(5)]
        self.count = 0

    async def ask(self, request: ConsentRequest) -> ConsentAnswer:
        number, self.count = self.count, self.count + 1
        self.asked[number].set()
        await self.answers[number].wait()
        return ConsentAnswer(choice=Choice.ONCE)


@pytest.fixture
def person(opened: Opened) -> Person:
    asyncio.run(opened.vault.revoke(plugin="demo"))
    asyncio.run(opened.middleware.close())
    person = Person()
    opened.middleware = CredentialMiddleware(
        opened.vault, consent=person, consent_deadline=WITHIN
    )
    return person


async def _waiting(opened: Opened, many: int) -> None:
    flights = opened.middleware._consent._questions._flights
    while sum(flight.waiting for flight in flights.values()) < many:
        await asyncio.sleep(0)


def test_invocations_in_several_loops_share_a_question(opened: Opened, person: Person) -> None:
    with running(asyncio.new_event_loop, asyncio.new_event_loop) as (one, two):
        asking = [loop.begin(opened.invoke(tell_length)) for loop in (one, two, one)]
        one.do(_waiting(opened, 3))
        asking[0].cancel()  # perhaps the one that asks: it stands as long as others wait
        person.answers[0].set()
        assert [each.result(WITHIN) for each in asking[1:]] == [len(KEY)] * 2
    assert person.count == 1


@pytest.mark.parametrize("how", ["stop", "close", "end"])
def test_a_question_whose_loop_is_gone_is_asked_again(
    opened: Opened, person: Person, how: str
) -> None:
    gone, there = Running(), Running()
    gone.begin(opened.invoke(tell_length))
    assert person.asked[0].wait(WITHIN)
    waiting = there.begin(opened.invoke(tell_length))
    there.do(_waiting(opened, 2))
    getattr(gone, how)()
    assert person.asked[1].wait(WITHIN)
    person.answers[1].set()
    assert waiting.result(WITHIN) == len(KEY)
    there.end()
    gone.end()


def test_a_middleware_that_is_closed_elsewhere_answers_who_waits(
    opened: Opened, person: Person
) -> None:
    with running(asyncio.new_event_loop, asyncio.new_event_loop) as (one, two):
        waiting = one.begin(opened.invoke(lambda credentials: "key" in credentials))
        assert person.asked[0].wait(WITHIN)
        two.do(opened.middleware.close())
        assert waiting.exception(WITHIN) is not None


# -- turns and limits are the process's, not a loop's ---------------------------------


def test_a_client_has_its_turns_for_all_loops_together() -> None:
    turns, inside, let_go = ClientQueue(), [], Event()

    async def ask(number: int) -> None:
        async with turns.place("client", f"plugin-{number}"):
            inside.append(number)
            await let_go.wait()

    with running(asyncio.new_event_loop, asyncio.new_event_loop) as loops:
        many = 2 * PER_CLIENT
        asking = [loops[number % 2].begin(ask(number)) for number in range(many)]
        for _ in range(3):
            for loop in loops:
                loop.turn()
        assert len(inside) == PER_CLIENT
        let_go.set()
        for each in asking:
            each.result(WITHIN)
        assert sorted(inside) == list(range(many))


def test_synchronous_plugins_have_their_threads_for_all_loops_together(
    opened: Opened,
) -> None:
    asyncio.run(opened.middleware.close())
    opened.middleware = CredentialMiddleware(opened.vault, max_threads=2)
    inside, entered, let_go = [], threading.Semaphore(0), threading.Event()

    def plugin(credentials: object) -> None:
        inside.append(1)
        entered.release()
        let_go.wait(WITHIN)

    with running(asyncio.new_event_loop, asyncio.new_event_loop) as loops:
        calls = [loops[number % 2].begin(opened.invoke(plugin)) for number in range(5)]
        for _ in range(2):
            assert entered.acquire(timeout=WITHIN)
        while len(opened.middleware._threads._queue) < 3:
            for loop in loops:
                loop.turn()
        assert len(inside) == 2
        let_go.set()
        for call in calls:
            call.result(WITHIN)
    assert len(inside) == 5


def test_one_asks_for_a_factor_for_all_loops_together(opened: Opened) -> None:
    subject = Subject(plugin="demo", credential="key")
    gate = SecondFactorGate(opened.middleware._consent._known_factors(), deadline=WITHIN)
    showing, most, first, go_on = [0], [0], threading.Event(), Event()

    async def show(subject: Subject, began: float) -> None:
        showing[0] += 1
        most[0] = max(most[0], showing[0])
        first.set()
        await go_on.wait()
        showing[0] -= 1

    gate._show = show
    with running(asyncio.new_event_loop, asyncio.new_event_loop) as loops:
        asking = [loop.begin(gate.require_second_factor(subject)) for loop in loops]
        assert first.wait(WITHIN)
        for loop in loops:
            loop.turn()
        go_on.set()
        for each in asking:
            each.result(WITHIN)
    assert most == [1]


# -- asyncio only --------------------------------------------------------------------


def test_on_trio_it_says_at_once_what_is_needed(opened: Opened, tmp_path: Path) -> None:
    trio = pytest.importorskip("trio")
    home = tmp_path / "other"
    for begin in (
        functools.partial(Vault.create, home, master=f"file:{tmp_path}/k"),
        functools.partial(Vault.unseal, tmp_path / "home"),
        opened.middleware.__aenter__,
    ):
        with pytest.raises(EventLoopError, match="not on trio"):
            trio.run(begin)
    assert not home.exists()
