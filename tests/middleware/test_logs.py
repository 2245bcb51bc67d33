"""No log record of an invocation shows what was redeemed in it."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import io
import json
import logging
import threading

import pytest
import rich.console
import rich.logging

from apex_creds.crypto.memory import SecretBytes
from apex_creds.errors import AuditUnavailableError, EventLoopError, StorageStaleError
from apex_creds.leases.broker import MANY_RECENT, LeaseBroker
from apex_creds.middleware import CredentialMiddleware, log_filter
from apex_creds.model import ApiKey
from tests.support.slots import open_slots
from tests.support.worlds import KEY, World, manifest_for

pytestmark = pytest.mark.anyio
MARK = "[redacted:key]"
logger = logging.getLogger("tests.plugin")


class Shows:
    """An object that is only seen by its text."""

    def __init__(self, text: str, *, only: str = "both") -> None:
        self.text, self.only = text, only

    def __repr__(self) -> str:
        return "<harmless>" if self.only == "str" else f"<Shows {self.text}>"

    def __str__(self) -> str:
        return "harmless" if self.only == "repr" else f"shows {self.text}"


class Collect(logging.Handler):
    """Shows each record in every way that a handler may."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter("%(message)s %(args)s %(msg)s"))
        self.records: list[logging.LogRecord] = []
        self.shown: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        out = io.StringIO()
        console = rich.console.Console(file=out, width=300)
        handler = rich.logging.RichHandler(
            console=console, rich_tracebacks=True, tracebacks_show_locals=True
        )
        handler.emit(record)
        self.records.append(record)
        fields = {name: (f"{v!s}", f"{v!r}") for name, v in vars(record).items()}
        self.shown.append(self.format(record) + repr(fields) + out.getvalue())

    @property
    def all(self) -> str:
        return "\n".join(self.shown)


@pytest.fixture
def collected():
    handler = Collect()
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    yield handler
    logger.removeHandler(handler)


async def log_in(world: World, write) -> None:
    async def plugin(credentials):
        async with credentials["key"].reveal() as secret:
            text = secret.expose_str()
        write(text)

    with world.nothing_left():
        await world.call(plugin)


def raising(text: str) -> None:
    variable = text  # for handlers that show variables
    raise ValueError(f"harmless {len(variable)}")


def log_exception(text: str) -> None:
    try:
        raise KeyError(text)
    except KeyError:
        logger.exception("failed")


def log_harmless_exception(text: str) -> None:
    try:
        raising(text)
    except ValueError:
        logger.exception("failed")


def log_stack(text: str) -> None:
    def inner(sk):
        logger.warning("here", stack_info=True)

    inner(text)


class AddsToken(logging.Filter):
    def __init__(self, token: str) -> None:
        super().__init__()
        self.token = token

    def filter(self, record: logging.LogRecord) -> bool:
        record.token = self.token
        return True


def log_at_level(text: str) -> None:
    logging.addLevelName(33, text)
    try:
        logger.log(33, "x")
    finally:
        logging.addLevelName(33, "Level 33")


def log_by_filter(text: str) -> None:
    added = AddsToken(text)
    logger.addFilter(added)
    logger.info("x")
    logger.removeFilter(added)


def log_by_handlers_filter(text: str) -> None:
    [handler] = [each for each in logger.handlers if isinstance(each, Collect)]
    added = AddsToken(text)
    handler.addFilter(added)
    logger.info("x")
    handler.removeFilter(added)


class OwnHandle(logging.Logger):
    def handle(self, record: logging.LogRecord) -> None:
        self.callHandlers(record)


def log_by_own_logger(text: str) -> None:
    own = OwnHandle("own")
    own.parent = logger
    own.info("t=%s", text)


def log_past_the_logger(text: str) -> None:
    record = logging.makeLogRecord({"msg": text, "levelno": logging.INFO})
    logger.callHandlers(record)


