"""What the compulsory steps of an invocation cost by themselves: what no program goes below.

In a tight loop, with no check, object or error handling around them. Of a redeem they are: is
what is in memory current (one read of the counter's file); two clocks; one line of the log,
hashed, locked, written and unlocked (its fsync is a thread's, later, and in no figure); the
key derived, the commitment compared, the secret decrypted and wiped by libsodium. Of an
invocation: three such lines in one write, the counter twice, two random identifiers. And what
three spans cost by OpenTelemetry's SDK alone.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from nacl import _sodium
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from benchmarks.harness import Operation, Subject

_lib: Final[Any] = _sodium.lib
_ffi: Final[Any] = _sodium.ffi
_NULL: Final[Any] = _ffi.NULL
_SALT, _PERSONAL, _NONCE, _AAD = bytes(16), bytes(16), bytes(24), bytes(128)
_EVENT: Final = b'"time":1796044283.123,"kind":"redeem","plugin":"bench"' + b" " * 260 + b"}"
_LOCK, _UNLOCK = fcntl.LOCK_EX | fcntl.LOCK_NB, fcntl.LOCK_UN


def _crypto() -> Callable[[], None]:
    """Opens one message of 60 bytes, as ``crypto.aead`` makes them, and wipes it."""
    key, pair, out = (_ffi.new("unsigned char[]", size) for size in (32, 64, 128))
    derive, seal = (
        _lib.crypto_generichash_blake2b_salt_personal,
        _lib.crypto_aead_xchacha20poly1305_ietf_encrypt,
    )
    decrypt, same = _lib.crypto_aead_xchacha20poly1305_ietf_decrypt, _lib.sodium_memcmp
    wipe, tail = _lib.sodium_memzero, pair + 32
    derive(pair, 64, _NONCE, 24, key, 32, _SALT, _PERSONAL)
    commitment = bytes(_ffi.buffer(tail, 32))
    seal(out, _NULL, bytes(60), 60, _AAD, len(_AAD), _NULL, _NONCE, pair)
    sealed = bytes(_ffi.buffer(out, 76))

    def opened() -> None:
        derive(pair, 64, _NONCE, 24, key, 32, _SALT, _PERSONAL)
        same(tail, commitment, 32)
        decrypt(out, _NULL, _NULL, sealed, 76, _AAD, len(_AAD), _NONCE, pair)
        wipe(pair, 64)
        wipe(out, 60)

    return opened


@asynccontextmanager
async def _files() -> AsyncIterator[tuple[int, int]]:
    """A log and a counter, open."""
    with tempfile.TemporaryDirectory() as folder:
        fds = [os.open(Path(folder) / name, os.O_RDWR | os.O_CREAT) for name in ("log", "n")]
        os.write(fds[1], bytes(8))
        try:
            yield fds[0], fds[1]
        finally:
            for fd in fds:
                os.close(fd)


def _line() -> bytes:
    data = b'\x00{"v":1,"seq":%d,' % 1_000_000 + _EVENT
    digest = sha256(data).digest()
    return b"".join((data[1:-1], b',"hash":"', digest.hex().encode(), b'"}\n'))


def _write(fd: int, lines: bytes) -> None:
    fcntl.flock(fd, _LOCK)
    os.lseek(fd, 0, os.SEEK_END)
    os.write(fd, lines)
    fcntl.flock(fd, _UNLOCK)


@asynccontextmanager
async def redeem_floor() -> AsyncIterator[Operation]:
    """See the module."""
    opened = _crypto()
    async with _files() as (log, counter):

        def once() -> None:
            os.pread(counter, 9, 0)
            time.time(), time.monotonic()
            _write(log, _line())
            opened()

        yield once


@asynccontextmanager
async def invocation_floor() -> AsyncIterator[Operation]:
    """See the module."""
    opened = _crypto()
    async with _files() as (log, counter):

        async def action(prompt: str) -> int:
            os.pread(counter, 9, 0)
            _write(log, b"".join((_line(), _line(), _line())))
            opened()
            return len(prompt)

        async def once() -> int:
            os.pread(counter, 9, 0)
            for _ in range(2):
                os.urandom(16).hex()
                time.time(), time.monotonic()
            return await action("hello")

        yield once


@asynccontextmanager
async def spans_floor() -> AsyncIterator[Operation]:
    """Three spans, each within the other, with six attributes, recorded and kept."""
    kept, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(kept))
    tracer = provider.get_tracer("floor")
    what = {f"apex_creds.attribute_{n}": "a" * 16 for n in range(6)}

    def once() -> None:
        kept.clear()
        with (
            tracer.start_as_current_span("invoke", attributes=what),
            tracer.start_as_current_span("lease", attributes=what),
            tracer.start_as_current_span("redeem", attributes=what),
        ):
            pass

    yield once


FLOORS: Final = (
    Subject("redeem-floor", "the compulsory steps of a redeem alone", redeem_floor),
    Subject("invocation-floor", "those of an invocation", invocation_floor),
    Subject("spans-floor", "three recorded spans alone", spans_floor),
)
