"""What the hooks of all agent runtimes share: what a tool declares, and one guarded call of it.

Guarantee: a tool that declares credentials runs as a separate invocation, with handles for
what it declared and was granted; what it returns has no secret in it, whatever class it is of.
A tool that declares nothing is not touched. What a model reads of a refusal names nothing that
the tool did not declare itself.
"""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any, ClassVar, Final, Generic, Literal, NamedTuple, Protocol, TypeVar, final

from apex_creds.errors import ApexCredsError, InvalidInputError, RateLimitedError
from apex_creds.leases.handle import current_credentials
from apex_creds.middleware import CredentialMiddleware
from apex_creds.middleware.callables import CREDENTIALS, takes_credentials
from apex_creds.plain import plain_text, text_or_none
from apex_creds.policy.consent import DENIED, Choice, ConsentAnswer, ConsentRequest, lines
from apex_creds.policy.manifest import Manifest, parse_manifest

__all__ = [
    "Guarding",
    "RuntimeConsent",
    "ToolGuard",
    "ToolRefusedError",
    "answer_of",
    "explain",
    "guarded_by",
    "needs",
    "question_of",
]

F = TypeVar("F")
C_contra = TypeVar("C_contra", contravariant=True)

_MARK: Final = "__apex_creds__"
METADATA: Final = "apex_creds"
"""The key of a tool's metadata under which its manifest may stand."""
_INSIDE: Final = (
    *("func", "coroutine", "fn", "function", "_func", "handler", "real_fn", "async_fn"),
    *("__func__", "__wrapped__"),
)
"""Where runtimes keep the function of a tool."""
_DEPTH: Final = 6
_SHELLS: Final = (classmethod, staticmethod, functools.partial)
"""What goes around a function that is decorated: a mark on them would be lost or shared."""


class Declared(NamedTuple):
    """What ``needs`` says of a tool."""

    plugin: str
    version: str
    credentials: tuple[Mapping[str, object], ...]


def needs(
    *credentials: str | Mapping[str, object],
    origins: Iterable[str] = (),
    methods: Iterable[str] = (),
    paths: Iterable[str] = (),
    scopes: Iterable[str] = (),
    access: Literal["inject", "sign", "reveal"] = "inject",
    reason: str = "",
    plugin: str = "",
    version: str = "",
) -> Callable[[F], F]:
    """Declares what a tool needs; stands below the runtime's own decorator.

    A parameter ``credentials`` of the function gets the handles, and is hidden from the
    runtime, so that no model is asked for it.

    Args:
        credentials: Their names, or declarations as in a manifest's ``credentials``.
        origins: Where they may be sent, for those given by name; and so the others.
        methods: Of HTTP.
        paths: Patterns of paths.
        scopes: What of the credential.
        access: What is done with the secret.
        reason: Why, for the person who grants it.
        plugin: To whom is granted; the tool's name by default.
        version: Of the plugin.

    Raises:
        InvalidInputError: No credential; or what is decorated hides its function.
    """
    if not credentials:
        raise InvalidInputError("needs() declares no credential.", hint="Name at least one.")
    shared = {
        "origins": list(origins),
        "methods": list(methods),
        "paths": list(paths),
        "scopes": list(scopes),
        "access": access,
        "reason": reason,
    }
    declared = Declared(
        plugin,
        version,
        tuple(
            {"name": each, **shared} if isinstance(each, str) else dict(each)
            for each in credentials
        ),
    )

    def mark(tool: F) -> F:
        if isinstance(tool, _SHELLS) or not any(
            inspect.isroutine(found) for found in _functions(tool)
        ):
            raise InvalidInputError(
                "What needs() decorates is no function.",
                hint="Put @needs(…) below the decorator that makes the tool.",
            )
        if not inspect.isroutine(tool) and any(
            inspect.isroutine(found) and takes_credentials(found) for found in _functions(tool)
        ):
            raise InvalidInputError(
                "A model would be asked for the parameter 'credentials' of this tool.",
                hint="Put @needs(…) below the decorator that makes the tool.",
            )
        hidden = _without_credentials(tool)
        setattr(hidden if inspect.isroutine(hidden) else _functions(tool)[-1], _MARK, declared)
        return hidden

    return mark


class ToolRefusedError(Exception):
    """A tool's call was refused; its text is for the model. For runtimes that show errors."""


