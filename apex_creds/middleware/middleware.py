"""The middleware that a runtime installs once.

Guarantee: a plugin called through it has handles for what it declared and was granted, and
nothing else; when the call is over, so are its leases, however it ends (rule 9).
"""

from __future__ import annotations

import functools
import inspect
import io
import logging
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Generator,
    Iterator,
)
from enum import StrEnum
from types import CoroutineType, TracebackType
from typing import TYPE_CHECKING, Final, NamedTuple, Self, TypeVar, overload

import anyio
import anyio.to_thread

from apex_creds import migration
from apex_creds.auth.step_up import Ask, Responder
from apex_creds.concurrency import BACKGROUND, Semaphore, running_loop
from apex_creds.crypto.memory import harden_process
from apex_creds.errors import AccessDeniedError, ApexCredsError, InvalidInputError
from apex_creds.leases.broker import LeaseBroker
from apex_creds.leases.lease import (
    DEFAULT_TTL,
    PRINCIPAL,
    current_invocation,
    enter_bare,
    is_for_another,
    leave_bare,
)
from apex_creds.middleware import log_filter
from apex_creds.middleware.answer_masking import AnswerSearch
from apex_creds.middleware.call import (
    NO_AUTHORIZATIONS,
    Inside,
    OnLeak,
    OnOpaque,
    WrappedCall,
    WrappedCoroutine,
)
from apex_creds.middleware.callables import (
    CREDENTIALS,
    ELSEWHERE,
    VALUES,
    BehindWall,
    Isolates,
    PluginRunner,
    Shape,
    elsewhere,
    is_async_stream,
    is_stream,
    shape_of,
    takes,
)
from apex_creds.middleware.consent_flow import Authorizations, ConsentFlow
from apex_creds.middleware.log_filter import mark_before_sealing
from apex_creds.middleware.streams import guard_async, guard_sync
from apex_creds.migration import Fallback
from apex_creds.model import check_name
from apex_creds.plain import (
    check_can,
    check_is,
    plain_count,
    plain_seconds,
    plain_text,
    text_or_none,
)
from apex_creds.policy.consent import DEADLINE, ConsentProvider, ConsentRequest
from apex_creds.policy.decide import Reason
from apex_creds.policy.manifest import Manifest
from apex_creds.redaction.redactor import PLAIN, is_large
from apex_creds.telemetry import tracing
from apex_creds.telemetry.tracing import InvokeStep
from apex_creds.vault import Facts, Vault

if TYPE_CHECKING:
    import httpx

    from apex_creds.middleware.callables import P, T, TakesCredentials
    from apex_creds.policy import rate_limits
    from apex_creds.scheduler.rotation_state import DenialsExceeded
    from apex_creds.scheduler.worker import RotationWorker

W = TypeVar("W", bound=StrEnum)
_log: Final = logging.getLogger(__name__)
_LONGEST_ACTION: Final = 200
"""Of an action's name, in spans."""
_ASKED: Final = {
    "consent": "TerminalConsent(), CallbackConsent(…) and PendingConsent(…) are such.",
    "second_factor": "Pass what asks for a code, such as TerminalAsk(); the middleware makes "
    "its SecondFactorGate itself.",
}


