"""Arguments of plugins, read once into values of exact types.

Guarantee: what is returned runs no code of its caller when it is compared, hashed, counted
or measured later: a subclass of ``str`` that equals everything, a number that is not one, a
sequence that answers otherwise the second time end here. Called where such values come in,
before anything is decided by them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final, TypeGuard, TypeVar

from apex_creds.errors import InvalidInputError

T = TypeVar("T")

_MANY: Final = 1000


def plain_text(value: object, *, what: str) -> str:
    """Text, as it is.

    Raises:
        InvalidInputError: It is something else.
    """
    if type(value) is str:
        return value
    if _is(value, str):
        return str.__str__(value)
    raise _not(what, "text", value)


def plain_texts(values: object, *, what: str) -> tuple[str, ...]:
    """Several texts, in their order.

    Raises:
        InvalidInputError: It is one text, no sequence, or has something else in it.
    """
    if _is(values, str) or _is(values, bytes) or not isinstance(values, Iterable):
        raise _not(what, "a sequence of texts", values)
    found: list[str] = []
    for value in values:
        found.append(plain_text(value, what=what))
        if len(found) > _MANY:
            raise InvalidInputError(f"The {what} are more than {_MANY}.")
    return tuple(found)


def plain_bytes(value: object, *, what: str) -> bytes:
    """Bytes, as they are.

    Raises:
        InvalidInputError: It is something else.
    """
    if type(value) is bytes:
        return value
    if _is(value, bytes) or _is(value, bytearray) or _is(value, memoryview):
        return b"".join((value, b""))
    raise _not(what, "bytes", value)


def plain_count(value: object, *, what: str) -> int:
    """A whole number that is not less than one.

    Raises:
        InvalidInputError: It is something else; ``True`` and ``1.0`` are.
    """
    if not _is(value, int) or isinstance(value, bool):
        raise _not(what, "a whole number", value)
    number = int.__int__(value)
    if number < 1:
        raise InvalidInputError(f"The {what} must be greater than zero.")
    return number


def plain_seconds(value: object, *, what: str) -> float:
    """A finite number of seconds that is greater than zero.

    Raises:
        InvalidInputError: It is something else; ``True`` is.
    """
    number = math.nan
    if _is(value, float):
        number = float.__float__(value)
    elif _is(value, int) and not isinstance(value, bool):
        try:
            number = float(int.__int__(value))
        except OverflowError:
            number = math.inf
    else:
        raise _not(what, "a number of seconds", value)
    if not 0 < number < math.inf:
        raise InvalidInputError(f"The {what} must be greater than zero, and finite.")
    return number


def text_or_none(value: object) -> str | None:
    """As ``plain_text``; None for what is no text."""
    return plain_text(value, what="text") if _is(value, str) else None


def check_is(value: object, kind: type, *, what: str) -> None:
    """Checks an argument of a constructor at once, not where it is first used.

    Raises:
        InvalidInputError: It is of another type.
    """
    if not isinstance(value, kind):
        raise _not(what, f"a {kind.__name__}", value)


def check_can(value: object, *methods: str, what: str, hint: str = "") -> None:
    """As ``check_is``, for protocols: it can be called, or has those methods.

    Raises:
        InvalidInputError: It can't, or has not.
    """
    if not methods:
        if not callable(value):
            raise _not(what, "something to call", value, hint=hint)
        return
    lacking = [name for name in methods if not hasattr(value, name)]
    if lacking:
        raise _not(what, f"something with {', '.join(methods)}", value, hint=hint)


def _is(value: object, kind: type[T]) -> TypeGuard[T]:
    """As ``isinstance``, which asks the value's ``__class__`` as well."""
    return issubclass(type(value), kind)


def _not(what: str, wanted: str, value: object, *, hint: str = "") -> InvalidInputError:
    kind = type.__getattribute__(type(value), "__name__")
    shown = kind[:80] if type(kind) is str and kind.isidentifier() else "something else"
    return InvalidInputError(f"The {what} must be {wanted}, not {shown}.", hint=hint)
