"""Whatever is done to the log's files is found, and located."""

from __future__ import annotations

import gzip
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apex_creds.audit import AuditEvent, AuditLog, EventKind, check, line, read, verify
from apex_creds.audit.checkpoint import CheckpointFile, LogKey
from apex_creds.audit.maintenance import Cadence
from apex_creds.audit.segment import compress, pack, read_segment
from apex_creds.audit.tree import leaf_hash
from apex_creds.audit.verify import MAX_UNSIGNED_SECONDS, check_newest, in_use
from apex_creds.errors import AuditTamperedError, UnsafePathError
from apex_creds.model import SystemClock
from tests.support.loops import WITHIN

VAULT = "ab" * 16
SMALL, LARGE = 6, 70
PLAIN = "000001.jsonl"
MODULE = "apex_creds.audit.verify"  # a function of the package, too


def write_log(directory: Path, key: LogKey | None, count: int, **fields: str) -> None:
    cadence = Cadence(events=9, segment_bytes=8192)
    log = AuditLog(directory, vault_id=VAULT, clock=SystemClock(), key=key, cadence=cadence)
    for number in range(count):
        event = AuditEvent(1.0 + number, EventKind.LEASE, detail=f"event {number}", **fields)  # type: ignore[arg-type]
        log.append(event)
        log._upkeep.work()
    log.close()


@pytest.fixture(scope="module")
def place(log_key: LogKey) -> Iterator[Path]:
    """``small``: one segment and a checkpoint; ``large``: three segments, many."""
    directory = Path(tempfile.mkdtemp())
    write_log(directory / "small", log_key, SMALL)
    write_log(directory / "large", log_key, LARGE, reason="r" * 150)
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def copy(place: Path, tmp_path: Path) -> Callable[[str], Path]:
    def make(name: str) -> Path:
        shutil.copytree(place / name, tmp_path / name)
        return tmp_path / name

    return make


@pytest.fixture(scope="module")
def small(place: Path) -> Iterator[Path]:
    """A copy for tests that put everything back."""
    shutil.copytree(place / "small", place / "scratch-small")
    return place / "scratch-small"


@pytest.fixture(scope="module")
def large(place: Path) -> Iterator[Path]:
    shutil.copytree(place / "large", place / "scratch-large")
    return place / "scratch-large"


class changed:
    """For a moment, a file has other bytes."""

    def __init__(self, path: Path, data: bytes) -> None:
        self._path, self._data = path, data
        self._before = path.read_bytes()

    def __enter__(self) -> None:
        self._path.chmod(0o600)
        self._path.write_bytes(self._data)

    def __exit__(self, *_: object) -> None:
        self._path.write_bytes(self._before)


def event_at(content: bytes, offset: int) -> int:
    """The number of the event that a byte is in; the first one for the first line."""
    return max(content.count(b"\n", 0, offset), 1)


def test_an_untouched_log_verifies(place: Path) -> None:
    report = verify(place / "large", vault_id=VAULT)
    assert (report.count, report.signed, report.unsigned) == (LARGE, LARGE, 0)
    assert report.checkpoints >= LARGE // 9
    names = sorted(p.name for p in (place / "large").iterdir())
    assert names == [
        "000001.jsonl.gz",
        "000001.nodes",
        "000002.jsonl.gz",
        "000002.nodes",
        "000003.jsonl",
        "checkpoints",
        "vkeys",
    ]
    events = list(read(place / "large", vault_id=VAULT, after=2))
    assert [event.seq for event in events] == list(range(3, LARGE + 1))
    assert events[0].detail == "event 2"
    last = CheckpointFile(place / "large", vault_id=VAULT).last()
    assert last is not None
    assert (last.size, last.root.hex()) == (report.count, report.head)


def test_a_segment_that_is_compressed_while_the_log_is_read(
    copy: Callable[[str], Path],
) -> None:
    directory = copy("large")
    packed = directory / "000002.jsonl.gz"
    plain = directory / "000002.jsonl"
    plain.write_bytes(read_segment(packed))
    plain.chmod(0o600)
    packed.unlink()
    events = read(directory, vault_id=VAULT)
    assert next(events).seq == 1
    compress(plain)
    assert [event.seq for event in events] == list(range(2, LARGE + 1))


def test_sealed_segments_are_read_only_and_plain_gzip(place: Path) -> None:
    import gzip

    path = place / "large" / "000001.jsonl.gz"
    assert path.stat().st_mode & 0o777 == 0o400
    assert gzip.decompress(path.read_bytes()) == read_segment(path)


