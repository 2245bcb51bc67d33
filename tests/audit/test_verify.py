"""Whatever is done to the file is found and located, but for what a chain can't show."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apex_creds.audit import AuditEvent, AuditLog, EventKind, check, read, verify
from apex_creds.errors import AuditTamperedError, UnsafePathError
from apex_creds.model import SystemClock

VAULT = "cd" * 16
COUNT = 6


def write_log(directory: Path) -> list[bytes]:
    log = AuditLog(directory, vault_id=VAULT, clock=SystemClock())
    for number in range(COUNT):
        log.append(AuditEvent(1.0 + number, EventKind.LEASE, detail=f"event {number}"))
    log.close()
    return (directory / "000001.jsonl").read_bytes().splitlines(keepends=True)


@pytest.fixture(scope="module")
def original() -> Iterator[list[bytes]]:
    directory = Path(tempfile.mkdtemp())
    yield write_log(directory / "audit")
    shutil.rmtree(directory)


@pytest.fixture(scope="module")
def scratch() -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp())
    yield directory
    shutil.rmtree(directory)


def first_bad(directory: Path, content: bytes) -> int:
    (directory / "000001.jsonl").write_bytes(content)
    report = check(directory, vault_id=VAULT)
    assert report.ok is (report.bad_line == 0)
    assert report.count == (report.bad_line - 1 if report.bad_line else report.count)
    return report.bad_line


def test_an_untouched_log_verifies(original: list[bytes], scratch: Path) -> None:
    (scratch / "000001.jsonl").write_bytes(b"".join(original))
    report = verify(scratch, vault_id=VAULT)
    assert report.count == COUNT
    assert report.head.encode() == original[-1][-67:-3]
    events = list(read(scratch, vault_id=VAULT, after=2))
    assert [event.seq for event in events] == [3, 4, 5, 6]
    assert events[0].detail == "event 2"


def test_every_byte_changed_in_turn(original: list[bytes], scratch: Path) -> None:
    content = b"".join(original)
    for at in range(len(content)):
        line = content.count(b"\n", 0, at) + 1
        for flip in (0x01, 0x20, 0x80):
            changed = bytearray(content)
            changed[at] ^= flip
            assert first_bad(scratch, bytes(changed)) == line


@given(at=st.integers(0), byte=st.binary(min_size=1, max_size=1))
def test_any_byte_inserted(original: list[bytes], scratch: Path, at: int, byte: bytes) -> None:
    content = b"".join(original)
    at %= len(content) + 1
    bad = first_bad(scratch, content[:at] + byte + content[at:])
    assert bad == content.count(b"\n", 0, at) + 1


def test_any_byte_removed(original: list[bytes], scratch: Path) -> None:
    content = b"".join(original)
    for at in range(len(content)):
        changed = content[:at] + content[at + 1 :]
        # Of two equal neighbours either one may be seen as the missing one.
        assert first_bad(scratch, changed) == content.count(b"\n", 0, at) + 1


def test_lines_removed_repeated_or_moved(original: list[bytes], scratch: Path) -> None:
    for at in range(COUNT - 1):
        rest = original[:at] + original[at + 1 :]
        assert first_bad(scratch, b"".join(rest)) == at + 1
    for at in range(COUNT):
        twice = original[: at + 1] + original[at:]
        assert first_bad(scratch, b"".join(twice)) == at + 2
    for one in range(COUNT):
        for other in range(one + 1, COUNT):
            swapped = list(original)
            swapped[one], swapped[other] = swapped[other], swapped[one]
            assert first_bad(scratch, b"".join(swapped)) == one + 1


def test_a_line_from_another_log_does_not_pass(original: list[bytes], scratch: Path) -> None:
    (scratch / "000001.jsonl").write_bytes(b"".join(original))
    with pytest.raises(AuditTamperedError, match="Line 1 "):
        verify(scratch, vault_id="ee" * 16)


def test_lines_cut_off_at_the_end_are_not_found(original: list[bytes], scratch: Path) -> None:
    """What this first form can't show; ``Report.count`` and ``head`` kept elsewhere can."""
    assert first_bad(scratch, b"".join(original[:3])) == 0


def test_a_torn_end_is_named(original: list[bytes], scratch: Path) -> None:
    (scratch / "000001.jsonl").write_bytes(b"".join(original)[:-5])
    with pytest.raises(AuditTamperedError, match=f"Line {COUNT} .* torn"):
        verify(scratch, vault_id=VAULT)
    with pytest.raises(AuditTamperedError, match=f"Line {COUNT} "):
        list(read(scratch, vault_id=VAULT))


def test_a_huge_line_is_refused_without_being_kept(scratch: Path) -> None:
    with (scratch / "000001.jsonl").open("wb") as file:
        file.truncate(1 << 30)
    assert check(scratch, vault_id=VAULT).bad_line == 1
    (scratch / "000001.jsonl").unlink()


def test_no_log_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(AuditTamperedError, match="missing"):
        verify(tmp_path, vault_id=VAULT)


def test_links_and_pipes_are_refused(
    tmp_path: Path, original: list[bytes], open_log: Callable[..., AuditLog]
) -> None:
    (tmp_path / "real").write_bytes(b"".join(original))
    (tmp_path / "000001.jsonl").symlink_to("real")
    with pytest.raises(UnsafePathError):
        verify(tmp_path, vault_id=VAULT)
    (tmp_path / "000001.jsonl").unlink()
    os.mkfifo(tmp_path / "000001.jsonl")
    with pytest.raises(UnsafePathError):
        verify(tmp_path, vault_id=VAULT)
