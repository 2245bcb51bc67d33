"""Kills a real process with SIGKILL at each of its write boundaries, one after another.

Guarantee: a boundary is a call that changes what is on disk (or makes it durable), made
through ``os`` or ``open``; a dry run lists them, and each later run dies just before one of
them, just after it, or (a write) with half of its bytes written. What the scenario had
acknowledged by then is reported, so that a test can say what must still be readable.

A point is named: the call, the file, and the how-manieth such call on that file. A number
over all calls would be another call in the next run, whenever a thread (the log's, which
makes its checkpoints by time) writes earlier or later than in the dry run.

A scenario is a function in a file of its own::

    def put(home: str) -> None:  # tests/faults/scenarios/vault.py
        vault = open_vault(home)  # not counted
        killer.begin()
        vault.put("name", ...)  # every boundary in here is
        killer.acknowledge("put")  # told to the test, even if killed later

and a test runs it, each time on a directory of its own::

    with Scenario(FILE, "put") as scenario:
        for point in scenario.points(fresh_directory()):
            home = fresh_directory()
            run = scenario.run(home, at=point)
            assert run.killed
            check(home, run.acknowledged)

The scenario's file is imported once, in a process that forks for each run, and so is what
a run to the end imported late; give ``isolated=True`` where a module can't live through a
fork, for a new interpreter each time. ``SIGKILL`` loses nothing that the kernel has: this
shows atomicity and order. That data is flushed before it is named is shown by ``order()``
over the dry run's boundaries.
"""

from __future__ import annotations

import builtins
import contextlib
import importlib.util
import io
import json
import os
import re
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import traceback
from collections import Counter
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

When = Literal["before", "after", "torn"]

_WRITES: Final = ("write", "pwrite")
_ON_DESCRIPTORS: Final = (*_WRITES, "writev", "pwritev", "fsync", "fdatasync", "ftruncate")
_ON_PATHS: Final = (
    "replace", "rename", "unlink", "remove", "truncate", "mkdir", "rmdir", "chmod", "fchmod",
    "utime", "link", "symlink", "sendfile", "copy_file_range", "posix_fallocate",
)  # fmt: skip
_SECONDS: Final = 600  # ends what hangs; a slow machine is no failure
_RANDOM: Final = re.compile(r"[0-9a-f]{8,}")  # temporary files, vaults and keys have such names


# -- in the test ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Boundary:
    """One write boundary: the call, and the ``nth`` such call on what it was about.

    ``name`` is what two runs have in common: the path from the scenario's first argument,
    without what is random in it.
    """

    call: str
    name: str
    nth: int
    path: str

    def point(self, when: When = "before") -> Point:
        """Where to die here."""
        return Point(self.call, self.name, self.nth, when)


@dataclass(frozen=True, slots=True)
class Point:
    """Where a run dies. Without ``call`` and ``name``: at the ``nth`` boundary of all."""

    call: str = ""
    name: str = ""
    nth: int = 1
    when: When = "before"

    def is_in(self, boundaries: Sequence[Boundary]) -> bool:
        """Whether a run with these boundaries came here."""
        if not self.call:
            return len(boundaries) >= self.nth
        return any(self == boundary.point(self.when) for boundary in boundaries)

    def __str__(self) -> str:
        return f"{self.when} {self.call} {self.name} #{self.nth}"


@dataclass(frozen=True, slots=True)
class Run:
    """What happened: whether the process was killed, what it had told, what it did."""

    killed: bool
    acknowledged: tuple[str, ...]
    boundaries: tuple[Boundary, ...]


class ScenarioError(AssertionError):
    """The scenario raised, hung, or never called ``begin()``."""


