"""Summaries of sealed segments: less is read, and nobody is led astray by one."""

from __future__ import annotations

import os
import struct
import sys
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path

import pytest

from apex_creds.audit import AuditEvent, AuditLog, EventKind, line, nodes, read
from apex_creds.audit.checkpoint import LogKey
from apex_creds.audit.event_counts import EventCounts, EventLabel
from apex_creds.audit.maintenance import Cadence
from apex_creds.audit.nodes import keep_nodes
from apex_creds.audit.segment import SegmentReader, pack, read_segment, segments
from apex_creds.audit.summary import Summaries, has_summary, signed_summary
from apex_creds.audit.tree import Frontier
from apex_creds.audit.verify import entries
from apex_creds.crypto.memory import SecretBytes
from apex_creds.crypto.public_key import SigningKey
from apex_creds.model import SystemClock

VAULT = "ab" * 16
KINDS = (EventKind.LEASE, EventKind.REDEEM, EventKind.DENIAL)


def fill(directory: Path, key: LogKey | None, numbers: range) -> None:
    """Events of times that grow, but for one that is early in every hundred."""
    cadence = Cadence(events=10**9, seconds=10.0**6, segment_bytes=8192)
    log = AuditLog(directory, vault_id=VAULT, clock=SystemClock(), key=key, cadence=cadence)
    for number in numbers:
        at = 1000.0 + (number if number % 100 else 0)
        kind = KINDS[number % 3]
        reason = "not_granted" if kind is EventKind.DENIAL else ""
        log.append(AuditEvent(at, kind, reason=reason, detail=f"event {number}"))
        log._upkeep.work()
    log.close()


@pytest.fixture
def made(audit_dir: Path, log_key: LogKey) -> Path:
    fill(audit_dir, log_key, range(1, 601))
    while not all(map(has_summary, sealed(audit_dir))):  # a closing log leaves some
        fill(audit_dir, log_key, range(0))
    return audit_dir


def sealed(directory: Path) -> list[Path]:
    return list(segments(directory).values())[:-1]


def beside(segment: Path) -> Path:
    return segment.with_name(f"{segment.name[:6]}.nodes")


