"""Searches this process's memory for something that it must not have to know."""

from __future__ import annotations

import os
import re


class Search:
    """Looks for ``mask XOR masked`` without ever making it.

    A page is searched for the first two bytes by a regular expression over their pair;
    each hit is compared with the rest, one number at a time.
    """

    def __init__(self, mask: bytes, masked: bytes) -> None:
        self.mask, self.masked = mask, masked
        pair = bytes(a ^ b for a, b in zip(mask[:2], masked[:2], strict=True))
        self.begin = re.compile(re.escape(pair))

    def count(self) -> int:
        """How many copies are in readable memory."""
        found = 0
        # One buffer, so that what is read of other places does not come to be found.
        buffer = bytearray(1 << 20)
        memory = os.open("/proc/self/mem", os.O_RDONLY)
        try:
            for start, end in self._ranges():
                found += self._count_in(memory, start, end, buffer)
        finally:
            os.close(memory)
            buffer[:] = bytes(len(buffer))
        return found

    def _ranges(self):
        with open("/proc/self/maps") as maps:
            lines = maps.read().splitlines()
        for line in lines:
            span, modes, *rest = line.split()
            name = rest[-1] if len(rest) > 3 else ""
            if modes.startswith("rw") and not name.startswith("[v"):
                start, end = span.split("-")
                yield int(start, 16), int(end, 16)

    def _count_in(self, memory: int, start: int, end: int, buffer: bytearray) -> int:
        found, keep, own = 0, len(self.mask) - 1, self._address(buffer)
        at = start
        while at < end:
            size = min(len(buffer), end - at)
            try:
                got = os.preadv(memory, [memoryview(buffer)[:size]], at)
            except OSError:
                break
            # The buffer itself holds what was read before: it is not searched.
            for hit in self.begin.finditer(memoryview(buffer)[:got]):
                place = at + hit.start()
                if own <= place < own + len(buffer):
                    continue
                found += self._is_here(buffer, hit.start(), got)
            if got < size or at + got >= end:
                break
            at += got - keep
        return found

    def _is_here(self, buffer: bytearray, at: int, got: int) -> bool:
        if at + len(self.mask) > got:
            return False
        return all(
            buffer[at + n] == self.mask[n] ^ self.masked[n] for n in range(len(self.mask))
        )

    @staticmethod
    def _address(buffer: bytearray) -> int:
        import ctypes

        return ctypes.addressof(ctypes.c_char.from_buffer(buffer))
