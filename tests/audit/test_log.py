"""The log: in order, chained, durable, refusing; alone and beside other writers."""

from __future__ import annotations

import gc
import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from apex_creds.audit import AuditEvent, AuditLog, EventKind, read, verify
from apex_creds.audit import log as log_module
from apex_creds.audit.segment import Segment
from apex_creds.errors import (
    AuditTamperedError,
    AuditUnavailableError,
    InvalidInputError,
    UnsafePathError,
    UnsafePermissionsError,
)
from tests.support.loops import WITHIN

VAULT = "ab" * 16
Opener = Callable[..., AuditLog]
Maker = Callable[..., AuditEvent]


def details(directory: Path) -> list[str]:
    return [event.detail for event in read(directory, vault_id=VAULT)]


def wait_until_idle(log: AuditLog) -> None:
    """Waits for the background thread to have made everything durable."""
    settled = threading.Event()
    while log._dirty or not log._idle:
        settled.wait(0.005)


def test_append_returns_numbers_and_is_in_the_file_at_once(
    open_log: Opener, audit_dir: Path, make_event: Maker
) -> None:
    log = open_log()
    assert [log.append(make_event(str(i))) for i in range(3)] == [1, 2, 3]
    assert details(audit_dir) == ["0", "1", "2"]
    assert verify(audit_dir, vault_id=VAULT).head == log.head
    assert log.seq == 3


def test_files_are_private(open_log: Opener, audit_dir: Path) -> None:
    old = os.umask(0)
    try:
        open_log()
    finally:
        os.umask(old)
    assert stat.S_IMODE(audit_dir.stat().st_mode) == 0o700
    assert stat.S_IMODE((audit_dir / "000001.jsonl").stat().st_mode) == 0o600


