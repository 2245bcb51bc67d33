"""Logs as the page specifies them, good and bad, that were made without this package."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from apex_creds.audit import check
from apex_creds.audit.note import VerifierKey
from tests.vectors import flat, make_log

VECTORS = flat.load("log")


def laid_out(where: Path, more: str) -> Path:
    """The files of a case in a directory of a log."""
    where.mkdir(mode=0o700)
    _, *pieces = re.split(r"^-- (\S+) --\n", more, flags=re.MULTILINE)
    for name, text in zip(pieces[::2], pieces[1::2], strict=True):
        path = where / name
        path.touch(mode=0o600)
        path.write_text(text, encoding="utf-8")
    return where


@pytest.mark.parametrize("name", VECTORS)
def test_a_log_is_found_good_or_bad_where_it_is(name: str, tmp_path: Path) -> None:
    case, more = flat.parse(VECTORS[name])
    directory = laid_out(tmp_path / "audit", more)
    key = VerifierKey.parse(case["key"])
    found = check(directory, vault_id=case["vault_id"], keys=[key])
    if case["expect"] == "success":
        assert found.ok, found.how
        assert (found.signed, found.unsigned) == (int(case["size"]), int(case["unsigned"]))
        assert found.head == case["root"]
    else:
        assert (found.ok, found.bad_line) == (False, int(case["bad"])), found.how


def test_the_vectors_are_what_their_generator_makes() -> None:
    made = {flat.file_name(name): text for name, text in make_log.cases().items()}
    assert made == VECTORS
