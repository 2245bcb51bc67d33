"""Streams that plugins return, guarded step by step.

Guarantee: each step runs in the stream's own invocation, no matter who consumes it; chunks are
redacted, also where a secret is cut between two; the call is finished when the stream
ends, raises, is closed, or is dropped.

The guards are real generators (``inspect.isasyncgen`` is true of them) that were advanced
to a first ``yield``: closing one that was never iterated runs its ``finally`` too.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import weakref
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Generator,
    Iterator,
)
from typing import Final, cast

import anyio

from apex_creds.leases.lease import end_each
from apex_creds.middleware.call import Inside, WrappedCall
from apex_creds.redaction.chunks import Joined, character_before

_log = logging.getLogger(__name__)

CLOSE_WITHIN: Final = 5.0
"""Seconds that a stream may take to close before it is cancelled."""


class ChunkRedactor:
    """Redacts text or bytes that come in pieces; other chunks one by one.

    Text in structured chunks of one shape is in pieces too, see ``joined``.
    """

    __slots__ = ("_call", "_held", "_joined", "_kind")

    def __init__(self, call: WrappedCall) -> None:
        self._call = call
        self._held = b""
        self._kind: type[str | bytes | bytearray] = str
        self._joined = Joined(call.redactor)

    def feed(self, chunk: object) -> list[object]:
        """What can be passed on now; what might begin a secret is kept for later."""
        if chunk is None or not self._call.redeemed:
            return [self._call.clean(chunk, where="chunk")]
        if isinstance(chunk, memoryview):
            chunk = bytes(chunk)
        if not isinstance(chunk, str | bytes | bytearray):
            before = self._flush_text()
            if self._joined.takes(chunk):
                chunk = self._joined.feed(chunk)
                self._call.check_leaks()
            else:
                before += self._flush_joined()
            return [*before, self._call.clean(chunk, where="chunk")]
        before = self._flush_joined()
        # Text and bytes are not searched across each other; bytes of both types are.
        if (self._kind is str) is not isinstance(chunk, str):
            before += self._flush_text()
        self._kind = str if isinstance(chunk, str) else type(chunk)
        data = chunk.encode("utf-8", "surrogatepass") if isinstance(chunk, str) else chunk
        data = bytes(self._held + data)
        cut = self._call.redactor.needles().searchable(data)
        if self._kind is str:
            cut = character_before(data, cut)
        self._held = data[cut:]
        return [*before, *([self._clean(data[:cut])] if cut or not data else [])]

    def flush(self) -> list[object]:
        """What was kept, at the end or before a chunk of another type."""
        return [*self._flush_joined(), *self._flush_text()]

    def _flush_joined(self) -> list[object]:
        return [self._call.clean(one, where="chunk") for one in self._joined.flush()]

    def _flush_text(self) -> list[object]:
        held, self._held = self._held, b""
        return [self._clean(held)] if held else []

    def _clean(self, data: bytes) -> object:
        clean = self._call.redactor.data(data, where="chunk")
        self._call.check_leaks()
        if self._kind is str:
            return clean.decode("utf-8", "surrogatepass")
        return bytearray(clean) if issubclass(self._kind, bytearray) else clean


def guard_async(stream: AsyncIterator[object], call: WrappedCall) -> AsyncIterator[object]:
    """``stream``, guarded; an async generator."""
    guarded = _async_steps(stream, call)
    _finish_when_dropped(guarded, call)
    start = guarded.asend(None)
    with contextlib.suppress(StopIteration):
        start.send(None)
    return guarded


def guard_sync(stream: Iterator[object], call: WrappedCall) -> Iterator[object]:
    """``stream``, guarded; a generator."""
    guarded = _sync_steps(stream, call)
    _finish_when_dropped(guarded, call)
    next(guarded)
    return guarded


async def _async_steps(
    stream: AsyncIterator[object], call: WrappedCall
) -> AsyncGenerator[object, object]:
    outcome, chunks = "closed", ChunkRedactor(call)
    chunk: object = None
    sent: object = None
    thrown: BaseException | None = None
    failure: BaseException | None = None
    try:
        try:
            sent = yield None
        except Exception as error:
            thrown = error
        while True:
            with Inside(call):
                chunk = await _next_async(stream, sent, thrown)
            sent = thrown = None
            for clean in chunks.feed(chunk):
                try:
                    sent = yield clean
                except Exception as error:
                    thrown = error
    except StopAsyncIteration:
        outcome = "ok"
    except GeneratorExit:
        pass
    except BaseException as error:
        outcome = type(error).__name__
        failure = call.clean_error(error)
    finally:
        closing = await _close_in_time(stream, call)
    chunk = None  # what was not redacted must not be in a frame of what raises
    for clean in _finished(call, chunks, outcome, failure or closing):
        yield clean


def _sync_steps(  # noqa: C901 - as _async_steps
    stream: Iterator[object], call: WrappedCall
) -> Generator[object, object, object]:
    outcome, chunks = "closed", ChunkRedactor(call)
    chunk: object = None
    sent: object = None
    thrown: BaseException | None = None
    failure: BaseException | None = None
    result: object = None
    try:
        try:
            sent = yield None
        except Exception as error:
            thrown = error
        while True:
            with Inside(call):
                chunk = _next_sync(stream, sent, thrown)
            sent = thrown = None
            for clean in chunks.feed(chunk):
                try:
                    sent = yield clean
                except Exception as error:
                    thrown = error
    except _EndedError as ended:
        outcome, result = "ok", ended.args[0]
    except GeneratorExit:
        pass
    except BaseException as error:
        outcome = type(error).__name__
        failure = call.clean_error(error)
    finally:
        closing = _close_sync(stream, call)
    failure = failure or closing
    if failure is None:
        try:
            result = call.clean(result, where="result")
        except Exception as error:
            result, failure = None, call.clean_error(error)
    chunk = None  # what was not redacted must not be in a frame of what raises
    yield from _finished(call, chunks, outcome, failure)
    return result


def _finished(
    call: WrappedCall, chunks: ChunkRedactor, outcome: str, failure: BaseException | None
) -> list[object]:
    """What was kept of the stream's end, with the call finished; raises what went wrong."""
    if failure is not None:
        call.finish(type(failure).__name__ if outcome == "ok" else outcome)
        raise failure
    held = chunks.flush() if outcome == "ok" else []
    call.finish(outcome)
    return held


