"""Events pass between a runtime's own event manager and the vault, and never hold it up."""

from __future__ import annotations

import asyncio
import json
import re
from collections import UserDict
from pathlib import Path
from typing import get_args

import msgspec
import pytest

from apex_creds.errors import InvalidInputError
from apex_creds.integrations.apexagent_events import Maker, Priority, SecurityEvent, connect
from apex_creds.model import ApiKey
from apex_creds.scheduler.rotation_state import (
    DEFAULT_TABLE,
    Accepted,
    AuditTampered,
    CompromiseSuspected,
    DenialsExceeded,
    Event,
    LeakDetected,
    OperatorRequest,
    PluginRemoved,
    Reaction,
    kind_of,
    read_event,
)
from apex_creds.scheduler.worker import RotationWorker
from apex_creds.vault import Vault
from tests.support import apexagent_events as real
from tests.support.loops import WITHIN, Running
from tests.support.vaults import create, unseal

pytestmark = pytest.mark.anyio

ALL = "security.*"
ONE = CompromiseSuspected(service="x", version=3)


@pytest.fixture
async def vault(tmp_path: Path):
    async with await create(tmp_path) as made:
        await made.put("openai", ApiKey("sk-12345678"), service="openai")
        await made.grant("gone", "openai")
        yield made


class Runtime:
    """A runtime: its manager, its log, and a subscriber to everything."""

    def __init__(self) -> None:
        self.manager = real.EventManager()
        self.logger = real.EventLogger()
        self.heard: asyncio.Queue[real.Event] = asyncio.Queue()

    async def begin(self) -> None:
        await self.manager.register_logger(self.logger)
        await self.manager.register_callback(self.heard.put_nowait, [ALL])

    async def next(self) -> real.Event:
        return await asyncio.wait_for(self.heard.get(), WITHIN)

    async def says(self, kind: str, data: object, source: str = "agent") -> None:
        await self.manager.emit(real.Event(f"security.{kind}", source, data))
        assert (await self.next()).source == source


@pytest.fixture
async def runtime() -> Runtime:
    made = Runtime()
    await made.begin()
    return made


async def queue(worker: RotationWorker) -> list[Event]:
    return [item.event for item in (await worker.engine.document.read()).queue]


# -- out --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("event", "priority"),
    [
        (CompromiseSuspected(service="openai", version=3), "CRITICAL"),
        (AuditTampered(detail="line 7"), "CRITICAL"),
        (LeakDetected(plugin="p"), "HIGH"),
        (DenialsExceeded(plugin="p", count=9), "HIGH"),
        (PluginRemoved(plugin="p"), "NORMAL"),
        (OperatorRequest(), "NORMAL"),
    ],
)
async def test_the_runtime_hears_in_its_own_words(
    vault: Vault, runtime: Runtime, event: Event, priority: str
) -> None:
    worker = RotationWorker(vault)
    urgent: list[real.Event] = []
    urgencies = {real.EventPriority.HIGH, real.EventPriority.CRITICAL}
    await runtime.manager.register_callback(urgent.append, [ALL], urgencies)
    await connect(runtime.manager, worker.bus)
    await worker.emit(event)
    heard = await runtime.next()
    assert type(heard) is real.Event
    assert heard.event_type == f"security.{kind_of(event)}"
    assert heard.source == "apex-creds"
    assert heard.priority is real.EventPriority[priority]
    assert urgent == ([] if priority == "NORMAL" else [heard])
    logged = json.loads(runtime.logger.lines[0])
    fields = {
        k: v for k, v in msgspec.to_builtins(event).items() if k not in ("event", "source")
    }
    assert logged["data"] == fields
    assert runtime.manager.errors == []


class Plain:
    """A manager that says nothing about its events."""

    async def register_callback(self, callback, event_types):
        self.callback = callback

    async def emit(self, event):
        self.event = event


class Annotated(Plain):
    async def emit(self, event: real.Event) -> int:
        return await super().emit(event)


class Severity(Plain):
    class Level(str):
        pass

    def create_event(self, event_type, source):
        raise AssertionError("it takes no data")


def test_which_class_an_event_is_of() -> None:
    assert type(Maker(real.EventManager())("leak_detected", {})) is real.Event
    assert type(Maker(Annotated())("leak_detected", {})) is real.Event
    for manager in (Severity(), type("Elsewhere", (Plain,), {"__module__": "asyncio"})()):
        made = Maker(manager)("leak_detected", {"plugin": "p"})
        assert type(made) is SecurityEvent  # not asyncio.Event
        assert made.priority is Priority.HIGH
        assert json.dumps(made.to_dict())
    beside = type("Beside", (Plain,), {"__module__": real.__name__})()
    assert type(Maker(beside)("leak_detected", {})) is real.Event

    def own(*, event_type, source, data, priority: real.EventPriority):
        return event_type, source, data, priority

    made = Maker(real.EventManager(), own)("audit_tampered", {})
    assert made == ("security.audit_tampered", "apex-creds", {}, real.EventPriority.CRITICAL)


