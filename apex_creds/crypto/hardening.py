"""Keeps other processes of the same user, and core files, away from this one's memory.

Guarantee: does what the system offers, says in one warning what it does not, and never
raises. Reached through ``apex_creds.crypto.memory``.
"""

from __future__ import annotations

import ctypes
import logging
import sys
from dataclasses import dataclass
from typing import Final

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


_warned: Final[set[Hardening]] = set()


def harden_process() -> Hardening:
    """Sets ``PR_SET_DUMPABLE=0`` and ``RLIMIT_CORE=0`` (prctl(2), getrlimit(2)).

    The middleware, the worker, the dashboard and the commands do it; again it changes
    nothing. From then on nobody but root attaches a debugger or a profiler to the process,
    or reads its ``/proc`` entries ``mem`` and ``environ``, not the process itself either.
    Programs that it starts can be inspected as ever, but write no core files either.

    Logs one warning in a process for what this system does not offer; never raises.
    """
    result = Hardening(undumpable=_undumpable(), no_core_files=_no_core_files())
    if not (result.undumpable and result.no_core_files) and result not in _warned:
        _warned.add(result)
        _log.warning("This process could not be hardened completely: %s.", result)
    return result


def _undumpable() -> bool:
    if sys.platform != "linux":
        return False
    try:
        return bool(ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) == 0)
    except (OSError, AttributeError):
        return False


def _no_core_files() -> bool:
    try:
        import resource
    except ImportError:  # Windows writes no core files
        return sys.platform == "win32"
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    except (OSError, ValueError):
        return False
    return True
