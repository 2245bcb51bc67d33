"""Lines: what their hash covers, and their exact bytes."""

from __future__ import annotations

from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apex_creds.audit import AuditEvent, EventKind, line
from apex_creds.audit.tree import Frontier, leaf_hash

TEXT = st.text(max_size=40)


def test_lines_are_what_the_format_says() -> None:
    entry = b'{"v":1,"seq":1,"time":1.5,"kind":"put"}'
    leaf = sha256(b"\x00" + entry)
    made, got = line.link(1, line.encode(AuditEvent(1.5, EventKind.PUT)))
    assert made == entry[:-1] + b',"hash":"' + leaf.hexdigest().encode() + b'"}\n'
    assert got == leaf.digest() == leaf_hash(line.entry_of(made))
    assert line.entry_of(made) == entry


@given(TEXT, TEXT, st.integers(1, 1 << 60))
def test_any_text_makes_one_line_that_verifies(name: str, detail: str, seq: int) -> None:
    event = AuditEvent(2.0, EventKind.LEAK, credential=name, detail=detail)
    made, leaf = line.link(seq, line.encode(event))
    assert made.count(b"\n") == 1
    assert line.fault(seq, made) == ""
    assert line.leaf_of(made) == leaf
    read = line.decode(made)
    assert (read.credential, read.detail, read.seq, read.v) == (name, detail, seq, 1)


def of(core: bytes) -> bytes:
    """A line whose hash is right, whatever is in it."""
    return core + b',"hash":"' + leaf_hash(core + b"}").hex().encode() + b'"}\n'


@pytest.mark.parametrize(
    ("core", "why"),
    [
        (b'{"v":1,"seq":1,"seq":2,"time":1.5,"kind":"put"', "two numbers"),
        (b'{"v":1,"seq":1,"secret":"x"', "format"),
        (b'{"v":1,"seq":2,"time":1.5,"kind":"put"', "not the event of that number"),
        (b'{"v":9,"seq":1,"time":1.5,"kind":"put"', "version 9, newer"),
        (b'{"seq":1,"time":1.5,"kind":"put"', "not the event of that number"),
    ],
)
def test_lines_that_are_not_ours_are_faults(core: bytes, why: str) -> None:
    assert why in line.fault(1, of(core))


def test_the_first_line_has_one_form() -> None:
    edge = Frontier()
    edge.extend(leaf_hash(bytes([n])) for n in range(7))
    made = line.header(segment=3, vault_id="ab", edge=edge)
    read = line.parse_header(made, segment=3, vault_id="ab")
    assert read is not None
    assert (read.size, read.hashes) == (edge.size, edge.hashes)
    assert line.parse_header(made, segment=2, vault_id="ab") is None
    assert line.parse_header(made, segment=3, vault_id="cd") is None
    for at in range(len(made)):
        changed = made[:at] + bytes([made[at] ^ 1]) + made[at + 1 :]
        other = line.parse_header(changed, segment=3, vault_id="ab")
        assert other is None or other.hashes != edge.hashes
