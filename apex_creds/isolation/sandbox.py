"""The wall: a process that bubblewrap starts, and whether this machine can build one.

Guarantee: what runs behind it sees the system's programs and the folders that it was given, all
of them read-only, and a private folder in memory; no network but its own loopback, no process
but its own, no capability, no variable that it was not given, no descriptor that it was not
handed, a filter on system calls and limits on memory, processes, files and time. It ends with
the process that started it. Where this can't be had it is refused with what to do; there is no
weaker wall to fall back to.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import IO, Final, NamedTuple

import anyio.to_thread
import msgspec

import apex_creds
from apex_creds.concurrency import BACKGROUND, Event
from apex_creds.errors import IsolationError, IsolationUnavailableError
from apex_creds.fs.home import guarded_at
from apex_creds.isolation import control_groups, launcher, seccomp

START_WITHIN: Final = 30.0
"""Seconds for bubblewrap and the launcher; a machine under load takes them."""
_END_WITHIN: Final = 5.0
MiB: Final = 1024 * 1024
HOME: Final = "/home/plugin"
"""Of what runs behind the wall: in memory, private, gone with it."""
_UID: Final = "65534"
_PROBE: Final = ("true",)
_INSTALL: Final = "Install it: apt-get install bubblewrap, dnf install bubblewrap."
_NAMESPACES: Final = (
    "User namespaces must be allowed: sysctl user.max_user_namespaces, "
    "kernel.unprivileged_userns_clone=1, and on Ubuntu an AppArmor profile for bwrap or "
    "kernel.apparmor_restrict_unprivileged_userns=0; in a container, a profile that does."
)
_SYSTEM: Final = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
_ETC: Final = (
    *("ld.so.cache", "ld.so.conf", "ld.so.conf.d", "alternatives", "localtime", "mime.types"),
    *("ssl/certs", "ssl/openssl.cnf", "pki/tls/certs", "pki/ca-trust/extracted"),
)
_FILES: Final = {
    "/etc/passwd": f"plugin:x:{_UID}:{_UID}::{HOME}:/bin/sh\n",
    "/etc/group": f"plugin:x:{_UID}:\n",
    "/etc/hosts": "127.0.0.1 localhost\n",
    "/etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
}


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What one process behind the wall may use at most.

    Attributes:
        memory: Bytes of address space; None: no limit (node and Go reserve more than they use;
            for them there is ``data``).
        data: Bytes of private memory that can be written; None: no limit.
        processes: Processes and threads at once, of all behind this wall. The kernel does not
            count those of root: for root it is a control group, where one can be made.
        files: Open descriptors.
        file_size: Bytes of a file.
        cpu: Seconds of processor time; None: no limit.
        scratch: Bytes of the private folder in memory.
    """

    memory: int | None = 2048 * MiB
    data: int | None = None
    processes: int = 256
    files: int = 1024
    file_size: int = 256 * MiB
    cpu: int | None = None
    scratch: int = 256 * MiB

    def named(self) -> dict[str, int]:
        """As ``resource`` names them."""
        found = {
            "RLIMIT_AS": self.memory,
            "RLIMIT_DATA": self.data,
            "RLIMIT_NPROC": self.processes,
            "RLIMIT_NOFILE": self.files,
            "RLIMIT_FSIZE": self.file_size,
            "RLIMIT_CPU": self.cpu,
            "RLIMIT_CORE": 0,
        }
        return {name: most for name, most in found.items() if most is not None}


