"""The chain: what it covers, and its exact bytes."""

from __future__ import annotations

from hashlib import sha256

from hypothesis import given
from hypothesis import strategies as st

from apex_creds.audit import AuditEvent, EventKind, chain

TEXT = st.text(max_size=40)


def test_lines_are_what_the_format_says() -> None:
    prev = sha256(b"apex-creds audit v1" + b"vault").hexdigest()
    assert chain.genesis("vault") == prev.encode()
    core = b'{"seq":1,"time":1.5,"kind":"put"'
    head = sha256(prev.encode() + core).hexdigest().encode()
    line, got = chain.link(prev.encode(), 1, chain.encode(AuditEvent(1.5, EventKind.PUT)))
    assert (line, got) == (core + b',"hash":"' + head + b'"}\n', head)


@given(TEXT, TEXT, st.integers(1, 1 << 60))
def test_any_text_makes_one_line_that_verifies(name: str, detail: str, seq: int) -> None:
    event = AuditEvent(2.0, EventKind.LEAK, credential=name, detail=detail)
    prev = chain.genesis("v")
    line, head = chain.link(prev, seq, chain.encode(event))
    assert line.count(b"\n") == 1
    assert chain.fault(prev, seq, line) == ""
    assert chain.head_of(line) == head
    read = chain.decode(line)
    assert (read.credential, read.detail, read.seq) == (name, detail, seq)


def test_a_forged_number_inside_a_line_is_a_fault() -> None:
    prev = chain.genesis("v")
    core = b'{"seq":1,"seq":2,"time":1.5,"kind":"put"'
    line = core + b',"hash":"' + sha256(prev + core).hexdigest().encode() + b'"}\n'
    assert chain.fault(prev, 1, line) == "has two numbers"


def test_a_chained_line_that_is_no_event_is_a_fault() -> None:
    prev = chain.genesis("v")
    core = b'{"seq":1,"secret":"x"'
    line = core + b',"hash":"' + sha256(prev + core).hexdigest().encode() + b'"}\n'
    assert "format" in chain.fault(prev, 1, line)
