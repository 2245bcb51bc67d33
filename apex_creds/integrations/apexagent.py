"""The hook for ApexAgent's plugin managers: ``install(plugin_manager, middleware)``.

Guarantee: a plugin that the manager invokes has handles for what its metadata declares and
its grants allow, from ``current_credentials()`` and as ``credentials`` where its method
names that; they never pass through the manager's keyword arguments, which it logs, unless
the plugin can't be given them otherwise, and show themselves masked there. A plugin that
declares nothing is called as if there were no hook. A plugin that the manager removes loses
its leases and its grants (see ``plugin_removal``). ``uninstall`` restores the manager and
its plugins exactly; if somebody wrapped the hook since, it stays as a call-through.

Builds that differ in what they call things are all covered: the asynchronous
``PluginManager`` (``invoke_plugin_action``), the synchronous one (``execute_action``), the
``PluginSystem`` (``execute_plugin_action``), the ``PluginMarketplaceSystem``, which removes
plugins and invokes none, and plugins that have an ``execute_action(action_name, params, …)``
themselves, with or without ``**kwargs``.
"""

from __future__ import annotations

import functools
import inspect
import threading
import weakref
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple, Self, final

from apex_creds.audit.events import AuditEvent, EventKind
from apex_creds.concurrency import run_at_once
from apex_creds.errors import InvalidInputError, InvalidManifestError
from apex_creds.integrations import apexagent_plugins as plugins
from apex_creds.integrations.call_arguments import (
    Bindings,
    NotBoundError,
    plugin_meant,
    signature_of,
)
from apex_creds.integrations.plugin_metadata import (
    UNLOCATED,
    Manifests,
    is_stated,
    load_metadata,
    metadata_in,
    verified,
)
from apex_creds.integrations.plugin_removal import REMOVING, UNLOADING, Removals
from apex_creds.leases.lease import PRINCIPAL, current_invocation
from apex_creds.middleware import CredentialMiddleware
from apex_creds.middleware.callables import shape_of
from apex_creds.policy.manifest import Manifest

__all__ = ["Installation", "install", "load_metadata", "uninstall"]

METHODS: Final = ("invoke_plugin_action", "execute_action", "execute_plugin_action")
"""The methods of a manager that invoke plugins; those that it has are hooked."""

INVALID_MANIFEST: Final = "invalid_manifest"
"""The reason of the denial that a malformed manifest is audited as."""

_EXECUTE: Final = "execute_action"
_SYSTEM: Final = "execute_plugin_action"
_DIRECT: Final = frozenset({_EXECUTE, _SYSTEM})
"""The methods that call the plugin's method themselves, and no dispatcher of the plugin's."""
_MISSING: Final = object()

_lock = threading.RLock()
_installed: weakref.WeakValueDictionary[int, Installation] = weakref.WeakValueDictionary()


def install(
    plugin_manager: object,
    middleware: CredentialMiddleware,
    *,
    principal: Callable[[], str] | None = None,
) -> Installation:
    """Hooks an ApexAgent plugin manager.

    Args:
        plugin_manager: An instance, of any build.
        middleware: Open for as long as the hook is installed.
        principal: Says who a call is for, as a user's id, from what the runtime knows itself
            and never from a call's arguments, which a model chose; empty: nobody. By default
            as ``acting_for`` says. It is not asked for what a plugin calls.

    Returns:
        What to ``uninstall``. Installing the same middleware again returns the same.

    Raises:
        InvalidInputError: It has no method to hook, or has another middleware's hook.
    """
    with _lock:
        found = _installed.get(id(plugin_manager))
        if found is None:
            installation = Installation(plugin_manager, middleware, principal)
            _installed[id(plugin_manager)] = installation
            return installation
    if found.middleware is not middleware:
        raise InvalidInputError(
            "This plugin manager is hooked by another middleware.",
            hint="Uninstall that one first.",
        )
    return found


def uninstall(plugin_manager: object) -> bool:
    """Takes ``install`` back; returns whether there was something to take back."""
    found = _installed.get(id(plugin_manager))
    if found is None:
        return False
    found.uninstall()
    return True


class _Target(NamedTuple):
    """What an invocation is of.

    Attributes:
        name: The action, for the log.
        methods: The plugin's methods that may be called with the handles.
    """

    plugin_id: str
    name: str
    methods: tuple[str, ...]


