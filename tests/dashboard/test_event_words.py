"""The words of an event's line, and the search for them over a whole log."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apex_creds.audit.events import AuditEvent, EventKind
from apex_creds.audit.log import AuditLog
from apex_creds.dashboard import log_search
from apex_creds.dashboard.event_words import Filter, Group, with_words
from apex_creds.dashboard.lease_view import Names
from apex_creds.dashboard.watcher import Watcher
from apex_creds.errors import InvalidInputError
from apex_creds.model import SystemClock

VAULT = "ab" * 16


def line(**event: object) -> dict[str, object]:
    return with_words({"seq": 7, "time": 1.0, **event})


@pytest.mark.parametrize(
    ("event", "words"),
    [
        (
            {"kind": "expose", "plugin": "org.a", "key_version": 3},
            ("taken out", "key v3", "org.a"),
        ),
        ({"kind": "put", "credential": "a/b"}, ("stored", "operator a/b", "7 stored")),
        ({"kind": "denial", "reason": "no_grant", "decision": "deny"}, ("denied", "no grant")),
        (
            {"kind": "invocation", "outcome": "ok", "duration_us": 1500},
            ("ended", "ok · 1.5 ms"),
        ),
        (
            {"kind": "grant", "rule": "r-1", "origin": "https://x.test"},
            ("rule r-1", "https://x"),
        ),
        (
            {"kind": "redeem", "plugin": "org.a", "credential": "a/b", "principal": "ann"},
            ("ann", "a/b for ann"),
        ),
        ({"fault": "has another hash"}, ("altered", "not what was written: has another")),
    ],
)
def test_what_is_read_in_a_line_is_found_in_any_case(
    event: dict, words: tuple[str, ...]
) -> None:
    for word in words:
        assert Filter.parse(f" {word.upper()} ", "").matches(line(**event)), word
    hidden = ("expose", "denial", "invocation", "no_grant", "1500", "key_version", "undefined")
    for word in (*hidden, "none", "1.0 "):
        assert not Filter.parse(word, "").matches(line(**event)), word


def test_a_search_is_bounded_and_of_a_known_kind() -> None:
    for text, group in (("x" * 201, ""), ("", "all"), ("", "Use")):
        with pytest.raises(InvalidInputError):
            Filter.parse(text, group)
    assert not Filter.parse("  ", "")


@given(
    st.sampled_from(EventKind), st.sampled_from(["", "allow", "deny", "lockdown"]), st.text()
)
def test_every_event_is_a_use_or_a_change(kind: EventKind, decision: str, reason: str) -> None:
    made = line(kind=kind.value, decision=decision, reason=reason)
    assert (Group.USE in made["groups"]) != (Group.CHANGES in made["groups"])
    assert made["word"]
    assert made["tone"] in {"bad", "warn", "use", "quiet", "change"}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("log") / "audit"
    log = AuditLog(where, vault_id=VAULT, clock=SystemClock())
    for n in range(60):
        kind = EventKind.DENIAL if n % 7 == 0 else EventKind.REDEEM
        log.append(AuditEvent(1.0, kind, plugin=f"org.p{n % 5}"))
    log.close()
    return where


def shown(event: object) -> dict[str, object]:
    return with_words(Names().event(event))  # type: ignore[arg-type]


@given(
    page=st.integers(1, 70),
    looked_at=st.integers(1, 70),
    text=st.sampled_from(["", "used", "denied", "org.p3", "nothing like it"]),
    before=st.integers(0, 70),
)
def test_step_by_step_a_search_finds_everything_once(
    directory: Path, page: int, looked_at: int, text: str, before: int
) -> None:
    wanted = Filter.parse(text, "")
    seen: list[int] = []
    read = 0

    def look(event: object) -> dict[str, object]:
        nonlocal read
        read += 1
        return shown(event)

    at = before
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(log_search, "PAGE", page)
        patch.setattr(log_search, "LOOKED_AT", looked_at)
        while at > 1:
            read = 0
            step = log_search.earlier(
                directory,
                vault_id=VAULT,
                before=at,
                shown=look,
                fault=Watcher.fault,
                wanted=wanted.matches if wanted else None,
            )
            found, reached = step.events, step.reached
            assert step.faults == 0
            assert len(found) <= page
            assert read <= (looked_at if wanted else page)
            assert 1 <= reached < at
            seen = [int(str(event["seq"])) for event in found] + seen
            at = reached
    every = log_search.earlier(
        directory, vault_id=VAULT, before=before, shown=shown, fault=Watcher.fault
    )
    assert seen == [event["seq"] for event in every.events if wanted.matches(event)]
