"""A request is sent as it was checked."""

from __future__ import annotations

import httpx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from apex_creds.leases.outgoing_requests import _own_url

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
