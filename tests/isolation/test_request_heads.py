"""Heads of requests: whatever comes, it is refused, or one request to one place."""

from __future__ import annotations

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apex_creds.isolation.request_heads import (
    BadRequestError,
    Head,
    check_lines,
    place_of,
    read_head,
    tunnel_of,
)
from apex_creds.model import Origin

AUTHORITY = "127.0.0.1:8080"
GOOD = (
    b"POST /https/api.example.com/v1/x?a=b HTTP/1.1\r\nHost: 127.0.0.1:8080\r\n"
    b"Content-Length: 3\r\nX-A: b\r\n\r\n"
)


def parsed(raw: bytes) -> Head:
    check_lines(raw, most=128)
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(raw)
    try:
        event = connection.next_event()
    except h11.RemoteProtocolError as error:
        raise BadRequestError(400, str(error)) from None
    assert isinstance(event, h11.Request)
    return read_head(event)


PIECES = st.sampled_from(
    [
        *(b"\r\n", b"\n", b"\r", b"\0", b" ", b"\t", b":", b"/", b"@", b"#", b"?", b"\x80"),
        *(b"Host: evil.example.com\r\n", b"Content-Length: 5\r\n", b"content-length:0\r\n"),
        *(b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding : chunked\r\n", b"\r\n\r\n"),
        *(b" chunked", b"GET /x HTTP/1.1\r\n", b"http://evil.example.com/", b"/http/evil.test"),
        *(b"Connection: Host\r\n", b"Connection: Content-Length, X-A\r\n", b"%2f", b"%0d%0a"),
    ]
)
CHANGES = st.lists(st.tuples(PIECES, st.integers(0, 150), st.integers(0, 12)), max_size=4)


@settings(deadline=None, max_examples=400)
@given(CHANGES)
def test_whatever_is_changed_it_is_refused_or_means_one_thing(
    changes: list[tuple[bytes, int, int]],
) -> None:
    raw = GOOD
    for piece, at, cut in changes:
        raw = raw[:at] + piece + raw[at + cut :]
    raw = raw[: raw.find(b"\r\n\r\n") + 4] if b"\r\n\r\n" in raw else raw + b"\r\n\r\n"
    try:
        head = parsed(raw)
        place = place_of(head, AUTHORITY, None)
    except BadRequestError:
        return
    lines = raw[:-4].split(b"\r\n")
    names = [line.partition(b":")[0].strip().lower() for line in lines[1:]]
    assert names.count(b"host") == 1
    assert names.count(b"content-length") + names.count(b"transfer-encoding") <= 1
    assert not any(line[:1] in (b" ", b"\t") for line in lines)
    assert not {b"\r", b"\n", b"\0"} & {bytes([byte]) for line in lines for byte in line}
    assert (head.length is None) == (b"transfer-encoding" in names)
    assert lines[0].count(b" ") == 2
    kept = [name.lower() for name, _ in head.headers]
    assert not {b"host", b"content-length", b"transfer-encoding", b"connection"} & set(kept)
    target = lines[0].split(b" ")[1].decode("latin-1")
    assert place.target in (target[-len(place.target) :], f"/{target[1 - len(place.target) :]}")
    assert place.origin.host in target.lower()


@pytest.mark.parametrize(
    ("target", "host"),
    [
        ("/https/api.example.com/v1", "localhost:8080"),
        ("https://api.example.com/v1", "api.example.com"),
        ("https://API.example.com:443/v1", "api.example.com:443"),
    ],
)
def test_one_place_has_several_ways(target: str, host: str) -> None:
    place = place_of(
        parsed(f"GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()), AUTHORITY, None
    )
    assert (place.origin, place.target) == (Origin("https", "api.example.com", 443), "/v1")


@pytest.mark.parametrize(
    "target",
    [
        "/https/api.example.com%2f@evil/v1",
        "/https/user@api.example.com/v1",
        "/https/api.example.com\\@evil/v1",
        "/https//v1",
        "/ftp/api.example.com/",
        "https:///v1",
        "https://api.example.com:99999/",
        "*",
        "api.example.com:443",
    ],
)
def test_what_names_no_place(target: str) -> None:
    with pytest.raises(BadRequestError):
        place_of(
            parsed(f"GET {target} HTTP/1.1\r\nHost: {AUTHORITY}\r\n\r\n".encode()),
            AUTHORITY,
            None,
        )


def test_within_a_tunnel_there_is_one_place() -> None:
    within = Origin("https", "api.example.com", 443)
    fine = parsed(b"GET /v1 HTTP/1.1\r\nHost: api.example.com\r\n\r\n")
    assert place_of(fine, AUTHORITY, within).url == "https://api.example.com/v1"
    for raw in (
        b"GET /v1 HTTP/1.1\r\nHost: evil.example.com\r\n\r\n",
        b"GET https://api.example.com/v1 HTTP/1.1\r\nHost: api.example.com\r\n\r\n",
        b"GET /v1 HTTP/1.1\r\nHost: api.example.com:8443\r\n\r\n",
    ):
        with pytest.raises(BadRequestError):
            place_of(parsed(raw), AUTHORITY, within)


@pytest.mark.parametrize(
    ("first", "host"),
    [
        ("api.example.com", "api.example.com"),
        ("api.example.com:443", "evil.example.com"),
        ("api.example.com:443", "api.example.com:8443"),
        ("https://api.example.com:443", "api.example.com"),
        ("a@api.example.com:443", "api.example.com"),
        (":443", "api.example.com"),
    ],
)
def test_tunnels_that_are_not_clear(first: str, host: str) -> None:
    with pytest.raises(BadRequestError):
        tunnel_of(parsed(f"CONNECT {first} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()))


def test_a_tunnel() -> None:
    for head in (
        b"CONNECT api.example.com:8443 HTTP/1.1\r\nHost: api.example.com:8443\r\n\r\n",
        b"CONNECT api.example.com:8443 HTTP/1.1\r\nHost: api.example.com\r\n\r\n",
        b"CONNECT api.example.com:8443 HTTP/1.0\r\n\r\n",
    ):
        assert tunnel_of(parsed(head)) == ("api.example.com", 8443)