@final
class ToolGuard:
    """Guards the calls of a runtime's tools.

    Args:
        middleware: Open for as long as tools are called.
        manifests: Of tools that don't declare what they need themselves, by the tool's name:
            as in a plugin's metadata; ``id`` is the tool's name where there is none.
        principal: Says who a call is for, as a user's id, from what the runtime knows of a
            run; None or empty: nobody. Never from arguments: a model chose them.
    """

    def __init__(
        self,
        middleware: CredentialMiddleware,
        *,
        manifests: Mapping[str, Mapping[str, object]] | None = None,
        principal: Callable[..., str | None] | None = None,
    ) -> None:
        self.middleware = middleware
        self._principal = principal
        self._manifests = {
            name: parse_manifest({"id": name, **given})
            for name, given in (manifests or {}).items()
        }
        self._declared: dict[tuple[str, Declared | str], Manifest] = {}

    def manifest(self, name: str, tool: object, metadata: object = None) -> Manifest | None:
        """What a tool declares; None: nothing.

        Args:
            name: As the runtime calls it.
            tool: The runtime's object, or the function.
            metadata: The tool's own, in which there may be a manifest under ``apex_creds``.

        Raises:
            InvalidManifestError: It is declared wrongly.
        """
        found = self._manifests.get(name)
        if found is not None:
            return found
        given = metadata.get(METADATA) if isinstance(metadata, Mapping) else None
        if isinstance(given, Mapping):
            return parse_manifest({"id": name, **given})
        for function in _functions(tool):
            declared = getattr(function, _MARK, None)
            if isinstance(declared, Declared):
                return self._parsed(name, declared)
        return None

    def principal(self, *context: object) -> str:
        """Who a call is for; empty: nobody.

        Args:
            context: What the runtime knows of the run, as the hook's page says.

        Raises:
            InvalidInputError: It is no text.
        """
        said = None if self._principal is None else self._principal(*context)
        return "" if said is None else plain_text(said, what="principal")

    def function(
        self,
        function: Callable[..., object],
        *,
        name: str = "",
        tool: object = None,
        refused: Callable[[str], object] | None = None,
    ) -> Callable[..., object]:
        """A tool's function, guarded; itself where nothing is declared.

        Args:
            function: Of either kind; one that is synchronous is called in the caller's thread.
            name: Of the tool; the function's by default.
            tool: Where the declaration stands, if it is not the function.
            refused: Makes of a refusal's words what the function returns then; by default a
                ``ToolRefusedError`` is raised.
        """
        name = name or getattr(function, "__name__", "")
        manifest = self.manifest(name, tool or function)
        if manifest is None:
            return function

        def answer(error: ApexCredsError) -> object:
            if refused is None:
                raise ToolRefusedError(explain(error)) from None
            return refused(explain(error))

        @functools.wraps(function)
        async def waits(*args: object, **kwargs: object) -> object:
            try:
                return await self.middleware.invoke_action(
                    manifest, name, function, args, kwargs, principal=self.principal()
                )
            except ApexCredsError as error:
                return answer(error)

        @functools.wraps(function)
        def calls(*args: object, **kwargs: object) -> object:
            try:
                return self.middleware.invoke_sync(
                    manifest, name, function, args, kwargs, principal=self.principal()
                )
            except ApexCredsError as error:
                return answer(error)

        return waits if inspect.iscoroutinefunction(function) else calls

    def _parsed(self, name: str, declared: Declared) -> Manifest:
        key = (name, repr(declared))
        known = self._declared.get(key)
        if known is None:
            known = self._declared[key] = parse_manifest(
                {
                    "id": declared.plugin or name,
                    "version": declared.version,
                    "credentials": list(declared.credentials),
                }
            )
        return known


class Guarding(Generic[C_contra]):
    """What a hook that is a class has besides its runtime's base.

    Args:
        middleware: Open for as long as tools are called.
        manifests: See ``ToolGuard``.
        principal: Who a call is for, as a user's id, of what the runtime knows of it, as the
            hook's page says; see ``ToolGuard``.
    """

    _base: ClassVar[Mapping[str, str]] = {}
    """What the runtime's base is made with."""

    def __init__(
        self,
        middleware: CredentialMiddleware,
        *,
        manifests: Mapping[str, Mapping[str, object]] | None = None,
        principal: Callable[[C_contra], str | None] | None = None,
    ) -> None:
        super().__init__(**self._base)
        self._guard = ToolGuard(middleware, manifests=manifests, principal=principal)


class Guarded(Protocol):
    """Tools in, guarded tools out."""

    def __call__(
        self,
        tools: Iterable[Any],
        middleware: CredentialMiddleware,
        *,
        manifests: Mapping[str, Mapping[str, object]] | None = None,
        principal: Callable[..., str | None] | None = None,
    ) -> list[Any]:
        """The tools, those that declare credentials with ``needs`` in a guarded copy.

        Args:
            tools: As the runtime has them; what is no such tool is passed on as it is.
            middleware: Open for as long as they are called.
            manifests: See ``ToolGuard``.
            principal: Who a call is for, as a user's id; see ``ToolGuard``.
        """


def guarded_by(wrap: Callable[[Any, ToolGuard], Any]) -> Guarded:
    """A hook that wraps each tool by itself."""

    def guarded(
        tools: Iterable[Any],
        middleware: CredentialMiddleware,
        *,
        manifests: Mapping[str, Mapping[str, object]] | None = None,
        principal: Callable[..., str | None] | None = None,
    ) -> list[Any]:
        guard = ToolGuard(middleware, manifests=manifests, principal=principal)
        return [wrap(tool, guard) for tool in tools]

    guarded.__doc__, guarded.__module__ = Guarded.__call__.__doc__, wrap.__module__
    return guarded