def test_every_byte_of_a_segment_and_its_checkpoint_changed_in_turn(small: Path) -> None:
    for name in (PLAIN, "checkpoints", "vkeys"):
        content = (small / name).read_bytes()
        for at in range(len(content)):
            other = bytearray(content)
            other[at] ^= (0x01, 0x20, 0x80)[at % 3]
            with changed(small / name, bytes(other)):
                report = check(small, vault_id=VAULT)
            assert not report.ok, (name, at)
            if name == PLAIN:
                assert report.bad_line == event_at(content, at)
                assert report.segment == PLAIN


@given(st.data())
def test_any_byte_of_any_file_changed(large: Path, data: st.DataObject) -> None:
    # Nodes are a cache of what is in the segments: see test_nodes.
    files = (path for path in large.iterdir() if path.suffix != ".nodes")
    path = data.draw(st.sampled_from(sorted(files)))
    content = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] ^= 1 << data.draw(st.integers(0, 7))
    with changed(path, bytes(content)):
        report = check(large, vault_id=VAULT)
    assert not report.ok
    if path.name != "vkeys":
        assert report.segment == path.name


@given(st.data())
def test_any_byte_inserted_or_removed(small: Path, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from((PLAIN, "checkpoints", "vkeys")))
    content = (small / name).read_bytes()
    at = data.draw(st.integers(0, len(content) - 1))
    more = data.draw(st.binary(max_size=1))
    with changed(small / name, content[:at] + more + content[at + (not more) :]):
        report = check(small, vault_id=VAULT)
    assert not report.ok
    if name == PLAIN:
        assert report.bad_line == event_at(content, at)


def test_lines_removed_repeated_or_moved(small: Path) -> None:
    head, *original = (small / PLAIN).read_bytes().splitlines(keepends=True)

    def bad(lines: list[bytes]) -> int:
        with changed(small / PLAIN, b"".join([head, *lines])):
            return check(small, vault_id=VAULT).bad_line

    for at in range(SMALL):
        assert bad(original[:at] + original[at + 1 :]) == at + 1
        assert bad(original[: at + 1] + original[at:]) == at + 2
        assert bad(original[:at]) == at + 1
    for one in range(SMALL):
        for other in range(one + 1, SMALL):
            swapped = list(original)
            swapped[one], swapped[other] = swapped[other], swapped[one]
            assert bad(swapped) == one + 1


def relinked(lines: list[bytes], first: int = 1) -> list[bytes]:
    """Lines with right numbers and hashes, as by someone who knows the format."""
    made = []
    for seq, each in enumerate(lines, start=first):
        body = line.entry_of(each).split(b",", 2)[2]
        made.append(line.link(seq, b"{" + body)[0])
    return made


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_forger_who_knows_the_format_is_found_and_the_place_bounded(
    copy: Callable[[str], Path], number: int
) -> None:
    directory = copy("large")
    path = directory / (f"00000{number}.jsonl" + ("" if number == 3 else ".gz"))
    head, *lines = read_segment(path).splitlines(keepends=True)
    edge = line.parse_header(head, segment=number, vault_id=VAULT)
    assert edge is not None
    seals = [lines.pop()] if number < 3 else []
    target = len(lines) // 2
    lines[target] = lines[target].replace(b'"detail":"event', b'"detail":"EVENT')
    data = b"".join([head, *relinked(lines, edge.size + 1), *seals])
    path.chmod(0o600)
    path.write_bytes(data if number == 3 else pack(data))
    report = check(directory, vault_id=VAULT)
    assert not report.ok
    assert "not what was signed" in report.how
    assert report.bad_line <= edge.size + target + 1 < report.bad_line + 30
    assert report.segment == path.name


def test_a_log_written_anew_without_some_event(
    copy: Callable[[str], Path], tmp_path: Path
) -> None:
    directory = copy("large")
    write_log(tmp_path / "forged", None, LARGE - 1, reason="r" * 150)
    for path in directory.glob("*.jsonl*"):
        path.unlink()
    for path in (tmp_path / "forged").glob("*.jsonl*"):
        path.rename(directory / path.name)
    assert not check(directory, vault_id=VAULT).ok


def test_any_prefix_is_found(copy: Callable[[str], Path]) -> None:
    directory = copy("large")
    path = directory / "000003.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    for kept in range(1, len(lines)):
        path.write_bytes(b"".join(lines[:kept]))
        report = check(directory, vault_id=VAULT)
        assert not report.ok
        assert "states 70 events" in report.how
        assert report.bad_line == LARGE - (len(lines) - kept) + 1
    path.unlink()
    assert not check(directory, vault_id=VAULT).ok
    (directory / "000002.jsonl.gz").unlink()
    assert not check(directory, vault_id=VAULT).ok


