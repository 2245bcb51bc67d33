"""The shared counter: a write is seen by the very next read, whatever becomes of writers."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apex_creds.errors import StorageError, UnsafePathError, UnsafePermissionsError
from apex_creds.storage import FileStorage, change_counter
from apex_creds.storage import file_storage as file_module
from apex_creds.storage.base import Write
from apex_creds.storage.change_counter import COUNTER_NAME

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(os.name != "posix", reason="the counter is POSIX's"),
]
REPOSITORY = Path(__file__).parents[2]

WRITER = """
import sys, anyio
from pathlib import Path
from apex_creds.storage import FileStorage
async def main():
    storage = FileStorage(Path(sys.argv[1]))
    stored = await storage.read("keystore")
    token = None if stored is None else stored.token
    for line in sys.stdin:
        token = (await storage.write("keystore", line.strip().encode(), expected=token)).token
        print(line.strip(), flush=True)
    await storage.close()
anyio.run(main)
"""


def start_writer(root: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", WRITER, str(root)],
        cwd=REPOSITORY, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip


def ask(writer: subprocess.Popen[str], text: str) -> None:
    """Has the other process write; returns when that was acknowledged."""
    writer.stdin.write(text + "\n")
    writer.stdin.flush()
    assert writer.stdout.readline().strip() == text


def stop(writer: subprocess.Popen[str]) -> None:
    writer.stdin.close()
    assert writer.wait(60) == 0
    writer.stdout.close()


@pytest.fixture
async def storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FileStorage:
    """A storage with one document, whose reader never looks again because of the time."""
    monkeypatch.setattr(file_module, "_LOOK_EVERY", 1e9)
    made = FileStorage(tmp_path / "home")
    await made.prepare()
    await made.write("keystore", b"first", expected=None)
    yield made
    await made.close()


async def content(storage: FileStorage) -> bytes:
    stored = await storage.read("keystore")
    return stored.data


@pytest.mark.slow
async def test_the_next_read_sees_another_processs_write(storage: FileStorage) -> None:
    """Thousands of times, with nothing but the counter to tell."""
    writer = start_writer(storage.root)
    tokens = {storage.change_token("keystore")}
    assert storage._counter.standing() is not None
    for n in range(2000):
        ask(writer, f"write {n}")
        token = storage.change_token("keystore")
        assert token not in tokens, f"write {n} was not seen"
        assert storage.change_token("keystore") == token
        tokens.add(token)
    assert await content(storage) == b"write 1999"
    stop(writer)


async def test_two_processes_that_write_in_turns(storage: FileStorage) -> None:
    writers = [start_writer(storage.root)]
    ask(writers[0], "from one")
    writers.append(start_writer(storage.root))
    ask(writers[1], "from two")
    assert await content(storage) == b"from two"
    stored = await storage.read("keystore")
    await storage.write("keystore", b"mine", expected=stored.token)
    for writer in writers:
        writer.kill()
        writer.wait()
        writer.stdin.close()
        writer.stdout.close()
    before = storage.change_token("keystore")
    third = start_writer(storage.root)
    ask(third, "from three")
    assert storage.change_token("keystore") != before
    stop(third)


async def test_a_look_costs_nothing_while_nobody_writes(
    storage: FileStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = storage.change_token("keystore")

    def fail(*args, **kwargs):
        raise AssertionError("it looked")

    with monkeypatch.context() as patch:
        patch.setattr(file_module.os, "lstat", fail)
        for _ in range(100):
            assert storage.change_token("keystore") == token


async def test_a_look_is_one_system_call(
    storage: FileStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.change_token("keystore")
    monkeypatch.setattr(file_module, "_monotonic", lambda: 0.0)  # never time to look at files
    calls: list[object] = []
    real = os.pread
    monkeypatch.setattr(os, "pread", lambda *args: calls.append(args) or real(*args))
    for _ in range(100):
        storage.change_token("keystore")
    assert len(calls) == 100


async def test_what_this_storage_writes_leaves_what_it_saw_of_other_documents(
    storage: FileStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So a set of documents is looked at by one system call after each write of one of them."""
    names = [f"section_{number:02x}" for number in range(64)]
    for name in names:
        await storage.write(name, b"first", expected=None)
    before = storage.change_tokens(names)
    looked: list[object] = []
    real = os.lstat
    with monkeypatch.context() as patch:  # pytest removes folders with it
        patch.setattr(os, "lstat", lambda *args: looked.append(args) or real(*args))
        for _ in range(3):
            made = await storage.write(
                names[7], b"next", expected=storage.change_token(names[7])
            )
            assert storage.change_tokens(names) == [*before[:7], made.token, *before[8:]]
        pairs = [Write(name, b"both", storage.change_token(name)) for name in names[:2]]
        both = await storage.write_many(pairs)
        assert storage.change_tokens(names[:3]) == [both[0].token, both[1].token, before[2]]
    assert len([args for args in looked if names[3] in str(args)]) == 0


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3), st.booleans()), max_size=25))
async def test_writers_in_any_order_are_each_seen_by_the_others(
    steps: list[tuple[int, int, bool]],
) -> None:
    """Each step: who writes which of the documents, and whether somebody looks before."""
    with (
        tempfile.TemporaryDirectory() as home,
        pytest.MonkeyPatch.context() as patch,
        contextlib.ExitStack() as stack,
    ):
        patch.setattr(file_module, "_LOOK_EVERY", 1e9)
        storages = [FileStorage(Path(home)) for _ in range(3)]
        for each in storages:
            await each.prepare()
            stack.callback(each._pins.close)
            stack.callback(each._counter.detach)
        names = [f"section_{number:02x}" for number in range(4)]
        for who, which, looks in steps:
            writer, name = storages[who], names[which]
            await writer.write(name, b"next", expected=writer.change_token(name))
            truth = [file_module._token_at(writer._place(each)) for each in names]
            for each in storages if looks else []:
                assert each.change_tokens(names) == truth
        truth = [file_module._token_at(storages[0]._place(each)) for each in names]
        assert all(each.change_tokens(names) == truth for each in storages)


