"""The log as it grows: from all processes, over segments, checked line by line."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from apex_creds.audit.events import AuditEvent, EventKind
from apex_creds.audit.log import AuditLog
from apex_creds.audit.maintenance import Cadence
from apex_creds.audit.segment import edge_before, segments
from apex_creds.dashboard.event_words import Filter, with_words
from apex_creds.dashboard.lease_view import Names, names_of
from apex_creds.dashboard.live_feed import LiveFeed, LogTail
from apex_creds.dashboard.log_search import Earlier, earlier
from apex_creds.dashboard.watcher import Watcher
from apex_creds.errors import AuditTamperedError
from apex_creds.model import SystemClock
from apex_creds.vault import Vault
from tests.dashboard.town import town_in

VAULT = "ab" * 16


def log_in(directory: Path, **options: object) -> AuditLog:
    return AuditLog(directory, vault_id=VAULT, clock=SystemClock(), **options)  # type: ignore[arg-type]


def write(log: AuditLog, count: int) -> None:
    for n in range(count):
        log.append(AuditEvent(1.0, EventKind.PUT, credential=f"name-{n}", detail="x" * 100))


def fill_segment(log: AuditLog, directory: Path) -> None:
    """Writes more than a segment takes, and waits until the log's thread has sealed it."""
    before, until = len(segments(directory)), time.monotonic() + 480
    write(log, 40)
    while len(segments(directory)) == before:
        assert time.monotonic() < until
        time.sleep(0.005)


def numbers(tail: LogTail) -> list[int]:
    return [event.seq for event in tail.poll().events]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "audit"


def test_each_event_comes_once_in_order(directory: Path) -> None:
    log = log_in(directory)
    tail = LogTail(directory, vault_id=VAULT)
    write(log, 3)
    assert numbers(tail) == [1, 2, 3]
    assert numbers(tail) == []
    write(log, 2)
    assert numbers(tail) == [4, 5]
    log.close()


def test_two_writers_are_one_log(directory: Path) -> None:
    one, other = log_in(directory), log_in(directory)
    tail = LogTail(directory, vault_id=VAULT)
    write(one, 2)
    write(other, 2)
    write(one, 1)
    assert numbers(tail) == [1, 2, 3, 4, 5]
    one.close()
    other.close()


def test_it_goes_on_over_segments_compressed_or_not(directory: Path) -> None:
    log = log_in(directory, cadence=Cadence(segment_bytes=8192))
    tail = LogTail(directory, vault_id=VAULT)
    seen: list[int] = []
    for _ in range(6):
        fill_segment(log, directory)
        seen += numbers(tail)
    log.close()
    seen += numbers(tail)
    assert len(list(directory.glob("*.jsonl.gz"))) >= 3
    assert seen == list(range(1, 241))


def test_only_the_newest_segments_are_read_at_first(directory: Path) -> None:
    log = log_in(directory, cadence=Cadence(segment_bytes=8192))
    for _ in range(4):
        fill_segment(log, directory)
    log.close()
    batch = LogTail(directory, vault_id=VAULT, newest=2).poll()
    assert batch.first > 1
    assert batch.events[0].seq == batch.first


def test_a_line_that_was_altered_is_told_and_the_rest_goes_on(directory: Path) -> None:
    log = log_in(directory)
    write(log, 4)
    log.close()
    path = directory / "000001.jsonl"
    path.write_bytes(path.read_bytes().replace(b"name-1", b"name-X"))
    batch = LogTail(directory, vault_id=VAULT).poll()
    assert [event.seq for event in batch.events] == [1, 3, 4]
    assert [fault.seq for fault in batch.faults] == [2]
    assert batch.faults[0].how


def test_a_line_that_was_removed_is_told(directory: Path) -> None:
    log = log_in(directory)
    write(log, 4)
    log.close()
    path = directory / "000001.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:2] + lines[3:]))
    batch = LogTail(directory, vault_id=VAULT).poll()
    assert [event.seq for event in batch.events] == [1, 3, 4]
    assert [fault.seq for fault in batch.faults] == [2]