class Walled(NamedTuple):
    """What was started behind a wall.

    Attributes:
        process: Bubblewrap's; the command is its grandchild, and its exit status its own.
            Killing it ends everything behind the wall.
        listeners: The sockets that listen in there, in the order in which they were asked for.
        group: That counts its processes; None: the kernel does, or nobody.
    """

    process: subprocess.Popen[bytes]
    listeners: tuple[socket.socket, ...]
    group: Path | None = None

    def close(self) -> None:
        """Ends everything behind the wall, and waits for that; idempotent."""
        for listener in self.listeners:
            listener.close()
        _end(self.process)
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            if pipe is not None:
                pipe.close()
        if self.group is not None:
            control_groups.remove(self.group)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends bubblewrap by its child, which it collects.

    If bubblewrap were killed before it has started the child, the child would wait for ever.
    """
    pid = process.pid
    with suppress(OSError, subprocess.TimeoutExpired):
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        for child in children:
            os.kill(int(child), signal.SIGKILL)
        if children:
            process.send_signal(signal.SIGCONT)
            process.wait(_END_WITHIN)
    process.kill()
    process.wait()


def _unwanted(spawning: Future[Walled]) -> None:
    """Ends what was started for a caller who is gone, and whose loop may be, too."""
    if not spawning.cancelled() and spawning.exception() is None:
        spawning.result().close()


class Wall(msgspec.Struct, frozen=True, kw_only=True):
    """What to start, and what it sees.

    Attributes:
        command: Program and arguments.
        folders: Seen at the same place, read-only, besides the system's and Python's own.
        writable: The same, but written to.
        environment: All of it, but for ``HOME``, ``TMPDIR``, ``PATH`` and ``LANG``, which have
            defaults.
        directory: Where it begins.
        listen: Where it can connect to, each a port of loopback, as ``"8080"``, or the path of
            a Unix socket; whatever port is asked for is free.
        descriptors: Inherited, under the same numbers.
        files: Text files to be there, by path, below ``/home/plugin``, ``/run`` or ``/tmp``.
        processes: Whether it may start processes.
        unix_sockets: Whether it may open Unix sockets; see ``seccomp``.
        terminal: Whether it keeps the terminal that this process has, to be used by a person;
            the filter refuses to type into it.
    """

    command: Sequence[str]
    folders: Sequence[Path] = ()
    writable: Sequence[Path] = ()
    environment: Mapping[str, str] = {}
    directory: str = HOME
    listen: Sequence[str] = ()
    descriptors: Sequence[int] = ()
    files: Mapping[str, str] = {}
    limits: Limits = Limits()
    processes: bool = True
    unix_sockets: bool = False
    terminal: bool = False

    async def start(
        self,
        *,
        stdin: int | IO[bytes] | None = subprocess.DEVNULL,
        stdout: int | IO[bytes] | None = None,
        stderr: int | IO[bytes] | None = None,
    ) -> Walled:
        """Starts it.

        Returns:
            When the command is about to run: its listeners are there.

        Raises:
            IsolationUnavailableError: This machine can't build the wall.
            IsolationError: It could not be started.
        """
        program = await anyio.to_thread.run_sync(bubblewrap)

        control, theirs = socket.socketpair()

        async def spawn() -> Walled:
            with closing(theirs):  # by the thread that uses its number
                return self._spawn(program, theirs.fileno(), (stdin, stdout, stderr))

        with closing(control):
            # The kernel ends it with the *thread* that started it: one that stays.
            spawning, done = BACKGROUND.start(spawn), Event()
            spawning.add_done_callback(lambda _: done.set())
            try:
                await done.wait()
            except BaseException:
                spawning.add_done_callback(_unwanted)
                raise
            walled = spawning.result()
            try:
                listeners = await anyio.to_thread.run_sync(
                    _arrived, control, self._asked(), len(self.listen)
                )
            except BaseException:
                walled.close()
                raise
        return walled._replace(listeners=listeners)

    def _spawn(
        self, program: str, control: int, streams: tuple[int | IO[bytes] | None, ...]
    ) -> Walled:
        with ExitStack() as stack:
            words, inherited = self._words(stack, program)
            group = None
            if control_groups.is_needed():
                group = control_groups.make(self.limits.processes)
            if group is not None:
                words = [*control_groups.JOIN, str(group), *words]
            python = os.path.realpath(sys.executable)  # needs no environment to be found
            words += ["--", python, "-I", "-S", launcher.__file__, str(control)]
            try:
                process = subprocess.Popen(
                    words,
                    stdin=streams[0],
                    stdout=streams[1],
                    stderr=streams[2],
                    env=self._variables(),
                    pass_fds=[control, *inherited, *self.descriptors],
                )
                return Walled(process, (), group)
            except OSError as error:
                if group is not None:
                    control_groups.remove(group)
                raise IsolationUnavailableError(
                    f"Bubblewrap could not be started: {error.strerror}.", hint=_INSTALL
                ) from None

    def _asked(self) -> bytes:
        """What the launcher is to do, so that the process list does not have it."""
        asked = {
            "command": list(self.command),
            "files": dict(self.files),
            "listen": list(self.listen),
            "limits": self.limits.named(),
        }
        return json.dumps(asked).encode()

    def _words(self, stack: ExitStack, program: str) -> tuple[list[str], list[int]]:
        """Bubblewrap with its options in a descriptor, so that the process list has none.

        Returns:
            The words, and the descriptors that it inherits for them.
        """
        filtered = seccomp.program(
            processes=self.processes,
            unix_sockets=self.unix_sockets,
            own_group=not self.terminal,
        )
        words = [*self._arguments(stack)]
        words += ["--seccomp", str(stack.enter_context(_in_memory(filtered)).fileno())]
        inherited = [int(word) for at, word in enumerate(words) if words[at - 1] in _BY_FD]
        options = stack.enter_context(_in_memory("\0".join(words).encode() + b"\0")).fileno()
        return [program, "--args", str(options)], [*inherited, options]

    def _variables(self) -> dict[str, str]:
        defaults = {"HOME": HOME, "TMPDIR": "/tmp", "LANG": "C.UTF-8"}  # noqa: S108 - its own
        path = os.pathsep.join(dict.fromkeys([os.path.dirname(sys.executable), *_PATH]))
        return {**defaults, "PATH": path, **self.environment}

    def _arguments(self, stack: ExitStack) -> Iterator[str]:
        """Bubblewrap's own: what is not named here is not there."""
        for kind in ("user", "ipc", "pid", "net", "uts"):
            yield f"--unshare-{kind}"
        yield from ("--unshare-cgroup-try", "--die-with-parent")
        if not self.terminal:
            yield "--new-session"
        yield from ("--cap-drop", "ALL", "--uid", _UID, "--gid", _UID, "--hostname", "plugin")
        yield from ("--proc", "/proc", "--dev", "/dev")
        for place in ("/tmp", HOME, "/run", "/dev/shm"):  # noqa: S108 - its own
            yield from ("--size", str(self.limits.scratch), "--tmpfs", place)
        yield from _system()
        for path, text in _FILES.items():
            file = stack.enter_context(_in_memory(text.encode()))
            yield from ("--ro-bind-data", str(file.fileno()), path)
        for folder in dict.fromkeys(map(_resolved, (*_own_folders(), *self.folders))):
            yield from ("--ro-bind", folder, folder)
        for folder in map(_resolved, self.writable):
            yield from ("--bind", folder, folder)
        for place in filter(os.path.exists, _HIDDEN):
            yield from ("--ro-bind", os.devnull, place)
        # The kernel's settings are root's, also of a root without any right: to write to.
        for place in ("/proc", "/dev", "/"):
            yield from ("--remount-ro", place)
        yield from ("--chdir", self.directory)


