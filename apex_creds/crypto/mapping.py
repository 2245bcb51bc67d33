"""Anonymous memory mappings, and what the system offers to keep them private.

Guarantee: works on every system; what is missing there is answered with False, and
memory that can't be locked is said in the log, once per process.
"""

from __future__ import annotations

import logging
import mmap
import sys
from typing import Final

_log = logging.getLogger("apex_creds.memory")
_MADV_WIPEONFORK: Final = 18  # madvise(2); the mmap module has no name for it
_warned = False


def anonymous_map(size: int) -> mmap.mmap:
    """Returns ``size`` zero bytes that are this process's own."""
    if sys.platform == "win32":
        return mmap.mmap(-1, size)
    return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def keep_out_of_dumps(region: mmap.mmap) -> bool:
    """Whether core dumps leave the region out from now on."""
    return _advise(region, getattr(mmap, "MADV_DONTDUMP", None))


def wipe_on_fork(region: mmap.mmap) -> bool:
    """Whether a forked child finds zeros in the region from now on."""
    return _advise(region, _MADV_WIPEONFORK if sys.platform == "linux" else None)


def warn_unlocked() -> None:
    """Says once that memory for secrets may be swapped to disk."""
    global _warned
    if not _warned:
        _warned = True
        _log.warning(
            "Memory for secrets could not be locked, so it may be swapped to disk: raise "
            "RLIMIT_MEMLOCK (ulimit -l, LimitMEMLOCK=) or turn swap off."
        )


def _advise(region: mmap.mmap, advice: int | None) -> bool:
    if advice is None or sys.platform == "win32":
        return False
    try:
        region.madvise(advice)
    except OSError:
        return False
    return True