@pytest.fixture
def segments_read(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The segments of which more than the first line was read, in order."""
    found: list[Path] = []

    class Reader(SegmentReader):
        def __init__(self, path: Path) -> None:
            found.append(path)
            super().__init__(path)

    monkeypatch.setattr(sys.modules[entries.__module__], "SegmentReader", Reader)
    return found


def since(directory: Path, moment: float) -> list[int]:
    return [event.seq for event in read(directory, vault_id=VAULT, since=moment)]


def expected(directory: Path, moment: float) -> list[int]:
    events = list(read(directory, vault_id=VAULT))
    return [event.seq for event in events if event.time >= moment]


def counts(directory: Path, key: LogKey | None) -> dict[EventLabel, int]:
    counter = EventCounts(directory, vault_id=VAULT)
    counter.update(key=key and key.verifier)
    return {kind: number for kind, number in counter.read().items() if number}


def test_what_is_older_is_not_read(made: Path, segments_read: list[Path]) -> None:
    everything = expected(made, 1590.0)
    assert len(segments_read) > 8
    segments_read.clear()
    assert since(made, 1590.0) == everything
    assert len(segments_read) <= 2
    for moment in (0.0, 1000.0, 1000.5, 1301.0, 1600.0, 1601.0):
        assert since(made, moment) == expected(made, moment)


def test_counts_are_the_same_and_read_less(
    made: Path, log_key: LogKey, segments_read: list[Path]
) -> None:
    of_all = counts(made, None)
    assert segments_read == list(segments(made).values())
    segments_read.clear()
    assert counts(made, log_key) == of_all
    assert segments_read == [*segments(made).values()][-1:]
    assert of_all == {
        EventLabel("lease"): 200,
        EventLabel("redeem"): 200,
        EventLabel("denial", "not_granted"): 200,
    }
    counter = EventCounts(made, vault_id=VAULT)
    counter.update(key=log_key.verifier)
    assert counter.seq == 600
    fill(made, log_key, range(601, 900))
    counter.update(key=log_key.verifier)
    assert counter.seq == 899
    assert counter.read()[EventLabel("lease")] == sum(not n % 3 for n in range(1, 900))


def test_a_log_without_summaries_is_read_and_gets_them(made: Path, log_key: LogKey) -> None:
    kept = {path: path.read_bytes() for path in made.glob("*.nodes")}
    assert len(kept) == len(sealed(made))
    for path in kept:
        path.unlink()
    assert since(made, 1301.0) == expected(made, 1301.0)
    while not all(map(has_summary, sealed(made))):
        fill(made, log_key, range(0))
    assert {path: path.read_bytes() for path in made.glob("*.nodes")} == kept


def other_key() -> LogKey:
    with SecretBytes.from_bytes(bytes(reversed(range(32)))) as seed:
        return LogKey(VAULT, SigningKey.from_seed(seed))


SPOILERS: dict[str, Callable[[Path, bytes], object]] = {
    "empty": lambda path, _: path.write_bytes(b""),
    "cut": lambda path, data: path.write_bytes(data[:-1]),
    "longer": lambda path, data: path.write_bytes(data + b"\n"),
    "garbage": lambda path, data: path.write_bytes(os.urandom(len(data))),
    "another": lambda path, _: path.write_bytes(
        path.with_name(
            "000005.nodes" if path.name != "000005.nodes" else "000006.nodes"
        ).read_bytes()
    ),
    "altered": lambda path, data: path.write_bytes(data.replace(b" lease", b" lfase")),
    "earlier": lambda path, data: path.write_bytes(data.replace(b" 1", b" 0", 1)),
}


@pytest.mark.parametrize("how", SPOILERS)
def test_one_that_is_no_good_hides_nothing(made: Path, log_key: LogKey, how: str) -> None:
    moment = 1301.0
    wanted, counted = expected(made, moment), counts(made, None)
    kept = {path: path.read_bytes() for path in made.glob("*.nodes")}
    for path, data in kept.items():
        SPOILERS[how](path, data)
    assert since(made, moment) == wanted
    assert counts(made, log_key) == counted


def test_one_signed_by_another_key_or_for_another_history_hides_nothing(
    made: Path, log_key: LogKey, tmp_path: Path
) -> None:
    """Such as that of the log before a rollback, which this vault's key did sign."""
    other = tmp_path / "other"
    fill(other, log_key, range(2000, 2600))
    while not all(map(has_summary, sealed(other))):
        fill(other, log_key, range(0))
    wanted, counted = expected(made, 1301.0), counts(made, None)
    for path in sealed(made):
        if has_summary(other / path.name):
            beside(path).write_bytes(beside(other / path.name).read_bytes())
    assert since(made, 1301.0) == wanted
    assert counts(made, log_key) == counted
    stranger = other_key()
    edge = Frontier()
    edge.extend(_leaves(made))
    for path in sealed(made):
        note, content = signed_summary(path, key=stranger, size=edge.size, root=edge.root())
        assert note
        keep_nodes(path, vault_id=VAULT, note=note, content=content)
    summaries = Summaries(made, vault_id=VAULT, key=log_key.verifier)
    assert all(map(has_summary, sealed(made)))
    assert not any(summaries.of(number) for number in segments(made))
    assert since(made, 1301.0) == wanted


def _leaves(directory: Path) -> Iterator[bytes]:
    for _, text in entries(directory, vault_id=VAULT):
        yield line.leaf_of(text)


def test_no_summary_is_signed_of_a_segment_that_was_altered(
    made: Path, log_key: LogKey
) -> None:
    """Also where lines have right hashes of their own: the tree's root is another."""
    edge = Frontier()
    edge.extend(_leaves(made))
    path = sealed(made)[2]
    head, *texts, seal = read_segment(path).splitlines(keepends=True)
    first = line.number_of(texts[0])
    event = AuditEvent(5.0, EventKind.LEASE, detail="made up")
    texts[0], _ = line.link(first, line.encode(event))
    path.chmod(0o600)
    path.write_bytes(pack(b"".join((head, *texts, seal))))
    beside(path).unlink()
    found = signed_summary(path, key=log_key, size=edge.size, root=edge.root())
    assert found == (b"", None)
    fill(made, log_key, range(0))
    assert not has_summary(path)


def test_nodes_that_an_older_program_wrote_are_read(made: Path, log_key: LogKey) -> None:
    """They have no summary, and get one."""
    before = {path: beside(path).read_bytes() for path in sealed(made)}
    for path, data in before.items():
        head = read_segment(path).splitlines(keepends=True)[0]
        (length,) = struct.unpack(">H", data[37:39])
        hashes = data[39 + length :]
        beside(path).write_bytes(b"APXN\x01" + sha256(head + hashes).digest() + hashes)
    assert not any(map(has_summary, before))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nodes, "_made", None)
        kept = nodes.Subtrees(made, vault_id=VAULT)
        edge = Frontier()
        edge.extend(list(_leaves(made))[:512])
        assert kept.root(0, 512) == edge.root()
    while not all(map(has_summary, before)):
        fill(made, log_key, range(0))
    assert {path: beside(path).read_bytes() for path in before} == before


def test_without_a_key_there_are_none(audit_dir: Path) -> None:
    fill(audit_dir, None, range(1, 300))
    assert not any(map(has_summary, sealed(audit_dir)))
    assert since(audit_dir, 1200.0) == expected(audit_dir, 1200.0)
