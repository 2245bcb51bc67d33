"""The search in stored bytes leaves out nothing that is shown: against the slow way."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from apex_creds.audit import line as lines
from apex_creds.audit.events import AuditEvent, EventKind
from apex_creds.audit.log import AuditLog
from apex_creds.audit.maintenance import Cadence
from apex_creds.audit.segment import segments
from apex_creds.dashboard.event_words import Filter, Group, sieve_of, with_words
from apex_creds.dashboard.lease_view import Names
from apex_creds.dashboard.log_search import Earlier, earlier
from apex_creds.dashboard.watcher import Watcher
from apex_creds.model import SystemClock

VAULT = "ab" * 16
WORDS = st.sampled_from(
    [
        "",
        "org.weather",
        "LLM/OpenAI",
        "a_b-C",
        "  two  gaps",
        "back\\slash",
        'quo"te',
        "K\u212a",
    ]
) | st.text(max_size=12)
EVENTS = st.builds(
    AuditEvent,
    time=st.just(1.0),
    kind=st.sampled_from(EventKind),
    plugin=WORDS,
    action=WORDS,
    credential=WORDS,
    principal=WORDS,
    decision=st.sampled_from(["", "allow", "deny", "lockdown"]) | WORDS,
    rule=WORDS,
    reason=st.sampled_from(["no_grant", "not_declared"]) | WORDS,
    key_version=st.integers(0, 3000),
    origin=st.sampled_from(["", "https://api.x.test"]) | WORDS,
    method=st.sampled_from(["GET", "reveal"]) | WORDS,
    path=st.sampled_from(["", "/v1/chat", "no-slash"]) | WORDS,
    outcome=st.sampled_from(["", "ok", "ValueError"]) | WORDS,
    duration_us=st.integers(0, 99) | st.integers(0, 10**10),
    detail=WORDS | st.text(min_size=395, max_size=410),
)


def stored(event: AuditEvent, seq: int = 4711) -> bytes:
    return lines.link(seq, lines.encode(event))[0]


@given(
    event=EVENTS,
    before=EVENTS,
    cut=st.tuples(st.integers(0, 500), st.integers(1, 60)),
    group=st.sampled_from(["", *Group]),
    case=st.sampled_from([str.lower, str.upper, str.swapcase]),
    data=st.data(),
)
@settings(max_examples=600)
def test_what_is_found_in_a_shown_line_is_found_in_the_stored_one(
    event: AuditEvent,
    before: AuditEvent,
    cut: tuple[int, int],
    group: str,
    case,
    data: st.DataObject,
) -> None:
    line = stored(event)
    known = {event.credential: f"Name-{event.credential}"} if data.draw(st.booleans()) else {}
    names = Names(known.get, named=True)
    names._known = known
    shown = with_words(names.event(lines.decode(line)))
    seen = str(shown["line"])
    begin = cut[0] % max(1, len(seen))
    wanted = Filter.parse(case(seen[begin : begin + cut[1]])[:200], group)
    sieve = sieve_of(wanted, named=names.stored)
    if wanted.matches(shown) and sieve is not None:
        assert line in sieve.lines(stored(before, 4710) + line)


@pytest.mark.parametrize(
    ("event", "text"),
    [
        (AuditEvent(1.0, EventKind.PUT, detail="two  gaps"), "x20gaps"),
        (AuditEvent(1.0, EventKind.PUT, detail="a\nb"), "\\nb"),
        (AuditEvent(1.0, EventKind.PUT, detail="a\x7fb"), "x7fb"),
        (AuditEvent(1.0, EventKind.EXPOSE, key_version=12), "key v12"),
        (AuditEvent(1.0, EventKind.EXPOSE, key_version=12), "v1"),
        (AuditEvent(1.0, EventKind.INVOCATION, duration_us=1500), "1.5"),
        (AuditEvent(1.0, EventKind.INVOCATION, duration_us=1500), "ms"),
        (AuditEvent(1.0, EventKind.INVOCATION, duration_us=1_999_960), "2.0"),
        (AuditEvent(1.0, EventKind.INVOCATION, duration_us=999_999), "1000"),
        (AuditEvent(1.0, EventKind.INVOCATION, duration_us=12_345_678_901), "12345.7 s"),
        (AuditEvent(1.0, EventKind.INVOCATION, duration_us=12_345_678_901), "12345"),
        (AuditEvent(1.0, EventKind.PUT), "operator"),
        (AuditEvent(1.0, EventKind.PUT), "4711"),
        (AuditEvent(1.0, EventKind.EXPOSE), "taken out"),
        (AuditEvent(1.0, EventKind.DENIAL, origin="https://x.test", path="v1"), "x.testv1"),
        (AuditEvent(1.0, EventKind.DENIAL, reason="no_such_grant"), "no such"),
        (AuditEvent(1.0, EventKind.REDEEM, credential="a", principal="x"), "for"),
        (AuditEvent(1.0, EventKind.REDEEM, credential="a", principal="x"), "a for x"),
        (AuditEvent(1.0, EventKind.REDEEM, credential="c-1f2e"), "llm/openai"),
        (AuditEvent(1.0, EventKind.ROTATION, detail="api_keys/c-1f2e"), "keys/llm/open"),
    ],
)
def test_what_is_shown_otherwise_than_it_is_stored_is_found(
    event: AuditEvent, text: str
) -> None:
    names = Names({"LLM/OpenAI": "c-1f2e"}.__getitem__, named=True)
    names.learn(["LLM/OpenAI"])
    line, wanted = stored(event), Filter.parse(text, "")
    assert wanted.matches(with_words(names.event(lines.decode(line))))
    sieve = sieve_of(wanted, named=names.stored)
    assert sieve is None or sieve.lines(line) == [line]


@pytest.mark.parametrize("group", [*Group])
@pytest.mark.parametrize("kind", [*EventKind])
def test_a_group_is_found_by_its_kinds(group: Group, kind: EventKind) -> None:
    line = stored(AuditEvent(1.0, kind))
    found = sieve_of(Filter("", group)).lines(line)
    assert bool(found) is Filter("", group).matches(
        with_words(Names().event(lines.decode(line)))
    )


@pytest.mark.parametrize("text", ["org.snoop", "nothing like it", "a/b-c", "2b7f", "denied"])
def test_it_leaves_out_what_can_t_show_it(text: str) -> None:
    body = b"".join(
        stored(AuditEvent(1.0, EventKind.REDEEM, plugin="org.p", credential="c/d"), n)
        for n in range(1, 100)
    )
    assert sieve_of(Filter.parse(text, "")).lines(body) == []


def test_letters_whose_small_form_is_another_s_are_seen_as_they_are_shown() -> None:
    # Every character that becomes one of ASCII in lower case; what is not ASCII is odd.
    for code in range(128, sys.maxunicode + 1):
        c = chr(code)
        if 0xD800 <= code < 0xE000 or c.lower().isascii() is c.isascii():
            continue
        line = stored(AuditEvent(1.0, EventKind.PUT, plugin=f"x{c}y"))
        assert sieve_of(Filter.parse(f"x{c.lower()}y", "")).lines(line) == [line]


# -- over a whole log -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Several segments, with some odd texts; the lines of the second are partly altered."""
    where = tmp_path_factory.mktemp("log") / "audit"
    log = AuditLog(
        where, vault_id=VAULT, clock=SystemClock(), cadence=Cadence(segment_bytes=8192)
    )
    texts = ["plain", "gar\u00e7on", 'with "quotes"', "line\nend", "K\u212aelvin"]
    for n in range(160):
        kind = [EventKind.REDEEM, EventKind.INVOCATION, EventKind.DENIAL, EventKind.PUT][n % 4]
        log.append(
            AuditEvent(
                1.0,
                kind,
                plugin=f"org.p{n % 7}",
                detail=texts[n % 5],
                duration_us=n * 97,
                path="/v1" if n % 3 else "v1",
                origin="https://x.test",
            )
        )
    log.close()
    return where