def explain(error: ApexCredsError) -> str:
    """What a model is to read of a refusal, so that it does the right thing next."""
    if isinstance(error, RateLimitedError):
        return f"{error.message} Do not call this tool again before that."
    return (
        f"{error.message} The tool did not run to its end. Trying again does not help until "
        "the operator has allowed it; tell the user so, or go on without this tool."
    )


# -- a person who is asked through the runtime ---------------------------------------------

_answers: Final[ContextVar[Mapping[str, ConsentAnswer] | None]] = ContextVar(
    "apex_creds_answers", default=None
)


class RuntimeConsent:
    """A ``ConsentProvider`` for runtimes that stop a run to ask a person, and go on later.

    The hook asks by the runtime's own means before the tool is called, and calls it with the
    answers; a question that it has no answer to is a denial.
    """

    async def ask(self, request: ConsentRequest) -> ConsentAnswer:
        """See ``ConsentProvider``."""
        return (_answers.get() or {}).get(request.credential, DENIED)


class Answered:
    """Within it, ``RuntimeConsent`` gives these answers, by the credential's name."""

    def __init__(self, answers: Mapping[str, ConsentAnswer]) -> None:
        self._given = answers

    def __enter__(self) -> None:
        self._token = _answers.set(self._given)

    def __exit__(self, *_: object) -> None:
        _answers.reset(self._token)


def question_of(request: ConsentRequest) -> dict[str, object]:
    """A question as a runtime can show and store it: plain data, in words and in parts."""
    return {
        "credential": request.credential,
        "plugin": request.plugin,
        "question": "\n".join(lines(request)),
        "choices": [choice.value for choice in Choice if choice is not Choice.UNTIL],
    }


def answer_of(value: object, *, by: str = "") -> ConsentAnswer:
    """What a person said: a choice by its name, true, or a mapping with ``choice``.

    Anything else is a denial.
    """
    if isinstance(value, Mapping):
        value = value.get("choice")
    if value is True:
        value = Choice.ONCE.value
    text = text_or_none(value)
    if text is None or text not in set(Choice) or text == Choice.UNTIL:
        return DENIED
    return ConsentAnswer(choice=Choice(text), by=by)


# -- inside ----------------------------------------------------------------------------------


def _functions(tool: object) -> list[object]:
    """The tool, and the functions that it is made of, outermost first."""
    found, ahead = [], [tool]
    for _ in range(_DEPTH):
        found += ahead
        held = [vars_of(each).get(name) for each in ahead for name in _INSIDE]
        ahead = [each for each in held if callable(each) and each not in found]
    return found


def vars_of(thing: object) -> Mapping[str, object]:
    """What it holds, without asking its class."""
    held: dict[str, object] = dict(getattr(thing, "__dict__", {}))
    if inspect.ismethod(thing):
        held["__func__"] = thing.__func__
    if isinstance(thing, functools.partial):
        held["func"] = thing.func
    private = getattr(thing, "__pydantic_private__", None)
    return {**held, **private} if isinstance(private, dict) else held


def _without_credentials(function: F) -> F:
    """``function`` without its parameter ``credentials``, which gets the handles."""
    if not inspect.isroutine(function) or not takes_credentials(function):
        return function
    call: Callable[..., Any] = function

    async def stream(*args: object, **kwargs: object) -> AsyncIterator[object]:
        async for item in call(*args, **kwargs, credentials=current_credentials()):
            yield item

    def steps(*args: object, **kwargs: object) -> Iterator[object]:
        yield from call(*args, **kwargs, credentials=current_credentials())

    async def waits(*args: object, **kwargs: object) -> object:
        return await call(*args, **kwargs, credentials=current_credentials())

    def calls(*args: object, **kwargs: object) -> object:
        return call(*args, **kwargs, credentials=current_credentials())

    kinds: tuple[tuple[Callable[[object], bool], Callable[..., object]], ...] = (
        (inspect.isasyncgenfunction, stream),
        (inspect.isgeneratorfunction, steps),
        (inspect.iscoroutinefunction, waits),
    )
    wrapped = next((wrapped for is_one, wrapped in kinds if is_one(call)), calls)
    hidden = functools.update_wrapper(wrapped, call)
    signature = inspect.signature(call)
    shown = [each for each in signature.parameters.values() if each.name != CREDENTIALS]
    hidden.__signature__ = signature.replace(parameters=shown)  # type: ignore[attr-defined]
    try:  # some runtimes look for the names of types where the wrapper is
        hints = typing.get_type_hints(call, include_extras=True)
    except (NameError, TypeError, AttributeError):  # of one that is imported for types only
        hints = call.__annotations__
    hidden.__annotations__ = {k: v for k, v in hints.items() if k != CREDENTIALS}
    return hidden  # type: ignore[return-value]
