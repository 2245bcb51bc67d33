"""The system calls that a program behind the wall does not get, as a filter for the kernel.

Guarantee: whatever the program runs as, it can't trace or read other processes, make
namespaces or mounts, load code into the kernel, use io_uring (which goes around filters), reach
keys of the kernel, or open a socket of any kind but TCP and UDP; all of that fails with EPERM.
Calls of another architecture than the one that the filter is for end the process.

The filter names what is forbidden, as most container runtimes' lists do in effect, so that
programs of any language run. It is put together by the few lines below: classic BPF needs no
library, and a C library that is found at run time would be one more thing to be missing.
"""

from __future__ import annotations

import errno
import platform
import socket
import struct
from typing import Final, NamedTuple

_LOAD: Final = 0x20  # BPF_LD | BPF_W | BPF_ABS
_EQUAL: Final = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
_ABOVE: Final = 0x35  # BPF_JMP | BPF_JGE | BPF_K
_ANY_BIT: Final = 0x45  # BPF_JMP | BPF_JSET | BPF_K
_RETURN: Final = 0x06  # BPF_RET | BPF_K

_ALLOW: Final = 0x7FFF0000
_KILL: Final = 0x80000000
_REFUSE: Final = 0x00050000 | errno.EPERM
_MISSING: Final = 0x00050000 | errno.ENOSYS

# Of struct seccomp_data; arguments are 64 bits wide, their low half comes first here.
_NUMBER: Final = 0
_ARCHITECTURE: Final = 4
_FIRST: Final = 16
_SECOND: Final = 24

_CLONE_THREAD: Final = 0x00010000
_CLONE_NEW: Final = 0x7E020080
"""Every CLONE_NEW… flag: a namespace."""
_TIOCSTI: Final = 0x5412
_TIOCLINUX: Final = 0x541C
_X32: Final = 0x40000000


class _Machine(NamedTuple):
    """An architecture's own numbers: x86-64 has its old ones, all others the common ones."""

    audit: int
    clone: int
    clone3: int
    ioctl: int
    socket: int
    forks: tuple[int, ...]
    forbidden: tuple[int, ...]


_SINCE_2018: Final = (
    *(425, 426, 427),  # io_uring_setup, _enter, _register
    *(428, 429, 430, 431, 432, 433),  # open_tree, move_mount, fsopen, fsconfig, fsmount, fspick
    *(438, 440, 442, 447, 448),  # pidfd_getfd, process_madvise, mount_setattr, memfd_secret,
    # process_mrelease
)
"""Numbers that are the same everywhere."""

_MACHINES: Final = {
    "x86_64": _Machine(
        audit=0xC000003E,
        clone=56,
        clone3=435,
        ioctl=16,
        socket=41,
        forks=(57, 58),  # fork, vfork
        forbidden=(
            *(101, 310, 311, 312),  # ptrace, process_vm_readv, process_vm_writev, kcmp
            *(272, 308, 155, 161),  # unshare, setns, pivot_root, chroot
            *(165, 166, 167, 168),  # mount, umount2, swapon, swapoff
            *(175, 313, 176, 246, 320),  # init_module, finit_module, delete_module, kexec_*
            *(248, 249, 250),  # add_key, request_key, keyctl
            *(298, 321, 323, 300),  # perf_event_open, bpf, userfaultfd, fanotify_init
            *(303, 304),  # name_to_handle_at, open_by_handle_at
            *(169, 170, 171, 163, 179, 103),  # reboot, set*name, acct, quotactl, syslog
            *(159, 164, 227, 305),  # adjtimex, settimeofday, clock_settime, clock_adjtime
            *(172, 173, 153, 135, 134),  # iopl, ioperm, vhangup, personality, uselib
            *(237, 238, 239, 256, 279),  # mbind, *_mempolicy, migrate_pages, move_pages
        ),
    ),
    "aarch64": _Machine(
        audit=0xC00000B7,
        clone=220,
        clone3=435,
        ioctl=29,
        socket=198,
        forks=(),
        forbidden=(
            *(117, 270, 271, 272),  # ptrace, process_vm_readv, process_vm_writev, kcmp
            *(97, 268, 41, 51),  # unshare, setns, pivot_root, chroot
            *(40, 39, 224, 225),  # mount, umount2, swapon, swapoff
            *(105, 273, 106, 104, 294),  # init_module, finit_module, delete_module, kexec_*
            *(217, 218, 219),  # add_key, request_key, keyctl
            *(241, 280, 282, 262),  # perf_event_open, bpf, userfaultfd, fanotify_init
            *(264, 265),  # name_to_handle_at, open_by_handle_at
            *(142, 161, 162, 89, 60, 116),  # reboot, set*name, acct, quotactl, syslog
            *(171, 170, 112, 266),  # adjtimex, settimeofday, clock_settime, clock_adjtime
            *(58, 92),  # vhangup, personality
            *(235, 236, 237, 238, 239),  # mbind, *_mempolicy, migrate_pages, move_pages
        ),
    ),
}


