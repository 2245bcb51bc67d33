"""The system calls that a program behind the wall does not get, as a filter for the kernel.

Guarantee: whatever the program runs as, it can't trace or read other processes, make
namespaces or mounts, load code into the kernel, use io_uring (which goes around filters), reach
keys of the kernel, open a socket of any kind but TCP and UDP, or make a file that runs as who
owns it (the host's folders are not mounted as ours are); all of that fails with EPERM. What may
start no processes has no use for memory and watches that no limit counts, and does not get
them. Calls of another architecture than the one that the filter is for end the process.

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
_MASK: Final = 0x54  # BPF_ALU | BPF_AND | BPF_K
_RETURN: Final = 0x06  # BPF_RET | BPF_K

_ALLOW: Final = 0x7FFF0000
_KILL: Final = 0x80000000
_REFUSE: Final = 0x00050000 | errno.EPERM
_MISSING: Final = 0x00050000 | errno.ENOSYS

# Of struct seccomp_data; arguments are 64 bits wide, their low half comes first here.
_NUMBER: Final = 0
_ARCHITECTURE: Final = 4
_FIRST, _SECOND, _THIRD, _FOURTH = range(16, 48, 8)

_CLONE_THREAD: Final = 0x00010000
_CLONE_NEW: Final = 0x7E020080
"""Every CLONE_NEW… flag: a namespace."""
_TIOCSTI: Final = 0x5412
_TIOCLINUX: Final = 0x541C
_X32: Final = 0x40000000
_SET_ID: Final = 0o6000
_MAKES: Final = 0o20000100
"""O_CREAT and O_TMPFILE: an open that has a mode."""
_KIND: Final = 0xF
"""Of a socket's type, without its flags."""
_PROTOCOLS: Final = (0, socket.IPPROTO_TCP, socket.IPPROTO_UDP)


class _Machine(NamedTuple):
    """An architecture's own numbers: x86-64 has its old ones, all others the common ones.

    Attributes:
        modes: Calls that give a file a mode, with where their mode is.
        opens: Those that do so where they make one, with where their flags are; the mode is
            next to them.
        uncounted: What makes memory or watches that the limits of a process do not count.
    """

    audit: int
    clone: int
    clone3: int
    ioctl: int
    socket: int
    socketpair: int
    kill: int
    forks: tuple[int, ...]
    modes: tuple[tuple[int, int], ...]
    opens: tuple[tuple[int, int], ...]
    uncounted: tuple[int, ...]
    forbidden: tuple[int, ...]


_SINCE_2018: Final = (
    *(425, 426, 427),  # io_uring_setup, _enter, _register
    *(428, 429, 430, 431, 432, 433),  # open_tree, move_mount, fsopen, fsconfig, fsmount, fspick
    *(438, 440, 442, 443),  # pidfd_getfd, process_madvise, mount_setattr, quotactl_fd
    *(447, 448, 467, 470),  # memfd_secret, process_mrelease, open_tree_attr, listns
)
"""Numbers that are the same everywhere."""
_OPENAT2: Final = 437
_FCHMODAT2: Final = (452, _THIRD)

_MACHINES: Final = {
    "x86_64": _Machine(
        audit=0xC000003E,
        clone=56,
        clone3=435,
        ioctl=16,
        socket=41,
        socketpair=53,
        kill=62,
        forks=(57, 58),  # fork, vfork
        modes=(
            *((90, _SECOND), (91, _SECOND), (268, _THIRD), _FCHMODAT2),  # chmod, fchmod, …at
            *((85, _SECOND), (133, _SECOND), (259, _THIRD)),  # creat, mknod, mknodat
        ),
        opens=((2, _SECOND), (257, _THIRD)),  # open, openat
        uncounted=(319, 29, 68, 253, 294),  # memfd_create, shmget, msgget, inotify_init, …1
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
            206,  # io_setup, of which the whole machine has a number
        ),
    ),
    "aarch64": _Machine(
        audit=0xC00000B7,
        clone=220,
        clone3=435,
        ioctl=29,
        socket=198,
        socketpair=199,
        kill=129,
        forks=(),
        modes=((52, _SECOND), (53, _THIRD), _FCHMODAT2, (33, _THIRD)),  # fchmod, …at, mknodat
        opens=((56, _THIRD),),  # openat
        uncounted=(279, 194, 186, 26),  # memfd_create, shmget, msgget, inotify_init1
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
            0,  # io_setup
        ),
    ),
}


