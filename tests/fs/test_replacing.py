"""Files put in place whole: on disks that fail, after dead writers, beside living ones."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from apex_creds.fs import private_files
from apex_creds.fs.private_files import (
    NotDurableError,
    at_once,
    create_exclusive,
    erase,
    remove_file,
    remove_tree,
    replace_file,
    sweep,
)
from tests.support.loops import WITHIN

pytestmark = pytest.mark.skipif(os.name != "posix", reason="POSIX's calls")
ROOT = Path(__file__).parents[2]
OLD, NEW = b"old" * 100, b"new" * 100


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    replace_file(path, [OLD])
    return path


@contextlib.contextmanager
def short_writes() -> Iterator[None]:
    """The kernel takes 100 bytes of a file, and refuses the next write."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_short_write_is_an_error_and_the_old_version_stays(path: Path) -> None:
    with short_writes(), pytest.raises(OSError, match="too large") as caught:
        replace_file(path, [NEW])
    assert not isinstance(caught.value, NotDurableError)
    assert path.read_bytes() == OLD
    assert os.listdir(path.parent) == ["file"]


def test_a_short_write_makes_no_file(tmp_path: Path) -> None:
    with short_writes(), pytest.raises(OSError, match="too large"):
        create_exclusive(tmp_path / "file", [NEW])
    assert not os.listdir(tmp_path)