async def test_another_process_cuts_the_counter_while_it_is_read(storage: FileStorage) -> None:
    """As no memory map would survive: whoever touches one beyond the file's end is killed."""
    path = storage.root / "security" / COUNTER_NAME
    code = (
        "import os, sys\n"
        "for n in range(20000):\n"
        "    os.truncate(sys.argv[1], 0 if n % 2 else 8)\n"
    )
    found = set()
    with subprocess.Popen([sys.executable, "-c", code, str(path)]) as cutting:
        while cutting.poll() is None:
            found.add(storage._counter.standing())
            assert storage.change_token("keystore") is not None
    assert cutting.returncode == 0
    assert found
    await storage.write("other", b"new", expected=None)
    assert (await storage.read("other")).data == b"new"


async def test_a_writer_that_dies_while_it_replaces(storage: FileStorage) -> None:
    """The counter stays odd, so readers look at the files, until the next write."""
    code = WRITER.replace(
        "async def main():",
        "import os, signal\n"
        "from apex_creds.fs.private_files import Folder\n"
        "real = Folder.replace\n"
        "def replace(self, *args):\n"
        "    real(self, *args)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "Folder.replace = replace\n"
        "async def main():",
    )
    before = storage.change_token("keystore")
    writer = subprocess.run(
        [sys.executable, "-c", code, str(storage.root)],
        cwd=REPOSITORY, input="killed\n", text=True, capture_output=True,
    )  # fmt: skip
    assert writer.returncode == -signal.SIGKILL
    assert storage._counter.standing() is None
    token = storage.change_token("keystore")
    assert token != before
    assert await content(storage) == b"killed"
    assert storage._seen["keystore"].counted != token

    after = start_writer(storage.root)
    for n in range(50):
        ask(after, f"again {n}")
        assert storage._counter.standing() is not None
        assert storage.change_token("keystore") != token
        token = storage.change_token("keystore")
    stop(after)