@pytest.fixture(scope="module", params=["whole", "altered"])
def log(request: pytest.FixtureRequest, directory: Path) -> Path:
    if request.param == "altered":
        newest = segments(directory)[max(segments(directory))]
        newest.write_bytes(newest.read_bytes().replace(b"org.p3", b"org.pX"))
    return directory


def search(directory: Path, text: str, group: str, *, quick: bool, before: int) -> Earlier:
    wanted = Filter.parse(text, group)
    return earlier(
        directory,
        vault_id=VAULT,
        before=before,
        shown=lambda event: with_words(Names().event(event)),
        fault=Watcher.fault,
        wanted=wanted.matches if wanted else None,
        sieve=sieve_of(wanted) if quick else None,
    )


TEXTS = r"""org.p3 PLAIN garç "quotes" \\n kkelv test/v1 testv1 ended 97 operator altered hash
denied nowhere v0"""


@given(
    text=st.sampled_from([*TEXTS.split(), "1.5 ms", "denied org", "nothing like it"])
    | st.text(max_size=4),
    group=st.sampled_from(["", *Group]),
    before=st.integers(1, 170),
)
@example(text="not what was written", group="", before=161)
@example(text="", group="refused", before=161)
def test_a_search_finds_what_reading_every_line_finds(
    log: Path, text: str, group: str, before: int
) -> None:
    quick, slow = (search(log, text, group, quick=q, before=before) for q in (True, False))
    assert quick == slow
