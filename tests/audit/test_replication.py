"""A log's files go into pieces, whole and once, and come out of them as they were."""

from __future__ import annotations

import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from apex_creds.audit import AuditEvent, AuditLog, EventKind, check, replication
from apex_creds.audit.checkpoint import CHECKPOINTS, LogKey
from apex_creds.audit.maintenance import Cadence
from apex_creds.audit.replication import Piece, Source, restore
from apex_creds.audit.segment import read_segment, segments
from apex_creds.errors import AuditTamperedError, IntegrityError
from apex_creds.model import SystemClock

VAULT = "ab" * 16


@pytest.fixture(scope="module")
def made(log_key: LogKey) -> Iterator[tuple[Path, list[Piece]]]:
    """A log of several segments, compressed ones too, and the pieces of it as it grew."""
    place = Path(tempfile.mkdtemp())
    directory = place / "audit"
    cadence = Cadence(events=9, segment_bytes=8192)
    log = AuditLog(directory, vault_id=VAULT, clock=SystemClock(), key=log_key, cadence=cadence)
    source, sent, choose = Source(directory), list[Piece](), random.Random(1)
    for number in range(120):
        log.append(AuditEvent(1.0, EventKind.PUT, detail=f"{number} " + "x" * 150))
        log._upkeep.work()
        if choose.random() < 0.2:
            sent += _taken(source)
    log.close()
    sent += _taken(source)
    yield directory, sent
    shutil.rmtree(place)


def _taken(source: Source) -> list[Piece]:
    pieces = list(source.pieces())
    for piece in pieces:
        source.sent(piece)
    return pieces


def _same(directory: Path, copy: Path) -> bool:
    names = segments(directory)
    assert segments(copy).keys() == names.keys()
    whole = all(read_segment(segments(copy)[n]) == read_segment(names[n]) for n in names)
    return whole and (copy / CHECKPOINTS).read_bytes() == (directory / CHECKPOINTS).read_bytes()


def _target(where: Path) -> Path:
    target = where / "copy"
    target.mkdir(mode=0o700)
    return target


def test_what_was_sent_while_it_grew_is_all_of_it(
    made: tuple[Path, list[Piece]], tmp_path: Path, log_key: LogKey
) -> None:
    directory, sent = made
    assert len(segments(directory)) > 2
    target = _target(tmp_path)
    restore(sent, target)
    assert _same(directory, target)
    report = check(target, vault_id=VAULT, keys=(log_key.verifier,))
    assert report.ok
    assert (report.count, report.signed) == (120, 120)


def test_each_beginning_verifies_as_far_as_it_goes(
    made: tuple[Path, list[Piece]], tmp_path: Path, log_key: LogKey
) -> None:
    _, sent = made
    target = _target(tmp_path)
    for piece in sent[:-1]:
        restore([piece], target)
        report = check(target, vault_id=VAULT, keys=(log_key.verifier,))
        assert report.ok, report


def test_whoever_comes_later_goes_on_after_what_is_there(
    made: tuple[Path, list[Piece]], tmp_path: Path
) -> None:
    directory, sent = made
    for number, cut in enumerate(range(0, len(sent), 5)):
        late = Source(directory)
        late.resume(_last_of(sent[:cut]))
        target = tmp_path / str(number)
        target.mkdir(mode=0o700)
        restore([*sent[:cut], *_taken(late)], target)
        assert _same(directory, target)
        assert list(late.pieces()) == []


def _last_of(sent: list[Piece]) -> list[Piece]:
    found = {piece.segment == 0: piece for piece in sent}
    return list(found.values())


def test_long_logs_go_in_several_pieces(
    made: tuple[Path, list[Piece]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, _ = made
    monkeypatch.setattr(replication, "MOST", 1000)
    pieces = list(Source(directory).pieces())
    assert all(len(p.data) <= 1000 or p.segment == 0 for p in pieces)
    assert all(p.data.endswith(b"\n") for p in pieces)
    target = _target(tmp_path)
    restore(pieces, target)
    assert _same(directory, target)


def test_what_has_no_end_yet_is_not_sent(
    made: tuple[Path, list[Piece]], tmp_path: Path
) -> None:
    directory = tmp_path / "audit"
    shutil.copytree(made[0], directory)
    whole = list(Source(directory).pieces())
    last = list(segments(directory).values())[-1]
    with last.open("ab") as file:
        file.write(b'{"v":1,"seq":121,"torn')
    with (directory / CHECKPOINTS).open("ab") as file:
        file.write(f"apex-creds.invalid/{VAULT}\n121\n".encode())
    assert list(Source(directory).pieces()) == whole


def test_a_log_that_was_cut_or_written_anew_is_not_gone_on_with(
    made: tuple[Path, list[Piece]], tmp_path: Path
) -> None:
    directory = tmp_path / "audit"
    shutil.copytree(made[0], directory)
    last = list(segments(directory).values())[-1]
    last.write_bytes(last.read_bytes()[:-50])
    with pytest.raises(AuditTamperedError):
        Source(directory).resume(_last_of(made[1]))
    shutil.rmtree(directory)
    directory.mkdir(mode=0o700)
    with pytest.raises(AuditTamperedError):
        Source(directory).resume(_last_of(made[1]))


def test_pieces_with_a_gap_are_refused(made: tuple[Path, list[Piece]], tmp_path: Path) -> None:
    sent = made[1]
    at = next(n for n, piece in enumerate(sent) if n and piece.offset)
    with pytest.raises(IntegrityError):
        restore([*sent[: at - 1], sent[at]], _target(tmp_path))
