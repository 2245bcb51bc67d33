"""One call to the operating system fails, each in turn, in every command.

Guarantee: a point is a call by name, the file it is about, and which of such calls it is; a
dry run finds them, and each later run has one of them raise an ``OSError`` (before it did
anything, or, for what changes a name, after). Each run is a process of its own, forked from
one that has imported everything.

    python -m tests.faults.failing DIRECTORY COMMAND [EVERY]

prints a line of JSON for each promise that was not kept, and one with the number of runs.
"""

from __future__ import annotations

import builtins
import contextlib
import errno
import fcntl
import importlib
import io
import json
import os
import pkgutil
import re
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import apex_creds
from apex_creds.cli import app
from tests.faults.commands import COMMANDS, World

_DESCRIPTORS: Final = ("read", "pread", "write", "pwrite", "fsync", "ftruncate", "fstat")
_PATHS: Final = (
    "open", "stat", "lstat", "listdir", "scandir", "mkdir", "rmdir", "replace", "rename",
    "link", "unlink", "remove", "utime", "chmod",
)  # fmt: skip
_RENAMES: Final = ("replace", "rename", "link", "unlink", "remove", "mkdir")
_LOOKS: Final = (errno.EIO, errno.EACCES, errno.ENOMEM)
_CHANGES: Final = (errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EINTR)
_CODES: Final = {
    **dict.fromkeys(("stat", "lstat", "listdir", "scandir"), _LOOKS),
    **dict.fromkeys(("read", "pread", "file.read", "fstat", "fsync"), (errno.EIO,)),
    "flock": (errno.EIO, errno.ENOLCK, errno.EINTR),
    "open": (errno.EMFILE, errno.EIO, errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EINTR),
}
"""What each call fails with, in turn; anything else with ``_CHANGES``."""
_ONE_COMMIT: Final = ("put-again", "grant", "revoke")
_SECONDS: Final = 120
_RANDOM: Final = re.compile(r"[0-9a-f]{8,}|\d{8}T\d{6}Z-[0-9a-f]{4}")


@dataclass(frozen=True)
class Point:
    """A call, the file that it is about, which of such calls; what it fails with, and when."""

    call: str
    name: str
    number: int
    code: int = 0
    after: bool = False

    def __str__(self) -> str:
        when = "after" if self.after else "in"
        return f"{errno.errorcode.get(self.code)} {when} {self.call} {self.name} #{self.number}"


@dataclass
class Outcome:
    """What a command ended with, what it said, and which calls it made."""

    code: int
    said: str
    out: str
    points: list[Point] = field(default_factory=list)


# -- in the process whose calls fail -------------------------------------------------------