async def test_what_is_no_event_manager_is_refused(vault: Vault) -> None:
    with pytest.raises(InvalidInputError, match="no event manager"):
        await connect(object(), RotationWorker(vault).bus)


# -- never held up ------------------------------------------------------------------------


async def test_a_subscriber_may_say_something_itself(vault: Vault, runtime: Runtime) -> None:
    worker = RotationWorker(vault)
    await connect(runtime.manager, worker.bus)

    async def react(event: real.Event) -> None:
        await worker.emit(OperatorRequest(source="subscriber"))

    await runtime.manager.register_callback(react, ["security.leak_detected"])
    async with asyncio.timeout(WITHIN):
        await worker.emit(LeakDetected(plugin="p"))
        await runtime.manager.emit(real.Event("security.leak_detected", "agent", {}))
    heard = [await runtime.next() for _ in range(3)]
    assert sorted((event.event_type, event.source) for event in heard) == [
        ("security.leak_detected", "agent"),
        ("security.leak_detected", "apex-creds"),
        ("security.operator_request", "apex-creds"),
    ]


async def test_a_subscriber_that_hangs_holds_up_nothing_here(
    vault: Vault, runtime: Runtime
) -> None:
    worker = RotationWorker(vault)
    await connect(runtime.manager, worker.bus)
    hangs = asyncio.Event()

    async def hang(event: real.Event) -> None:
        hangs.set()
        await asyncio.Event().wait()

    await runtime.manager.register_callback(hang, ["security.leak_detected"])
    async with asyncio.timeout(WITHIN):
        await worker.emit(LeakDetected(plugin="p"))
        await hangs.wait()
        await worker.emit(CompromiseSuspected(service="openai"))
        await worker.run_once()
    assert await queue(worker) == []


async def test_whoever_is_notified_may_say_something_in_a_lockdown(
    vault: Vault, runtime: Runtime
) -> None:
    done = asyncio.Event()

    async def notify(event: Event) -> None:
        await runtime.manager.emit(real.Event("security.leak_detected", "me", {"plugin": "p"}))
        done.set()

    worker = RotationWorker(vault, notify=notify)
    await connect(runtime.manager, worker.bus)
    async with asyncio.timeout(WITHIN):
        await worker.emit(AuditTampered(detail="line 7"))
        await worker.run_once()
        await done.wait()


async def test_a_manager_in_the_loop_of_another_thread_is_told_there(vault: Vault) -> None:
    """ApexAgent has a loop for each thread that emits; its lock belongs to one of them."""
    other = Running()
    runtime, worker = Runtime(), RotationWorker(vault)

    async def there() -> asyncio.AbstractEventLoop:
        runtime.__init__()
        await runtime.begin()
        await connect(runtime.manager, worker.bus)
        return asyncio.get_running_loop()

    try:
        loop = await asyncio.to_thread(other.do, there())
        await worker.emit(LeakDetected(plugin="p"))
        heard = await asyncio.to_thread(other.do, runtime.next())
        assert heard.event_type == "security.leak_detected"
        assert loop is other.loop
    finally:
        await asyncio.to_thread(other.close)
    # Its loop is gone: whoever is left to hear does, in another one.
    told: list[real.Event] = []
    reached = asyncio.Event()
    here = asyncio.get_running_loop()

    def hear(event: real.Event) -> None:
        told.append(event)
        here.call_soon_threadsafe(reached.set)

    runtime.manager._subscribers.append(
        real.CallbackEventSubscriber(hear, ["security.operator_request"])
    )
    await worker.emit(OperatorRequest())
    await asyncio.wait_for(reached.wait(), WITHIN)
    assert [event.source for event in told] == ["apex-creds"]


# -- in -----------------------------------------------------------------------------------


async def test_a_removed_plugin_is_understood_by_its_id(vault: Vault, runtime: Runtime) -> None:
    worker = RotationWorker(vault)
    await connect(runtime.manager, worker.bus)
    await runtime.says("plugin_removed", {"plugin_id": "gone"})
    await worker.run_once()
    assert list(await vault.grants()) == []


