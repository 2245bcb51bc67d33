"""Limits the processes of a sandbox that root starts, by a control group (cgroups v1 or v2).

The kernel does not apply ``RLIMIT_NPROC`` to root, in any namespace. So what root starts joins
a group before bubblewrap begins. When the host is killed, an empty folder of the kernel's
remains, which the next sandbox removes.
"""

from __future__ import annotations

import itertools
import os
import re
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

_ROOT: Final = Path("/sys/fs/cgroup")
_NAME: Final = re.compile(r"apex-creds-(\d+)-\d+")
_TRIES: Final = 25
_PAUSE: Final = 0.02
_numbers: Final = itertools.count(1)

JOIN: Final = ("/bin/sh", "-c", 'echo 0 >"$0/cgroup.procs" && exec "$@"')
"""Followed by a group and a command: runs the command in the group."""


def is_needed() -> bool:
    """Whether the kernel does not count this user's processes by itself."""
    return os.geteuid() == 0


def parent() -> Path | None:
    """Where groups are made; None: nowhere, as in most containers."""
    return next((each for each in _candidates() if os.access(each, os.W_OK)), None)


def make(most: int) -> Path | None:
    """A group of so many processes and threads; None: there can be none."""
    place = parent()
    if place is None:
        return None
    for old in place.glob("apex-creds-*"):
        found = _NAME.fullmatch(old.name)
        if found and not os.path.exists(f"/proc/{found[1]}"):
            with suppress(OSError):  # where one has processes yet, it is the one after
                left = (old / "cgroup.procs").read_text().split()
                if "0" in left:  # of another PID namespace, as its host is
                    continue
                for pid in left:
                    os.kill(int(pid), signal.SIGKILL)
            with suppress(OSError):
                old.rmdir()
    made = place / f"apex-creds-{os.getpid()}-{next(_numbers)}"
    try:
        made.mkdir()
        (made / "pids.max").write_text(str(most))
    except OSError:
        remove(made)
        return None
    return made


def remove(group: Path) -> None:
    """Removes one whose processes were ended, when the last of them is gone."""
    for _ in range(_TRIES):
        try:
            group.rmdir()
        except FileNotFoundError:
            return
        except OSError:  # the kernel still ends them
            time.sleep(_PAUSE)
        else:
            return


def _candidates() -> Iterator[Path]:
    """Groups in which a new one counts processes, the nearest first."""
    unified = (_ROOT / "cgroup.controllers").exists()
    top = _ROOT if unified else _ROOT / "pids"
    with suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, kinds, own = line.split(":", 2)
            if kinds != ("" if unified else "pids"):
                continue
            place = top / own.lstrip("/")
            for each in (place, *place.parents):  # in a container it may be the path of another
                if not each.is_relative_to(top) or not each.is_dir():
                    continue
                enabled = each / "cgroup.subtree_control"
                if not unified or "pids" in enabled.read_text().split():
                    yield each
