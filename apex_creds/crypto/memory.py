"""Locked memory for secrets, and a process whose memory others can't read.

Guarantees:

- A secret lies in a slot of memory that is locked (where the system allows it; else one
  log line says so), absent from core dumps, and read as zeros by a forked child, where
  every use raises ``VaultSealedError``.
- A slot is wiped when its ``SecretBytes`` is closed or collected, and given out again
  only if nobody can still read it: one that a view keeps alive is never used again.
- Closing a key in one thread while another computes with it ends in
  ``SecretWipedError``, never in output under a half-wiped key.
- ``harden_process`` keeps other processes of the same user, and core files, away from this
  one's memory: it does what the system offers, says in one warning what it does not, and
  never raises.
- ``nacl._sodium`` is imported in this file only; ``sodium.py`` has it from here.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import mmap
import os
import sys
import threading
import weakref
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, NoReturn, Self, TypeAlias, final

from nacl import _sodium

from apex_creds.errors import (
    InvalidInputError,
    SecretMisuseError,
    SecretWipedError,
    VaultSealedError,
)

__all__ = [
    "Buffer",
    "Hardening",
    "SecretArena",
    "SecretBytes",
    "arena",
    "harden_process",
]

_log = logging.getLogger("apex_creds.memory")
_PR_SET_DUMPABLE: Final = 4


@dataclass(frozen=True, slots=True)
class Hardening:
    """What ``harden_process`` reached.

    Attributes:
        undumpable: Other processes of the user can't read this one's memory.
        no_core_files: A crash writes no core file.
    """

    undumpable: bool
    no_core_files: bool


_reported: Final[set[Hardening]] = set()


def harden_process() -> Hardening:
    """Sets ``PR_SET_DUMPABLE=0`` and ``RLIMIT_CORE=0`` (prctl(2), getrlimit(2)).

    The middleware, the worker, the dashboard and the commands do it; again it changes
    nothing. From then on nobody but root attaches a debugger or a profiler to the process,
    or reads its ``/proc`` entries ``mem`` and ``environ``, not the process itself either.
    Programs that it starts can be inspected as ever, but write no core files either.

    Logs one warning in a process for what this system does not offer; never raises.
    """
    undumpable, no_core_files = False, sys.platform == "win32"  # which writes none
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            undumpable = ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) == 0
    if sys.platform != "win32":
        with contextlib.suppress(ImportError, OSError, ValueError):
            import resource

            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            no_core_files = True
    result = Hardening(undumpable=undumpable, no_core_files=no_core_files)
    if not (result.undumpable and result.no_core_files) and result not in _reported:
        _reported.add(result)
        _log.warning("This process could not be hardened completely: %s.", result)
    return result


_MADV_WIPEONFORK: Final = 18  # madvise(2); the mmap module has no name for it
_warned = False


def _advise(region: mmap.mmap, advice: int | None) -> bool:
    """Whether the system takes the advice for the region."""
    if advice is None or sys.platform == "win32":
        return False
    try:
        region.madvise(advice)
    except OSError:
        return False
    return True


Buffer: TypeAlias = bytes | bytearray | memoryview
"""What the functions of this package read bytes from, besides ``SecretBytes``."""

_Pointer: TypeAlias = Any
_Export: TypeAlias = "tuple[memoryview, weakref.ref[object]]"
lib: Any = _sodium.lib
ffi: Any = _sodium.ffi
_memzero: Any = _sodium.lib.sodium_memzero
_memcmp: Any = _sodium.lib.sodium_memcmp
_memmove: Any = _sodium.ffi.memmove
_from_buffer: Any = _sodium.ffi.from_buffer
_buffer: Any = _sodium.ffi.buffer
lib.sodium_init()

_CHUNK_BYTES: Final = 256 * 1024
_BATCH_BYTES: Final = 4096
_PAGE: Final = mmap.PAGESIZE
# The last class holds the largest credential (64 KiB) together with its parts header.
_SIZES: Final = (64, 256, 1024, 4096, 16384, 65536 + 4096)
_MANY_EXPORTS: Final = 16
_MANY_SUBKEYS: Final = 16

_epoch = 0  # grows in a forked child: slots made before the fork are dead there


class _Chunk:
    """One mapping: locked, not dumped, not inherited, as far as the system allows."""

    __slots__ = ("base", "locked", "map", "size", "used", "wiped_on_fork")

    def __init__(self, size: int) -> None:
        global _warned
        if sys.platform == "win32":
            self.map = mmap.mmap(-1, size)
        else:
            self.map = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.base = _from_buffer("unsigned char[]", self.map)
        self.size = size
        self.used = 0
        self.locked = lib.sodium_mlock(self.base, size) == 0
        _advise(self.map, getattr(mmap, "MADV_DONTDUMP", None))
        self.wiped_on_fork = _advise(
            self.map, _MADV_WIPEONFORK if sys.platform == "linux" else None
        )
        if not self.locked and not _warned:
            _warned = True
            _log.warning(
                "Memory for secrets could not be locked, so it may be swapped to disk: raise "
                "RLIMIT_MEMLOCK (ulimit -l, LimitMEMLOCK=) or turn swap off."
            )


class _Slot:
    """A piece of a chunk; ``free`` is the list it goes back to, None for a large one.

    ``tail`` is the address of its second 32 bytes.
    """

    __slots__ = ("arena", "chunk", "epoch", "free", "pointer", "size", "tail")

    def __init__(
        self, arena: SecretArena, chunk: _Chunk, size: int, free: list[_Slot] | None
    ) -> None:
        self.arena = arena
        self.chunk = chunk  # keeps the mapping alive
        self.pointer = chunk.base + chunk.used
        self.tail = self.pointer + 32
        self.size = size
        self.free = free
        self.epoch = _epoch
        chunk.used += size

    def __del__(self) -> None:
        # Reached by a slot that was lost, as by a KeyboardInterrupt inside close().
        try:
            _memzero(self.pointer, self.size)
        except (AttributeError, TypeError):  # the interpreter exits
            return


class SecretArena:
    """Hands out slots of protected memory, by size classes, from any thread."""

    def __init__(self) -> None:
        self._reset()
        self._graves: list[_Chunk] = []
        _arenas.add(self)

    def _reset(self) -> None:
        # Re-entrant, since the garbage collector or a signal handler may come back here.
        self._lock = threading.RLock()
        self._chunks: list[_Chunk] = []
        self._free: tuple[list[_Slot], ...] = tuple([] for _ in _SIZES)
        self._carved = 0
        self._large: set[_Slot] = set()
        self._quarantine: list[_Slot] = []
        self._subkeys: set[_Slot] = set()

    @property
    def locked(self) -> bool:
        """Whether all of the arena's memory is locked against swapping."""
        with self._lock:
            if not self._chunks:
                self._chunks.append(_Chunk(_CHUNK_BYTES))
            large = [slot.chunk for slot in self._large]
            return all(chunk.locked for chunk in self._chunks + large)

    @property
    def open_slots(self) -> int:
        """How many secrets are open now (exact when no other thread is at work).

        What a key keeps beside itself is part of it.
        """
        with self._lock:
            idle = sum(len(free) for free in self._free) + len(self._quarantine)
            return self._carved + len(self._large) - len(self._subkeys) - idle

    @property
    def quarantined(self) -> int:
        """How many slots were given up because something could still read them."""
        return len(self._quarantine)

    def allocate(self, length: int) -> SecretBytes:
        """Returns ``length`` zero bytes of this arena.

        Raises:
            InvalidInputError: The length is negative.
        """
        return SecretBytes(length, source=self)

    def _take(self, length: int) -> _Slot:
        index = bisect_left(_SIZES, length)
        if index == len(_SIZES):
            size = -(-length // _PAGE) * _PAGE
            large = _Slot(self, _Chunk(size), size, None)
            self._large.add(large)
            return large
        try:
            return self._free[index].pop()
        except IndexError:
            return self._carve(index)

    def _carve(self, index: int) -> _Slot:
        """Makes slots of a size, one to take and the others for later."""
        size, free = _SIZES[index], self._free[index]
        count = max(1, _BATCH_BYTES // size)
        with self._lock:
            room = size * count
            chunk = next((each for each in self._chunks if each.size - each.used >= room), None)
            if chunk is None:
                chunk = _Chunk(_CHUNK_BYTES)
                self._chunks.append(chunk)
            slots = [_Slot(self, chunk, size, free) for _ in range(count)]
            self._carved += count
        last = slots.pop()
        free.extend(slots)
        return last

    def _give(self, slot: _Slot, *, unread: bool = True) -> None:
        """Takes a wiped slot back, or sets it aside where something can still read it."""
        if slot.epoch != _epoch:
            return
        if unread and slot.free is not None:
            slot.free.append(slot)
            return
        with self._lock:
            self._large.discard(slot)
            if not unread:
                self._carved += slot.free is None
                self._quarantine.append(slot)


@final
class SecretBytes:
    """Bytes in locked memory that mask themselves and are wiped on ``close``.

    Compared by identity; see ``equals``. ``with`` closes it. Any use after ``close``
    raises ``SecretWipedError``, any use in a forked child ``VaultSealedError``.
    """

    __slots__ = ("_exports", "_held", "_length", "_on_expose", "_subkeys")

    def __init__(self, length: int, *, source: SecretArena | None = None) -> None:
        self._on_expose: Callable[[], None] | None = None
        self._subkeys: dict[bytes, _Slot] | None = None
        if length < 0:
            raise InvalidInputError("A secret can't have a negative length.")
        self._length = length
        self._exports: list[_Export] = []
        # In a list, whose pop() is atomic: of two threads that close it, one wins.
        self._held = [(_ARENA if source is None else source)._take(length)]

    @classmethod
    def allocate(cls, length: int) -> Self:
        """Returns ``length`` zero bytes; a negative length is an ``InvalidInputError``."""
        return cls(length)

    @classmethod
    def from_bytes(cls, data: Buffer) -> Self:
        """Copies ``data``; what the caller holds stays with the caller.

        Raises:
            InvalidInputError: ``data`` is a memoryview that is not contiguous.
        """
        if isinstance(data, memoryview) and not data.c_contiguous:
            raise InvalidInputError("A secret must come from contiguous memory.")
        length = _size(data)
        secret = cls(length)
        _memmove(secret._held[0].pointer, data, length)
        return secret

    @classmethod
    def copy_of(cls, data: SecretBytes | Buffer) -> Self:
        """Copies a secret or a buffer straight into a new slot.

        Raises:
            SecretWipedError: ``data`` is a secret that is closed.
        """
        if isinstance(data, SecretBytes):
            return cls.part_of(data, 0, len(data))
        return cls.from_bytes(data)

    @classmethod
    def part_of(cls, data: SecretBytes, start: int, length: int) -> Self:
        """Copies ``length`` bytes of a secret, from ``start``; raises as ``copy_of``."""
        data._expose()
        pointer, secret = data._pointer(), cls(length)
        if start < 0 or start + length > data._length:
            raise InvalidInputError("The part lies outside the secret.")
        _memmove(secret._held[0].pointer, pointer + start, length)
        data._still_open()
        return secret

    @classmethod
    def random(cls, length: int) -> Self:
        """Returns ``length`` bytes from the system's random generator."""
        secret = cls(length)
        lib.randombytes(secret._held[0].pointer, length)
        return secret

    def view(self) -> memoryview:
        """Returns a read-only view, released when this secret is closed or collected.

        Of a secret that a handle revealed, this is audited first, as an exposure: nobody sees
        what is copied out of a view.
        """
        self._expose()
        if self._exports:
            view = self._exports[-1][0]
            try:
                shared = view.readonly
            except ValueError:  # the holder has released it
                shared = False
            if shared:
                return view
        return self._export(readonly=True)

    def expose_bytes(self) -> bytes:
        """Returns a copy that nobody will wipe: for callers that must have ``bytes``.

        Of a secret that a handle revealed, this is audited first, as an exposure.
        """
        self._expose()
        data: bytes = _buffer(self._pointer(), self._length)[:]
        self._still_open()
        return data

    def expose_str(self) -> str:
        """As ``expose_bytes``, decoded from UTF-8: for libraries that must have ``str``.

        Raises:
            InvalidInputError: It is not UTF-8.
        """
        with contextlib.suppress(UnicodeDecodeError):
            return self.expose_bytes().decode()
        raise InvalidInputError("This secret is not text.", hint="Use expose_bytes().")

    def on_expose(self, hook: Callable[[], None]) -> None:
        """Has ``hook`` called before each exposure: a copy or a view; once only.

        Raises:
            SecretMisuseError: There is a hook already.
        """
        if self._on_expose is not None:
            raise _misuse("given another hook")
        self._on_expose = hook

    def equals(self, other: SecretBytes | Buffer) -> bool:
        """Whether the contents are equal; constant time, except for the lengths."""
        pointer = self._pointer()
        if isinstance(other, SecretBytes):
            secret, theirs = other, other._pointer()
        else:  # libsodium takes bytes as they are; from_buffer refuses what is not contiguous
            secret = self
            theirs = (
                other if isinstance(other, bytes) else _from_buffer("unsigned char[]", other)
            )
        if _size(other) != self._length:
            return False
        same: bool = lib.sodium_memcmp(pointer, theirs, self._length) == 0
        self._still_open()
        secret._still_open()
        return same

    def begins_with(self, prefix: bytes) -> bool:
        """Whether its first bytes, of which there are as many, are these; constant time."""
        if len(prefix) > self._length:
            return False
        same: bool = _memcmp(self._pointer(), prefix, len(prefix)) == 0
        self._still_open()
        return same

    def close(self) -> None:
        """Wipes and gives back the memory. Again, it does nothing."""
        try:
            slot = self._held.pop()
        except IndexError:
            return
        unread = not self._exports or _release(self._exports)
        _memzero(slot.pointer, self._length)
        slot.arena._give(slot, unread=unread)
        if self._subkeys is not None:
            self._wipe_subkeys(self._subkeys)

    def _keep_subkey(self, of: bytes, pair: _Slot) -> None:
        """Keeps a copy of what was derived from this key for one use, until it is wiped.

        It has room for few.
        """
        arena = pair.arena
        with arena._lock:
            kept = self._subkeys
            if kept is None:
                kept = self._subkeys = {}
            if len(kept) >= _MANY_SUBKEYS or of in kept:
                return
            slot = arena._take(64)
            _memmove(slot.pointer, pair.pointer, 64)
            kept[of] = slot
            arena._subkeys.add(slot)
        if not self._held:  # closed meanwhile, perhaps without having seen this one
            self._wipe_subkeys(kept)

    def _wipe_subkeys(self, kept: dict[bytes, _Slot]) -> None:
        while kept:
            try:
                _, slot = kept.popitem()
            except KeyError:  # another thread took the last one
                return
            _memzero(slot.pointer, slot.size)
            slot.arena._subkeys.discard(slot)
            slot.arena._give(slot)

    @property
    def closed(self) -> bool:
        """Whether the secret was wiped."""
        return not self._held

    def _expose(self) -> None:
        """Before anybody gets at the contents by another way than a comparison."""
        self._pointer()  # a wiped secret is no exposure
        if self._on_expose is not None:
            self._on_expose()

    def _pointer(self) -> _Pointer:
        """The slot's address; check with ``_still_open`` after having used it."""
        try:
            slot = self._held[0]
        except IndexError:
            raise _wiped() from None
        if slot.epoch != _epoch:
            raise VaultSealedError(
                "Secrets are not inherited by a forked process.",
                hint="Unseal the vault in the child.",
            )
        return slot.pointer

    def _narrow(self, start: int, length: int) -> None:
        """Keeps that part alone; the rest is wiped. For its only holder: no view stays valid.

        Raises:
            InvalidInputError: The part lies outside, or is being read.
        """
        pointer, whole = self._pointer(), self._length
        unread = not self._exports or _release(self._exports)
        if start < 0 or start + length > whole or not unread:
            raise InvalidInputError("The part lies outside the secret, or is in use.")
        _memmove(pointer, pointer + start, length)
        _memzero(pointer + length, whole - length)
        self._length = length

    def _still_open(self) -> None:
        # close() empties _held before it wipes, so what was read till here was whole.
        if not self._held:
            raise _wiped()

    def _mutable(self) -> memoryview:
        """A writable view, for this package and the key providers only."""
        return self._export(readonly=False)

    def _export(self, *, readonly: bool) -> memoryview:
        # Each view has its own exporter: while any slice of the view lives, it
        # keeps the exporter alive, and close() sees that through the weak reference.
        exporter = _buffer(self._pointer(), self._length)
        view = memoryview(exporter)
        view = view.toreadonly() if readonly else view
        if len(self._exports) > _MANY_EXPORTS:
            # One element at a time, so that an export added meanwhile is never lost.
            for dead in [each for each in self._exports if each[1]() is None]:
                with contextlib.suppress(ValueError):
                    self._exports.remove(dead)
        self._exports.append((view, weakref.ref(exporter)))
        if not self._held:  # closed meanwhile, perhaps without having seen this view
            view.release()
            raise _wiped()
        return view

    def __len__(self) -> int:
        self._pointer()
        return self._length

    def __repr__(self) -> str:
        return "SecretBytes(***)"

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return "SecretBytes(***)"

    def __enter__(self) -> Self:
        self._pointer()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        try:
            if self._held:
                self.close()
        except (AttributeError, TypeError):  # never made, or the interpreter exits
            return

    def __bytes__(self) -> NoReturn:
        raise _misuse("turned into bytes by accident")

    def __iter__(self) -> NoReturn:
        raise _misuse("iterated over")

    def __reduce__(self) -> NoReturn:
        raise _misuse("pickled")

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise _misuse("pickled")

    def __copy__(self) -> NoReturn:
        raise _misuse("copied")

    def __deepcopy__(self, memo: object) -> NoReturn:
        raise _misuse("copied")


def arena() -> SecretArena:
    """Returns the process-wide arena, which ``SecretBytes`` uses."""
    return _ARENA


# -- private -----------------------------------------------------------------------


def _size(data: SecretBytes | Buffer) -> int:
    return data.nbytes if isinstance(data, memoryview) else len(data)


def _release(exports: list[_Export]) -> bool:
    """Releases all views; True if nothing can read the slot any more."""
    unread = True
    for view, exporter in exports:
        try:
            view.release()
        except BufferError:  # C code reads through it right now
            unread = False
        unread = unread and exporter() is None
    exports.clear()
    return unread


def _wiped() -> SecretWipedError:
    return SecretWipedError("This secret was wiped.", hint="Open it again where it is used.")


def _misuse(done: str) -> SecretMisuseError:
    return SecretMisuseError(
        f"A secret can't be {done}.", hint="Use view(), or expose_bytes() if there is no way."
    )


def _after_fork_in_child() -> None:
    """Nothing from before the fork is readable or handed out."""
    global _epoch
    _epoch += 1
    for each in list(_arenas):
        held = [slot.chunk for slot in (*each._large, *each._quarantine)]
        each._graves += {id(c): c for c in each._chunks + held}.values()
        for chunk in each._graves:
            if not chunk.wiped_on_fork:
                _memzero(chunk.base, chunk.size)
        each._reset()


_arenas: weakref.WeakSet[SecretArena] = weakref.WeakSet()
_ARENA: Final = SecretArena()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
