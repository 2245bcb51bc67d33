"""The text of the hot path's events is what the log's own encoder would have written."""

from __future__ import annotations

import json
from typing import Any

import msgspec
from hypothesis import example, given
from hypothesis import strategies as st

from apex_creds.audit import AuditEvent, EventKind, line
from apex_creds.audit.line import Actor

HOSTILE = [
    "", '"', "\\", '","decision":"deny', "\n", "\r\n", "\0", "\x7f", "\u2028", "\ud800", "é",
    "\U0001f511", "x" * 100_000, '"' * 50_000, "\ud800" * 20_000, "{", "}", "\x1b[31m",
]  # fmt: skip
names = st.one_of(
    st.sampled_from(HOSTILE), st.text(), st.text(st.characters(categories=None), max_size=400)
)
ids = st.binary(min_size=16, max_size=16).map(bytes.hex)
maybe_ids = st.one_of(st.just(""), ids)
times = st.floats(min_value=0, max_value=1e12, allow_nan=False)
spans = st.one_of(
    st.just(("", "")), st.tuples(ids, st.binary(min_size=8, max_size=8).map(bytes.hex))
)
decode = msgspec.json.Decoder(AuditEvent, strict=True).decode


def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    assert len(dict(pairs)) == len(pairs), f"a key comes twice: {pairs}"
    return dict(pairs)


def read(body: bytes) -> AuditEvent:
    """Decodes strictly, after looking at the text itself."""
    assert b"\n" not in body
    assert b"\r" not in body
    assert len(body) < 32 * 1024
    assert body == body.decode("utf-8", "strict").encode()
    fields = json.loads(body, object_pairs_hook=no_duplicates)
    assert all(
        value not in ("", 0) or name == "time"
        for name, value in fields.items()
        if name != "duration_us"
    )
    text, _ = line.link(1, body)
    assert line.fault(1, text) == ""
    assert line.decode(text).kind == fields["kind"]
    return decode(body)


def shown(name: str) -> str:
    """A name as the log shows it."""
    if len(name) > 256:
        name = name[:256] + "…"
    try:
        name.encode()
    except UnicodeEncodeError:
        name = name.encode(errors="backslashreplace").decode()
        return name if len(name) <= 200 else name[:200] + "…"
    return name


def similar(found: str, name: str) -> bool:
    # Where one field has to be escaped, the log's encoder cuts all of that event's fields.
    return found in (shown(name), shown(name)[:200] + "…", *cut(name))


def cut(name: str) -> list[str]:
    short = (name if len(name) <= 256 else name[:256] + "…").encode(errors="backslashreplace")
    text = short.decode()
    return [text if len(text) <= 200 else text[:200] + "…"]


@given(names, names, names, names, times, ids, ids, maybe_ids)
def test_a_lease(plugin, version, action, credential, time, invocation, lease, parent) -> None:
    actor = Actor(plugin, version, action)
    for _ in range(2):
        body = actor.lease(
            time, invocation=invocation, lease=lease, parent=parent, credential=credential
        )
        event = read(body)
        expected = AuditEvent(
            time, EventKind.LEASE, plugin=event.plugin, plugin_version=event.plugin_version,
            action=event.action, invocation=invocation, lease=lease, parent=parent,
            credential=event.credential, decision="allow", reason="granted",
        )  # fmt: skip
        assert event == expected
        assert similar(event.plugin, plugin)
        assert similar(event.plugin_version, version)
        assert similar(event.action, action)
        assert similar(event.credential, credential)


@given(names, names, times, ids, ids, maybe_ids, st.integers(1, 2**63 - 1), names, names, spans)
@example("p", "c", 0.0, "0" * 32, "0" * 32, "", 1, 'GET","decision":"deny', "x", ("", ""))
def test_a_redeem(
    plugin, credential, time, invocation, lease, parent, version, method, origin, span
) -> None:
    actor = Actor(plugin, "1.0", "act")
    key = (lease, version)
    for _ in range(2):
        body = actor.redeem(
            time, invocation=invocation, lease=lease, parent=parent, credential=credential,
            key=key, method=method, origin=origin, ids=span,
        )  # fmt: skip
        event = read(body)
        expected = AuditEvent(
            time, EventKind.REDEEM, plugin=event.plugin, plugin_version=event.plugin_version,
            action=event.action, invocation=invocation, lease=lease, parent=parent,
            credential=event.credential, decision="allow", reason="granted", key_id=lease,
            key_version=version, method=event.method, origin=event.origin, trace_id=span[0],
            span_id=span[1],
        )  # fmt: skip
        assert event == expected
        assert similar(event.method, method)
        assert similar(event.origin, origin)
        assert similar(event.credential, credential)


@given(names, times, ids, maybe_ids, names, st.integers(0, 2**53))
@example("p", 0.0, "0" * 32, "", 'X","decision":"deny', 1)
def test_an_end(plugin, time, invocation, parent, outcome, duration) -> None:
    event = read(
        Actor(plugin, "", "").end(
            time, invocation=invocation, parent=parent, outcome=outcome, duration_us=duration
        )
    )
    expected = AuditEvent(
        time, EventKind.INVOCATION, plugin=event.plugin, invocation=invocation, parent=parent,
        outcome=event.outcome, duration_us=duration,
    )  # fmt: skip
    assert event == expected
    assert similar(event.outcome, outcome)


def test_what_may_name_something_is_kept_whole() -> None:
    """256 bytes of plain text, as ``check_name`` lets it pass."""
    name = "n" * 256
    event = read(
        Actor(name, name, name).end(1.0, invocation="a", parent="", outcome=name, duration_us=1)
    )
    assert {event.plugin, event.plugin_version, event.action, event.outcome} == {name}


def test_no_number_of_names_fills_the_memory() -> None:
    actor = Actor("p", "1", "a")
    for n in range(5000):
        actor.lease(1.0, invocation="a", lease="b", parent="", credential=f"c{n}")
    assert len(actor._credentials) <= 4096
