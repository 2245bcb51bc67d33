"""What a gRPC call brings back, without the secret that it was sent with.

Guarantee: messages, metadata at the beginning and at the end, the status's details and errors
are searched as answers of HTTP are; what can't be searched is withheld, with ``INTERNAL``. The
call of the core, which has them as they came, is in no object that a plugin has.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Generator, MutableMapping
from contextlib import suppress
from functools import partial
from typing import Any, Final, NamedTuple
from weakref import WeakKeyDictionary

import grpc
import grpc.aio

from apex_creds.documents.records import Record
from apex_creds.errors import AnswerWithheldError, ApexCredsError
from apex_creds.leases.broker import keep_open
from apex_creds.leases.http_messages import AnswerFilter, AnswerSearch, MessageFilter
from apex_creds.leases.lease import Lease

_CALLS: Final[MutableMapping[object, tuple[Any, Sent]]] = WeakKeyDictionary()
"""The core's call of each that a plugin has, and what was sent with it."""
_NOTHING: Final = grpc.aio.Metadata()


class Ending(NamedTuple):
    """What a call ended with, clean."""

    code: Any
    details: Any = ""
    initial: Any = ()
    trailing: Any = ()


class _Search(NamedTuple):
    """What the secrets of one try are searched with."""

    messages: MessageFilter
    begin: Callable[..., AnswerFilter | None]
    leases: list[Lease]


class Sent:
    """What one call was sent with; it gets that when the core asks for it."""

    def __init__(self) -> None:
        self._searches: list[_Search] = []

    def add(
        self, search: AnswerSearch | None, leases: list[Lease], records: list[Record]
    ) -> None:
        """Has all that comes searched; the core may ask again, where it tries again."""
        found = None if search is None else search.messages(leases, records)
        if search is not None and found is not None:
            self._searches.append(
                _Search(found, partial(search.begin, leases, records), leases)
            )
            leases[0].close_at_end(found.close)

    def message(self, message: Any) -> Any:
        """A message: bytes, text, or one of Protocol Buffers.

        Raises:
            AnswerWithheldError: It can't be searched, or the lease has ended.
        """
        if not self._searches or message is None or message is grpc.aio.EOF:
            return message
        if isinstance(message, str | bytes):
            return self.text(message)
        with suppress(Exception):  # of no kind that is known here; what it says may show it
            plain = message.SerializeToString()
            clean = self.text(plain)
            return message if clean is plain else type(message).FromString(clean)
        raise AnswerWithheldError(
            "A message of the server can't be searched for the secret that was sent, so it is "
            "withheld.",
            hint="Use messages of Protocol Buffers, or bytes; or have manifest and grant say "
            "that its service's echoes are allowed.",
        )

    def text(self, text: Any) -> Any:
        """Text or bytes; raises as ``message``."""
        for search in self._searches:
            if text:
                text = search.messages.whole(text)
        return text

    def metadata(self, pairs: Any) -> Any:
        """Metadata, of the type that it came as."""
        if not self._searches or not pairs:
            return pairs
        found = [(key, value) for key, value in pairs]
        raw = [(k.encode(), v.encode() if isinstance(v, str) else v) for k, v in found]
        for search in self._searches:
            found_in = search.begin("POST", 200, raw)
            if found_in is not None:
                raw = list(found_in.headers)
                found_in.close()
        clean = [
            (key.decode(), value.decode() if isinstance(was, str) else value)
            for (key, value), (_, was) in zip(raw, found, strict=True)
        ]
        return (
            grpc.aio.Metadata(*clean) if isinstance(pairs, grpc.aio.Metadata) else tuple(clean)
        )

    def ending(self, code: Any, details: Any, initial: Any, trailing: Any) -> Ending:
        """What a call ended with, clean; nothing comes any more."""
        try:
            initial, trailing = self.metadata(initial), self.metadata(trailing)
            return Ending(code, self.text(details), initial, trailing)
        except ApexCredsError as error:
            return Ending(code, str(error))
        finally:
            self.close()

    def close(self) -> None:
        """Forgets what to search for; idempotent."""
        for search in self._searches:
            keep_open(search.leases[0].id, search.messages.close)
            search.messages.close()  # which lets nothing pass from then on


class Failed(grpc.RpcError):  # type: ignore[misc, unused-ignore]
    """A call that failed; it has what a call says of its end."""

    def __init__(self, ending: Ending) -> None:
        super().__init__(ending.details)
        self._ending = ending

    def code(self) -> grpc.StatusCode:
        """Its status."""
        code: grpc.StatusCode = self._ending.code
        return code

    def details(self) -> str:
        """What the server says of it."""
        return str(self._ending.details)

    def initial_metadata(self) -> Any:
        """What the server said at first."""
        return self._ending.initial

    def trailing_metadata(self) -> Any:
        """What it said at the end."""
        return self._ending.trailing

    def debug_error_string(self) -> str:
        """For people; not the core's, which has what came."""
        return f"{self._ending.code}: {self._ending.details}"


def _through(name: str) -> Callable[..., Any]:
    """A method that the core's call has, and that brings nothing of the server."""

    def method(self: object, *args: Any, **options: Any) -> Any:
        found = _CALLS.get(self)  # none, once it is collected as garbage, with grpc's own
        return None if found is None else getattr(found[0], name)(*args, **options)

    return method


