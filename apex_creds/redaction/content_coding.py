"""Undoes the compression of an answer's body, as it comes, in windows of a bounded size.

Guarantee: what comes out was decoded to its end, or there is an error; never more than a
window (``WINDOW`` bytes) for each layer is in memory, whatever a few bytes decode to. No I/O.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Final, Protocol

WINDOW: Final = 1 << 16
_MOST: Final = 3
"""Codings one upon the other."""
_PLAIN: Final = frozenset({b"", b"identity"})
_GZIP: Final = frozenset({b"gzip", b"x-gzip"})
_DEFLATE: Final = b"deflate"
_GZIP_BITS: Final = 16 + zlib.MAX_WBITS
_MEMBER: Final = b"\x1f"
_HEADER: Final = 2

ACCEPTED: Final = frozenset({b"gzip", _DEFLATE, b"identity"})
"""What may be asked for."""


class UndecodableError(Exception):
    """The body is not what its headers say, or in a coding that is not known here."""


class Decoder(Protocol):
    """One layer."""

    def feed(self, data: bytes) -> Iterator[bytes]:
        """What ``data`` decodes to, a window at a time."""

    @property
    def finished(self) -> bool:
        """Whether it is at an end; or nothing has come at all."""


class _Inflated:
    """gzip (also several members in a row), or deflate, with zlib's header or without.

    What comes behind the end goes nowhere.
    """

    def __init__(self, *, gzip: bool) -> None:
        self._gzip = gzip
        self._head = b""
        self._stream: zlib._Decompress | None = None
        self._ended = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        while data:
            stream = self._stream
            if stream is None:
                data, self._head = self._head + data, b""
                if self._ended and not (self._gzip and data.startswith(_MEMBER)):
                    return
                if len(data) < _HEADER:
                    self._head = data
                    return
                headed = data[0] & 15 == zlib.DEFLATED and not (data[0] << 8 | data[1]) % 31
                deflate = zlib.MAX_WBITS if headed else -zlib.MAX_WBITS
                bits = _GZIP_BITS if self._gzip else deflate
                stream = self._stream = zlib.decompressobj(wbits=bits)
            try:
                window = stream.decompress(data, WINDOW)
                # It may have more than what found room, also when it has read all.
                while window:
                    yield window
                    window = stream.decompress(stream.unconsumed_tail, WINDOW)
            except zlib.error:
                raise UndecodableError from None
            if not stream.eof:
                return
            data, self._stream, self._ended = stream.unused_data, None, True

    @property
    def finished(self) -> bool:
        return self._stream is None and (not self._head or self._ended)


def codings(header: Iterable[bytes]) -> list[bytes]:
    """The codings that values of ``Content-Encoding`` name, in the order of their making."""
    named = [name.strip().lower() for value in header for name in value.split(b",")]
    return [name for name in named if name not in _PLAIN]


def decoders(named: list[bytes]) -> list[Decoder]:
    """What undoes them, in the order of use.

    Raises:
        UndecodableError: One is not known, or there are many.
    """
    if len(named) > _MOST or not all(name in _GZIP or name == _DEFLATE for name in named):
        raise UndecodableError
    return [_Inflated(gzip=name in _GZIP) for name in reversed(named)]


def decoded(layers: list[Decoder], data: bytes) -> Iterator[bytes]:
    """What a chunk decodes to."""
    if not layers:
        yield data
        return
    for window in layers[0].feed(data):
        yield from decoded(layers[1:], window)


@lru_cache(maxsize=64)
def accepted(value: bytes) -> bytes:
    """Of ``Accept-Encoding``, what can be decoded here; ``identity`` if nothing is left."""
    kept = [
        item.strip()
        for item in value.split(b",")
        if item.partition(b";")[0].strip().lower() in ACCEPTED
    ]
    return b", ".join(kept) or b"identity"