def test_a_log_that_is_cut_under_it_is_an_error(directory: Path) -> None:
    log = log_in(directory)
    write(log, 4)
    log.close()
    tail = LogTail(directory, vault_id=VAULT)
    assert len(numbers(tail)) == 4
    path = directory / "000001.jsonl"
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(AuditTamperedError):
        tail.poll()


def test_another_vault_s_log_is_an_error(directory: Path) -> None:
    log = log_in(directory)
    write(log, 1)
    log.close()
    tail = LogTail(directory, vault_id="cd" * 16)
    for _ in range(2):
        with pytest.raises(AuditTamperedError):
            tail.poll()


def search(directory: Path, before: int, text: str = "") -> Earlier:
    wanted = Filter.parse(text, "")
    return earlier(
        directory,
        vault_id=VAULT,
        before=before,
        shown=lambda event: with_words(Names().event(event)),
        fault=Watcher.fault,
        wanted=wanted.matches if wanted else None,
    )


@pytest.mark.parametrize(
    ("change", "lost"),
    [
        (lambda line: line.replace(b"name-3", b"name-X"), [4]),
        (lambda line: b"", [4]),
        (lambda line: b"what is this\n", [4]),
        (lambda line: line[:40] + b"\n", [4]),
    ],
)
def test_an_altered_line_does_not_end_a_search(directory: Path, change, lost) -> None:
    log = log_in(directory)
    write(log, 9)
    log.close()
    path = directory / "000001.jsonl"
    whole = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*whole[:4], change(whole[4]), *whole[5:]]))
    for text in ("", "name-"):
        found = search(directory, 10, text)
        assert (found.reached, found.faults) == (1, 1)
        events = [e["seq"] for e in found.events if "fault" not in e]
        assert events == [n for n in range(1, 10) if n not in lost]
    assert [e["seq"] for e in search(directory, 10, "not what was written").events] == lost


def test_a_segment_that_is_no_more_what_was_compressed_does_not_end_a_search(
    directory: Path,
) -> None:
    log = log_in(directory, cadence=Cadence(segment_bytes=8192))
    for _ in range(4):
        fill_segment(log, directory)
    log.close()
    packed = directory / "000002.jsonl.gz"
    # Where a segment ends is the log's thread's to say.
    begins, ends = (
        edge_before(segments(directory), n, vault_id=VAULT, known={}).size for n in (2, 3)
    )
    damaged = bytearray(packed.read_bytes())
    damaged[len(damaged) // 2] ^= 0xFF
    packed.write_bytes(damaged)
    found = search(directory, 1000, "name-")
    assert found.faults == 1
    seen = {e["seq"] for e in found.events}
    assert seen == {n for n in range(1, 161) if not begins < n <= ends}


def test_half_a_line_waits_for_its_end(directory: Path) -> None:
    log = log_in(directory)
    write(log, 2)
    log.close()
    path = directory / "000001.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    tail = LogTail(directory, vault_id=VAULT)
    assert numbers(tail) == [1]
    path.write_bytes(whole)
    assert numbers(tail) == [2]


@pytest.mark.anyio
async def test_in_a_lockdown_what_is_shown_is_read_before_the_keys_are_wiped(
    tmp_path: Path,
) -> None:
    async with town_in(tmp_path, many=1) as town:
        await town.vault.lockdown(reason="laptop stolen", keep_grants=True)
    async with await Vault.unseal(tmp_path / "home") as vault:
        feed = LiveFeed()
        watcher = Watcher(vault, feed, names=await names_of(vault, named=False))
        await watcher.begin()
        assert vault.store.sealed, "it is sealed before anything is served"
        await watcher.read_vault()
        assert json.loads(feed.latest("lockdown"))["sealed"] is True
        assert watcher.window("keys", {}).of > 3
        cells = watcher.window("permissions", {}).cells
        assert sorted(cell.grant for cell in cells if cell.grant) == [
            "allow",
            "allow",
            "deny",
            "over",
        ]