_LARGE: Final = ("/boot", "/dev", "/etc", "/run", "/tmp", "/var", "/var/tmp")  # noqa: S108
"""Of the whole machine: with sockets, devices, and files of others."""
_KERNEL: Final = ("/proc", "/sys")
_HIDDEN: Final = ("/proc/keys", "/proc/key-users")
"""Names of keys in the kernel."""
_OWN_FOLDER: Final = "Give the plugin a folder to itself."
_BY_FD: Final = frozenset({"--ro-bind-data", "--seccomp"})
_PATH: Final = ("/usr/local/bin", "/usr/bin", "/bin")


def _in_memory(data: bytes) -> IO[bytes]:
    """A file that has no name, at its beginning."""
    file = os.fdopen(os.memfd_create("apex-creds"), "w+b")
    file.write(data)
    file.seek(0)
    return file


def _system() -> Iterator[str]:
    for place in _SYSTEM:
        if os.path.islink(place):  # as /bin, which is in /usr now
            yield from ("--symlink", os.readlink(place), place)
        elif os.path.isdir(place):
            yield from ("--ro-bind", place, place)
    for name in _ETC:
        yield from ("--ro-bind-try", f"/etc/{name}", f"/etc/{name}")


def packages() -> list[str]:
    """Where this interpreter finds what is installed."""
    names = ("site-packages", "dist-packages")
    return [each for each in sys.path if os.path.basename(each) in names]


