"""A plugin that tries everything; each function returns what it got, or raises."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import glob
import os
import socket
import struct
import threading

from apex_creds import current_credentials

kept = {}


def name(error):
    return type(error).__name__


def resolve():
    try:
        return socket.getaddrinfo("example.com", 443)
    except OSError as error:
        return name(error)


def connect(host, port):
    try:
        with socket.create_connection((host, port), timeout=5):
            return "connected"
    except OSError as error:
        return name(error)


def datagram(host, port):
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
            out.connect((host, port))
            out.send(b"x")
            return "sent"
    except OSError as error:
        return name(error)


def unix(address):
    try:
        with socket.socket(socket.AF_UNIX) as out:
            out.connect(address)
            return "connected"
    except OSError as error:
        return name(error)


def read(path):
    try:
        with open(path, "rb") as file:
            return file.read(100)
    except OSError as error:
        return name(error)


def list_all(pattern):
    return sorted(glob.glob(pattern))


def environment():
    found = dict(os.environ)
    for path in glob.glob("/proc/[0-9]*/environ"):
        data = read(path)
        found[path] = data if isinstance(data, str) else repr(data)
    return found


def command_lines():
    return {path: repr(read(path)) for path in glob.glob("/proc/[0-9]*/cmdline")}


def descriptors():
    return {
        number: os.readlink(f"/proc/self/fd/{number}")
        for number in os.listdir("/proc/self/fd")
        if os.path.lexists(f"/proc/self/fd/{number}")
    }


def trace(pid):
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.restype = ctypes.c_long
    libc.ptrace(16, pid, 0, 0)
    return os.strerror(ctypes.get_errno())


def memory_of(pid):
    return name_of_open(f"/proc/{pid}/mem")


def name_of_open(path):
    try:
        with open(path, "rb"):
            return "opened"
    except OSError as error:
        return name(error)


def leave_a_process():
    """One that has left its parent, its group and its session, and runs another program."""
    begun, begins = os.pipe()  # closed by the start of that
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            for number in {*range(3, 64)} - {begins}:
                with contextlib.suppress(OSError):
                    os.close(number)
            os.execv("/bin/sleep", ["a-process-that-was-left", "1000"])
        os._exit(0)
    os.wait()
    os.close(begins)
    os.read(begun, 1)
    os.close(begun)


def end():
    os._exit(3)


def kill(pid):
    try:
        os.kill(pid, 0)
    except OSError as error:
        return name(error)
    return "there"


def write_to_frames(data):
    """Writes to every socket that it finds."""
    for number in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{number}").startswith("socket:"):
                os.write(int(number), data)
        except OSError:
            pass


async def too_large():
    write_to_frames(struct.pack(">I", 0xFFFFFFFF))
    await asyncio.sleep(3600)


async def garbage():
    write_to_frames(struct.pack(">I", 5) + b"\xff" * 5)
    await asyncio.sleep(3600)


async def keep_handle():
    kept["handle"] = current_credentials()["key"]
    return kept["handle"].id


async def ask_with(lease_id, what="reveal"):
    """With the id of a lease that is not this call's."""
    from apex_creds.isolation import remote_handles

    call = remote_handles.current.get()
    values = {
        "reveal": [lease_id, "", None],
        "send": [
            [lease_id],
            "GET",
            "http://127.0.0.1:9/",
            [],
            None,
            {},
            None,
        ],
    }[what]
    found = await call.host.ask(what, [call.id, *values])
    if what == "send":
        return await call.host.over(found.step)
    return found


async def ask_as(call_id, what, value):
    """For another call than its own."""
    from apex_creds.isolation import remote_handles

    call = remote_handles.current.get()
    return await call.host.ask(what, [call_id, *value])


def threads_without_end():
    started = []
    try:
        for _ in range(100_000):
            thread = threading.Thread(target=threading.Event().wait, daemon=True)
            thread.start()
            started.append(thread)
    except (RuntimeError, MemoryError) as error:
        return name(error)
    return "no end"


def fill_the_disk():
    try:
        with open("/tmp/x", "wb") as file:
            file.writelines(bytes(1 << 20) for _ in range(10_000))
    except OSError as error:
        return name(error)
    return "no end"


def log_without_end():
    import logging

    for number in range(2_000):
        logging.getLogger(f"hostile.{number}").warning("x")


class Sly:
    """Says that it is something else."""

    def __reduce__(self):
        return (os.system, ("true",))


def sly():
    return Sly()


async def hold(text, started):
    kept["text"] = text
    await started()
    await asyncio.Event().wait()


async def get_and_hold(base, started, credentials):
    async with credentials["key"].client(base_url=base) as http:
        answer = await http.get("/")
        kept["status"] = answer.status_code
        await started()
        await asyncio.Event().wait()


async def reveal_and_hold(started, credentials):
    async with credentials["key"].reveal() as secret:
        kept["copy"] = secret.expose_str()
        await started()
        await asyncio.Event().wait()


def answer_with_no_result():
    """Has what is to be awaited go on for ever, as a stream does."""
    from apex_creds.isolation import worker_calls

    async def an_item(*_):
        return "an item"

    worker_calls._awaited = an_item


def reach_the_host_by_its_socket():
    """By the process at the other end, which the kernel hands out a descriptor of."""
    libc, found = ctypes.CDLL(None, use_errno=True), []

    def tried(call, *args):
        ctypes.set_errno(0)
        return os.strerror(ctypes.get_errno()) if call(*args) < 0 else "done"

    for number in filter(str.isdigit, os.listdir("/proc/self/fd")):
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(int(number))) as there:
            (pid,) = struct.unpack("i8x", there.getsockopt(socket.SOL_SOCKET, 17, 12))
            if pid != 0 or there.family != socket.AF_UNIX:  # it has no number here
                continue
            try:
                host = there.getsockopt(socket.SOL_SOCKET, 77)  # SO_PEERPIDFD
            except OSError:
                found.append([])
                continue
            names = [tried(libc.ioctl, host, 0xFF00 | each, 0) for each in range(1, 11)]
            kill, copy = (424, host, 9, 0, 0), (438, host, 0, 0)  # pidfd_send_signal, _getfd
            found.append([*names, tried(libc.syscall, *kill), tried(libc.syscall, *copy)])
    return found