async def test_an_odd_counter_is_never_believed(storage: FileStorage) -> None:
    counter = storage._counter
    begun = counter.standing()
    with counter.moving():
        assert counter.standing() is None
        with counter.moving():  # as after a writer that died
            assert counter.standing() is None
        assert counter.standing() > begun
    assert counter.standing() > begun
    with pytest.raises(RuntimeError), counter.moving():
        raise RuntimeError
    assert counter.standing() > begun


@pytest.mark.parametrize("how", ["deleted", "replaced"])
async def test_a_counter_that_is_taken_away(
    storage: FileStorage, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Then it is the time that makes readers look: within a tenth of a second."""
    counter = storage.root / "security" / COUNTER_NAME
    token = storage.change_token("keystore")
    counter.unlink()
    if how == "replaced":
        counter.write_bytes(bytes(8))
        counter.chmod(0o600)
    writer = start_writer(storage.root)
    ask(writer, "second")
    later = file_module.time.monotonic() + 1e10
    with monkeypatch.context() as patch:
        patch.setattr(file_module, "_monotonic", lambda: later)
        assert storage.change_token("keystore") != token, "it looks at the file"
        # From here on the counter is the new one, and tells at once.
        for n in range(200):
            ask(writer, f"third {n}")
            assert await content(storage) == f"third {n}".encode()
            token = storage.change_token("keystore")
            ask(writer, f"fourth {n}")
            assert storage.change_token("keystore") != token
    stop(writer)


@pytest.mark.parametrize("content_", [bytes(8), b"v1 " + b"A" * 44, bytes(7), bytes(9)])
@pytest.mark.parametrize("linked", [False, True])
async def test_a_file_that_is_not_the_counter_is_never_written_into(
    storage: FileStorage, tmp_path: Path, content_: bytes, linked: bool
) -> None:
    """A hard link to the master key, say: writers go on, without a counter."""
    counter, other = storage.root / "security" / COUNTER_NAME, tmp_path / "other"
    other.write_bytes(content_)
    other.chmod(0o600)
    counter.unlink()
    if linked:
        os.link(other, counter)
    else:
        shutil.copy(other, counter)
    fresh = FileStorage(storage.root)
    for n in range(3):
        stored = await fresh.read("keystore")
        await fresh.write("keystore", b"%d" % n, expected=stored.token)
        assert await content(fresh) == b"%d" % n
    usable = content_ == bytes(8) and not linked
    assert (fresh._counter.standing() is not None) is usable
    assert usable or counter.read_bytes() == content_
    assert other.read_bytes() == content_
    await fresh.close()


async def test_a_link_that_is_made_later(storage: FileStorage, tmp_path: Path) -> None:
    """Whoever had it mapped lets go of it at the next write."""
    counter = storage.root / "security" / COUNTER_NAME
    os.link(counter, tmp_path / "other")
    before = counter.read_bytes()
    stored = await storage.read("keystore")
    await storage.write("keystore", b"second", expected=stored.token)
    assert storage._counter.standing() is None
    assert counter.read_bytes() == before
    assert await content(storage) == b"second"


async def test_no_counter_at_all(storage: FileStorage) -> None:
    """A reader of a home that no cooperating writer has touched looks each time."""
    (storage.root / "security" / COUNTER_NAME).unlink()
    reader = FileStorage(storage.root)
    token = reader.change_token("keystore")
    assert reader._counter.standing() is None
    stored = await storage.read("keystore")
    await storage.write("keystore", b"second", expected=stored.token)
    assert reader.change_token("keystore") != token
    await reader.close()


@pytest.mark.parametrize(
    ("spoil", "error"),
    [
        (lambda path: path.chmod(0o644), UnsafePermissionsError),
        (lambda path: (path.unlink(), path.symlink_to("/etc/hostname")), UnsafePathError),
        (lambda path: (path.unlink(), path.mkdir()), UnsafePathError),
    ],
    ids=["open to others", "link", "folder"],
)
async def test_a_counter_that_is_not_ours(storage: FileStorage, spoil, error) -> None:
    """It is not used, and what is read is right without it; a writer says what is wrong."""
    spoil(storage.root / "security" / COUNTER_NAME)
    reader = FileStorage(storage.root)
    reader.change_token("keystore")
    assert reader._counter.standing() is None
    assert await content(reader) == b"first"
    stored = await reader.read("keystore")
    with pytest.raises(error):
        await reader.write("keystore", b"second", expected=stored.token)
    assert await content(reader) == b"first"
    await reader.close()


@pytest.mark.parametrize("spoil", ["cut", "copied over", "longer", "zeros"])
async def test_a_counter_that_others_cut_or_copy_over(storage: FileStorage, spoil: str) -> None:
    """In place, while it is in use (``rsync --inplace``): no change is missed, nothing dies."""
    counter = storage.root / "security" / COUNTER_NAME
    earlier = counter.read_bytes()
    writer = start_writer(storage.root)
    for n in range(20):
        ask(writer, f"before {n}")
        storage.change_token("keystore")
    spoiled = {"cut": b"", "copied over": earlier, "longer": earlier * 2, "zeros": bytes(8)}
    fd = os.open(counter, os.O_WRONLY | os.O_TRUNC)
    os.write(fd, spoiled[spoil])
    os.close(fd)
    seen = set()
    for n in range(20):
        ask(writer, f"after {n}")
        assert await content(storage) == f"after {n}".encode()
        seen.add(storage.change_token("keystore"))
    assert len(seen) == 20
    stored = await storage.read("keystore")
    await storage.write("keystore", b"mine", expected=stored.token)
    assert await content(storage) == b"mine"
    stop(writer)


async def test_a_disk_that_does_not_take_the_counter(
    storage: FileStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first mark fails: nothing is replaced. The second: readers look for themselves."""
    real, calls = os.pwrite, []
    stored = await storage.read("keystore")

    def fail(fd: int, data: bytes, at: int) -> int:
        calls.append(data)
        if len(calls) in (1, 3):
            raise OSError(errno.EIO, "injected")
        return real(fd, data, at)

    with monkeypatch.context() as patch:
        patch.setattr(change_counter.os, "pwrite", fail)
        with pytest.raises(StorageError):
            await storage.write("keystore", b"second", expected=stored.token)
        assert await content(storage) == b"first"
        written = await storage.write("keystore", b"second", expected=stored.token)
    assert storage._counter.standing() is None
    assert await content(storage) == b"second"
    await storage.write("keystore", b"third", expected=written.token)
    assert storage._counter.standing() is not None


async def test_a_reader_that_lets_go_while_a_writer_marks(storage: FileStorage) -> None:
    """The writer's marks go to the file that it opened, not to a descriptor used again."""
    counter = storage.root / "security" / COUNTER_NAME
    begun = int.from_bytes(counter.read_bytes(), sys.byteorder)
    with storage._counter.moving():
        storage._counter.detach()
        other = os.open(storage.root / "other", os.O_RDWR | os.O_CREAT, 0o600)
    assert os.fstat(other).st_size == 0
    os.close(other)
    assert int.from_bytes(counter.read_bytes(), sys.byteorder) == begun + 2


async def test_a_counter_whose_maker_died(storage: FileStorage) -> None:
    counter = storage.root / "security" / COUNTER_NAME
    counter.unlink()
    counter.touch(0o600)
    reader = FileStorage(storage.root)
    reader.change_token("keystore")
    assert reader._counter.standing() is None
    stored = await reader.read("keystore")
    await reader.write("keystore", b"second", expected=stored.token)
    assert counter.stat().st_size == 8
    assert reader._counter.standing() is not None
    await reader.close()