async def test_an_alarm_is_not_passed_over_for_what_is_odd_in_it(
    vault: Vault, runtime: Runtime, caplog
) -> None:
    worker = RotationWorker(vault)
    await connect(runtime.manager, worker.bus)
    await runtime.says("compromise_suspected", {"service": "openai", "reason": "stolen\n"})
    await runtime.says("compromise_suspected", {"service": ["openai"]}, source="other")
    await runtime.says("audit_tampered", None)
    assert await queue(worker) == [
        CompromiseSuspected(service="openai", source="runtime:agent"),
        CompromiseSuspected(source="runtime:other"),
        AuditTampered(source="runtime:agent"),
    ]
    assert "'reason'" in caplog.text
    assert "'service'" in caplog.text
    await runtime.says("operator_request", {"service": ["openai"]})
    await runtime.says("plugin_removed", {"plugin": ""})
    await runtime.says("plugin_removed", {"name": "p"})
    assert len(await queue(worker)) == 3
    errors = [r.message for r in caplog.records if r.levelname == "ERROR"]
    assert len(errors) == 3
    assert runtime.manager.errors == []


class Raises:
    """Whatever is asked of it."""

    def __getattribute__(self, name: str) -> object:
        if name in ("__class__", "__dict__"):
            return object.__getattribute__(self, name)
        raise RuntimeError("no")

    def __str__(self) -> str:
        raise RuntimeError("no")

    __repr__ = __str__


class RaisingData(UserDict[str, object]):
    def keys(self):
        raise RuntimeError("no")

    __iter__ = keys


class Said:
    def __init__(self, **fields: object) -> None:
        vars(self).update({"event_type": "security.compromise_suspected", **fields})

    def __getattr__(self, name: str) -> object:
        raise RuntimeError("no")


@pytest.mark.parametrize(
    "fields",
    [
        {"source": Raises(), "data": {"service": "openai"}},
        {"source": "a", "data": {"service": Raises()}},
        {"source": "a", "data": {Raises(): 1, "service": "openai"}},
        {"source": "a", "data": RaisingData(service="openai")},
        {"source": "a"},
        {"data": Raises()},
    ],
)
async def test_an_alarm_whose_parts_raise_is_one(
    vault: Vault, runtime: Runtime, fields: dict[str, object]
) -> None:
    worker = RotationWorker(vault)
    connection = await connect(runtime.manager, worker.bus)
    await connection._accept(Said(**fields))
    (heard,) = await queue(worker)
    assert isinstance(heard, CompromiseSuspected)
    assert heard.source.startswith("runtime:")


@pytest.mark.parametrize(
    ("kind", "fields", "event", "left_out"),
    [
        ("plugin_removed", {"plugin_id": "a"}, PluginRemoved(plugin="a"), ""),
        ("plugin_removed", {"plugin": {"id": "a"}}, PluginRemoved(plugin="a"), ""),
        (
            "plugin_removed",
            {"plugin": "a", "plugin_id": "b"},
            PluginRemoved(plugin="a"),
            "plugin_id",
        ),
        ("compromise_suspected", {"version": 3}, CompromiseSuspected(), "version"),
        ("compromise_suspected", {"version": 3, "service": "x"}, ONE, ""),
        (
            "compromise_suspected",
            {"level": "all", "service_name": "x", "version": "3"},
            ONE,
            "level",
        ),
        (
            "denials_exceeded",
            {"plugin": "a", "count": "n"},
            DenialsExceeded(plugin="a"),
            "count",
        ),
        (
            "leak_detected",
            {"event": "x", "credential": "c"},
            LeakDetected(credential="c"),
            "event",
        ),
    ],
)
def test_what_is_read_of_others_events(kind, fields, event, left_out) -> None:
    assert read_event(kind, fields) == (event, (ascii(left_out),) if left_out else ())


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("nothing", {}),
        ("plugin_removed", {}),
        ("plugin_removed", {"plugin": 3}),
        ("plugin_removed", {"plugin": "a\n"}),
        ("denials_exceeded", {"count": 3}),
        ("operator_request", {"level": "all"}),
    ],
)
def test_what_can_not_be_made_sense_of(kind, fields) -> None:
    with pytest.raises(InvalidInputError):
        read_event(kind, fields)


async def test_what_a_flood_of_others_does_not_hide(vault: Vault, monkeypatch) -> None:
    from apex_creds.scheduler import event_queue

    monkeypatch.setattr(event_queue, "MAX_QUEUE", 3)
    worker = RotationWorker(vault)
    for number in range(3):
        await worker.emit(LeakDetected(plugin=f"p{number}"))
    with pytest.raises(InvalidInputError):
        await worker.emit(LeakDetected(plugin="p3"))
    assert await worker.emit(CompromiseSuspected(service="openai"))


