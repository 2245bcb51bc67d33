"""Every way to send a credential: one place, which its delivery names, and no other."""

from __future__ import annotations

import json
from types import SimpleNamespace
from urllib.parse import parse_qsl, quote, unquote

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from apex_creds.documents.records import encode_parts
from apex_creds.errors import ApexCredsError, InvalidInputError, RequestNotAllowedError
from apex_creds.leases.bodies import upload
from apex_creds.leases.connection_pool import AsyncPool
from apex_creds.leases.deliveries import MAX_BODY, Snapshot, Use
from apex_creds.leases.outgoing_requests import Outgoing, inject, snapshot
from apex_creds.model import PLACEHOLDER, ApiKey, BasicAuth, CredentialKind, Delivery, Secret
from apex_creds.vault import Opened
from tests.support.worlds import World

SECRET = "s3cr3t-canary-0123456789"
ORIGIN = "https://api.example.com"
FORM = "application/x-www-form-urlencoded"
SENDABLE = st.text(
    st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=40
)


def opened(secret: Secret | str) -> Opened:
    made = ApiKey(secret) if isinstance(secret, str) else secret
    return Opened(encode_parts(made.parts), made.kind)


def send(
    *deliveries: str, secret: str = SECRET, request: httpx.Request | None = None, **options
) -> Outgoing:
    """What would be sent of a POST, with one credential for each delivery."""
    if request is None:
        method, path = options.pop("method", "POST"), options.pop("path", "/v1/x")
        request = httpx.Request(method, ORIGIN + path, **options)
    taken = taken_from(request)
    body = (
        httpx.ByteStream(b"") if taken.stream is None else upload(taken.stream, blocking=True)
    )
    return inject(taken, [use(opened(secret), text) for text in deliveries], body=body)


def taken_from(request: httpx.Request) -> Snapshot:
    return snapshot(request.method, request.url, request.headers.raw, request.stream, {})


def use(secret: Opened, delivery: str) -> Use:
    info = SimpleNamespace(delivery=Delivery.parse(delivery), name="key")
    return Use(secret, SimpleNamespace(info=info))


def header(sent: Outgoing, name: str) -> list[str]:
    return [v.decode() for n, v in sent.headers if n.decode().lower() == name]


def target(sent: Outgoing) -> str:
    return sent.url.raw_path.decode()


# -- the Authorization header --------------------------------------------------------


@pytest.mark.parametrize("scheme", ["Bot", "token", "SSWS", "Klaviyo-API-Key"])
def test_a_scheme_of_the_services_own(scheme: str) -> None:
    sent = send(f"scheme:{scheme}", headers={"Authorization": "Bearer mine"})
    assert header(sent, "authorization") == [f"{scheme} {SECRET}"]


# -- cookies -------------------------------------------------------------------------


def test_a_cookie_stands_beside_those_of_the_plugin() -> None:
    cookies = [("Cookie", 'a=1; session=mine; b="2 3"'), ("cookie", "SESSION=other; c=")]
    sent = send("cookie:session", headers=cookies)
    assert header(sent, "cookie") == [f'a=1; b="2 3"; c=; session={SECRET}']
    assert header(send("cookie:session"), "cookie") == [f"session={SECRET}"]


@pytest.mark.parametrize("text", ['a="1; session=mine; b=2', "a", "=b", 'a=1"2', "a=\\"])
def test_a_cookie_that_servers_read_in_two_ways_is_refused(text: str) -> None:
    with pytest.raises(RequestNotAllowedError, match="cookie"):
        send("cookie:session", headers={"Cookie": text})


@pytest.mark.parametrize("secret", ["a;b", "a,b", 'a"b', "a b", "a\\b"])
def test_a_secret_that_ends_a_cookie_is_not_sent(secret: str) -> None:
    with pytest.raises(InvalidInputError, match="cookie"):
        send("cookie:session", secret=secret)