def test_a_prefix_with_its_own_checkpoints_is_found_by_whoever_kept_a_later_one(
    copy: Callable[[str], Path],
) -> None:
    directory = copy("large")
    known = CheckpointFile(directory, vault_id=VAULT).last()
    assert known is not None
    assert check(directory, vault_id=VAULT, since=known).ok
    shutil.rmtree(directory)
    log = AuditLog(directory, vault_id=VAULT, clock=SystemClock())
    log.append(AuditEvent(1.0, EventKind.PUT))
    log.close()
    report = check(directory, vault_id=VAULT, since=known)
    assert not report.ok
    assert "69 more than there are" in report.how


def test_a_removed_segment_is_named(copy: Callable[[str], Path]) -> None:
    directory = copy("large")
    (directory / "000002.jsonl.gz").rename(directory / "gone")
    with pytest.raises(AuditTamperedError, match=r"000002\.jsonl of the audit log is missing"):
        check(directory, vault_id=VAULT)


def test_segments_that_changed_places(copy: Callable[[str], Path]) -> None:
    directory = copy("large")
    (directory / "000001.jsonl.gz").rename(directory / "x")
    (directory / "000002.jsonl.gz").rename(directory / "000001.jsonl.gz")
    (directory / "x").rename(directory / "000002.jsonl.gz")
    report = check(directory, vault_id=VAULT)
    assert (report.bad_line, report.segment) == (1, "000001.jsonl.gz")


def test_a_line_added_by_someone_is_not_signed(copy: Callable[[str], Path]) -> None:
    directory = copy("small")
    made, _ = line.link(SMALL + 1, line.encode(AuditEvent(1.0, EventKind.GRANT)))
    with (directory / PLAIN).open("ab") as file:
        file.write(made)
    report = check(directory, vault_id=VAULT)
    assert (report.ok, report.unsigned) == (True, 1)
    report = check(directory, vault_id=VAULT, complete=True)
    assert report.bad_line == SMALL + 1
    assert "not signed" in report.how
    assert report.segment == PLAIN