class Calls:
    """Counts the calls that are about the world's files, and has one fail."""

    def __init__(self, world: Path, at: Point | None) -> None:
        self.world = str(world)
        self.at = at
        self.seen: Counter[tuple[str, str]] = Counter()
        self.points: list[Point] = []
        self.lock = threading.Lock()

    def through(self, call: str, about: object, do: Callable[[], Any]) -> Any:
        name = self._name(about)
        if name is None:
            return do()
        with self.lock:
            self.seen[call, name] += 1
            number = self.seen[call, name]
            self.points.append(Point(call, name, number))
        at = self.at
        if at is None or (at.call, at.name, at.number) != (call, name, number):
            return do()
        if at.after:
            do()
        raise OSError(at.code, os.strerror(at.code), None)

    def _name(self, about: object) -> str | None:
        """The path under the world, with what is random left out; None outside of it."""
        if isinstance(about, int):
            try:
                path = os.readlink(f"/proc/self/fd/{about}")
            except OSError:
                return None
        elif isinstance(about, str | os.PathLike):
            path = os.fsdecode(about)
        else:
            return None
        if not os.path.isabs(path):
            return _RANDOM.sub("*", f"…/{path}")
        if not path.startswith(self.world):
            return None
        return _RANDOM.sub("*", path.removeprefix(self.world).removesuffix(" (deleted)"))

    def install(self) -> None:
        for name in (*_DESCRIPTORS, *_PATHS):
            self._wrap(os, name, name)
        self._wrap(fcntl, "flock", "flock")
        builtins.open = io.open = self._open  # type: ignore[assignment]
        _rebind()

    def _wrap(self, module: Any, name: str, call: str) -> None:
        real = getattr(module, name)

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            about = args[1] if name in ("replace", "rename", "link") else (args or ".")[0]
            return self.through(call, about, lambda: real(*args, **kwargs))

        _REAL[real] = wrapped
        for supports in (os.supports_dir_fd, os.supports_fd, os.supports_follow_symlinks):
            if real in supports:
                supports.add(wrapped)
        setattr(module, name, wrapped)

    def _open(self, file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        about = file if isinstance(file, int) else os.fspath(file)
        if "b" not in mode or self._name(about) is None:
            if isinstance(file, int) or kwargs.get("opener"):
                return _real_open(file, mode, *args, **kwargs)
            return self.through("open", about, lambda: _real_open(file, mode, *args, **kwargs))
        return _File.opened(self, file, mode, *args, **kwargs)


_REAL: dict[Any, Any] = {}
_real_open = io.open


def _rebind() -> None:
    """Names that modules have bound on their own, such as ``from fcntl import flock``."""
    replaced = {id(real): wrapped for real, wrapped in _REAL.items()}
    replaced[id(_real_open)] = builtins.open
    for name, module in list(sys.modules.items()):
        if name.startswith(("apex_creds", "aiofiles", "filelock")):
            for key, value in list(vars(module).items()):
                if id(value) in replaced:
                    setattr(module, key, replaced[id(value)])


class _File(io.FileIO):
    """What ``open`` makes: its raw reads and writes are calls, too."""

    calls: Calls

    @classmethod
    def opened(
        cls, calls: Calls, file: Any, mode: str, buffering: int = -1, *args: Any, **kwargs: Any
    ) -> Any:
        def make() -> _File:
            closefd, opener = kwargs.get("closefd", True), kwargs.get("opener")
            return cls(file, mode.replace("b", ""), closefd, opener)

        raw = make() if isinstance(file, int) else calls.through("open", os.fspath(file), make)
        raw.calls = calls
        if buffering == 0:
            return raw
        if "+" in mode:
            return io.BufferedRandom(raw)
        return io.BufferedReader(raw) if "r" in mode else io.BufferedWriter(raw)

    def readinto(self, data: Any) -> Any:
        done = super().readinto
        return self.calls.through("file.read", self.fileno(), lambda: done(data))

    def readall(self) -> Any:
        done = super().readall
        return self.calls.through("file.read", self.fileno(), lambda: done())

    def write(self, data: Any) -> Any:
        done = super().write
        return self.calls.through("file.write", self.fileno(), lambda: done(data))


def _forked(work: Callable[[], object]) -> Any:
    """What ``work`` returns in a process of its own; how it ended, if not well."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        signal.alarm(_SECONDS)
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                answer = json.dumps({"done": work()})
        except BaseException as error:
            answer = json.dumps({"raised": f"{type(error).__name__}: {error}"})
        data = answer.encode()
        while data:
            data = data[_raw_write(writing, data) :]
        os._exit(0)
    os.close(writing)
    with _real_open(reading, "rb") as file:
        text = file.read()
    _, status = os.waitpid(child, 0)
    return json.loads(text) if text else {"raised": f"ended with {status}"}


_raw_write = os.write


def run(world: World, line: list[str], stdin: bytes, at: Point | None) -> Any:
    """Runs a command line in a process of its own, where one call fails."""

    def work() -> dict[str, Any]:
        said, raw = io.StringIO(), io.BytesIO()
        out = io.TextIOWrapper(raw, encoding="utf-8", write_through=True)
        sys.stdin = io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8")
        calls = Calls(world.live, at)
        raised = []
        real = app._failed

        def failed(error: Exception) -> int:
            import traceback

            frames = traceback.extract_tb(error.__traceback__)
            places = [f"{Path(f.filename).name}:{f.lineno}" for f in frames]
            ours = [place for place in places if not place.startswith("failing")]
            raised.append(f"RAW {type(error).__name__} {' > '.join(ours[-4:])}")
            return real(error)

        app._failed = failed
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(out):
            calls.install()
            code = app.run(line)
        outcome = Outcome(
            code, said.getvalue() + "".join(raised), raw.getvalue().decode(), calls.points
        )
        return asdict(outcome)

    return _forked(work)


def points(found: list[Point]) -> Iterator[Point]:
    """What each call fails with; those that change a name also after they did."""
    unique = dict.fromkeys(found)
    for n, point in enumerate(unique):
        codes = _CODES.get(point.call, _CHANGES)
        code = codes[n % len(codes)]
        yield Point(point.call, point.name, point.number, code)
        if code != errno.EIO:
            yield Point(point.call, point.name, point.number, errno.EIO)
        if point.call in (*_RENAMES, "fsync"):
            yield Point(point.call, point.name, point.number, errno.EIO, after=True)


def broken(world: World, name: str, at: Point) -> Iterator[str]:
    """The promises that one failing call has broken."""
    command = COMMANDS[name]
    world.fresh()
    if command.before:
        _forked(lambda: app.run(world.line(command, command.before)))
    before = _forked(world.state)["done"]
    world_line = world.line(command)
    ended = run(world, world_line, command.stdin, at)
    if "done" not in ended:
        yield f"{ended['raised']}"
        return
    code, said = ended["done"]["code"], ended["done"]["said"]
    if code == 70 or "RAW" in said or "Traceback" in said:
        yield f"exit {code}: {said}"
    after = _forked(world.state)
    if name == "restore" and "RollbackDetectedError" in after.get("raised", ""):
        pass  # put back, and not yet said to be meant: done by the same command again
    elif "done" not in after:
        yield f"exit {code}; afterwards {after['raised']}; {said}"
    else:
        done = command.done(after["done"])
        if code == 0 and not done:
            yield f"exit 0, and not done; {said}"
        kept = [n for n, v in before["values"].items() if after["done"]["values"].get(n) != v]
        if kept and not done:
            yield f"exit {code}, values changed: {kept}"
        if "intact" in said and done and after["done"] != before and name in _ONE_COMMIT:
            yield f"said to be intact: {said}"
    again = run(world, world_line, command.stdin, None)
    if "done" not in again:
        yield f"exit {code}, then {again['raised']}"
    elif again["done"]["code"] not in command.again:
        yield f"exit {code} ({said}), again {again['done']['code']}: {again['done']['said']}"
    left = world.leftovers()
    if left:
        yield f"exit {code}; left: {left}"


def _import_everything() -> None:
    """A module that is imported later would have the real calls."""
    for found in pkgutil.walk_packages(apex_creds.__path__, "apex_creds."):
        if not re.search(r"__main__|demo|migrations", found.name):
            try:
                importlib.import_module(found.name)
            except ModuleNotFoundError:  # a hook, whose runtime is not here
                if not found.name.startswith("apex_creds.integrations."):
                    raise


def main(where: str, name: str, step: int = 1) -> None:
    _import_everything()
    world = World(Path(where))
    command = COMMANDS[name]
    if command.before:
        _forked(lambda: app.run(world.line(command, command.before)))
    dry = run(world, world.line(command), command.stdin, None)
    if "done" not in dry or dry["done"]["code"] != 0:
        print(json.dumps({"dry": dry}))
        return
    found = [Point(**each) for each in dry["done"]["points"]]
    chosen = list(points(found))[::step]
    for at in chosen:
        for wrong in broken(world, name, at):
            print(json.dumps({"at": str(at), "wrong": wrong}), flush=True)
    print(json.dumps({"runs": len(chosen)}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else 1)