@final
class Installation:
    """A hooked manager; a context manager that uninstalls."""

    def __init__(
        self,
        plugin_manager: object,
        middleware: CredentialMiddleware,
        principal: Callable[[], str] | None = None,
    ) -> None:
        """Use ``install``."""
        self.manager = plugin_manager
        self.middleware = middleware
        self._principal = PRINCIPAL.get if principal is None else principal
        self.active = True
        self._manifests = Manifests()
        self._bindings = Bindings()
        self._removals = Removals(middleware)
        self._hooks: dict[str, _Hook] = {}
        for name in (*METHODS, *REMOVING, *UNLOADING):
            if callable(getattr(plugin_manager, name, None)):
                self._hooks[name] = _Hook(self, name)
        if not set(self._hooks) & {*METHODS, *REMOVING}:
            raise InvalidInputError(
                f"{type(plugin_manager).__name__} is not a plugin manager that is known.",
                hint=f"It has none of the methods {', '.join((*METHODS, *REMOVING))}.",
            )
        try:
            for hook in self._hooks.values():
                hook.set()
        except (AttributeError, TypeError, ValueError):
            self.uninstall()
            raise InvalidInputError(
                f"The methods of {type(plugin_manager).__name__} can't be replaced.",
                hint="Hook it where it is subclassed, with middleware.invoke_action.",
            ) from None

    def uninstall(self) -> None:
        """Restores the manager and its plugins; idempotent.

        Invocations that are under way end as they would have.
        """
        with _lock:
            if not self.active:
                return
            self.active = False
            if _installed.get(id(self.manager)) is self:
                del _installed[id(self.manager)]
        for hook in self._hooks.values():
            hook.unset()
        self._bindings.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.uninstall()

    # -- what a hook does --------------------------------------------------------

    async def invoking(
        self,
        hook: _Hook,
        args: tuple[object, ...],
        kwargs: dict[str, object],
        *,
        blocking: bool,
    ) -> Callable[[], object]:
        """What is to be called in place of a method that invokes plugins.

        Args:
            hook: Of the method.
            args: As the method was called with.
            kwargs: As the method was called with.
            blocking: The method is a synchronous one, so that nothing is waited for.
        """
        original = functools.partial(hook.original, *args, **kwargs)
        target = hook.target(args, kwargs) if self.active else None
        if target is None:
            return original
        found = plugins.record_of(self.manager, target.plugin_id, can_wait=not blocking)
        record = _at_once(found) if blocking else await _awaited(found)
        manifest = self._manifest(target, record)
        whom = self._principal() if current_invocation() is None else ""
        walled = self.middleware.runner_of(manifest) is not None
        if not (walled or manifest.needs or whom) and current_invocation() is None:
            return original
        if (walled or manifest.needs) and not blocking:
            await self._removals.finish(target.plugin_id)
        elif walled or manifest.needs:
            self._removals.refuse_unfinished(target.plugin_id)
        code, shape = hook.original, None
        if walled:
            code, args, kwargs = self._behind_the_wall(hook, target, record, args, kwargs)
        elif manifest.needs:
            loaded = plugins.load(self.manager, target.plugin_id)
            _at_once(loaded) if blocking else await _awaited(loaded)
            if target.plugin_id in self._manifests.unsure:  # the checksum takes it loaded
                manifest = self._manifest(target, record, nowhere=UNLOCATED)
            shape = self._bind(hook, target)
        middleware = self.middleware
        return functools.partial(
            middleware.invoke_sync if blocking else middleware.invoke_action,
            manifest,
            target.name,
            code,
            args,
            kwargs,
            shape_from=shape,
            principal=whom,
        )

    async def removing(
        self,
        hook: _Hook,
        args: tuple[object, ...],
        kwargs: dict[str, object],
        *,
        blocking: bool,
    ) -> Callable[[], object]:
        """As ``invoking``, of a method that removes or unloads a plugin."""
        plugin = self._meant(hook, args, kwargs) if self.active else None
        if plugin is not None:
            self._manifests.forget(plugin)
            if hook.name in UNLOADING:
                self._removals.unloaded(plugin)
            elif blocking:
                self._removals.removed_sync(plugin)
            else:
                await self._removals.removed(plugin)
        return functools.partial(hook.original, *args, **kwargs)

    def _meant(
        self, hook: _Hook, args: tuple[object, ...], kwargs: dict[str, object]
    ) -> str | None:
        """Which plugin a removal is of; None if the manager will refuse the call itself."""

        def is_known(plugin_id: str) -> bool:
            return plugins.is_known(self.manager, plugin_id) or plugin_id in self._manifests

        try:
            found = plugin_meant(signature_of(hook.original), args, kwargs, is_known=is_known)
        except NotBoundError:
            return None
        if found is None:
            self._removals.unidentified(hook.name)
        return found

    # -- inside ------------------------------------------------------------------

    def _manifest(self, target: _Target, record: object, *, nowhere: str = "") -> Manifest:
        def checksum(metadata: Mapping[str, object]) -> str:
            if not is_stated(metadata):
                return ""
            plugin = target.plugin_id
            folder = plugins.folder_of(self.manager, plugin, record, ask=bool(nowhere))
            return nowhere if folder is None else verified(folder, metadata)

        try:
            return self._manifests.find(target.plugin_id, record, checksum=checksum)
        except InvalidManifestError:
            broker = self.middleware.broker
            denial = AuditEvent(
                time=broker.clock.time(),
                kind=EventKind.DENIAL,
                plugin=target.plugin_id,
                action=target.name,
                decision="deny",
                reason=INVALID_MANIFEST,
            )
            broker.log(denial, flush=True)
            raise

    def _behind_the_wall(
        self,
        hook: _Hook,
        target: _Target,
        record: object,
        args: tuple[object, ...],
        kwargs: dict[str, object],
    ) -> tuple[Callable[..., object], tuple[object, ...], dict[str, object]]:
        """What a worker calls in place of the manager, which would import the plugin here."""
        folder = plugins.folder_of(self.manager, target.plugin_id, record)
        metadata = metadata_in(record, target.plugin_id)
        code = plugins.plugin_code(
            folder,
            metadata,
            target.methods[0],
            dispatched=hook.name not in _DIRECT,
            initialized=hook.name == _SYSTEM,
        )
        return code, *hook.without_target(args, kwargs)

    def _bind(self, hook: _Hook, target: _Target) -> Callable[..., object] | None:
        """Has the plugin's methods be given handles; else a method to pass them on to."""
        plugin = plugins.loaded(self.manager, target.plugin_id, ask=True)
        if plugin is None:
            return None
        for name in target.methods:
            method = self._bindings.bind(target.plugin_id, plugin, name)
            if method is not None and hook.carries_to(plugin, name, target):
                return method
        return None