def is_known(machine: str | None = None) -> bool:
    """Whether there is a filter for this architecture."""
    return (machine or platform.machine()) in _MACHINES


def program(
    *, processes: bool = True, unix_sockets: bool = False, machine: str | None = None
) -> bytes:
    """The filter, as ``struct sock_filter[]``.

    Args:
        processes: Whether it may start processes; threads it may in any case.
        unix_sockets: Whether it may open Unix sockets: a socket file that lies in a folder
            which it sees could be connected to, even though the folder is read-only. A
            ``socketpair`` is always allowed.
        machine: As ``platform.machine()`` says it; this one's by default.
    """
    numbers = _MACHINES[machine or platform.machine()]
    families = [socket.AF_INET, socket.AF_INET6]
    if unix_sockets:
        families.append(socket.AF_UNIX)
    lines = [
        _step(_LOAD, _ARCHITECTURE),
        _step(_EQUAL, numbers.audit, 1, 0),
        _step(_RETURN, _KILL),
        _step(_LOAD, _NUMBER),
    ]
    if numbers.forks:  # only x86-64 has calls of a second kind under the same architecture
        lines += [_step(_ABOVE, _X32, 0, 1), _step(_RETURN, _KILL)]
    for number in (*numbers.forbidden, *_SINCE_2018, *(() if processes else numbers.forks)):
        lines += _when(number, [_step(_RETURN, _REFUSE)])
    # Its flags lie in memory, where a filter can't look: libraries fall back to clone.
    lines += _when(numbers.clone3, [_step(_RETURN, _MISSING)])
    lines += _when(numbers.clone, _checked_clone(processes=processes))
    lines += _when(
        numbers.ioctl,
        [
            _step(_LOAD, _SECOND),
            _step(_EQUAL, _TIOCSTI, 2, 0),
            _step(_EQUAL, _TIOCLINUX, 1, 0),
            _step(_RETURN, _ALLOW),
            _step(_RETURN, _REFUSE),
        ],
    )
    lines += _when(
        numbers.socket,
        [
            _step(_LOAD, _FIRST),
            *(
                _step(_EQUAL, int(family), len(families) - at, 0)
                for at, family in enumerate(families)
            ),
            _step(_RETURN, _REFUSE),
            _step(_RETURN, _ALLOW),
        ],
    )
    return b"".join([*lines, _step(_RETURN, _ALLOW)])


def _checked_clone(*, processes: bool) -> list[bytes]:
    """Threads, and processes where they are allowed; namespaces never."""
    lines = [
        _step(_LOAD, _FIRST),
        _step(_ANY_BIT, _CLONE_NEW, 0, 1),
        _step(_RETURN, _REFUSE),
    ]
    if not processes:
        lines += [_step(_ANY_BIT, _CLONE_THREAD, 1, 0), _step(_RETURN, _REFUSE)]
    return [*lines, _step(_RETURN, _ALLOW)]


def _when(number: int, then: list[bytes]) -> list[bytes]:
    """``then``, which ends with a return, where the call is this one."""
    return [_step(_EQUAL, number, 0, len(then)), *then]


def _step(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value & 0xFFFFFFFF)