# -- the path ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("delivery", "path", "target_"),
    [
        ("path:bot{}", "/bot{}/getMe?a=%7B%7D", "/bot1:A/getMe?a=%7B%7D"),
        ("path:bot{}", "/file/bot{}/x.pdf", "/file/bot1:A/x.pdf"),
        ("path:bot{}", f"/bot12:{PLACEHOLDER}/getMe", "/bot1:A/getMe"),
        ("path:{}", "/v3/{}", "/v3/1:A"),
        ("path:a{}b", "/a{}b/", "/a1:Ab/"),
    ],
)
def test_a_segment_of_the_path(delivery: str, path: str, target_: str) -> None:
    assert target(send(delivery, path=path, secret="1:A", method="GET")) == target_


@pytest.mark.parametrize("path", ["/getMe", "/bot/getMe", "/bot{}/bot{}", "/xbot{}", "/bot{}x"])
def test_a_path_without_that_segment_once_is_refused(path: str) -> None:
    with pytest.raises(RequestNotAllowedError, match="no place") as caught:
        send("path:bot{}", path=path, method="GET")
    assert "bot{}" in str(caught.value.hint)


@given(secret=SENDABLE)
def test_no_secret_changes_the_segments_of_a_path(secret: str) -> None:
    sent = send("path:bot{}", path="/a/bot{}/b?c=d", secret=secret, method="GET")
    path, _, query = target(sent).partition("?")
    assert [unquote(segment) for segment in path.split("/")] == ["", "a", f"bot{secret}", "b"]
    assert query == "c=d"


@pytest.mark.parametrize("secret", [".", "..", "..a"])
def test_a_secret_that_moves_through_the_path_is_not_sent(secret: str) -> None:
    with pytest.raises(InvalidInputError, match="path"):
        send("path:{}", path="/v1/{}", secret=secret, method="GET")


@pytest.mark.anyio
async def test_a_path_is_checked_and_logged_without_the_secret(world: World) -> None:
    asked: list[httpx.Request] = []

    def service(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return httpx.Response(200)

    await world.vault.put(
        "bot", ApiKey("12:Ab_c-3456789"), origins=[ORIGIN], delivery="path:bot{}"
    )
    await world.vault.grant("demo", "bot")
    pool = AsyncPool(httpx.MockTransport(service), queues=False)
    world.middleware.broker.connections._given = pool
    need = {"name": "bot", "paths": ["/bot{}/send*"]}

    async def plugin(credentials):
        async with credentials["bot"].client() as http:
            response = await http.get(f"{ORIGIN}/bot{{}}/sendMessage")
            assert "Ab_c" not in repr(response.request.url)
            for path in ("/bot{}/getMe", "/bot12:Ab_c-3456789/sendMessage"):
                with pytest.raises(RequestNotAllowedError):
                    await http.get(ORIGIN + path)

    await world.call(plugin, needs=(need,))
    assert [request.url.path for request in asked] == ["/bot12:Ab_c-3456789/sendMessage"]


# -- the body ------------------------------------------------------------------------


def body_of(sent: Outgoing) -> bytes:
    assert isinstance(sent.body, httpx.ByteStream)
    body = b"".join(sent.body)
    assert header(sent, "content-length") == [str(len(body))]
    assert header(sent, "transfer-encoding") == []
    return body


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)


@given(secret=SENDABLE, fields=st.dictionaries(st.text("abkey_"), PLAIN))
def test_a_field_of_a_json_body(secret: str, fields: dict[str, object]) -> None:
    sent = send("json:key", secret=secret, json=fields)
    pairs = json.loads(body_of(sent), object_pairs_hook=list)
    assert [value for name, value in pairs if name == "key"] == [secret]
    assert json.loads(body_of(sent)) == {**fields, "key": secret}


@given(secret=SENDABLE, fields=st.dictionaries(st.text("abkey_ &=+"), st.text(max_size=9)))
def test_a_field_of_a_form(secret: str, fields: dict[str, str]) -> None:
    sent = send("form:key", secret=secret, data=fields, headers={"Content-Type": FORM})
    pairs = parse_qsl(body_of(sent).decode(), keep_blank_values=True)
    assert [value for name, value in pairs if name == "key"] == [secret]
    assert {**dict(pairs), "key": ""} == {**fields, "key": ""}


