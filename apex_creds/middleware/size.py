"""Whether searching a value would take long enough to be felt by an event loop. Pure."""

from __future__ import annotations

from typing import Final

import msgspec

_MANY: Final = 2_000
_LARGE: Final = 1 << 18


def is_large(value: object) -> bool:
    """Whether it has more than 2000 parts, or 256 KiB; looks at no more than that."""
    ahead, parts, size = [value], 0, 0
    while ahead:
        item = ahead.pop()
        parts += 1
        if isinstance(item, str | bytes | bytearray):
            size += len(item)
        else:
            inside = _parts(item)
            parts += len(inside)
            ahead += inside if parts <= _MANY else []
        if parts > _MANY or size > _LARGE:
            return True
    return False


def _parts(item: object) -> list[object]:
    if isinstance(item, dict):
        return [*item.keys(), *item.values()]
    if isinstance(item, list | tuple | set | frozenset):
        return list(item)
    if isinstance(item, msgspec.Struct):
        return [getattr(item, name) for name in item.__struct_fields__]
    return list(getattr(item, "__dict__", {}).values())
