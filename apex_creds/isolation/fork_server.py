"""A warm process behind the wall that forks a worker when the host asks for one.

Guarantee: it forks before it has a thread or an event loop, so that no lock is held in a copy;
it runs nothing of the plugin's, and neither trace nor memory of it can be had by a worker, so
that a new worker has nothing of an old one.

What is imported here is paid once: a fork takes a thousandth of an import.
"""

from __future__ import annotations

import ctypes
import os
import selectors
import signal
import socket
import sys
import types
from contextlib import suppress
from typing import Final

import apex_creds
from apex_creds.errors import IsolationError
from apex_creds.isolation import seccomp

FORK: Final = b"fork"
"""The host's word; with it comes the socket of the new worker."""
_PR_SET_DUMPABLE: Final = 4
_PR_SET_SECCOMP: Final = 22
_SECCOMP_MODE_FILTER: Final = 2


def main(control: int, *, processes: bool) -> None:
    """Serves the host until it hangs up.

    Args:
        control: The descriptor of a socket that keeps messages apart.
        processes: Whether workers may start processes.
    """
    _without_a_vault()
    from apex_creds.isolation import worker_process  # the warm part

    worker_process.warm_up()
    _dumpable(value=False)
    woken, wakes = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wakes)
    with socket.socket(fileno=control) as host, selectors.DefaultSelector() as ready:
        ready.register(host, selectors.EVENT_READ)
        ready.register(woken, selectors.EVENT_READ)
        while True:
            for key, _ in ready.select():
                if key.fileobj is host:
                    said, descriptors, _, _ = socket.recv_fds(host, 16, 1)
                    if said != FORK or not descriptors:
                        return
                    connection = descriptors[0]
                    pid = os.fork()
                    if pid == 0:
                        ready.close()
                        _begin(host, (woken, wakes), connection, processes=processes)
                    os.close(connection)
                    process = os.pidfd_open(pid)  # whatever number it has in the host
                    try:
                        socket.send_fds(host, [f"forked {pid}".encode()], [process])
                    finally:
                        os.close(process)
                else:
                    with suppress(BlockingIOError):
                        os.read(woken, 4096)
                    _reap(host)


def _without_a_vault() -> None:
    """Packages that worker and plugins use a part of are there without what they import.

    So nothing of the vault is ever loaded here. A module that has plugins' functions may import
    what runs them; used it can't be.
    """
    for package in ("leases", "middleware", "vault"):
        made = types.ModuleType(f"apex_creds.{package}")
        made.__path__ = [os.path.join(place, package) for place in apex_creds.__path__]
        made.__getattr__ = _absent  # type: ignore[method-assign]
        sys.modules[made.__name__] = made
        setattr(apex_creds, package, made)


def _absent(name: str) -> type:
    if name.startswith("__"):
        raise AttributeError(name)
    return type(name, (_Absent,), {})


class _Absent:
    """What there is not behind the wall."""

    def __init__(self, *_: object, **__: object) -> None:
        raise IsolationError(f"There is no {type(self).__name__} behind the wall.")


def _reap(host: socket.socket) -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        host.sendall(f"ended {pid} {os.waitstatus_to_exitcode(status)}".encode())


def _begin(
    host: socket.socket, pipe: tuple[int, int], connection: int, *, processes: bool
) -> None:
    """Becomes a worker."""
    from apex_creds.isolation import worker_process

    status = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        host.close()
        for descriptor in pipe:
            os.close(descriptor)
        _dumpable(value=True)  # or it could not read its own entries in /proc
        if not processes:
            _forbid_processes()
        worker_process.main(connection)
        status = 0
    finally:
        os._exit(status)


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def _forbid_processes() -> None:
    """A second filter: the first one let the fork server fork."""
    steps = seccomp.program(processes=False, unix_sockets=True)  # as the first one says
    buffer = ctypes.create_string_buffer(steps, len(steps))
    program = _Program(len(steps) // 8, ctypes.addressof(buffer))
    _prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.addressof(program))


def _dumpable(*, value: bool) -> None:
    _prctl(_PR_SET_DUMPABLE, int(value), 0)


def _prctl(what: int, first: int, second: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    arguments = [ctypes.c_ulong(each) for each in (first, second, 0, 0)]
    if libc.prctl(what, *arguments) != 0:
        raise OSError(ctypes.get_errno(), "prctl")