class Scenario:
    """Runs one function of one file, again and again, in processes that can be killed.

    Args:
        file: The Python file; it does ``from tests.support import killer``.
        function: Its function; called with the strings given to ``run``.
        isolated: A new interpreter for each run, instead of a fork.
        env: The environment; this process's own by default.
    """

    def __init__(
        self,
        file: Path,
        function: str,
        *,
        isolated: bool = False,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self._command = [sys.executable, "-B", str(Path(__file__)), str(file), function]
        self._isolated = isolated
        self._env = dict(os.environ if env is None else env)
        self._process: subprocess.Popen[str] | None = None
        self._imports: list[str] = []
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed by close()

    def run(self, *args: object, at: Point | None = None) -> Run:
        """Runs once, to the end or until it is killed ``at`` a point.

        Raises:
            ScenarioError: It raised, hung, or was killed elsewhere than ``at`` the point.
        """
        process = self._started()
        assert process.stdin is not None
        imports, self._imports = self._imports, []
        job = {"args": [str(arg) for arg in args], "at": at and asdict(at), "import": imports}
        process.stdin.write(json.dumps(job) + "\n")
        process.stdin.flush()
        try:
            run = self._report(process)
        finally:
            if self._isolated:
                self._stop()
                self._imports.clear()
        if run.killed and (at is None or not at.is_in(run.boundaries)):
            raise ScenarioError(f"Killed elsewhere than {at}.")
        return run

    def points(self, *args: object, after: bool = False, torn: bool = True) -> list[Point]:
        """A dry run with ``args``; every point at which a later run is to be killed.

        Just after a boundary the disk is as it is just before the next, when more may have
        been acknowledged; ``after`` adds those points where what is not on the disk matters.

        Raises:
            ScenarioError: It failed, or had no boundary at all.
        """
        dry = self.run(*args)
        if not dry.boundaries:
            raise ScenarioError("No write boundary: did the scenario call killer.begin()?")
        last = dry.boundaries[-1]
        return [
            point
            for boundary in dry.boundaries
            for point in _at(boundary, after=after or boundary is last, torn=torn)
        ]

    def close(self) -> None:
        """Ends the processes; idempotent."""
        self._stop()
        self._errors.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _started(self) -> subprocess.Popen[str]:
        if self._process is None:
            root = str(Path(__file__).parents[2])
            path = os.pathsep.join(filter(None, [root, self._env.get("PYTHONPATH", "")]))
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                stderr=self._errors, env=self._env | {"PYTHONPATH": path},
            )  # fmt: skip
        return self._process

    def _stop(self) -> None:
        if self._process is None:
            return
        process, self._process = self._process, None
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.close()
        try:
            process.wait(_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()

    def _report(self, process: subprocess.Popen[str]) -> Run:
        assert process.stdout is not None
        boundaries, told = [], []
        for line in process.stdout:
            kind, *rest = json.loads(line)
            if kind == "boundary":
                boundaries.append(Boundary(*rest))
            elif kind == "told":
                told.append(rest[0])
            elif kind == "imported":
                self._imports.append(rest[0])
            elif kind == "end":
                return self._judged(rest[0], tuple(told), tuple(boundaries))
        raise ScenarioError(f"The scenario's process ended:\n{self._stderr()}")

    def _judged(
        self, status: int, told: tuple[str, ...], boundaries: tuple[Boundary, ...]
    ) -> Run:
        killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        if status != 0 and not killed:
            raise ScenarioError(f"The scenario failed ({status}):\n{self._stderr()}")
        return Run(killed, told, boundaries)

    def _stderr(self) -> str:
        self._errors.seek(0)
        return self._errors.read()[-8000:]


def count_boundaries(file: Path, function: str, *args: object) -> int:
    """The number of write boundaries of one run to the end."""
    with Scenario(file, function) as scenario:
        return len(scenario.run(*args).boundaries)


def run_killed(file: Path, function: str, *args: object, at: Point) -> Run:
    """One run, killed ``at`` a point (if it gets there)."""
    with Scenario(file, function) as scenario:
        return scenario.run(*args, at=at)


def order(run: Run) -> list[str]:
    """``call name`` of each boundary, for assertions on what comes before what."""
    return [f"{b.call} {Path(b.path).name}" for b in run.boundaries]


def _at(boundary: Boundary, after: bool, torn: bool) -> Iterator[Point]:
    yield boundary.point()
    if torn and boundary.call.rpartition(".")[2] in _WRITES:
        yield boundary.point("torn")
    if after:
        yield boundary.point("after")


# -- in the process that is killed ---------------------------------------------------

_raw_write = os.write
_raw_open = os.open


class _Counter:
    """Reports boundaries, and dies at the one that is the point."""

    def __init__(self, report: int, home: str, at: Point) -> None:
        self.report = report
        self.home = home
        self.at = at
        self.counting = False
        self.seen: Counter[tuple[str, str]] = Counter()
        self.lock = threading.Lock()
        self.inside = threading.local()

    def pass_through(self, call: str, path: str, do: Callable[[], Any], half: Any) -> Any:
        """Does the call, unless it dies before; ``half`` does half of it."""
        if not self.counting or getattr(self.inside, "yes", False):
            return do()
        with self.lock:
            name = _name(path, self.home)
            self.seen[call, name] += 1
            boundary = Boundary(call, name, self.seen[call, name], path)
            everywhere = Boundary("", "", self.seen.total(), path)
            self.tell("boundary", *astuple(boundary))
            here = self.at == (boundary if self.at.call else everywhere).point(self.at.when)
            if here and self.at.when != "after":
                if self.at.when == "torn" and half is not None:
                    half()
                _die()
        self.inside.yes = True  # os.open calls nothing of ours, but open() does
        try:
            return do()
        finally:
            self.inside.yes = False
            if here:
                _die()

    def tell(self, *line: object) -> None:
        _raw_write(self.report, json.dumps(line).encode() + b"\n")


_counter: _Counter | None = None


def begin() -> None:
    """From here on write boundaries count. Call it in the scenario."""
    if _counter is not None:
        _counter.counting = True


def end() -> None:
    """From here on they don't."""
    if _counter is not None:
        _counter.counting = False


def acknowledge(text: str) -> None:
    """Tells the test that something is done, as the caller of the real program would see."""
    if _counter is not None:
        _counter.tell("told", text)


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    signal.pause()


def _pass(call: str, path: str, do: Callable[[], Any], half: Any = None) -> Any:
    return do() if _counter is None else _counter.pass_through(call, path, do, half)


def _on_disk(fd: int) -> bool:
    """Regular files and directories; not pipes, sockets and terminals."""
    try:
        mode = os.fstat(fd).st_mode
    except OSError:
        return True  # let the call itself fail
    return stat.S_ISREG(mode) or stat.S_ISDIR(mode)


def _name(path: str, home: str) -> str:
    """``path`` as another run has it: from its own home on, and without random parts."""
    path = path.removesuffix(" (deleted)")
    if os.path.isabs(path):
        path = os.path.relpath(path, home)
    return _RANDOM.sub("*", path)


def _path_of(target: object) -> str:
    if isinstance(target, int):
        try:
            return os.readlink(f"/proc/self/fd/{target}")
        except OSError:
            return f"fd {target}"
    return os.fsdecode(target) if isinstance(target, str | bytes | os.PathLike) else ""


def _wrap_descriptor_call(name: str) -> None:
    real = getattr(os, name)

    def wrapped(fd: int, *args: Any, **kwargs: Any) -> Any:
        if not _on_disk(fd):
            return real(fd, *args, **kwargs)

        def half() -> None:
            data = memoryview(args[0]).cast("B")
            real(fd, data[: len(data) // 2], *args[1:], **kwargs)

        torn = half if name in _WRITES else None
        return _pass(name, _path_of(fd), lambda: real(fd, *args, **kwargs), torn)

    _install(name, real, wrapped)


def _wrap_path_call(name: str) -> None:
    real = getattr(os, name)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        about = args[1] if name in ("replace", "rename", "link", "symlink") else args[0]
        return _pass(name, _path_of(about), lambda: real(*args, **kwargs))

    _install(name, real, wrapped)


def _wrap_open() -> None:
    def wrapped(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        if not flags & (os.O_CREAT | os.O_TRUNC):
            return _raw_open(path, flags, *args, **kwargs)
        opened: int = _pass(
            "open", _path_of(path), lambda: _raw_open(path, flags, *args, **kwargs)
        )
        return opened

    _install("open", _raw_open, wrapped)


def _install(name: str, real: Any, wrapped: Any) -> None:
    for supports in (os.supports_dir_fd, os.supports_fd, os.supports_follow_symlinks):
        if real in supports:
            supports.add(wrapped)
    setattr(os, name, wrapped)


class _File(io.FileIO):
    """What ``open`` makes for writing: each raw write and truncate is a boundary."""

    def write(self, data: Any) -> Any:
        view = memoryview(data).cast("B")

        def half() -> None:
            io.FileIO.write(self, view[: len(view) // 2])

        if not _on_disk(self.fileno()):
            return super().write(data)
        done = super().write
        return _pass("file.write", _path_of(self.name), lambda: done(data), half)

    def truncate(self, size: int | None = None) -> int:
        done = super().truncate
        result: int = _pass("file.truncate", _path_of(self.name), lambda: done(size))
        return result


_real_open = io.open


def _open(  # the signature of open()
    file: Any, mode: str = "r", buffering: int = -1, encoding: str | None = None,
    errors: str | None = None, newline: str | None = None, closefd: bool = True,
    opener: Any = None,
) -> Any:  # fmt: skip
    if not set(mode) & set("wax+"):
        return _real_open(file, mode, buffering, encoding, errors, newline, closefd, opener)
    raw_mode = mode.replace("b", "").replace("t", "")

    def raw() -> _File:
        return _File(file, raw_mode, closefd, opener)

    handle = raw() if isinstance(file, int) else _pass("file.open", _path_of(file), raw)
    if buffering == 0:
        return handle
    buffered = (io.BufferedRandom if "+" in mode else io.BufferedWriter)(handle)
    if "b" in mode:
        return buffered
    return io.TextIOWrapper(buffered, encoding, errors, newline, buffering == 1)


def _wrap_everything() -> None:
    for name in _ON_DESCRIPTORS:
        if hasattr(os, name):
            _wrap_descriptor_call(name)
    for name in _ON_PATHS:
        if hasattr(os, name):
            _wrap_path_call(name)
    _wrap_open()
    builtins.open = _open
    io.open = _open


def _load(file: str, function: str) -> Callable[..., None]:
    spec = importlib.util.spec_from_file_location("scenario", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["scenario"] = module
    spec.loader.exec_module(module)
    loaded: Callable[..., None] = getattr(module, function)
    return loaded


def _child(scenario: Callable[..., None], job: dict[str, Any], report: int) -> None:
    global _counter
    status, known = 1, set(sys.modules)
    try:
        signal.alarm(_SECONDS)  # a scenario that hangs is ended, and fails
        at = Point(**job["at"]) if job["at"] else Point(nth=0)  # never
        _counter = _Counter(report, (job["args"] or ["/"])[0], at)
        scenario(*job["args"])
        for name in [name for name in list(sys.modules) if name not in known]:
            _counter.tell("imported", name)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def _serve(file: str, function: str) -> None:
    """One job a line from standard input; what happened to standard output."""
    report = os.dup(1)
    os.dup2(2, 1)  # whatever the scenario prints is not ours to parse
    _wrap_everything()
    scenario = _load(file, function)
    for line in sys.stdin:
        job = json.loads(line)
        for name in job["import"]:
            with contextlib.suppress(Exception):  # some modules are made by others
                importlib.import_module(name)
        child = os.fork()
        if child == 0:
            _child(scenario, job, report)
        _, status = os.waitpid(child, 0)
        _raw_write(report, json.dumps(["end", status]).encode() + b"\n")


if __name__ == "__main__":
    # As the module that scenarios import, so that begin() reaches this state.
    from tests.support import killer

    killer._serve(sys.argv[1], sys.argv[2])
