"""A copy of a log is the beginning of the log, or it is known from which event on not."""

from __future__ import annotations

from pathlib import Path

import pytest

from apex_creds.audit.checkpoint import CHECKPOINTS
from apex_creds.audit.replication import differs_at
from apex_creds.audit.segment import file_name


def made(where: Path, *segments: bytes, signed: bytes = b"") -> Path:
    where.mkdir(mode=0o700)
    files = {file_name(n): data for n, data in enumerate(segments, 1)}
    for name, data in {**files, CHECKPOINTS: signed}.items():
        (where / name).write_bytes(data)
        (where / name).chmod(0o600)
    return where


@pytest.mark.parametrize(
    ("copied", "event"),
    [
        ((b"a\nb\n", b"c\n"), 0),
        ((b"a\nb\n", b""), 0),
        ((b"a\n",), 0),
        ((b"x\nb\n", b"c\n"), 1),
        ((b"a\nbb\n", b"c\n"), 2),
        ((b"a\nb\n", b"x\n"), 3),
        ((b"a\nb\n", b"c\nd\ne\n"), 5),
        ((b"a\nb\n", b"c\nd\n", b"e\n"), 5),
    ],
)
def test_the_first_event_that_differs_is_named(
    tmp_path: Path, copied: tuple[bytes, ...], event: int
) -> None:
    log = made(tmp_path / "log", b"a\nb\n", b"c\nd\n", signed=b"1\n2\n")
    assert differs_at(made(tmp_path / "copy", *copied, signed=b"1\n"), log) == event


def test_other_checkpoints_differ(tmp_path: Path) -> None:
    log = made(tmp_path / "log", b"a\nb\n", signed=b"1\n")
    assert differs_at(made(tmp_path / "copy", b"a\nb\n", signed=b"2\n"), log) == 2