WRITERS = {
    "filter of the logger": log_by_filter,
    "filter of the handler": log_by_handlers_filter,
    "own logger": log_by_own_logger,
    "past the logger": log_past_the_logger,
    "hidden by its text": lambda s: logger.info("%s", Shows(s, only="repr")),
    "hidden by the text of a message": lambda s: logger.info(Shows(s, only="repr")),
    "repr in a list": lambda s: logger.info("%s", [Shows(s, only="repr")]),
    "hidden in an unused field": lambda s: logger.info(
        "%(b)s", {"a": Shows(s, only="repr"), "b": 1}
    ),
    "message": lambda s: logger.info(f"it is {s}"),  # noqa: G004
    "argument": lambda s: logger.info("it is %s", s),
    "repr of an argument": lambda s: logger.info("it is %r", [s]),
    "several": lambda s: logger.info("%s of %d %s", "a", 7, s),
    "mapping": lambda s: logger.info("%(a)s", {"a": s}),
    "unused mapping": lambda s: logger.info("%(b)s", {"a": s, "b": 1}),
    "split over arguments": lambda s: logger.info("%s%s", s[:5], s[5:]),
    "bytes": lambda s: logger.info("%s", s.encode()),
    "object": lambda s: logger.info("%s", Shows(s)),
    "object as message": lambda s: logger.info(Shows(s)),
    "exception as message": lambda s: logger.info(ValueError(s)),
    "extra": lambda s: logger.info("x", extra={"token": s}),
    "name of extra": lambda s: logger.info("x", extra={s: 1}),
    "name of level": lambda s: log_at_level(s),
    "nested extra": lambda s: logger.info("x", extra={"request": {"headers": [s]}}),
    "object in extra": lambda s: logger.info("x", extra={"one": Shows(s)}),
    "str of extra": lambda s: logger.info("x", extra={"one": Shows(s, only="str")}),
    "repr of extra": lambda s: logger.info("x", extra={"one": Shows(s, only="repr")}),
    "exception": log_exception,
    "exc_info": lambda s: logger.info("x", exc_info=ValueError(s)),
    "variables of frames": log_harmless_exception,
    "stack": log_stack,
    "too few arguments": lambda s: logger.info("%s %s", s),  # noqa: PLE1206
    "too many arguments": lambda s: logger.info("harmless", s, Shows(s)),  # noqa: PLE1205
    "wrong format": lambda s: logger.info("%d", s),
    "wrong format of an object": lambda s: logger.info("%d", Shows(s)),
    "handled by hand": lambda s: logger.handle(
        logging.makeLogRecord({"msg": s, "levelno": 20})
    ),
    "child": lambda s: logger.getChild("child").info(s),
    "another thread": lambda s: in_thread(lambda: logger.info(s)),
}


def in_thread(write) -> None:
    import contextvars
    import threading

    thread = threading.Thread(target=contextvars.copy_context().run, args=(write,))
    thread.start()
    thread.join()


@pytest.mark.parametrize("kind", WRITERS)
async def test_every_way_to_log(world: World, collected: Collect, kind: str) -> None:
    await log_in(world, WRITERS[kind])
    assert len(collected.records) == 1
    assert KEY not in collected.all
    if kind not in ("variables of frames", "stack") and not kind.startswith("hidden"):
        assert MARK in collected.all
        assert [event.detail for event in world.events("leak")] == ["log"]


async def test_harmless_records_are_as_they_were(world: World, collected: Collect) -> None:
    holder = object()
    await log_in(world, lambda s: logger.info("%s and %d", holder, 7, extra={"one": holder}))
    (record,) = collected.records
    assert record.args == (holder, 7)
    assert record.msg == "%s and %d"
    assert record.one is holder
    assert world.events("leak") == []


async def test_a_traceback_stays_readable(world: World, collected: Collect) -> None:
    await log_in(world, log_exception)
    text = collected.format(collected.records[0])
    assert "Traceback (most recent call last)" in text
    assert f"KeyError: '{MARK}'" in text