async def test_an_alarm_is_acted_on_before_the_flood_that_hides_it(
    vault: Vault, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = RotationWorker(vault)
    order: list[str] = []
    real = worker.bus._react

    async def react(item: Accepted, reaction: Reaction) -> None:
        order.append(kind_of(item.event))
        await real(item, reaction)
        if len(order) == 5:  # three of the alarm, two of a leak
            await worker.emit(CompromiseSuspected())

    monkeypatch.setattr(worker.bus, "_react", react)
    for number in range(5):
        await worker.emit(LeakDetected(plugin=f"p{number}"))
    await worker.emit(CompromiseSuspected(service="openai"))
    await worker.bus.act()
    kinds = [kind for at, kind in enumerate(order) if order[at - 1 : at] != [kind]]
    assert kinds == [
        "compromise_suspected", "leak_detected", "compromise_suspected", "leak_detected",
    ]  # fmt: skip
    assert not (await worker.engine.document.read()).queue


# -- who hears what, once ------------------------------------------------------------------


async def test_events_of_other_processes_are_relayed_once(
    vault: Vault, runtime: Runtime, tmp_path: Path
) -> None:
    worker, before = RotationWorker(vault), RotationWorker(vault)
    await before.emit(LeakDetected(plugin="history"))
    await before.run_once()
    async with await unseal(tmp_path) as theirs:
        elsewhere = RotationWorker(theirs)  # its own vault and documents, as another process
        await elsewhere.emit(LeakDetected(plugin="waits"))
        await connect(runtime.manager, worker.bus)
        assert (await runtime.next()).data["plugin"] == "waits"
        await elsewhere.emit(CompromiseSuspected(service="openai"))
        await elsewhere.run_once()  # and acts on it, too
        await elsewhere.emit(PluginRemoved(plugin="p"))
        await worker.run_once()
        await worker.run_once()
        kinds = [(await runtime.next()).event_type for _ in range(2)]
        assert kinds == ["security.compromise_suspected", "security.plugin_removed"]
        assert runtime.heard.empty()


async def test_what_one_runtime_says_others_hear_and_it_does_not(
    vault: Vault, runtime: Runtime, tmp_path: Path
) -> None:
    worker, second, third = RotationWorker(vault), Runtime(), Runtime()
    await connect(runtime.manager, worker.bus)
    await second.begin()
    await connect(second.manager, worker.bus)
    async with await unseal(tmp_path) as theirs:
        elsewhere = RotationWorker(theirs)
        await third.begin()
        await connect(third.manager, elsewhere.bus)
        await runtime.says("leak_detected", {"plugin": "p"})
        assert (await second.next()).source == "apex-creds"
        await elsewhere.run_once()
        assert (await third.next()).source == "apex-creds"
        await worker.run_once()
    assert runtime.heard.empty()
    assert second.heard.empty()


async def test_nothing_passes_after_it_was_disconnected(vault: Vault, runtime: Runtime) -> None:
    worker = RotationWorker(vault)
    async with await connect(runtime.manager, worker.bus) as connection:
        before = len(runtime.manager._subscribers)
        again = await connect(runtime.manager, worker.bus)

        async def end(event: real.Event) -> None:  # while the manager holds its lock
            await again.disconnect()

        await runtime.manager.register_callback(end, ["security.operator_request"])
        async with asyncio.timeout(WITHIN):
            await runtime.says("operator_request", {})
            await again._ending
    await connection.disconnect()
    await connection._ending
    assert len(runtime.manager._subscribers) == before
    while not runtime.heard.empty():
        runtime.heard.get_nowait()
    await worker.emit(LeakDetected(plugin="p"))
    await runtime.says("leak_detected", {"plugin": "q"})
    assert runtime.heard.empty()
    assert LeakDetected(plugin="q", source="runtime:agent") not in await queue(worker)


# -- what the page says ---------------------------------------------------------------------


def test_the_page_names_every_field() -> None:
    page = (Path(__file__).parents[2] / "docs" / "ROTATION.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]*) \|", page, re.MULTILINE))
    made = Maker(real.EventManager())
    for each in get_args(Event):
        kind = each.__struct_config__.tag
        names = [name for name in each.__struct_fields__ if name != "source"]
        assert re.findall(r"`(\w+)`", rows[kind]) == names
        row = next(line for line in page.splitlines() if line.startswith(f"| `{kind}` |"))
        assert row.split(" | ")[2] == made(kind, {}).priority.name.lower()
        for reaction in DEFAULT_TABLE[kind]:
            assert WORDS[reaction.value] in row.split(" | ")[3], reaction


WORDS = {
    "revoke_leases": "end",
    "rotate": "rotate",
    "rotate_and_destroy": "rotate and destroy at once",
    "lock_down": "lock down",
    "revoke_grants": "remove those grants",
    "notify": "notify",
}
