"""Programs whose clocks a test sets while they run.

With a C compiler by a library that is preloaded, so that everything in the program sees it;
without one by an entry that wraps the functions that Python has.
"""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).with_name("shift.c")
COMPILER = shutil.which("gcc") or shutil.which("cc")
ENTRY = """
import mmap, os, struct, sys, time
page = mmap.mmap(os.open(os.environ["CLOCK_SHIFT"], os.O_RDONLY), 16, prot=mmap.PROT_READ)
wall, clock = time.time, time.clock_gettime
shift = lambda: struct.unpack("qq", page[:16])
time.time = lambda: wall() + sum(shift())
time.clock_gettime = lambda number: clock(number) + (
    shift()[1] if number == time.CLOCK_BOOTTIME else 0
)
from apex_creds.cli import main
main()
"""


class Shifted:
    """The clocks of the programs that are started with ``command`` and ``env``.

    Args:
        where: An empty directory.
    """

    def __init__(self, where: Path) -> None:
        self._file = where / "shift"
        self.set()
        self.env = {**os.environ, "CLOCK_SHIFT": str(self._file), "PYTHONUNBUFFERED": "1"}
        self.command = [sys.executable, "-c", ENTRY]
        if COMPILER is not None and sys.platform == "linux":
            library = where / "shift.so"
            build = [COMPILER, "-shared", "-fPIC", "-O1", "-o", str(library), str(SOURCE)]
            subprocess.run(build, check=True)
            self.env["LD_PRELOAD"] = str(library)
            self.command = [sys.executable, "-m", "apex_creds.cli"]

    def set(self, wall: int = 0, *, slept: int = 0) -> None:
        """Sets the wall clock, or has the machine have slept, by so many seconds."""
        with self._file.open("r+b" if self._file.exists() else "wb") as file:
            file.write(struct.pack("qq", wall, slept))