class _Hook:
    """One method of a manager: what was there, and what takes its place."""

    __slots__ = ("_before", "_manager", "_names", "name", "original", "replacement")

    def __init__(self, installation: Installation, name: str) -> None:
        self._manager = installation.manager
        self.name = name
        self._before = _own(self._manager).get(name, _MISSING)
        self.original: Callable[..., object] = getattr(self._manager, name)
        kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.POSITIONAL_ONLY)
        names = [each.name for each in _parameters(self.original) if each.kind in kinds]
        # Of the manager's parameters for the plugin's id and the action.
        self._names = names[:2] if len(names) > 1 else ["plugin_id", "action_name"]
        self.replacement: Callable[..., object]
        plan = installation.invoking if name in METHODS else installation.removing
        if inspect.iscoroutinefunction(self.original):

            @functools.wraps(self.original)
            async def hooked(*args: object, **kwargs: object) -> object:
                call = await plan(self, args, kwargs, blocking=False)
                return await _awaited(call())

            self.replacement = hooked
        else:

            @functools.wraps(self.original)
            def hooked_sync(*args: object, **kwargs: object) -> object:
                return run_at_once(plan(self, args, kwargs, blocking=True))()

            self.replacement = hooked_sync

    def carries_to(self, plugin: object, method: str, target: _Target) -> bool:
        """Whether a keyword given to the manager's method gets to that of the plugin."""
        if not _takes_keywords(self.original):
            return False
        called = target.methods[0]
        if self.name not in _DIRECT and callable(getattr(plugin, _EXECUTE, None)):
            called = _EXECUTE
        return called == method or _takes_keywords(getattr(plugin, called))

    def set(self) -> None:
        """Hooks the method."""
        setattr(self._manager, self.name, self.replacement)
        if _own(self._manager).get(self.name) is not self.replacement:
            raise AttributeError(self.name)

    def unset(self) -> None:
        """Puts back what was there, unless somebody put something over the hook."""
        own = _own(self._manager)
        if own.get(self.name) is not self.replacement:
            return
        if self._before is _MISSING:
            delattr(self._manager, self.name)
        else:
            setattr(self._manager, self.name, self._before)

    def without_target(
        self, args: tuple[object, ...], kwargs: dict[str, object]
    ) -> tuple[tuple[object, ...], dict[str, object]]:
        """The arguments that are the plugin's."""
        given = {name: value for name, value in kwargs.items() if name not in self._names}
        return args[len(self._names) :], given

    def target(self, args: tuple[object, ...], kwargs: dict[str, object]) -> _Target | None:
        """What is invoked; None if that can't be said, so that it is the manager's to fail."""
        plugin_id, action = (
            args[at] if at < len(args) else kwargs.get(name)
            for at, name in enumerate(self._names)
        )
        if not isinstance(plugin_id, str) or not isinstance(action, str):
            return None
        if action != _EXECUTE:
            return _Target(plugin_id, action, (action,))
        # The plugin's own dispatcher, called by name: the action is its first argument.
        inner = args[2] if len(args) > 2 else kwargs.get("action_name")
        if not isinstance(inner, str):
            return _Target(plugin_id, action, (action,))
        return _Target(plugin_id, inner, (action, inner))


def _own(thing: object) -> Mapping[str, object]:
    attributes: Mapping[str, object] = getattr(thing, "__dict__", {})
    return attributes


def _parameters(method: Callable[..., object]) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(method).parameters.values())
    except (TypeError, ValueError):
        return []


def _takes_keywords(method: Callable[..., object]) -> bool:
    kinds = {parameter.kind for parameter in _parameters(method)}
    return inspect.Parameter.VAR_KEYWORD in kinds or shape_of(method).takes_credentials


async def _awaited(value: object) -> object:
    return await value if inspect.isawaitable(value) else value


def _at_once(value: object) -> object:
    """``value``, which a synchronous manager must have ready."""
    if not inspect.isawaitable(value):
        return value
    close = getattr(value, "close", None)
    if callable(close):
        close()
    return None