def test_what_the_plugin_put_there_is_replaced() -> None:
    twice = b'{"key": "mine", "n": 1.10, "k\\u0065y": 2}'
    options = {"content": twice, "headers": {"Content-Type": "application/json; charset=UTF-8"}}
    assert body_of(send("json:key", **options)) == b'{"n":1.10,"key":"%b"}' % SECRET.encode()
    form = {"content": b"key=1&a=2&k%65y=3", "headers": {"Content-Type": FORM}}
    assert body_of(send("form:key", **form)) == b"a=2&key=" + SECRET.encode()


BODIES = {
    "no body": {"method": "GET", "headers": {"Content-Type": "application/json"}},
    "no type": {"content": b"{}"},
    "another type": {"content": b"{}", "headers": {"Content-Type": "text/json"}},
    "two types": {
        "content": b"{}",
        "headers": [("Content-Type", "application/json"), ("Content-Type", "text/plain")],
    },
    "another charset": {
        "content": b"{}",
        "headers": {"Content-Type": "application/json; charset=utf-16"},
    },
    "compressed": {
        "content": b"{}",
        "headers": {"Content-Type": "application/json", "Content-Encoding": "gzip"},
    },
    "a stream": {"content": iter([b"{}"]), "headers": {"Content-Type": "application/json"}},
    "too large": {"json": {"a": "x" * MAX_BODY}},
    "an array": {"json": [1]},
    "no json": {"content": b"{", "headers": {"Content-Type": "application/json"}},
    "trailing": {"content": b"{}{}", "headers": {"Content-Type": "application/json"}},
    "not a number": {
        "content": b'{"a":NaN}',
        "headers": {"Content-Type": "application/json"},
    },
    "deep": {
        "content": b'{"a":' + b"[" * 100_000,
        "headers": {"Content-Type": "application/json"},
    },
    "no text": {"content": b'{"a":"\xff"}', "headers": {"Content-Type": "application/json"}},
    "other letters": {"json": {"KEY": 1}},
}


@pytest.mark.parametrize("kind", BODIES)
def test_a_body_without_a_clear_place_is_refused(kind: str) -> None:
    with pytest.raises(RequestNotAllowedError, match="body") as caught:
        send("json:key", **BODIES[kind])
    assert caught.value.hint


@pytest.mark.parametrize("content", [b"a=1;key=2", "a=ü".encode()])
def test_a_form_without_a_clear_place_is_refused(content: bytes) -> None:
    with pytest.raises(RequestNotAllowedError, match="form"):
        send("form:key", content=content, headers={"Content-Type": FORM})


@pytest.mark.anyio
async def test_a_stream_of_the_plugins_is_not_read_for_it() -> None:
    async def chunks():
        yield b"{}"

    kind = {"Content-Type": "application/json"}
    taken = taken_from(httpx.Request("POST", ORIGIN, content=chunks(), headers=kind))
    body = upload(taken.stream)
    with pytest.raises(RequestNotAllowedError, match="stream"):
        inject(taken, [use(opened(SECRET), "json:key")], body=body)
    body.stop()


# -- several, and none ---------------------------------------------------------------


def test_several_credentials_in_one_request() -> None:
    texts = ("bearer", "header:X-Key", "cookie:a", "cookie:b", "query:k", "json:x", "json:y")
    sent = send(*texts, "path:bot{}", path="/bot{}/m?k=1", json={"n": 1})
    assert header(sent, "authorization") == [f"Bearer {SECRET}"]
    assert header(sent, "x-key") == [SECRET]
    assert header(sent, "cookie") == [f"a={SECRET}; b={SECRET}"]
    assert target(sent) == f"/bot{SECRET}/m?k={SECRET}"
    assert json.loads(body_of(sent)) == {"n": 1, "x": SECRET, "y": SECRET}


