"""Gives a plugin's method its handles where the runtime's call can't carry them.

Guarantee: a bound method is of the kind that it was (coroutine function, async generator
function, …), takes ``credentials`` from the invocation that it runs in, and gets none
outside of an invocation of its own plugin. ``release`` puts every plugin back as it was.
"""

from __future__ import annotations

import functools
import inspect
import threading
import weakref
from collections.abc import Callable, MutableMapping
from typing import Final, NamedTuple

from apex_creds.leases.handle import CredentialMap
from apex_creds.leases.invocation import current_invocation
from apex_creds.middleware.shape import CREDENTIALS, shape_of

_MISSING: Final = object()


class BoundAction(functools.partial[object]):
    """A plugin's method that is given ``credentials``.

    A ``partial``, because ``inspect`` looks through those: a runtime that asks what kind
    of function it has is told the truth.
    """

    _plugin_id: str
    _position: int | None

    @classmethod
    def of(cls, plugin_id: str, method: Callable[..., object]) -> BoundAction:
        """Binds a method that names ``credentials``."""
        bound = cls(method)
        functools.update_wrapper(bound, method)
        signature = inspect.signature(method)
        names = list(signature.parameters)
        rest = [each for name, each in signature.parameters.items() if name != CREDENTIALS]
        parameter = signature.parameters[CREDENTIALS]
        keyword_only = parameter.kind is inspect.Parameter.KEYWORD_ONLY
        bound._plugin_id = plugin_id
        bound._position = None if keyword_only else names.index(CREDENTIALS)
        # Without the parameter: whoever checks arguments against it has nothing to miss.
        bound.__signature__ = _relaxed(signature, rest)  # type: ignore[attr-defined]
        return bound

    def __call__(self, /, *args: object, **kwargs: object) -> object:
        """Calls the method."""
        if self._position is not None and len(args) > self._position:
            return self.func(*args, **kwargs)
        invocation = current_invocation()
        if invocation is None or invocation.manifest.plugin != self._plugin_id:
            return self.func(*args, **kwargs)
        # What a caller (perhaps a language model) passes under this name is no handle.
        kwargs[CREDENTIALS] = invocation.credentials or CredentialMap({})
        return self.func(*args, **kwargs)


def _relaxed(signature: inspect.Signature, rest: list[inspect.Parameter]) -> inspect.Signature:
    # What stood behind a required `credentials` may have no default where one before has.
    try:
        return signature.replace(parameters=rest)
    except ValueError:
        return signature


class _Place(NamedTuple):
    plugin: Callable[[], object | None]
    action: str
    before: object
    bound: BoundAction


class Bindings:
    """The methods that were bound, so that they can be released."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._places: dict[tuple[int, str], _Place] = {}

    def bind(self, plugin_id: str, plugin: object, action: str) -> Callable[..., object] | None:
        """Has ``plugin.action`` be given its handles.

        Returns:
            None if that is so, or if the method does not ask for them. The method, if it
            asks but can't be bound: the plugin does not let its attributes be set.
        """
        method = _method(plugin, action)
        if method is None or isinstance(method, BoundAction):
            return None
        if not shape_of(method).takes_credentials:
            return None
        with self._lock:
            return None if self._set(plugin_id, plugin, action, method) else method

    def _set(
        self, plugin_id: str, plugin: object, action: str, method: Callable[..., object]
    ) -> bool:
        attributes = _attributes_of(plugin)
        if attributes is None:
            return False
        before = attributes.get(action, _MISSING)
        if isinstance(before, BoundAction):  # another thread was first
            return True
        bound = BoundAction.of(plugin_id, method)
        attributes[action] = bound
        if getattr(plugin, action, None) is not bound:  # a descriptor has precedence
            _restore(attributes, action, before)
            return False
        key = (id(plugin), action)
        self._places[key] = _Place(self._refer(plugin, key), action, before, bound)
        return True

    def _refer(self, plugin: object, key: tuple[int, str]) -> Callable[[], object | None]:
        try:
            return weakref.ref(plugin, lambda _: self._places.pop(key, None))
        except TypeError:
            return lambda: plugin

    def release(self) -> None:
        """Puts back what was there; what somebody else replaced since is left alone."""
        with self._lock:
            places, self._places = list(self._places.values()), {}
        for place in places:
            plugin = place.plugin()
            attributes = None if plugin is None else _attributes_of(plugin)
            if attributes is not None and attributes.get(place.action) is place.bound:
                _restore(attributes, place.action, place.before)


def _method(plugin: object, action: str) -> Callable[..., object] | None:
    try:
        method = getattr(plugin, action, None)
    except Exception:  # noqa: BLE001 - a property of the plugin's; the invocation will say so
        return None
    return method if callable(method) else None


def _attributes_of(plugin: object) -> MutableMapping[str, object] | None:
    if inspect.isclass(plugin) or inspect.ismodule(plugin):
        return None
    attributes = getattr(plugin, "__dict__", None)
    return attributes if isinstance(attributes, dict) else None


def _restore(attributes: MutableMapping[str, object], name: str, before: object) -> None:
    if before is _MISSING:
        attributes.pop(name, None)
    else:
        attributes[name] = before