class _EndedError(Exception):
    """The plugin's iterator is exhausted (a generator can't raise StopIteration).

    Its argument is what the generator returned.
    """


async def _next_async(
    stream: AsyncIterator[object], sent: object, thrown: BaseException | None
) -> object:
    if isinstance(stream, AsyncGenerator):
        generator = cast("AsyncGenerator[object, object]", stream)
        if thrown is not None:
            return await generator.athrow(thrown)
        return await generator.asend(sent)
    if thrown is not None:
        raise thrown
    return await anext(stream)


def _next_sync(stream: Iterator[object], sent: object, thrown: BaseException | None) -> object:
    try:
        if not isinstance(stream, Generator):
            if thrown is not None:
                raise thrown
            return next(stream)
        generator = cast("Generator[object, object, object]", stream)
        return generator.throw(thrown) if thrown is not None else generator.send(sent)
    except StopIteration as end:
        returned = end.value
    raise _EndedError(returned)


async def _close_in_time(
    stream: AsyncIterator[object], call: WrappedCall
) -> BaseException | None:
    """Closes the plugin's stream; returns what that raised, without secrets.

    It is not disturbed for ``CLOSE_WITHIN`` seconds, whatever is cancelled around it; then
    its leases end, and it is cancelled.
    """
    close = getattr(stream, "aclose", None)
    if close is None:
        return None
    late = asyncio.get_running_loop().call_later(CLOSE_WITHIN, end_each, call.leases)
    try:
        with anyio.move_on_after(CLOSE_WITHIN, shield=True), Inside(call):
            await close()
            return None
        _log.warning("A plugin's stream did not close in time, and was cancelled.")
    except BaseException as error:
        return call.clean_error(error)
    finally:
        late.cancel()
    return None


def _close_sync(stream: Iterator[object], call: WrappedCall) -> BaseException | None:
    close = getattr(stream, "close", None)
    if close is None:
        return None
    try:
        with Inside(call):
            close()
    except BaseException as error:
        return call.clean_error(error)
    return None


def _finish_when_dropped(guarded: object, call: WrappedCall) -> None:
    weakref.finalize(guarded, call.finish, "abandoned").atexit = False
