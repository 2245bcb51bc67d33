"""A request is sent as it was checked, and an answer's headers say nothing of the secret."""

from __future__ import annotations

import base64
from urllib.parse import quote

import httpx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from apex_creds.leases.deliveries import Sent
from apex_creds.leases.request_signing import Outgoing, _own_url, without_secret

HOSTS = st.sampled_from(
    ["api.example.com", "a", "127.0.0.1", "[::1]", "1x.test", "xn--bcher-kva.de"]
)
PATHS = st.text("abcXYZ019-._~!$&'()*+,;=:@/% ?ü\"<>[]{}|\\^`#", max_size=12)


def parts(url: httpx.URL) -> tuple[object, ...]:
    return url.raw_scheme, url.raw_host, url.port, url.raw_path, url.netloc, url.userinfo


@given(
    scheme=st.sampled_from(["http", "https", "HTTP", "ftp"]),
    host=HOSTS,
    port=st.sampled_from(["", ":80", ":443", ":8080", ":08080"]),
    path=PATHS,
)
@example(scheme="https", host="api.example.com", port="", path="/v1/../admin")
@example(scheme="https", host="api.example.com", port="", path="/v1/%2e%2e/a?b=%zz&c")
def test_a_url_is_the_one_that_its_text_says(
    scheme: str, host: str, port: str, path: str
) -> None:
    try:
        url = httpx.URL(f"{scheme}://{host}{port}/{path}")
        again = httpx.URL(str(url))
    except httpx.InvalidURL:
        return
    own = _own_url(url)
    assert own is not url
    assert parts(own) == parts(again)


@given(
    field=st.sampled_from(["scheme", "userinfo", "host", "path", "query"]),
    value=st.text(st.sampled_from("ab/.?#@:% \r\n&=[]~'"), max_size=8),
)
@example(field="host", value="evil.test/?a=")
@example(field="path", value="/a b\r\nx: y")
def test_parts_that_were_tampered_with_are_read_again(field: str, value: str) -> None:
    url = httpx.URL("https://api.example.com/v1/models?limit=1")
    url._uri_reference = url._uri_reference._replace(**{field: value})
    try:
        again = httpx.URL(str(url))
    except httpx.InvalidURL:
        with pytest.raises(httpx.InvalidURL):
            _own_url(url)
        return
    assert parts(_own_url(url)) == parts(again)


class Liar(str):
    """Passes every comparison, and is another text when it is sent."""

    __slots__ = ()

    def encode(self, *args: object) -> bytes:
        return b"evil.test"


def test_a_part_that_only_looks_like_text_is_read_again() -> None:
    url = httpx.URL("https://api.example.com/v1")
    url._uri_reference = url._uri_reference._replace(host=Liar("api.example.com"))
    assert _own_url(url).raw_host == b"api.example.com"


def outgoing(value: str, inner: bytes = b"") -> Outgoing:
    url = httpx.URL("https://api.example.com/")
    return Outgoing("GET", url, [], httpx.ByteStream(b""), {}, [Sent(value, inner, "key")])


@given(
    secret=st.text(
        st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=8, max_size=40
    ),
    before=st.text("abc", max_size=4),
    form=st.sampled_from(["plain", "upper", "hex", "base64", "quoted", "twice"]),
)
def test_no_form_of_the_secret_comes_back_in_a_header(
    secret: str, before: str, form: str
) -> None:
    encoded = base64.b64encode((before + secret).encode()).decode()
    text = {
        "plain": secret,
        "upper": secret.upper(),
        "hex": secret.encode().hex(),
        "base64": encoded,
        "quoted": quote(secret, safe=""),
        "twice": quote(quote(secret, safe=""), safe=""),
    }[form]
    headers = [(b"location", b"/?k=" + text.encode()), (b"x", b"1"), (text.encode(), b"2")]
    clean = without_secret(headers, outgoing(secret))
    assert (b"x", b"1") in clean
    assert all(text.encode() not in value for _, value in clean)


def test_headers_that_are_too_short_for_a_secret_are_left_as_they_are() -> None:
    headers = [(b"content-length", b"5"), (b"date", b"Mon")]
    assert without_secret(headers, outgoing("s" * 40)) is headers
