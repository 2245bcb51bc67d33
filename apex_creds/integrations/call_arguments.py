"""Which plugin a call is about, and how its method gets its handles.

Guarantee: arguments are bound to the method's own signature, so that their order does not
matter; an id that the manager knows is preferred to a text that it does not. Where several
could be meant and none is known, nothing is guessed. A bound method is of the kind that it was
(coroutine function, async generator function, …), takes ``credentials`` from the invocation
that it runs in, and gets none outside of its plugin's invocations. ``release`` puts
every plugin back as it was.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import threading
import weakref
from collections.abc import Callable, Mapping, MutableMapping
from typing import Final, NamedTuple

from apex_creds.leases.handle import CredentialMap
from apex_creds.leases.lease import current_invocation
from apex_creds.middleware.callables import CREDENTIALS, shape_of

# -- the plugin of a call -------------------------------------------------------------------


PARAMETERS: Final = ("plugin_id", "plugin", "plugin_name", "id", "name")
"""What a parameter that says which plugin is meant is called; the likeliest first."""
_FIELDS: Final = ("plugin_id", "id", "plugin", "name")
_INSIDE: Final = ("manifest", "metadata")
_PLAIN: Final = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


class NotBoundError(Exception):
    """The arguments do not fit the method, which will say so itself."""


def plugin_meant(
    signature: inspect.Signature | None,
    args: tuple[object, ...],
    kwargs: Mapping[str, object],
    *,
    is_known: Callable[[str], bool],
) -> str | None:
    """The id of the plugin that a call is about; None if that can't be said.

    Args:
        signature: Of the method, bound to its manager; None: it has none.
        args: Of the call.
        kwargs: Of the call.
        is_known: Whether the manager has a plugin of that id.

    Raises:
        NotBoundError: The method does not take these arguments.
    """
    named, other = _arguments(signature, args, kwargs)
    likely = [each for name in PARAMETERS if name in named for each in ids_of(named.pop(name))]
    rest = [each for value in (*other, *named.values()) for each in ids_of(value)]
    known = next(filter(is_known, likely or rest), None)
    if known is not None:
        return known
    if likely:
        return likely[0]
    return rest[0] if len(rest) == 1 else None


def ids_of(value: object) -> list[str]:
    """What may be the id in a value: a text, or what an object or a mapping calls itself."""
    found = _ids_in(value)
    for name in _INSIDE:
        inner = _field(value, name)
        found += [] if inner is None else _ids_in(inner)
    return list(dict.fromkeys(found))


def signature_of(method: Callable[..., object]) -> inspect.Signature | None:
    """The signature of a method; None where Python does not know it."""
    try:
        return inspect.signature(method)
    except (TypeError, ValueError):
        return None


def _arguments(
    signature: inspect.Signature | None,
    args: tuple[object, ...],
    kwargs: Mapping[str, object],
) -> tuple[dict[str, object], tuple[object, ...]]:
    """The arguments by the parameters' names, and those that have none."""
    if signature is None:
        return dict(kwargs), args
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError as error:
        raise NotBoundError from error
    kinds = {name: parameter.kind for name, parameter in signature.parameters.items()}
    named = {k: v for k, v in bound.arguments.items() if kinds[k] not in _PLAIN}
    named |= {name: value for name, value in kwargs.items() if name not in named}
    return named, next(
        (v for k, v in bound.arguments.items() if kinds[k] is inspect.Parameter.VAR_POSITIONAL),
        (),
    )


def _ids_in(value: object) -> list[str]:
    if isinstance(value, str):
        return [value] if value else []
    found = (_field(value, name) for name in _FIELDS)
    return [each for each in found if isinstance(each, str) and each]


def _field(value: object, name: str) -> object:
    if isinstance(value, Mapping):
        return value.get(name)
    try:
        return getattr(value, name, None)
    except Exception:  # noqa: BLE001 - a property of a plugin
        return None


# -- binding --------------------------------------------------------------------------------


_MISSING: Final = object()


class BoundAction(functools.partial[object]):
    """A plugin's method that is given ``credentials``.

    A ``partial``, because ``inspect`` looks through those: a runtime that asks what kind
    of function it has gets the truth.
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
        # Without the parameter: a caller that checks arguments against it misses nothing.
        # What stood behind a required one may have no default where one before has.
        with contextlib.suppress(ValueError):
            signature = signature.replace(parameters=rest)
        bound.__signature__ = signature  # type: ignore[attr-defined]
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
        method: object = None
        with contextlib.suppress(Exception):  # a property's; the invocation will say so
            method = getattr(plugin, action, None)
        if not callable(method) or isinstance(method, BoundAction):
            return None
        if not shape_of(method).takes_credentials:
            return None
        attributes = _attributes_of(plugin)
        if attributes is None:
            return method
        with self._lock:
            before = attributes.get(action, _MISSING)
            if isinstance(before, BoundAction):  # another thread was first
                return None
            bound = BoundAction.of(plugin_id, method)
            attributes[action] = bound
            if getattr(plugin, action, None) is not bound:  # a descriptor has precedence
                _restore(attributes, action, before)
                return method
            key = (id(plugin), action)
            refer: Callable[[], object | None] = lambda: plugin  # noqa: E731
            with contextlib.suppress(TypeError):  # of a kind that has no weak references
                refer = weakref.ref(plugin, lambda _: self._places.pop(key, None))
            self._places[key] = _Place(refer, action, before, bound)
        return None

    def release(self) -> None:
        """Puts back what was there; what somebody else replaced since is left alone."""
        with self._lock:
            places, self._places = list(self._places.values()), {}
        for place in places:
            plugin = place.plugin()
            attributes = None if plugin is None else _attributes_of(plugin)
            if attributes is not None and attributes.get(place.action) is place.bound:
                _restore(attributes, place.action, place.before)


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