def test_queued_events_go_out_before_the_next_in_one_write(
    open_log: Opener, audit_dir: Path, make_event: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = open_log(durable_within=60)
    assert log.append(make_event("a"), flush=False) is None
    assert log.append(make_event("b"), flush=False) is None
    assert details(audit_dir) == []
    writes: list[int] = []
    real = os.write

    def write(fd: int, data: bytes) -> int:
        writes.append(1)
        return real(fd, data)

    monkeypatch.setattr(os, "write", write)
    assert log.append(make_event("c")) == 3
    assert details(audit_dir) == ["a", "b", "c"]
    assert len(writes) == 1


def test_queued_events_go_out_by_themselves(
    open_log: Opener, audit_dir: Path, make_event: Maker
) -> None:
    log = open_log(durable_within=0.02)
    log.append(make_event("alone"), flush=False)
    wait_until_idle(log)
    assert details(audit_dir) == ["alone"]


def test_the_queue_is_bounded(
    open_log: Opener, make_event: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_module, "_QUEUE_LIMIT", 3)
    log = open_log(durable_within=60)
    assert [log.append(make_event(), flush=False) for _ in range(4)] == [None, None, None, 4]


def test_close_writes_what_is_queued_and_then_refuses(
    open_log: Opener, audit_dir: Path, make_event: Maker
) -> None:
    log = open_log(durable_within=60)
    log.append(make_event("last"), flush=False)
    log.close()
    log.close()
    assert details(audit_dir) == ["last"]
    for flush in (True, False):
        with pytest.raises(AuditUnavailableError, match="closed"):
            log.append(make_event(), flush=flush)


def test_a_log_goes_on_where_it_was(
    open_log: Opener, audit_dir: Path, make_event: Maker
) -> None:
    for i in range(4):
        log = open_log()
        assert log.append(make_event(str(i))) == i + 1
        log.close()
    assert details(audit_dir) == ["0", "1", "2", "3"]


def test_two_logs_on_one_file_keep_one_chain(
    open_log: Opener, audit_dir: Path, make_event: Maker
) -> None:
    one, two = open_log(), open_log()
    for i in range(10):
        assert one.append(make_event(f"one {i}")) == 2 * i + 1
        assert two.append(make_event(f"two {i}")) == 2 * i + 2
    assert verify(audit_dir, vault_id=VAULT).count == 20


def test_threads_share_a_log(open_log: Opener, audit_dir: Path, make_event: Maker) -> None:
    log = open_log(durable_within=0.01)
    seen: list[int | None] = []

    def work(name: int) -> None:
        seen.extend(log.append(make_event(f"{name}/{i}"), flush=i % 3 != 0) for i in range(200))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log.close()
    assert verify(audit_dir, vault_id=VAULT).count == 800
    numbers = [number for number in seen if number is not None]
    assert len(set(numbers)) == len(numbers)
    for name in range(4):
        own = [d for d in details(audit_dir) if d.startswith(f"{name}/")]
        assert len(own) == 200


def test_durable_within_zero_makes_every_append_durable(
    open_log: Opener, make_event: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = open_log(durable_within=0)
    synced: list[int] = []
    real = os.fsync

    def fsync(fd: int) -> None:
        synced.append(fd)
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    log.append(make_event(), flush=False)
    log.append(make_event())
    assert synced == [log._writer.segment.fd] * 2


def test_the_thread_makes_appends_durable(
    open_log: Opener, make_event: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = threading.Event()
    real = os.fsync

    def fsync(fd: int) -> None:
        real(fd)
        synced.set()

    monkeypatch.setattr(os, "fsync", fsync)
    log = open_log(durable_within=0.02)
    for _ in range(3):
        synced.clear()
        log.append(make_event())
        assert synced.wait(WITHIN)


def test_a_bad_event_is_refused_and_does_no_harm(
    open_log: Opener, audit_dir: Path, make_event: Maker
) -> None:
    log = open_log()
    for flush in (True, False):
        with pytest.raises(InvalidInputError):
            log.append(AuditEvent(1.0, EventKind.PUT, detail=7), flush=flush)  # type: ignore[arg-type]
    assert log.append(make_event("good")) == 1
    assert details(audit_dir) == ["good"]


# -- failures --------------------------------------------------------------------------


def failing_write(monkeypatch: pytest.MonkeyPatch, *, after: int) -> None:
    """The disk takes ``after`` bytes and then is full."""
    real = os.write
    left = [after]

    def write(fd: int, data: bytes) -> int:
        taken = min(left[0], len(data))
        left[0] -= taken
        if not taken:
            raise OSError(28, "full")
        return real(fd, data[:taken])

    monkeypatch.setattr(os, "write", write)


@pytest.mark.parametrize("after", [0, 1, 100])
def test_a_failed_write_leaves_the_file_as_it_was(
    open_log: Opener,
    audit_dir: Path,
    make_event: Maker,
    monkeypatch: pytest.MonkeyPatch,
    after: int,
) -> None:
    log = open_log(durable_within=60)
    log.append(make_event("before"))
    log.append(make_event("queued"), flush=False)
    content = (audit_dir / "000001.jsonl").read_bytes()
    with monkeypatch.context() as patch:
        failing_write(patch, after=after)
        with pytest.raises(AuditUnavailableError):
            log.append(make_event("refused"))
    assert (audit_dir / "000001.jsonl").read_bytes() == content
    assert log.append(make_event("after")) == 3
    assert details(audit_dir) == ["before", "queued", "after"]


def test_what_can_not_be_taken_back_is_set_aside_and_recorded(
    open_log: Opener, audit_dir: Path, make_event: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = open_log(durable_within=60)
    log.append(make_event("before"))

    def ftruncate(fd: int, length: int) -> None:
        raise OSError(5, "broken")

    with monkeypatch.context() as patch:
        failing_write(patch, after=30)
        patch.setattr(os, "ftruncate", ftruncate)
        with pytest.raises(AuditUnavailableError):
            log.append(make_event("refused"))
    assert log.append(make_event("after")) == 3
    (torn,) = audit_dir.glob("torn-2-*.bin")
    assert len(torn.read_bytes()) == 30
    before, recovered, after = read(audit_dir, vault_id=VAULT)
    assert recovered.kind is EventKind.RECOVERED
    assert torn.name in recovered.detail
    assert (before.detail, after.detail) == ("before", "after")


def test_a_failed_fsync_refuses_until_it_works_and_is_recorded(
    open_log: Opener, audit_dir: Path, make_event: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = open_log(durable_within=60)
    log.append(make_event("before"))

    def fsync(fd: int) -> None:
        raise OSError(5, "broken")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        with pytest.raises(AuditUnavailableError):
            log.sync()
        with pytest.raises(AuditUnavailableError):
            log.append(make_event("refused"))
    log.append(make_event("after"))
    kinds = [event.kind for event in read(audit_dir, vault_id=VAULT)]
    assert kinds == [EventKind.REDEEM, EventKind.RECOVERED, EventKind.REDEEM]


def test_the_thread_survives_anything(
    open_log: Opener, audit_dir: Path, make_event: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = open_log(durable_within=0.01)
    failed = threading.Event()

    def fsync(fd: int) -> None:
        failed.set()
        raise RuntimeError("a bug")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        log.append(make_event("before"))
        assert failed.wait(WITHIN)
        settled = threading.Event()
        while not log._writer.fault:
            settled.wait(0.005)
    log.append(make_event("after"))
    wait_until_idle(log)
    assert details(audit_dir)[0::2] == ["before", "after"]


def test_a_lock_that_is_held_refuses_in_time(
    open_log: Opener, audit_dir: Path, make_event: Maker
) -> None:
    log = open_log()
    holder = Segment(audit_dir, 1)
    holder.lock()
    try:
        with pytest.raises(AuditUnavailableError, match="locked"):
            log.append(make_event())
    finally:
        holder.close()
    log.append(make_event())


def test_a_destructor_that_appends_in_the_middle_of_an_append(
    open_log: Opener, audit_dir: Path, make_event: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = open_log(durable_within=60)
    refused: list[bool] = []

    class Abandoned:
        def __del__(self) -> None:
            log.append(make_event("from a destructor"), flush=False)
            try:
                log.append(make_event("refused"))
            except AuditUnavailableError:
                refused.append(True)

    real = os.write

    def write(fd: int, data: bytes) -> int:
        Abandoned()
        gc.collect()
        return real(fd, data)

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", write)
        log.append(make_event("one"))
    log.append(make_event("two"))
    assert details(audit_dir) == ["one", "from a destructor", "two"]
    assert refused == [True]


def test_a_forked_child_refuses(open_log: Opener, make_event: Maker, audit_dir: Path) -> None:
    log = open_log(durable_within=60)
    log.append(make_event())
    with log._lock:  # held by a thread that does not exist in the child
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                log.append(make_event())
            except AuditUnavailableError:
                log.close()
                status = 0
            finally:
                os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0
    assert log.append(make_event()) == 2


# -- attacks ---------------------------------------------------------------------------


def test_a_file_cut_under_us(open_log: Opener, audit_dir: Path, make_event: Maker) -> None:
    log = open_log(durable_within=60)
    for i in range(3):
        log.append(make_event(str(i)))
    path = audit_dir / "000001.jsonl"
    content = path.read_bytes()
    os.truncate(path, len(content) - 10)
    for _ in range(2):
        with pytest.raises(AuditTamperedError, match="cut short"):
            log.append(make_event())
    path.write_bytes(content)
    assert log.append(make_event()) == 4


def test_a_line_added_by_hand(open_log: Opener, audit_dir: Path, make_event: Maker) -> None:
    log = open_log(durable_within=60)
    log.append(make_event())
    with (audit_dir / "000001.jsonl").open("ab") as file:
        size = file.tell()
        file.write(b'{"v":1,"seq":2,"time":1.0,"kind":"grant","hash":"' + b"0" * 64 + b'"}\n')
    with pytest.raises(AuditTamperedError, match="Event 2 "):
        log.append(make_event())
    with pytest.raises(AuditTamperedError, match="Event 2 "):
        open_log()
    os.truncate(audit_dir / "000001.jsonl", size)


def test_a_removed_file_is_not_started_anew(
    open_log: Opener, audit_dir: Path, make_event: Maker
) -> None:
    log = open_log(durable_within=60)
    log.append(make_event("one"))
    path = audit_dir / "000001.jsonl"
    content = path.read_bytes()
    path.unlink()
    log._writer.segment._check_again = 0.0  # as if the last check was over a millisecond ago
    for _ in range(2):
        with pytest.raises(AuditTamperedError):
            log.append(make_event())
    assert not path.exists()
    path.touch(0o600)
    with pytest.raises(AuditTamperedError):
        log.append(make_event())
    path.write_bytes(content)
    log.append(make_event("two"))
    kinds = [event.kind for event in read(audit_dir, vault_id=VAULT)]
    assert kinds == [EventKind.REDEEM, EventKind.RECOVERED, EventKind.REDEEM]


def test_a_file_moved_away_is_noticed_by_the_thread(
    open_log: Opener, audit_dir: Path, make_event: Maker
) -> None:
    log = open_log(durable_within=0.01)
    log.append(make_event("one"))
    wait_until_idle(log)
    path = audit_dir / "000001.jsonl"
    log._writer.segment._check_again = float("inf")  # as if it was checked this millisecond
    path.rename(audit_dir / "elsewhere")
    log.append(make_event("two"))
    settled = threading.Event()
    while not log._writer.fault:
        settled.wait(0.005)
    with pytest.raises(AuditTamperedError):
        log.append(make_event())
    (audit_dir / "elsewhere").rename(path)
    log.append(make_event("three"))
    assert details(audit_dir)[0::3] == ["one", "three"]
    assert verify(audit_dir, vault_id=VAULT).count == 4


def test_another_log_in_its_place(
    open_log: Opener, audit_dir: Path, tmp_path: Path, make_event: Maker
) -> None:
    log, other = open_log(durable_within=60), open_log(tmp_path / "other")
    log.append(make_event("ours"))
    other.append(make_event("theirs"))
    path = audit_dir / "000001.jsonl"
    path.rename(tmp_path / "kept")
    (tmp_path / "other" / "000001.jsonl").rename(path)
    log._round()
    with pytest.raises(AuditTamperedError):
        log.append(make_event())
    path.rename(tmp_path / "other" / "000001.jsonl")
    (tmp_path / "kept").rename(path)


@pytest.mark.parametrize("cut", [1, 5, 100])
def test_a_torn_end_is_set_aside_at_the_next_start(
    open_log: Opener, audit_dir: Path, make_event: Maker, cut: int
) -> None:
    log = open_log()
    for i in range(3):
        log.append(make_event(str(i)))
    log.close()
    path = audit_dir / "000001.jsonl"
    content = path.read_bytes()
    path.write_bytes(content[:-cut])
    log = open_log()
    *kept, recovered = read(audit_dir, vault_id=VAULT)
    assert [event.detail for event in kept] == ["0", "1"]
    assert recovered.kind is EventKind.RECOVERED
    (torn,) = audit_dir.glob("torn-3-*.bin")
    assert stat.S_IMODE(torn.stat().st_mode) == 0o600
    assert content[:-cut].endswith(torn.read_bytes())
    assert torn.name in recovered.detail


def test_a_torn_first_event_and_a_long_torn_tail(
    open_log: Opener, audit_dir: Path, make_event: Maker
) -> None:
    open_log().close()
    path = audit_dir / "000001.jsonl"
    with path.open("ab") as file:
        file.write(b'{"v":1,"seq":1,"time"')
    open_log().close()
    with path.open("ab") as file:
        file.write(b"\0" * 300_000)
    open_log().close()
    assert verify(audit_dir, vault_id=VAULT).count == 2
    assert len(list(audit_dir.glob("torn-*.bin"))) == 2


def test_a_file_that_is_no_segment_is_not_written_to(
    open_log: Opener, audit_dir: Path, make_event: Maker
) -> None:
    audit_dir.mkdir(mode=0o700)
    path = audit_dir / "000001.jsonl"
    for content in (b"", b'{"seq":1,"time"', b"{}\n"):
        path.touch(0o600)
        path.write_bytes(content)
        with pytest.raises(AuditTamperedError, match="does not begin"):
            open_log()
        assert path.read_bytes() == content


def test_the_end_is_checked_on_opening(
    open_log: Opener, audit_dir: Path, make_event: Maker
) -> None:
    log = open_log()
    for i in range(3):
        log.append(make_event(str(i)))
    log.close()
    path = audit_dir / "000001.jsonl"
    content = path.read_bytes()
    for at in (20, len(content) - 100):
        path.write_bytes(content[:at] + b"#" + content[at + 1 :])
        with pytest.raises(AuditTamperedError):
            open_log()
    path.write_bytes(content)
    with pytest.raises(AuditTamperedError, match="another vault"):
        open_log(vault_id="ff" * 16)


def test_unsafe_places_are_refused(
    open_log: Opener, audit_dir: Path, tmp_path: Path, make_event: Maker
) -> None:
    open_log().close()
    path = audit_dir / "000001.jsonl"
    path.chmod(0o640)
    with pytest.raises(UnsafePermissionsError, match="chmod 600"):
        open_log()
    path.chmod(0o600)
    audit_dir.chmod(0o755)
    with pytest.raises(UnsafePermissionsError, match="chmod 700"):
        open_log()
    audit_dir.chmod(0o700)
    (tmp_path / "link").symlink_to(audit_dir)
    with pytest.raises(UnsafePathError):
        open_log(tmp_path / "link")
    os.link(path, tmp_path / "second")
    with pytest.raises(UnsafePathError, match="hard link"):
        open_log()
    path.unlink()
    path.symlink_to(tmp_path / "second")
    with pytest.raises(UnsafePathError):
        open_log()
    path.unlink()
    os.mkfifo(path, 0o600)
    with pytest.raises(UnsafePathError):
        open_log()
    path.unlink()
    path.symlink_to(tmp_path / "nowhere")
    with pytest.raises(UnsafePathError):
        open_log()
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give a file away")
def test_a_foreign_owner_is_refused(open_log: Opener, audit_dir: Path) -> None:
    open_log().close()
    os.chown(audit_dir / "000001.jsonl", 65534, 65534)
    with pytest.raises(UnsafePathError, match="another user"):
        open_log()