def is_known(machine: str | None = None) -> bool:
    """Whether there is a filter for this architecture."""
    return (machine or platform.machine()) in _MACHINES


def program(
    *,
    processes: bool = True,
    unix_sockets: bool = False,
    own_group: bool = True,
    machine: str | None = None,
) -> bytes:
    """The filter, as ``struct sock_filter[]``.

    Args:
        processes: Whether it may start processes; threads it may in any case.
        unix_sockets: Whether it may open Unix sockets: a socket file that lies in a folder
            which it sees could be connected to, even though the folder is read-only. A
            ``socketpair`` is allowed in any case, but not of the kind that sends to others.
        own_group: Whether its process group has none of the host's processes in it.
        machine: As ``platform.machine()`` says it; this one's by default.
    """
    numbers = _MACHINES[machine or platform.machine()]
    lines = [
        _step(_LOAD, _ARCHITECTURE),
        _step(_EQUAL, numbers.audit, 1, 0),
        _step(_RETURN, _KILL),
        _step(_LOAD, _NUMBER),
    ]
    if numbers.forks:  # only x86-64 has calls of a second kind under the same architecture
        lines += [_step(_ABOVE, _X32, 0, 1), _step(_RETURN, _KILL)]
    alone = () if processes else (*numbers.forks, *numbers.uncounted)
    for number in (*numbers.forbidden, *_SINCE_2018, *alone):
        lines += _when(number, [_step(_RETURN, _REFUSE)])
    # What they ask for lies in memory, where a filter can't look: libraries fall back to the
    # calls of before.
    for number in (numbers.clone3, _OPENAT2):
        lines += _when(number, [_step(_RETURN, _MISSING)])
    lines += _when(numbers.clone, _checked_clone(processes=processes))
    lines += _when(numbers.ioctl, _unless(_SECOND, (_TIOCSTI, _TIOCLINUX)))
    families = (socket.AF_INET, socket.AF_INET6, *((socket.AF_UNIX,) if unix_sockets else ()))
    checked = _only(_FIRST, tuple(map(int, families)))
    checked += (*_only(_THIRD, _PROTOCOLS), _step(_RETURN, _ALLOW))
    lines += _when(numbers.socket, checked)
    if not unix_sockets:
        lines += _when(numbers.socketpair, _checked_pair())
    if not own_group:
        lines += _when(numbers.kill, _unless(_FIRST, (0,)))
    for number, mode in numbers.modes:
        lines += _when(number, _checked_mode(mode))
    for number, flags in numbers.opens:
        makes = [_step(_LOAD, flags), _step(_ANY_BIT, _MAKES, 1, 0), _step(_RETURN, _ALLOW)]
        lines += _when(number, [*makes, *_checked_mode(flags + 8)])
    return b"".join([*lines, _step(_RETURN, _ALLOW)])


def _unless(argument: int, values: tuple[int, ...]) -> list[bytes]:
    """Allowed, but with none of these."""
    return [
        _step(_LOAD, argument),
        *(_step(_EQUAL, value, len(values) - at, 0) for at, value in enumerate(values)),
        _step(_RETURN, _ALLOW),
        _step(_RETURN, _REFUSE),
    ]


def _only(argument: int, values: tuple[int, ...]) -> list[bytes]:
    """Refused, but with one of these; then what comes next decides."""
    return [
        _step(_LOAD, argument),
        *(_step(_EQUAL, value, len(values) - at, 0) for at, value in enumerate(values)),
        _step(_RETURN, _REFUSE),
    ]


def _checked_pair() -> list[bytes]:
    """Two ends that know only each other: one that sends datagrams may name another socket."""
    kinds = (socket.SOCK_STREAM, socket.SOCK_SEQPACKET)
    return [
        *_only(_FIRST, (int(socket.AF_UNIX),)),
        _step(_LOAD, _SECOND),
        _step(_MASK, _KIND),
        *_only(_SECOND, tuple(map(int, kinds)))[1:],
        _step(_RETURN, _ALLOW),
    ]


def _checked_mode(mode: int) -> list[bytes]:
    return [
        _step(_LOAD, mode),
        _step(_ANY_BIT, _SET_ID, 0, 1),
        _step(_RETURN, _REFUSE),
        _step(_RETURN, _ALLOW),
    ]


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