@pytest.mark.parametrize(
    "deliveries",
    [
        ("bearer", "basic"),
        ("bearer", "header:authorization"),
        ("scheme:Bot", "bearer"),
        ("header:X-Key", "header:x_key"),
        ("cookie:a", "cookie:A"),
        ("header:Cookie", "cookie:a"),
        ("cookie:a", "header:Cookie"),
        ("query:k", "query:k"),
        ("json:x", "json:x"),
        ("json:x", "form:x"),
        ("path:{}", "path:{}"),
    ],
)
def test_two_that_want_one_place_are_refused(deliveries: tuple[str, str]) -> None:
    with pytest.raises(InvalidInputError, match="same place"):
        send(*deliveries, path="/{}", json={})


def test_a_json_and_a_form_field_are_refused() -> None:
    with pytest.raises(RequestNotAllowedError, match="Content-Type"):
        send("json:x", "form:y", json={})


def test_the_order_in_which_they_are_put_changes_nothing() -> None:
    texts = ("bearer", "cookie:a", "query:k", "json:x", "path:bot{}")
    there = send(*texts, path="/bot{}", json={})
    back = send(*reversed(texts), path="/bot{}", json={})
    assert there.url == back.url
    assert sorted(there.headers) == sorted(back.headers)


def test_a_placeholder_in_a_header_is_taken_out() -> None:
    mine = {
        "Authorization": f"Bearer sk-{PLACEHOLDER}",
        "X-Other": PLACEHOLDER,
        "X": "1",
    }
    sent = send("header:X-Api-Key", headers=mine)
    assert (header(sent, "authorization"), header(sent, "x-other")) == ([], [])
    assert (header(sent, "x"), header(sent, "x-api-key")) == (["1"], [SECRET])
    basic = httpx.Request("POST", ORIGIN)
    next(httpx.BasicAuth("AC1", PLACEHOLDER).auth_flow(basic))
    assert header(send("header:X-Api-Key", request=basic), "authorization") == []


@pytest.mark.parametrize(
    "options",
    [
        {"path": f"/x?key={PLACEHOLDER}"},
        {"path": f"/bot{PLACEHOLDER}/x"},
        {"json": {"key": PLACEHOLDER}},
    ],
)
def test_a_placeholder_anywhere_else_is_refused(options: dict[str, object]) -> None:
    with pytest.raises(RequestNotAllowedError, match="placeholder") as caught:
        send("bearer", **options)
    assert "--delivery" in str(caught.value.hint)


def test_a_placeholder_where_the_credential_goes_is_replaced() -> None:
    assert target(send("query:key", path=f"/x?key={PLACEHOLDER}")) == f"/x?key={SECRET}"
    assert PLACEHOLDER.encode() not in body_of(send("json:key", json={"key": PLACEHOLDER}))
    form = {"data": {"key": PLACEHOLDER}, "headers": {"Content-Type": FORM}}
    assert body_of(send("form:key", **form)) == f"key={SECRET}".encode()


@given(secret=SENDABLE, text=st.sampled_from(["cookie:a", "path:{}", "json:k", "form:k"]))
def test_a_refusal_says_nothing_of_the_secret(secret: str, text: str) -> None:
    try:
        send(text, secret="#" + secret + ";", path="/{}", content=b"x")
    except ApexCredsError as error:
        shown = f"{error!r} {error.hint} {error.args}"
        assert f"#{secret};" not in shown
        assert quote(f"#{secret};", safe="") not in shown


def test_a_user_and_a_password_are_the_password_elsewhere() -> None:
    taken = taken_from(httpx.Request("GET", ORIGIN))
    pair = Opened(encode_parts(BasicAuth("me", SECRET).parts), CredentialKind.BASIC)
    sent = inject(taken, [use(pair, "scheme:Bot")], body=httpx.ByteStream(b""))
    assert header(sent, "authorization") == [f"Bot {SECRET}"]
