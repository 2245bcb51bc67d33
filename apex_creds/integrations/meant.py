"""Which plugin a call of a manager's method is about, however the call is spelled.

Guarantee: arguments are bound to the method's own signature, so that their order does not
matter; an id that the manager knows is preferred to a text that it does not. Where several
could be meant and none is known, nothing is guessed.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Final

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
    """The signature of a method; None where Python can't tell."""
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
    except Exception:  # noqa: BLE001 - a property of somebody's plugin
        return None