async def test_outside_of_invocations_nothing_is_touched(
    world: World, collected: Collect
) -> None:
    logger.info("it is %s", KEY)
    assert KEY in collected.shown[0], "so that the tests above can fail"
    await log_in(world, lambda s: None)
    holder = object()
    logger.info("%s and %d", holder, 7, extra={"one": holder})
    assert collected.records[1].args == (holder, 7)
    assert collected.records[1].one is holder


async def test_an_outer_invocations_secret_in_an_inner_log(
    world: World, collected: Collect
) -> None:
    async def inner(text):
        logger.info(text)

    async def outer(credentials):
        async with credentials["key"].reveal() as secret:
            await world.call(inner, secret.expose_str(), plugin="inner", needs=("token",))

    await world.call(outer)
    assert KEY not in collected.all
    assert MARK in collected.all


async def test_a_task_that_outlives_its_invocation(world: World, collected: Collect) -> None:
    go = asyncio.Event()

    async def plugin(credentials):
        async with credentials["key"].reveal() as secret:
            text = secret.expose_str()

        async def later():
            await go.wait()
            for _ in range(3):
                logger.info(text)

        return_later.append(asyncio.create_task(later()))

    return_later: list[asyncio.Task] = []
    before = open_slots()
    await world.call(plugin)
    go.set()
    await return_later.pop()
    assert KEY not in collected.all
    assert collected.all.count(MARK) >= 3
    assert open_slots() <= before, "its needles are wiped after each search"


class FiltersItself(Collect):
    """What it filters, it decides alone; and it adds to the record."""

    def filter(self, record):
        record.added = record.secret_of_a_thread.value
        return True


class Hidden:
    value = ""


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("on_the_instance", [True, False])
async def test_a_handler_with_a_filter_of_its_own(
    world: World, collected: Collect, inside: bool, on_the_instance: bool
) -> None:
    handler = Collect() if on_the_instance else FiltersItself()
    if on_the_instance:
        handler.filter = FiltersItself.filter.__get__(handler)
    hidden = Hidden()
    record = logging.makeLogRecord({"msg": "done", "secret_of_a_thread": hidden})

    async def plugin(credentials):
        async with credentials["key"].reveal() as secret:
            hidden.value = secret.expose_str()
        if inside:
            handler.handle(record)

    await world.call(plugin)
    if not inside:
        contextvars.Context().run(handler.handle, record)
    assert len(handler.shown) == 1
    assert KEY not in handler.all
    assert MARK in handler.all