class CredentialMiddleware:
    """Wraps plugin invocations. Use it as an async context manager, or close it.

    Args:
        vault: Unsealed; the middleware does not close it.
        ttl: Seconds that a lease lives at most, streams included.
        on_leak: Whether a leaked secret is replaced, or fails the invocation.
        on_opaque: Whether output with an object in it that can't be searched (a handle of a
            library in C, a function) is passed or withheld; the log says so in both cases.
        transport: Sends the requests of ``handle.client()``; a pool of httpx by default.
        sync_transport: The same for ``handle.sync_client()``.
        max_threads: How many synchronous plugins run at once.
        consent: Who is asked where policy says that a person decides; nobody by default,
            so that it is denied.
        second_factor: Asks for a code where one is needed, such as a ``TerminalConsent``.
            By default the gate waits for ``apex-creds factor verify`` if there is somebody
            to give consent, and it is denied if there is not.
        consent_deadline: Seconds that a question waits for its answer.
        responder: Signs challenges where no ``answering`` names another client; by default
            nobody, so that credentials which take a challenge are denied.
        isolation: Runs plugins in separate processes, as ``Isolation.BUBBLEWRAP``; see
            docs/ISOLATION.md. By default they run in this one, and those that require it are
            refused.
        harden: Whether to call ``harden_process()``: no core files, and no debugger or
            profiler that is attached by another process. See docs/OPERATIONS.md.

    Raises:
        InvalidInputError: An argument is not what it should be.
    """

    def __init__(
        self,
        vault: Vault,
        *,
        ttl: float = DEFAULT_TTL,
        on_leak: OnLeak = OnLeak.REDACT,
        on_opaque: OnOpaque = OnOpaque.PASS,
        transport: httpx.AsyncBaseTransport | None = None,
        sync_transport: httpx.BaseTransport | None = None,
        max_threads: int = 40,
        consent: ConsentProvider | None = None,
        second_factor: Ask | None = None,
        consent_deadline: float = DEADLINE,
        responder: Responder | None = None,
        isolation: Isolates | None = None,
        harden: bool = True,
    ) -> None:
        check_is(vault, Vault, what="vault")
        for asked, methods, what in (
            (consent, ("ask",), "consent"),
            (second_factor, (), "second_factor"),
            (responder, ("client", "answer"), "responder"),
            (transport, ("handle_async_request", "aclose"), "transport"),
            (sync_transport, ("handle_request", "close"), "sync_transport"),
            (isolation, ("runner",), "isolation"),
        ):
            if asked is not None:
                check_can(asked, *methods, what=what, hint=_ASKED.get(what, ""))
        if harden:
            harden_process()
        self._vault = vault
        self._broker = LeaseBroker(vault, transport=transport, sync_transport=sync_transport)
        self._broker.authorizer.responder = responder
        self._answers = self._broker.search = AnswerSearch(self._broker)
        self._consent = ConsentFlow(
            vault,
            self._broker,
            provider=consent,
            second_factor=second_factor,
            deadline=plain_seconds(consent_deadline, what="consent_deadline"),
        )
        self._ttl = plain_seconds(ttl, what="ttl of leases")
        self._on_leak = _one_of(OnLeak, on_leak, what="on_leak")
        self._on_opaque = _one_of(OnOpaque, on_opaque, what="on_opaque")
        self._threads = Semaphore(plain_count(max_threads, what="max_threads"))
        self._runner = None if isolation is None else isolation.runner()
        self._legacy: Fallback | None = None
        self._closed = False
        log_filter.install(self._broker)
        self._marks = mark_before_sealing(self._broker)
        vault.watch_revocations(self._marks)
        vault.watch_revocations(self._answers.revoked)

    @property
    def broker(self) -> LeaseBroker:
        """Makes and revokes the leases."""
        return self._broker

    async def __aenter__(self) -> Self:
        """Migrates first what older programs left beside the vault.

        Raises:
            EventLoopError: It is not asyncio that runs here.
        """
        running_loop()
        self._legacy = await migration.on_unseal_logged(self._vault)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends every lease, closes the connections; idempotent."""
        if self._closed:
            return
        self._closed = True
        log_filter.uninstall(self._broker)
        self._vault.unwatch_revocations(self._marks)
        self._vault.unwatch_revocations(self._answers.revoked)
        with anyio.CancelScope(shield=True):
            await self._consent.close()
            if self._runner is not None:
                await self._runner.close()
            await self._broker.close()
        self._answers.wipe()

    async def remove_plugin(self, plugin: str) -> None:
        """Takes back all that a plugin was allowed; its open leases end at once.

        What it was denied for good stays denied, should it come back.
        """
        await self._vault.revoke(plugin=plugin, keep_denials=True)

    async def lockdown(self, *, reason: str = "", keep_grants: bool = False) -> None:
        """Ends every lease, in all processes, and releases nothing until ``unlock``."""
        await self._vault.lockdown(reason=reason, keep_grants=keep_grants)

    # -- calling -----------------------------------------------------------------

    @overload
    async def invoke(
        self,
        manifest: Manifest,
        function: Callable[..., Coroutine[object, object, T]],
        /,
        *args: object,
        principal: str,
        **kwargs: object,
    ) -> T: ...

    @overload
    async def invoke(
        self,
        manifest: Manifest,
        function: Callable[..., AsyncIterator[T]],
        /,
        *args: object,
        principal: str,
        **kwargs: object,
    ) -> AsyncGenerator[T, None]: ...

    @overload
    async def invoke(
        self,
        manifest: Manifest,
        function: Callable[..., Iterator[T]],
        /,
        *args: object,
        principal: str,
        **kwargs: object,
    ) -> Generator[T, None, None]: ...

    @overload
    async def invoke(  # type: ignore[overload-overlap]
        self,
        manifest: Manifest,
        function: Callable[..., T],
        /,
        *args: object,
        principal: str,
        **kwargs: object,
    ) -> T: ...

    @overload
    async def invoke(
        self,
        manifest: Manifest,
        function: Callable[P, Coroutine[object, object, T]],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T: ...

    @overload
    async def invoke(
        self,
        manifest: Manifest,
        function: TakesCredentials[Coroutine[object, object, T]],
        /,
        *args: object,
        **kwargs: object,
    ) -> T: ...

    @overload
    async def invoke(
        self,
        manifest: Manifest,
        function: Callable[P, AsyncIterator[T]],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> AsyncGenerator[T, None]: ...

    @overload
    async def invoke(
        self,
        manifest: Manifest,
        function: TakesCredentials[AsyncIterator[T]],
        /,
        *args: object,
        **kwargs: object,
    ) -> AsyncGenerator[T, None]: ...

    @overload
    async def invoke(
        self,
        manifest: Manifest,
        function: Callable[P, Iterator[T]],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Generator[T, None, None]: ...

    @overload
    async def invoke(
        self,
        manifest: Manifest,
        function: TakesCredentials[Iterator[T]],
        /,
        *args: object,
        **kwargs: object,
    ) -> Generator[T, None, None]: ...

    @overload
    async def invoke(
        self, manifest: Manifest, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs
    ) -> T: ...

    @overload
    async def invoke(
        self,
        manifest: Manifest,
        function: TakesCredentials[T],
        /,
        *args: object,
        **kwargs: object,
    ) -> T: ...

    async def invoke(
        self,
        manifest: Manifest,
        function: Callable[..., object],
        /,
        *args: object,
        **kwargs: object,
    ) -> object:
        """Calls a plugin's function, of any kind, with its handles.

        The keyword ``principal`` says who it is called for, as a user's id; by default
        nobody, or as ``acting_for`` says. A function that has a parameter of that name is
        given it, too. Arguments that a model chose go through ``invoke_action`` rather, where
        none of them is taken for the principal.

        The function gets them as the keyword ``credentials`` if its signature names it, and
        from ``current_credentials()`` in any case. A synchronous function runs in a worker
        thread. The name of the action in the log is the function's; see ``invoke_action``.
        To type checkers the result is the function's, and so are the arguments, unless a
        parameter ``credentials`` is among them (after at most four others).

        Returns:
            What the function returns, awaited and redacted. A generator or iterator, of
            either kind, comes back as a generator that holds the leases until it ends.

        Raises:
            AccessDeniedError: A required credential is refused.
            AuditUnavailableError: The log can't be written.
        """
        action, principal = getattr(function, "__name__", ""), ""
        if "principal" in kwargs:
            principal = plain_text(kwargs["principal"], what="principal")
            if not takes(function, "principal"):
                del kwargs["principal"]
        return await self.invoke_action(
            manifest, text_or_none(action) or "", function, args, kwargs, principal=principal
        )

    @overload
    def wrap(
        self, manifest: Manifest, function: Callable[P, Coroutine[object, object, T]]
    ) -> Callable[P, Coroutine[object, object, T]]: ...

    @overload
    def wrap(
        self, manifest: Manifest, function: TakesCredentials[Coroutine[object, object, T]]
    ) -> Callable[..., Coroutine[object, object, T]]: ...

    @overload
    def wrap(
        self, manifest: Manifest, function: Callable[P, AsyncIterator[T]]
    ) -> Callable[P, Coroutine[object, object, AsyncGenerator[T, None]]]: ...

    @overload
    def wrap(
        self, manifest: Manifest, function: TakesCredentials[AsyncIterator[T]]
    ) -> Callable[..., Coroutine[object, object, AsyncGenerator[T, None]]]: ...

    @overload
    def wrap(
        self, manifest: Manifest, function: Callable[P, Iterator[T]]
    ) -> Callable[P, Coroutine[object, object, Generator[T, None, None]]]: ...

    @overload
    def wrap(
        self, manifest: Manifest, function: TakesCredentials[Iterator[T]]
    ) -> Callable[..., Coroutine[object, object, Generator[T, None, None]]]: ...

    @overload
    def wrap(
        self, manifest: Manifest, function: Callable[P, T]
    ) -> Callable[P, Coroutine[object, object, T]]: ...

    @overload
    def wrap(
        self, manifest: Manifest, function: TakesCredentials[T]
    ) -> Callable[..., Coroutine[object, object, T]]: ...

    def wrap(
        self, manifest: Manifest, function: Callable[..., object]
    ) -> Callable[..., Coroutine[object, object, object]]:
        """``function`` as a coroutine function that goes through ``invoke``."""

        @functools.wraps(function)
        async def guarded(*args: object, **kwargs: object) -> object:
            return await self.invoke(manifest, function, *args, **kwargs)

        return guarded

    async def invoke_action(
        self,
        manifest: Manifest,
        action: str,
        function: Callable[..., object],
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
        *,
        shape_from: Callable[..., object] | None = None,
        principal: str = "",
    ) -> object:
        """As ``invoke``, for runtimes: names the action.

        Args:
            manifest: The plugin's.
            action: As the runtime calls it.
            function: What to call.
            args: Its positional arguments.
            kwargs: Its keyword arguments.
            shape_from: The function whose signature decides on ``credentials``, where
                ``function`` only passes keywords on to it.
            principal: Who it is called for; see ``invoke``.
        """
        action = action if type(action) is str else plain_text(action, what="action")
        given, runner = kwargs or {}, None
        # Where leases are made, policy is checked again; see ``_begin``.
        names = self._broker.authorizer.policy.isolated is not None
        if names or manifest.isolated or self._runner is not None or not manifest.needs:
            runner = None if type(function) is BehindWall else self.runner_of(manifest)
        if runner is not None:
            function = functools.partial(_called, runner, manifest, function)
        shape = ELSEWHERE if runner is not None else shape_of(function)
        passes = shape if shape_from is None or runner is not None else shape_of(shape_from)
        bare = not (manifest.needs or passes.takes_credentials or runner)
        within = current_invocation()
        if principal != "" or (PRINCIPAL.get() if within is None else within.principal):
            principal = self._called_for(principal)
        elif bare and within is None:
            return await self._run_bare(manifest, shape, function, args, given)
        if self._legacy is not None:
            await self._legacy.adopt(need.name for need in manifest.needs)
        if tracing.on():
            with _invocation_span(manifest, action) as step:
                states, asked = await self._decided(manifest, action, principal)
                call = self._begin(manifest, action, states, asked, step, principal, function)
                return await self._run(call, shape, passes, function, args, given)
        if self._broker.shared:
            await self._vault.store.refresh()
        known, asked = self._broker.states_now(manifest.needs, principal), None
        if known is None or not self._consent.has_consent(manifest, action, known, principal):
            known, asked = await self._decided(manifest, action, principal)
        call = self._begin(manifest, action, known, asked, None, principal, function)
        return await self._run(call, shape, passes, function, args, given)

    async def questions(
        self, manifest: Manifest, action: str, *, principal: str = ""
    ) -> list[ConsentRequest]:
        """What a person would be asked if ``action`` were invoked now, for runtimes that ask.

        Nobody is asked by it. Empty where there is no ``consent``.

        Raises:
            AccessDeniedError: It is called within an invocation for another principal.
        """
        within = current_invocation()
        if principal != "" or (PRINCIPAL.get() if within is None else within.principal):
            principal = self._called_for(principal)
        return await self._consent.questions(manifest, action, principal)

    def invoke_sync(
        self,
        manifest: Manifest,
        action: str,
        function: Callable[..., object],
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
        *,
        shape_from: Callable[..., object] | None = None,
        principal: str = "",
    ) -> object:
        """As ``invoke_action``, for runtimes whose own call is synchronous.

        The function runs in the calling thread. What it returns is returned: a value, or
        a coroutine, generator or async generator that holds the leases until it ends.
        Nobody is asked: what a person has not decided yet is denied.
        """
        action = plain_text(action, what="action")
        given, runner = kwargs or {}, self.runner_of(manifest)
        if runner is not None:
            function = functools.partial(_called_in_turn, runner, manifest, function)
            passes = ELSEWHERE
        else:
            passes = shape_of(shape_from or function)
        bare = not (manifest.needs or passes.takes_credentials or runner)
        within = current_invocation()
        if principal != "" or (PRINCIPAL.get() if within is None else within.principal):
            principal = self._called_for(principal)
        elif bare and within is None:
            named = enter_bare(manifest.plugin)
            try:
                return function(*args, **given)
            finally:
                leave_bare(named)
        if not tracing.on():
            return self._run_sync(
                manifest, action, function, args, given, passes, principal=principal
            )
        with _invocation_span(manifest, action) as step:
            return self._run_sync(
                manifest, action, function, args, given, passes, step, principal=principal
            )

    def runner_of(self, manifest: Manifest) -> PluginRunner | None:
        """What runs a plugin; None: it runs in this process.

        Raises:
            IsolationUnavailableError: It is to run isolated, and is not run otherwise.
        """
        policy = self._broker.authorizer.policy_at(self._broker.clock.monotonic())
        required = manifest.isolated or (
            policy.isolating and policy.isolates(manifest.plugin)  # a call less, mostly
        )
        if self._runner is None and not required:
            return None
        return elsewhere(self._runner, manifest, required=required)

    # -- inside ------------------------------------------------------------------

    async def _run_bare(
        self,
        manifest: Manifest,
        shape: Shape,
        function: Callable[..., object],
        args: tuple[object, ...],
        kwargs: dict[str, object],
    ) -> object:
        """Calls what has nothing to do with credentials."""
        named = enter_bare(manifest.plugin)
        try:
            if shape.in_thread:
                result = await self._in_thread(function, args, kwargs)
            else:
                result = function(*args, **kwargs)
            return await result if inspect.isawaitable(result) else result
        finally:
            leave_bare(named)

    def _called_for(self, principal: str) -> str:
        """Who an invocation that begins here is for.

        Raises:
            AccessDeniedError: It begins within one that is for another.
        """
        within = current_invocation()
        if principal == "":
            principal = PRINCIPAL.get() if within is None else within.principal
        principal = check_name(plain_text(principal, what="principal"), what="principal")
        if is_for_another(principal):
            self._broker.authorizer.log_denial(within, "", Reason.FOREIGN_PRINCIPAL)
            raise AccessDeniedError(
                "What is called within an invocation is for the same principal.",
                hint="Leave the principal out, or begin it outside.",
            )
        return principal

    async def _decided(
        self, manifest: Manifest, action: str, principal: str
    ) -> tuple[list[Facts], Authorizations | None]:
        """What decides on leases, after everybody was asked who is to be."""
        if self._broker.shared:
            await self._vault.store.refresh()
        states = self._broker.states_now(manifest.needs, principal)
        if states is None:
            states = await self._broker.states(manifest.needs, principal)
        if self._consent.has_consent(manifest, action, states, principal):
            return states, None
        return await self._consent.ask(manifest, action, states, principal)

    def _begin(
        self,
        manifest: Manifest,
        action: str,
        states: list[Facts],
        asked: Authorizations | None = None,
        step: InvokeStep | None = None,
        principal: str = "",
        function: Callable[..., object] | None = None,
    ) -> WrappedCall:
        call = WrappedCall.begin(
            self._broker,
            manifest,
            action,
            principal,
            on_leak=self._on_leak,
            on_opaque=self._on_opaque,
            step=step,
        )
        call.make_leases(states, ttl=self._ttl, authorizations=asked or NO_AUTHORIZATIONS)
        if self._runner is None and self._broker.authorizer.policy.isolated is not None:
            try:  # with policy as it was read for these leases
                if type(function) is not BehindWall:
                    self.runner_of(call.manifest)
            except ApexCredsError as error:
                call.finish(type(error).__name__)
                raise
        return call

    async def _run(
        self,
        call: WrappedCall,
        shape: Shape,
        passes: Shape,
        function: Callable[..., object],
        args: tuple[object, ...],
        kwargs: dict[str, object],
    ) -> object:
        if passes.takes_credentials:
            kwargs = {**kwargs, CREDENTIALS: call.credentials}
        try:
            with Inside(call):
                if shape.in_thread:
                    result = await self._in_thread(function, args, kwargs)
                else:
                    result = function(*args, **kwargs)
                if type(result) is CoroutineType or inspect.isawaitable(result):
                    result = await result
            if call.redeemed and type(result) not in PLAIN and _is_searched_long(result):
                return await _finish_in_thread(call, result)
            return _finish(call, result)
        except BaseException as error:
            result = None  # not redacted: it must not be in the frame that raises
            failure = call.fail(error)
        raise failure

    def _run_sync(
        self,
        manifest: Manifest,
        action: str,
        function: Callable[..., object],
        args: tuple[object, ...],
        kwargs: dict[str, object],
        passes: Shape,
        step: InvokeStep | None = None,
        *,
        principal: str,
    ) -> object:
        if self._legacy is not None:
            adopt = functools.partial(self._legacy.adopt, [n.name for n in manifest.needs])
            BACKGROUND.call(adopt)
        states, asked = self._broker.states_blocking(manifest.needs, principal), None
        if not self._consent.has_consent(manifest, action, states, principal):
            asked = self._consent.known(manifest, action, states, principal)
        call = self._begin(manifest, action, states, asked, step, principal)
        if passes.takes_credentials:
            kwargs = {**kwargs, CREDENTIALS: call.credentials}
        try:
            with Inside(call):
                result = function(*args, **kwargs)
            if inspect.isawaitable(result):
                return WrappedCoroutine(_await(result, call), result, call)
            return _finish(call, result)
        except BaseException as error:
            result = None  # not redacted: it must not be in the frame that raises
            failure = call.fail(error)
        raise failure

    async def _in_thread(
        self,
        function: Callable[..., object],
        args: tuple[object, ...],
        kwargs: dict[str, object],
    ) -> object:
        def caught() -> object:
            try:
                return function(*args, **kwargs)
            except Exception:
                raise
            # An event loop would throw a ``GeneratorExit`` into the outermost coroutine that
            # waits for the thread, past the one that redacts: it comes back as a value.
            except BaseException as error:
                return _Raised(error)

        async with self._threads.held():
            one = anyio.CapacityLimiter(1)  # not the host's own forty, either
            result = await anyio.to_thread.run_sync(caught, limiter=one)
        if isinstance(result, _Raised):
            raise result.error
        return result


async def _called(
    runner: PluginRunner,
    manifest: Manifest,
    function: Callable[..., object],
    *args: object,
    **kwargs: object,
) -> object:
    return await runner.call(manifest, function, args, kwargs)


def _called_in_turn(
    runner: PluginRunner,
    manifest: Manifest,
    function: Callable[..., object],
    *args: object,
    **kwargs: object,
) -> object:
    return runner.call_in_turn(manifest, function, args, kwargs)


def _finish(call: WrappedCall, result: object) -> object:
    """Ends the call, or hands it over to the stream that the plugin returned."""
    if type(result) not in VALUES:
        if isinstance(result, AsyncIterator):
            return guard_async(result, call)
        if isinstance(result, Iterator) and not isinstance(result, io.IOBase):
            return guard_sync(result, call)
        if is_async_stream(result):
            with Inside(call):
                stream = aiter(result)
            return guard_async(stream, call)
        if call.redeemed and is_stream(result):
            with Inside(call):
                steps = iter(result)
            return guard_sync(steps, call)
    if call.redeemed and (type(result) not in PLAIN or call.leaks):
        result = call.clean(result, where="result")
    call.finish()
    return result


def _is_searched_long(result: object) -> bool:
    """Whether the search of it, rather than of its steps, would hold up an event loop."""
    if type(result) not in VALUES:
        if isinstance(result, AsyncIterator | Iterator):
            return isinstance(result, io.IOBase) and is_large(result)
        if is_async_stream(result) or is_stream(result):
            return False
    return is_large(result)


async def _finish_in_thread(call: WrappedCall, result: object) -> object:
    """Ends a call whose result would hold up the event loop while it is searched."""
    clean = functools.partial(call.clean, result, where="result")
    cleaned = await anyio.to_thread.run_sync(clean)
    call.finish()
    return cleaned


async def _await(awaitable: Awaitable[object], call: WrappedCall) -> object:
    try:
        with Inside(call):
            result = await awaitable
        if call.redeemed and type(result) not in PLAIN and _is_searched_long(result):
            return await _finish_in_thread(call, result)
        return _finish(call, result)
    except BaseException as error:
        result = None
        failure = call.fail(error)
    raise failure


def _invocation_span(manifest: Manifest, action: str) -> InvokeStep:
    return tracing.invoke(
        plugin=manifest.plugin,
        version=manifest.version,
        action=action[:_LONGEST_ACTION],
    )


def _one_of(ways: type[W], value: object, *, what: str) -> W:
    text = text_or_none(value)
    if text not in set(ways):
        raise InvalidInputError(
            f"{what} is none of the ways there are.",
            hint=f"Use {' or '.join(map(str, ways))}.",
        )
    return ways(text)


class _Raised(NamedTuple):
    """What ended a worker thread's function."""

    error: BaseException


def report_denials(middleware: CredentialMiddleware, worker: RotationWorker) -> None:
    """Has ``worker`` react to plugins that were refused too often.

    What a limit on denials says is an event of the worker's, ``denials_exceeded``, stored
    before it is acted on, from any thread and whatever becomes of its event loop; a worker
    that can't store it makes no refusal fail.

    Args:
        middleware: Whose plugins are meant.
        worker: Of the same vault.
    """
    from apex_creds.scheduler.rotation_state import DenialsExceeded

    async def emit(event: DenialsExceeded) -> None:
        try:
            await worker.emit(event)
        except ApexCredsError as error:
            _log.error("An event could not be stored: %s", error.message)

    def report(found: rate_limits.DenialsExceeded) -> None:
        event = DenialsExceeded(plugin=found.plugin, count=found.amount, source="limits")
        BACKGROUND.start(functools.partial(emit, event))

    middleware.broker.authorizer.on_denials = report