class _Kept:
    """What calls of both kinds do: only this module knows the core's call of one."""

    def __init__(self, call: Any, sent: Sent) -> None:
        _CALLS[self] = (call, sent)
        self._ending: Ending | None = None

    time_remaining = _through("time_remaining")
    cancel = _through("cancel")
    cancelled = _through("cancelled")
    done = _through("done")
    code = _through("code")

    def add_done_callback(self, fn: Callable[[Any], Any]) -> None:
        """See ``grpc.Future.add_done_callback``."""
        _CALLS[self][0].add_done_callback(lambda _: fn(self))

    def _withheld(self, error: ApexCredsError) -> Ending:
        """The end of a call whose answer can't be searched."""
        _CALLS[self][0].cancel()
        return Ending(grpc.StatusCode.INTERNAL, str(error))


class Answer(_Kept, grpc.Call, grpc.Future):  # type: ignore[misc, unused-ignore]
    """A blocking call, or one in the background; a stream is stepped."""

    is_active = _through("is_active")
    running = _through("running")
    add_callback = _through("add_callback")

    def result(self, timeout: float | None = None) -> Any:
        """See ``grpc.Future.result``."""
        return self._got(lambda call: call.result(timeout))

    def exception(self, timeout: float | None = None) -> Any:
        """See ``grpc.Future.exception``."""
        try:
            self.result(timeout)
        except grpc.RpcError as error:
            return error
        return None

    def traceback(self, timeout: float | None = None) -> None:
        """None: its frames lead to what came."""

    def initial_metadata(self) -> Any:
        """See ``grpc.Call.initial_metadata``."""
        call, sent = _CALLS[self]
        return self._ending.initial if self._ending else sent.metadata(call.initial_metadata())

    def trailing_metadata(self) -> Any:
        """See ``grpc.Call.trailing_metadata``."""
        return self._ended().trailing

    def details(self) -> Any:
        """See ``grpc.Call.details``."""
        return self._ended().details

    def __iter__(self) -> Answer:
        return self

    def __next__(self) -> Any:
        return self._got(next)

    def _got(self, get: Callable[[Any], Any]) -> Any:
        call, sent = _CALLS[self]
        try:
            got = sent.message(get(call))
        except StopIteration:
            self._ended()
            raise
        except grpc.RpcError:
            failure: Exception = Failed(self._ended())
        except ApexCredsError as error:
            failure = Failed(self._withheld(error))
        else:
            if call.done():
                self._ended()
            return got
        del call, sent  # a frame of the traceback would lead to what came
        raise failure  # without the core's error as its context

    def _ended(self) -> Ending:
        if self._ending is None:
            call, sent = _CALLS[self]
            end = call.code(), call.details()
            said = call.initial_metadata(), call.trailing_metadata()
            self._ending = sent.ending(*end, *said)
        return self._ending


class _AioAnswer(_Kept):
    """What calls of ``grpc.aio`` of all kinds do."""

    wait_for_connection = _through("wait_for_connection")
    write = _through("write")
    done_writing = _through("done_writing")

    @property
    def _done_writing_flag(self) -> Any:  # of all such calls, grpc itself asks for it
        return _CALLS[self][0]._done_writing_flag

    async def initial_metadata(self) -> Any:
        call, sent = _CALLS[self]
        if self._ending is not None:
            return self._ending.initial
        return sent.metadata(await call.initial_metadata())

    async def trailing_metadata(self) -> Any:
        return (await self._ended()).trailing

    async def details(self) -> Any:
        return (await self._ended()).details

    def __await__(self) -> Generator[Any, None, Any]:
        async def whole(call: Any) -> Any:
            return await call

        return self._got(whole).__await__()

    async def read(self) -> Any:
        got = await self._got(lambda call: call.read())
        if got is grpc.aio.EOF:
            await self._ended()
        return got

    async def __aiter__(self) -> AsyncIterator[Any]:
        while (got := await self.read()) is not grpc.aio.EOF:
            yield got

    async def _got(self, get: Callable[[Any], Any]) -> Any:
        call, sent = _CALLS[self]
        ending: Ending | None = None
        try:
            got = sent.message(await get(call))
        except grpc.aio.AioRpcError:
            pass
        except ApexCredsError as error:
            ending = self._withheld(error)
        else:
            if isinstance(self, _UnaryUnary | _StreamUnary):
                await self._ended()
            return got
        code, words, initial, trailing = ending or await self._ended()
        del call, sent  # as in ``Answer``
        raise grpc.aio.AioRpcError(
            code, initial or _NOTHING, trailing or _NOTHING, words, f"{code}: {words}"
        )

    async def _ended(self) -> Ending:
        if self._ending is None:
            call, sent = _CALLS[self]
            end = await call.code(), await call.details()
            said = await call.initial_metadata(), await call.trailing_metadata()
            self._ending = sent.ending(*end, *said)
        return self._ending


class _UnaryUnary(_AioAnswer, grpc.aio.UnaryUnaryCall): ...


class _UnaryStream(_AioAnswer, grpc.aio.UnaryStreamCall): ...


class _StreamUnary(_AioAnswer, grpc.aio.StreamUnaryCall): ...


class _StreamStream(_AioAnswer, grpc.aio.StreamStreamCall): ...


_KINDS: Final = {
    grpc.aio.UnaryUnaryCall: _UnaryUnary,
    grpc.aio.UnaryStreamCall: _UnaryStream,
    grpc.aio.StreamUnaryCall: _StreamUnary,
    grpc.aio.StreamStreamCall: _StreamStream,
}


def aio_answer(call: Any, sent: Sent) -> Any:
    """A call of ``grpc.aio``, of the kind that it is of."""
    return next(made for kind, made in _KINDS.items() if isinstance(call, kind))(call, sent)