class TestMany:
    """A secret with hundreds of tokens in it, each of them with dozens of spellings."""

    @pytest.fixture
    async def opened(self, world: World, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """What is opened for a search, or looked for."""
        tokens = {f"token{n}": f"{n:04}abcdefghijklmnopqrstuv{n:04}" for n in range(220)}
        await world.vault.put("key", ApiKey(json.dumps(tokens)))
        opened: list[str] = []
        reopen, view = LeaseBroker.reopen, SecretBytes.view

        def counted_reopen(*args: object) -> object:
            opened.append("credential")
            return reopen(*args)

        def counted_view(self: SecretBytes) -> memoryview:
            opened.append("needle")
            return view(self)

        monkeypatch.setattr(LeaseBroker, "reopen", counted_reopen)
        monkeypatch.setattr(SecretBytes, "view", counted_view)
        return opened

    async def lines(self, opened: list[str], number: int) -> list[tuple[int, int]]:
        """How often that is, for each of some log lines."""
        found = []
        for _ in range(number):
            opened.clear()
            logger.info("request %s done", "/a/b", extra={"status": 200, "path": "/a/b"})
            found.append((opened.count("credential"), opened.count("needle")))
        return found

    async def test_in_the_invocation(
        self, world: World, collected: Collect, opened: list[str]
    ) -> None:
        async def plugin(credentials):
            async with credentials["key"].reveal():
                return await self.lines(opened, 12)

        found = await world.call(plugin)
        assert sum(credentials for credentials, _ in found) == 1
        assert found[0][1] > 1000
        assert all(needles < 200 for _, needles in found[6:])

    @pytest.mark.parametrize("inherits", [True, False])
    async def test_after_it(
        self, world: World, collected: Collect, opened: list[str], inherits: bool
    ) -> None:
        tasks = []

        async def plugin(credentials):
            async with credentials["key"].reveal():
                pass
            context = None if inherits else contextvars.Context()
            loop = asyncio.get_running_loop()
            tasks.append(loop.create_task(self.later(opened), context=context))

        await world.call(plugin)
        found = await tasks.pop()
        assert found[0][0] == 1, "one record is searched at once, not field by field"
        assert sum(credentials for credentials, _ in found[2:]) <= 1, "but by accident"
        assert min(needles for _, needles in found[2:]) < 200

    async def later(self, opened: list[str]) -> list[tuple[int, int]]:
        await asyncio.sleep(0)
        return await self.lines(opened, 12)


async def test_a_record_whose_leak_can_not_be_logged_is_withheld(
    world: World, collected: Collect, monkeypatch: pytest.MonkeyPatch
) -> None:
    from apex_creds.audit.segment import Segment

    def refuse(*args, **kwargs):
        raise AuditUnavailableError("No space left.")

    def write(text):
        with monkeypatch.context() as patch:
            patch.setattr(Segment, "append", refuse)
            logger.info("it is %s", text, exc_info=ValueError(text), stack_info=True)

    await log_in(world, write)
    assert KEY not in collected.all
    assert "No space left" in collected.all


async def test_a_withheld_record_withholds_its_extra_fields(
    world: World, collected: Collect, monkeypatch: pytest.MonkeyPatch
) -> None:
    from apex_creds.audit.segment import Segment

    def refuse(*args, **kwargs):
        raise AuditUnavailableError("No space left.")

    def write(text):
        with monkeypatch.context() as patch:
            patch.setattr(Segment, "append", refuse)
            logger.info("x", extra={"one": text, "two": {"a": text}})

    await log_in(world, write)
    assert KEY not in collected.all


STRAYS = {
    "executor": lambda s: asyncio.get_running_loop().run_in_executor(None, logger.info, s),
    "thread": lambda s: threading.Thread(target=logger.info, args=(s,)),
    "named thread": lambda s: threading.Thread(
        target=logger.info, args=("x",), name=f"worker {s}"
    ),
    "task": lambda s: asyncio.ensure_future(fail(s)),
    "callback": lambda s: asyncio.get_running_loop().call_soon(raising_text, s),
}


async def fail(text: str) -> None:
    raising_text(text)


def raising_text(text: str) -> None:
    raise ValueError(f"bad key {text}")


@pytest.mark.parametrize("kind", STRAYS)
@pytest.mark.parametrize("encode", [str, lambda s: s.encode().hex()])
async def test_what_is_logged_in_no_invocation(
    world: World, collected: Collect, kind: str, encode
) -> None:
    logging.getLogger("asyncio").addHandler(collected)
    loop = asyncio.get_running_loop()
    runners, before = loop.get_exception_handler(), open_slots()
    loop.set_exception_handler(None)  # as it is outside of tests
    left: list[object] = []

    async def plugin(credentials):
        async with credentials["key"].reveal() as secret:
            text = encode(secret.expose_str())
        left.append(STRAYS[kind](text))

    await world.call(plugin)
    while left:
        one = left.pop()
        if isinstance(one, threading.Thread):
            one.start()
            one.join()
        elif isinstance(one, asyncio.Future):
            await asyncio.wait([one])
        del one
    await asyncio.sleep(0)
    gc.collect()
    loop.set_exception_handler(runners)
    logging.getLogger("asyncio").removeHandler(collected)
    assert collected.records
    assert MARK in collected.all
    assert KEY not in collected.all
    assert KEY.encode().hex() not in collected.all
    assert [(e.plugin, e.credential) for e in world.events("leak")] == [("demo", "key")]
    assert open_slots() <= before, "nothing stays open for it"


async def test_a_deleted_credential_is_not_looked_for_in_no_invocation(
    world: World, collected: Collect
) -> None:
    """Or all that the process logs would be withheld."""
    await log_in(world, lambda s: None)
    await world.vault.delete("key")
    logger.info("the first few letters: %s", KEY[:6])
    logger.info("it goes on")
    assert "the first few letters" in collected.all
    assert "it goes on" in collected.all


async def test_what_can_not_be_opened_now_is_withheld_and_looked_for_later(
    world: World, collected: Collect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The storage is away, or the record is written in the thread that reads it."""
    await log_in(world, lambda s: None)
    broker = world.middleware.broker
    reopen = broker.reopen
    for away in (StorageStaleError("away"), EventLoopError("in its thread")):
        monkeypatch.setattr(type(broker), "reopen", _raiser(away))
        logger.info("it may be here: %s", KEY)
        monkeypatch.setattr(type(broker), "reopen", lambda _, record: reopen(record))
        logger.info("it is here: %s", KEY)
    assert KEY not in collected.all
    assert collected.all.count(f"it is here: {MARK}") >= 2


def _raiser(error: Exception):
    def raises(*_: object) -> None:
        raise error

    return raises


async def test_a_name_like_the_packages_own_is_no_way_past(
    world: World, collected: Collect
) -> None:
    await log_in(world, lambda s: None)
    collected.handle(
        logging.makeLogRecord({"name": "apex_creds.helper", "msg": f"it is {KEY}"})
    )
    assert KEY not in collected.all
    assert f"it is {MARK}" in collected.all


async def test_what_is_looked_for_in_no_invocation_is_bounded(world: World) -> None:
    recent = world.middleware.broker.recent
    await log_in(world, lambda s: None)
    (redeemed,) = recent.all().values()

    class Caller:
        manifest = manifest_for("key")
        action = id = ""

    for version in range(2, MANY_RECENT + 10):
        recent.register(("key", version), redeemed.record, Caller())
    assert len(recent.all()) == MANY_RECENT
    assert ("key", 1) not in recent.all()


async def test_names_of_loggers(world: World, collected: Collect) -> None:
    await log_in(world, lambda s: logging.getLogger(f"{logger.name}.{s}").warning("x"))
    await log_in(world, lambda s: logging.getLogger(f"{logger.name}.{s}").warning("y"))
    assert [record.message for record in collected.records] == ["x", "y"]
    assert KEY not in collected.all


class Odd(list):
    def __init__(self, first, second) -> None:
        super().__init__([first, second])


class Hostile:
    @property
    def __class__(self):
        raise RuntimeError(KEY)


@pytest.mark.parametrize("make", [lambda s: Odd(s, 1), lambda s: {1: Odd(s, 1)}, Hostile])
async def test_logging_never_raises(world: World, collected: Collect, make) -> None:
    made = make if make is not Hostile else lambda s: Hostile()
    await log_in(world, lambda s: logger.info("x", extra={"one": made(s), "two": s}))
    assert len(collected.records) == 1
    assert KEY not in collected.all


async def test_the_hook_is_counted_and_taken_back(world: World) -> None:
    for left in [ref for ref in log_filter._brokers if ref() is not world.middleware.broker]:
        log_filter._forget(left)  # of a test that failed or dropped its middleware
    hooked = logging.Filterer.filter
    second = CredentialMiddleware(world.vault)
    assert logging.Filterer.filter is hooked
    await second.close()
    assert logging.Filterer.filter is hooked
    await world.middleware.close()
    assert logging.Filterer.filter is not hooked
    assert "apex_creds" not in logging.Filterer.filter.__module__
    assert logging.Filterer.filter.__name__ == "filter"