def _own_folders() -> Iterator[Path]:
    """Python, its packages, and this one."""
    seen: list[str] = []
    own = os.path.dirname(os.path.abspath(apex_creds.__file__))
    for place in (sys.base_prefix, sys.prefix, *packages(), own):
        shown = any(Path(place).is_relative_to(folder) for folder in (*_SYSTEM, *seen))
        if os.path.isdir(place) and not shown:
            seen.append(place)
            yield Path(place)


def _resolved(folder: Path) -> str:
    """The folder itself.

    Raises:
        IsolationError: It is none, or so large a part of the machine that it would be no wall.
    """
    place = os.path.realpath(folder)
    if not os.path.isdir(place):
        raise IsolationError(f"There is no folder {place}.", hint="Name the plugin's folder.")
    home = os.path.realpath(os.path.expanduser("~"))
    shared = place in _LARGE or any(Path(place).is_relative_to(each) for each in _KERNEL)
    if shared or Path(home).is_relative_to(place):
        raise IsolationError(
            f"The folder {place} is not put behind the wall: it is more than a plugin's.",
            hint=_OWN_FOLDER,
        )
    if (guarded := guarded_at(Path(place))) is not None:
        raise IsolationError(
            f"The folder {place} is not put behind the wall: {guarded} is the vault's.",
            hint=_OWN_FOLDER,
        )
    return place


def _arrived(control: socket.socket, asked: bytes, count: int) -> tuple[socket.socket, ...]:
    """Says to the launcher what is asked for: the listeners that it hands out.

    Raises:
        IsolationError: It did not.
    """
    control.settimeout(START_WITHIN)
    descriptors: list[int] = []
    said = b""
    try:
        control.sendall(asked)
        control.shutdown(socket.SHUT_WR)
        said, descriptors, _, _ = socket.recv_fds(control, 4096, count)
        if said == launcher.READY and len(descriptors) == count:
            return tuple(socket.socket(fileno=descriptors.pop(0)) for _ in range(count))
    except TimeoutError:
        said = b"it took too long"
    except OSError:
        said = b"bubblewrap ended at once"
    finally:
        for descriptor in descriptors:
            with suppress(OSError):
                os.close(descriptor)
    text = said.removeprefix(launcher.FAILED).decode("utf-8", "replace")
    raise IsolationError(
        f"What was to run behind the wall could not be started: {text or 'it has ended'}.",
        hint="See what bubblewrap wrote to the standard error; apex-creds doctor checks it.",
    )


# -- which walls there are -----------------------------------------------------------------


@functools.cache
def bubblewrap() -> str:
    """The program, which was tried.

    Raises:
        IsolationUnavailableError: It is not there, or the system does not let it work.
    """
    if sys.platform != "linux":
        raise IsolationUnavailableError(
            "Isolated plugins need Linux: this system has no wall of the kind.",
            hint="Run the runtime in a Linux machine or container.",
        )
    if not seccomp.is_known():
        raise IsolationUnavailableError(
            "There is no filter of system calls for this processor.",
            hint="Isolation runs on x86-64 and aarch64.",
        )
    program = shutil.which("bwrap", path=os.pathsep.join((*_PATH, "/usr/sbin")))
    if program is None:
        raise IsolationUnavailableError("Bubblewrap is not installed.", hint=_INSTALL)
    with ExitStack() as stack:
        words, inherited = Wall(command=())._words(stack, program)
        try:
            tried = subprocess.run(
                [*words, "--", *_PROBE],
                env={"PATH": os.pathsep.join(_PATH)},
                pass_fds=inherited,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=START_WITHIN,
                check=False,
            )
            said = tried.stderr.decode("utf-8", "replace").strip()[:300]
        except (OSError, subprocess.TimeoutExpired) as error:
            said, works = str(error)[:300], False
        else:
            works = tried.returncode == 0
    if not works:
        raise IsolationUnavailableError(
            f"Bubblewrap does not work here: {said}", hint=_NAMESPACES
        )
    return program