def test_while_in_use_some_events_may_be_unsigned_but_not_all_or_many_or_old_ones(
    open_log: Callable[..., AuditLog], audit_dir: Path, log_key: LogKey,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """A process that works signs; so what nobody signs, it did not write."""
    log = open_log(key=log_key)
    log.append(AuditEvent(1000.0, EventKind.UNSEAL))
    # As an attacker leaves it, who can write events but not sign them.
    report = check(audit_dir, vault_id=VAULT, now=1000.0)
    assert (report.bad_line, report.segment) == (1, PLAIN)
    assert "there is no checkpoint" in report.how
    log.sign()
    for at in (1000.0, 1001.0):
        log.append(AuditEvent(at, EventKind.LEASE))
    assert check(audit_dir, vault_id=VAULT, now=1000.0 + MAX_UNSIGNED_SECONDS).ok
    for now in (1001.0 + MAX_UNSIGNED_SECONDS, 999.0 - MAX_UNSIGNED_SECONDS):
        report = check(audit_dir, vault_id=VAULT, now=now)
        assert (report.bad_line, report.segment) == (2, PLAIN)
        assert "seconds at the latest" in report.how
    monkeypatch.setattr(sys.modules[MODULE], "MAX_UNSIGNED", 1)
    assert "signs 1 at the latest" in check(audit_dir, vault_id=VAULT, now=1001.0).how


def test_a_log_signs_soon_when_it_is_told_to(
    open_log: Callable[..., AuditLog], audit_dir: Path, log_key: LogKey
) -> None:
    signed = threading.Event()
    log = open_log(
        key=log_key, cadence=Cadence(seconds=9999.0), on_checkpoint=lambda _: signed.set()
    )
    log.append(AuditEvent(1.0, EventKind.UNSEAL))
    log.sign_soon()
    assert signed.wait(WITHIN)
    assert check(audit_dir, vault_id=VAULT).signed == 1


def test_incremental_checks_read_only_what_is_new(
    copy: Callable[[str], Path], log_key: LogKey
) -> None:
    directory = copy("large")
    known = CheckpointFile(directory, vault_id=VAULT).last()
    assert known is not None
    log = AuditLog(directory, vault_id=VAULT, clock=SystemClock(), key=log_key)
    log.append(AuditEvent(1.0, EventKind.PUT))
    log.close()
    (directory / "000001.jsonl.gz").chmod(0o600)
    (directory / "000001.jsonl.gz").write_bytes(b"not looked at")
    report = check(directory, vault_id=VAULT, since=known)
    assert (report.ok, report.count) == (True, LARGE + 1)
    assert not check(directory, vault_id=VAULT).ok


def test_another_key_does_not_verify(place: Path) -> None:
    from apex_creds.audit.note import VerifierKey

    other = VerifierKey("apex-creds.invalid/" + VAULT, bytes(31) + b"\x02")
    report = check(place / "small", vault_id=VAULT, keys=[other])
    assert (report.ok, report.segment) == (False, "checkpoints")


def test_another_vaults_log_does_not_pass(place: Path) -> None:
    with pytest.raises(AuditTamperedError):
        verify(place / "small", vault_id="ee" * 16)


def test_a_torn_end_is_named(copy: Callable[[str], Path]) -> None:
    directory = copy("small")
    content = (directory / PLAIN).read_bytes()
    (directory / PLAIN).write_bytes(content[:-5])
    with pytest.raises(AuditTamperedError, match=f"Event {SMALL} .* torn"):
        verify(directory, vault_id=VAULT)
    with pytest.raises(AuditTamperedError, match=f"Event {SMALL} "):
        list(read(directory, vault_id=VAULT))


def test_a_huge_file_is_refused_without_being_read(tmp_path: Path) -> None:
    with (tmp_path / PLAIN).open("wb") as file:
        file.truncate(1 << 40)
    assert check(tmp_path, vault_id=VAULT).bad_line == 1


@pytest.mark.slow
def test_a_bomb_is_refused(tmp_path: Path, copy: Callable[[str], Path]) -> None:
    directory = copy("large")
    path = directory / "000001.jsonl.gz"
    path.chmod(0o600)
    path.write_bytes(pack(bytes(300 << 20)))
    assert not check(directory, vault_id=VAULT).ok


def test_segments_may_be_compressed_when_they_are_listed_already(
    copy: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the process that writes the log does, at any moment."""
    directory = copy("large")
    for packed in directory.glob("*.gz"):
        packed.with_suffix("").write_bytes(gzip.decompress(packed.read_bytes()))
        packed.unlink()
    verifying = sys.modules["apex_creds.audit.verify"]
    listed = verifying._found

    def listed_just_before(where: Path) -> dict[int, Path]:
        paths = listed(where)
        for path in list(paths.values())[:-1]:
            compress(path)
        return paths

    monkeypatch.setattr(verifying, "_found", listed_just_before)
    done = []
    report = check(directory, vault_id=VAULT, progress=lambda *at: done.append(at))
    assert (report.ok, report.count) == (True, LARGE)
    assert len(done) == 3


def test_no_log_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(AuditTamperedError, match="missing"):
        verify(tmp_path, vault_id=VAULT)


def test_whether_a_log_is_in_use(open_log: Callable[..., AuditLog], audit_dir: Path) -> None:
    log = open_log()
    assert in_use(audit_dir)
    log.close()
    assert not in_use(audit_dir)


def test_links_and_pipes_are_refused(tmp_path: Path, place: Path) -> None:
    shutil.copy(place / "small" / PLAIN, tmp_path / "real")
    (tmp_path / PLAIN).symlink_to("real")
    with pytest.raises(UnsafePathError):
        verify(tmp_path, vault_id=VAULT)
    (tmp_path / PLAIN).unlink()
    os.mkfifo(tmp_path / PLAIN)
    with pytest.raises(UnsafePathError):
        verify(tmp_path, vault_id=VAULT)


def test_the_leaf_is_that_of_the_rfc(place: Path) -> None:
    text = (place / "small" / PLAIN).read_bytes().splitlines(keepends=True)[1]
    assert line.leaf_of(text) == leaf_hash(line.entry_of(text))


def test_the_newest_segment_is_checked_alone(
    large: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Path] = []
    module, real = sys.modules[MODULE], sys.modules[MODULE].SegmentReader  # type: ignore[attr-defined]
    monkeypatch.setattr(
        module, "SegmentReader", lambda path: [opened.append(path), real(path)][1]
    )
    found = check_newest(large, vault_id=VAULT)
    assert len(opened) == 1
    assert found.start > 1
    assert found.stop - 1 == LARGE


@pytest.mark.parametrize("where", [0.1, 0.5, 0.9])
def test_a_change_in_the_newest_segment_is_found(
    copy: Callable[[str], Path], where: float
) -> None:
    directory = copy("small")
    path = directory / PLAIN
    data = bytearray(path.read_bytes())
    data[int(len(data) * where)] ^= 1
    path.write_bytes(data)
    with pytest.raises(AuditTamperedError):
        check_newest(directory, vault_id=VAULT)


def test_lines_that_are_not_as_signed_are_found(
    copy: Callable[[str], Path], place: Path, tmp_path: Path
) -> None:
    """Right by themselves: of another history of the same length."""
    directory = copy("small")
    write_log(tmp_path / "other", None, SMALL, reason="another")
    shutil.copy(tmp_path / "other" / PLAIN, directory / PLAIN)
    with pytest.raises(AuditTamperedError, match="signed"):
        check_newest(directory, vault_id=VAULT)