def test_every_byte_is_written_however_few_are_taken(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.write
    monkeypatch.setattr(private_files.os, "write", lambda fd, data: real(fd, data[:7]))
    replace_file(path, [b"a", bytearray(b"b" * 50), memoryview(b"c" * 20)])
    assert path.read_bytes() == b"a" + b"b" * 50 + b"c" * 20


def failing(call: str, monkeypatch: pytest.MonkeyPatch, *, number: int = 1) -> None:
    """Has the ``number``th call fail."""
    real: Callable[..., object] = getattr(os, call)
    calls = 0

    def fail(*args: object, **kwargs: object) -> object:
        nonlocal calls
        calls += 1
        if calls == number:
            raise OSError(errno.EIO, "injected")
        return real(*args, **kwargs)

    monkeypatch.setattr(os, call, fail)


@pytest.mark.parametrize("call", ["write", "fsync", "replace", "listdir"])
def test_what_fails_before_the_name_leaves_the_old_version(
    path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    failing(call, monkeypatch)
    with pytest.raises(OSError, match="injected") as caught:
        replace_file(path, [NEW])
    assert not isinstance(caught.value, NotDurableError)
    monkeypatch.undo()
    assert path.read_bytes() == OLD
    assert os.listdir(path.parent) == ["file"]


@pytest.mark.parametrize("write", [replace_file, create_exclusive])
def test_what_fails_after_the_name_says_that_it_is_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[..., None]
) -> None:
    path = tmp_path / "file"
    failing("fsync", monkeypatch, number=2)  # the first is the file's own
    with pytest.raises(NotDurableError):
        write(path, [NEW])
    assert path.read_bytes() == NEW
    assert os.listdir(tmp_path) == ["file"]
    failing("fsync", monkeypatch)
    with pytest.raises(NotDurableError):
        remove_file(path)
    assert not path.exists()


@pytest.mark.parametrize("links", [True, False])
def test_nothing_that_is_there_is_overwritten(
    path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    if not links:
        failing("link", monkeypatch)
    with pytest.raises(FileExistsError):
        create_exclusive(path, [NEW])
    assert path.read_bytes() == OLD
    if not links:
        monkeypatch.undo()
        failing("link", monkeypatch)
    create_exclusive(path.with_name("other"), [NEW])
    assert path.with_name("other").read_bytes() == NEW
    assert sorted(os.listdir(path.parent)) == ["file", "other"]


@pytest.mark.parametrize("umask", [0, 0o777])
def test_it_is_private_and_readable_under_any_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        private_files.make_directories(tmp_path / "a/b")
        replace_file(tmp_path / "a/b/file", [NEW])
        create_exclusive(tmp_path / "a/b/other", [NEW])
        private_files.touch(tmp_path / "a/b/lock")
    finally:
        os.umask(before)
    modes = {p.name: p.stat().st_mode & 0o777 for p in tmp_path.rglob("*")}
    assert modes == {"a": 0o700, "b": 0o700, "file": 0o600, "other": 0o600, "lock": 0o600}


# -- what killed writers leave -------------------------------------------------------------

KILLED = """
import os, signal, sys
from functools import partial
from pathlib import Path
from apex_creds.fs import private_files
def die(*_): os.kill(os.getpid(), signal.SIGKILL)
private_files.os.replace = private_files.os.link = die
private_files.replace_file(Path(sys.argv[1]), [b"canary"])
"""
WAITING = """
import os, sys
from functools import partial
from pathlib import Path
from apex_creds.fs import private_files
real = os.replace
def wait(*args):
    print("ready", flush=True)
    sys.stdin.readline()
    real(*args)
private_files.os.replace = wait
private_files.replace_file(Path(sys.argv[1]), [b"from another process"])
"""


def leftovers(path: Path) -> list[str]:
    return [name for name in os.listdir(path.parent) if name != path.name]


def killed(path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(path)], cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL


@pytest.mark.parametrize("clean", [sweep, lambda path: replace_file(path, [OLD])])
def test_what_a_killed_writer_left_goes(path: Path, clean: Callable[[Path], None]) -> None:
    killed(path)
    killed(path)  # the second removes what the first left
    assert len(leftovers(path)) == 1
    left = os.open(path.with_name(leftovers(path)[0]), os.O_RDONLY)
    clean(path)
    assert not leftovers(path)
    assert os.pread(left, 100, 0) == bytes(len(b"canary")), "it was not overwritten"
    os.close(left)
    assert path.read_bytes() == OLD


def test_a_writer_that_lives_is_not_disturbed(path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", WAITING, str(path)], cwd=ROOT, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as other:  # fmt: skip
        assert other.stdout is not None
        assert other.stdout.readline() == "ready\n"
        replace_file(path, [NEW])
        sweep(path)
        assert path.read_bytes() == NEW
        other.communicate("go\n")
        assert other.returncode == 0
    assert path.read_bytes() == b"from another process"
    assert not leftovers(path)


def test_a_writer_whose_file_is_taken_for_a_dead_ones_makes_another(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the making and the locking of its file somebody sweeps."""
    real, swept = private_files.create_file, []

    def create(temporary: Path) -> int:
        fd = real(temporary)
        if not swept:
            swept.append(temporary)
            sweep(path)
        return fd

    monkeypatch.setattr(private_files, "create_file", create)
    replace_file(path, [NEW])
    assert path.read_bytes() == NEW
    assert not leftovers(path)


def test_others_files_are_no_leftovers(path: Path) -> None:
    names = [".file.0123456789abcdef.tmp.", ".file.0123.tmp", "file.0123456789abcdef.tmp",
             ".other.0123456789abcdef.tmp"]  # fmt: skip
    for name in names:
        path.with_name(name).write_text("mine")
    sweep(path)
    assert sorted(leftovers(path)) == sorted(names)


def test_a_link_in_place_of_a_leftover_is_removed_and_not_followed(path: Path) -> None:
    left = path.with_name(".file.0123456789abcdef.tmp")
    left.symlink_to(path)
    sweep(path)
    assert not os.path.lexists(left)
    assert path.read_bytes() == OLD


def test_a_second_name_is_not_overwritten(path: Path) -> None:
    """A writer that was killed between the link and the unlink: both are one file."""
    left = path.with_name(".file.0123456789abcdef.tmp")
    os.link(path, left)
    sweep(path)
    assert not left.exists()
    assert path.read_bytes() == OLD
    os.link(path, left)
    erase(left)
    assert path.read_bytes() == OLD


class TestRemoveTree:
    @pytest.mark.parametrize("call", ["open", "fstat", "scandir", "unlink", "rmdir"])
    def test_one_call_that_fails_leaves_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
    ) -> None:
        tree = tmp_path / "copy"
        (tree / "security").mkdir(parents=True)
        (tree / "security/keystore.enc").write_bytes(NEW)
        real, failed = getattr(os, call), []

        def once(*args: object, **kwargs: object) -> object:
            if not failed:
                failed.append(call)
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return real(*args, **kwargs)

        monkeypatch.setattr(os, call, once)
        remove_tree(tree)
        assert failed
        assert not tree.exists()

    def test_what_stays_is_said(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        tree = tmp_path / "copy"
        tree.mkdir()

        def refused(*_: object, **__: object) -> None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        monkeypatch.setattr(os, "rmdir", refused)
        remove_tree(tree)
        assert str(tree) in caplog.text


def test_flushes_are_waited_for_at_the_same_time() -> None:
    met = threading.Barrier(3, timeout=WITHIN)
    at_once([met.wait, met.wait, met.wait])  # one after another, the first would wait in vain


def test_every_flush_is_done_also_beside_one_that_fails() -> None:
    done: list[int] = []

    def fails() -> None:
        raise OSError(errno.EIO, "injected")

    flushes = [partial(done.append, n) for n in range(40)]
    with pytest.raises(OSError, match="injected"):
        at_once([*flushes[:20], fails, *flushes[20:]])
    assert sorted(done) == list(range(40))
    at_once([])


def test_without_threads_flushes_are_done_one_after_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refused(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    done: list[int] = []
    monkeypatch.setattr(threading.Thread, "start", refused)
    at_once([partial(done.append, n) for n in range(3)])
    assert sorted(done) == [0, 1, 2]
