"""The invocations of the demo: what each is, and what must come of it.

Guarantee: every result, stream, exception and traceback is searched for every secret in
all the encodings that the middleware knows; one hit fails the demo.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import traceback
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from statistics import median
from typing import Final

from apex_creds.cli.demo.manager import PluginManager
from apex_creds.cli.demo.service import STORY
from apex_creds.errors import AccessDeniedError

AT_ONCE: Final = 300
"""More would wait for a connection longer than an HTTP client's time-out."""
REDACTED: Final = "[redacted:CHATTER_TOKEN]"


@dataclass(frozen=True, slots=True)
class Call:
    """One kind of invocation.

    Attributes:
        requests: How many requests the service must have served for it.
        denied: It must be refused.
        leaks: It must have been redacted.
    """

    plugin: str
    action: str
    requests: int = 0
    denied: bool = False
    leaks: bool = False


FORECAST: Final = Call("demo.weather", "forecast", requests=1)
STORY_CALL: Final = Call("demo.narrator", "story", requests=1)
SEND: Final = Call("demo.chatter", "send", requests=1, leaks=True)
CRASH: Final = Call("demo.chatter", "crash", requests=1, leaks=True)
DRIP: Final = Call("demo.chatter", "drip", leaks=True)
STRAY: Final = Call("demo.weather", "stray", denied=True)
SNOOP: Final = Call("demo.weather", "snoop", denied=True)

_ROUND: Final = (*[FORECAST] * 5, *[STORY_CALL] * 4, SEND, SEND, CRASH, DRIP, STRAY, SNOOP)


def plan(count: int) -> list[Call]:
    """``count`` calls, the kinds in turn."""
    return [_ROUND[i % len(_ROUND)] for i in range(count)]


@dataclass(slots=True)
class Tally:
    """What came of the calls.

    Attributes:
        as_expected: Calls that ended as their kind must.
        denied: Calls that were refused.
        wrong: What the others did instead; no secrets, as it is searched first.
        searched: All that came out: results, streams, tracebacks.
    """

    as_expected: int = 0
    denied: int = 0
    wrong: list[str] = field(default_factory=list)
    searched: list[str] = field(default_factory=list)


async def make(
    manager: PluginManager, calls: list[Call], base: str, *, done: Callable[[], None]
) -> Tally:
    """Makes the calls, up to ``AT_ONCE`` of them at a time."""
    tally, gate = Tally(), asyncio.Semaphore(AT_ONCE)

    async def one(number: int, call: Call) -> None:
        async with gate:
            good = await _one(manager, call, number, base, tally)
        tally.as_expected += good
        if not good:
            last = tally.searched[-1].rstrip().rpartition("\n")[2]
            tally.wrong.append(f"{call.plugin} {call.action}: {last[:200]}")
        done()

    async with asyncio.TaskGroup() as group:
        for number, call in enumerate(calls):
            group.create_task(one(number, call))
    return tally


async def _one(
    manager: PluginManager, call: Call, number: int, base: str, tally: Tally
) -> bool:
    arguments = _arguments(call, number, base)
    try:
        result = await manager.invoke_plugin_action(call.plugin, call.action, **arguments)
        text = await _read(result)
    except AccessDeniedError as error:
        tally.denied += 1
        tally.searched.append("".join(traceback.format_exception(error)))
        return call.denied
    except Exception as error:  # noqa: BLE001 - a plugin raises what it likes
        text = "".join(traceback.format_exception(error))
        tally.searched.append(text)
        return call is CRASH and isinstance(error, RuntimeError) and REDACTED in str(error)
    tally.searched.append(text)
    return not call.denied and _is_right(call, number, text)


def _arguments(call: Call, number: int, base: str) -> dict[str, object]:
    if call is FORECAST:
        return {"base": base, "city": f"city-{number}"}
    if call is STORY_CALL:
        return {"base": base, "topic": f"topic-{number}"}
    return {} if call in (SNOOP, DRIP) else {"base": base}


async def _read(result: object) -> str:
    if isinstance(result, AsyncIterator):
        return "".join([str(piece) async for piece in result])
    return repr(result)


def _is_right(call: Call, number: int, text: str) -> bool:
    if call is FORECAST:
        return text == repr({"city": f"city-{number}", "sky": "clear"})
    if call is STORY_CALL:
        return text == "".join(STORY).format(topic=f"topic-{number}")
    if call is DRIP:
        return text == f"my token is {REDACTED}, believe me"
    return call is SEND and text.count(REDACTED) == 2


async def overhead(manager: PluginManager, *, rounds: int = 1000) -> float:
    """Microseconds that a call with a handle takes over a bare one (medians, in turn).

    The call makes a lease, decides, logs, redeems into locked memory, wipes and ends.
    """
    bare, guarded = [], []
    plain = type(manager).invoke_plugin_action
    for _ in range(rounds):
        started = time.perf_counter_ns()
        await plain(manager, "demo.chatter", "idle")
        middle = time.perf_counter_ns()
        await manager.invoke_plugin_action("demo.chatter", "use")
        guarded.append(time.perf_counter_ns() - middle)
        bare.append(middle - started)
    return (median(guarded) - median(bare)) / 1000


class LogLines(logging.Handler):
    """Keeps every formatted line, as a log file would."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Formats and keeps a record."""
        self.lines.append(self.format(record))


@contextlib.contextmanager
def captured_logs() -> Iterator[LogLines]:
    """Everything that is logged at INFO and above goes here meanwhile, and only here."""
    root, handler = logging.getLogger(), LogLines()
    before, level = root.handlers[:], root.level
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    try:
        yield handler
    finally:
        root.handlers[:] = before
        root.setLevel(level)
