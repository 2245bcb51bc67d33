"""Whether the bytecode in a ``__pycache__`` is what Python makes of the source beside it.

Guarantee: a cache that this Python would run is accepted only if its code is, object by
object, that of the source as it is now; a header that fits is no proof, since the writer of
the file writes the header. Nothing is unmarshalled: ``marshal`` may be led to corrupt memory
by data that was made for it. What is read here is digested instead, in one pass and in time
that grows with its length.
"""

from __future__ import annotations

import hashlib
import importlib.util
import marshal
import re
import struct
import sys
from pathlib import Path
from typing import Final, NamedTuple

_PLACE: Final = r"(?P<place>(?:.*/)?)__pycache__/(?P<module>[^/]+?)"
_LEVEL: Final = r"(?:\.opt-(?P<level>[12]))?\.pyc"
_OWN_TAG: Final = re.escape(sys.implementation.cache_tag or "none")
_OWN: Final = re.compile(rf"{_PLACE}\.{_OWN_TAG}{_LEVEL}", re.DOTALL)
_OTHER: Final = re.compile(
    rf"{_PLACE}\.(?:cpython-|pypy|graalpy)[0-9]+t?(?:-[0-9A-Za-z.-]+)?{_LEVEL}", re.DOTALL
)
_HEADER: Final = struct.Struct("<4sIII")
_MASK: Final = 0xFFFFFFFF


class Cache(NamedTuple):
    """A file that holds the bytecode of a module.

    Attributes:
        source: The module's source, as a path in the folder.
        level: The optimization that it was compiled with.
        is_read: Whether this Python would read it; other versions' caches it does not.
    """

    source: str
    level: int
    is_read: bool


def cache_of(name: str) -> Cache | None:
    """What a path (with ``/``) is the bytecode of; None: it is a file like any other."""
    own = _OWN.fullmatch(name)
    found = own or _OTHER.fullmatch(name)
    if found is None:
        return None
    source = f"{found['place']}{found['module']}.py"
    return Cache(source, int(found["level"] or 0), own is not None)


def is_of_source(cache: Path, source: Path, *, level: int) -> bool:
    """Whether Python would run what it makes of the source, whether or not from the cache.

    Raises:
        OSError: One of them can't be read.
    """
    data, code = cache.read_bytes(), source.read_bytes()
    if len(data) < _HEADER.size or _is_stale(data, source):
        return True  # Python compiles the source, and writes the file again
    try:
        made = compile(code, source, "exec", dont_inherit=True, optimize=level)
        return _digest(data[_HEADER.size :]) == _digest(marshal.dumps(made))
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return False


def _is_stale(data: bytes, source: Path) -> bool:
    magic, flags, mtime, size = _HEADER.unpack_from(data)
    if magic != importlib.util.MAGIC_NUMBER or flags & ~0b11:
        return True
    if flags:  # by the source's hash, which Python may be set not to check
        return False
    now = source.stat()
    return (mtime, size) != (int(now.st_mtime) & _MASK, now.st_size & _MASK)


# -- the marshal format --------------------------------------------------------------

_FLAG_REF: Final = 0x80
_FIXED: Final = {b"N": 0, b"F": 0, b"T": 0, b".": 0, b"S": 0, b"i": 4, b"g": 8, b"y": 16}
_TEXT: Final = frozenset(b"aAzZtu")
_UTF8: Final = frozenset(b"tu")
_SHORT: Final = frozenset(b"zZ)")
_TUPLE: Final = frozenset(b"()")
_CODE_HEAD: Final = struct.Struct("<5i")
_FILE_NAME: Final = 5
"""Which of a code object's parts names the file: the only one that may differ."""
_CODE_PARTS: Final = 8
_LINE_PARTS: Final = 2
_SLICE_PARTS: Final = 3


def _digest(data: bytes) -> bytes:
    """A digest of what ``marshal`` would read from ``data``, however it is written.

    Raises:
        ValueError: It is not something that a compiler writes.
    """
    reader = _Reader(data)
    found = reader.object()
    if reader.at != len(data):
        raise ValueError("there is more")
    return found


class _Reader:
    """One pass over marshalled data; each object comes out as its digest."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._seen: list[bytes | None] = []
        self.at = 0

    def object(self) -> bytes:
        """The digest of the next object."""
        head = self._take(1)[0]
        kind = head & ~_FLAG_REF
        if kind == ord("r"):
            number = self._int()
            earlier = self._seen[number] if number < len(self._seen) else None
            if earlier is None:
                raise ValueError("it refers to what is not there yet")
            return earlier
        place = len(self._seen)
        if head & _FLAG_REF:
            self._seen.append(None)
        found = self._container(kind) or self._leaf(kind)
        if head & _FLAG_REF:
            self._seen[place] = found
        return found

    def _container(self, kind: int) -> bytes | None:
        if kind in _TUPLE:
            return _of(b"(", *[self.object() for _ in range(self._size(kind))])
        if kind == ord(">"):  # a frozenset, which has no order
            return _of(b">", *sorted(self.object() for _ in range(self._int())))
        if kind == ord(":"):
            return _of(b":", *[self.object() for _ in range(_SLICE_PARTS)])
        if kind != ord("c"):
            return None
        head = self._take(_CODE_HEAD.size)
        parts = [self.object() for _ in range(_CODE_PARTS)]
        del parts[_FILE_NAME]
        line = self._take(4)
        tables = [self.object() for _ in range(_LINE_PARTS)]
        return _of(b"c", head, *parts, line, *tables)

    def _leaf(self, kind: int) -> bytes:
        name = bytes((kind,))
        if name in _FIXED:
            return _of(name, self._take(_FIXED[name]))
        if name == b"l":
            size: int = struct.unpack("<i", self._take(4))[0]
            return _of(name, self._take(2 * abs(size)), struct.pack("<i", size))
        if name == b"s":
            return _of(name, self._take(self._int()))
        if kind not in _TEXT:
            raise ValueError("no compiler writes this")
        text = self._take(self._size(kind))
        return _of(b"u", text if kind in _UTF8 else text.decode("latin-1").encode())

    def _size(self, kind: int) -> int:
        return self._take(1)[0] if kind in _SHORT else self._int()

    def _int(self) -> int:
        found: int = struct.unpack("<I", self._take(4))[0]
        return found

    def _take(self, size: int) -> bytes:
        end = self.at + size
        if end > len(self._data):
            raise ValueError("it ends too early")
        found, self.at = self._data[self.at : end], end
        return found


def _of(kind: bytes, *parts: bytes) -> bytes:
    made = hashlib.blake2b(kind, digest_size=32)
    for part in parts:
        made.update(len(part).to_bytes(8, "big") + part)
    return made.digest()
