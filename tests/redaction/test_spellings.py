"""Every spelling is found in what Python's own encoders make of a secret amid other text."""

from __future__ import annotations

import base64
import html
import json
import re
import urllib.parse
from collections.abc import Callable, Iterator

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from apex_creds.crypto.memory import arena
from apex_creds.redaction.spellings import spellings

secrets = st.binary(min_size=6, max_size=40)
texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=6, max_size=40)
around = st.binary(max_size=7)
around_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=7)
TEXT_ENCODERS: dict[str, Callable[[str], str]] = {
    "itself": str,
    "quote": urllib.parse.quote,
    "quote without safe": lambda text: urllib.parse.quote(text, safe=""),
    "quote_plus": urllib.parse.quote_plus,
    "urlencode": lambda text: urllib.parse.urlencode({"key": text}),
    "json": json.dumps,
    "json in utf-8": lambda text: json.dumps(text, ensure_ascii=False),
    "json in json": lambda text: json.dumps({"key": [text]}),
    "repr": repr,
    "repr in a list": lambda text: repr([text]),
    "hex": lambda text: text.encode().hex(),
    "ascii": ascii,
    "json in upper case": lambda text: upper_escapes(json.dumps(text)),
    "encodeURIComponent": lambda text: urllib.parse.quote(text, safe="!*'()~"),
    "encodeURI": lambda text: urllib.parse.quote(text, safe=";,/?:@&=+$-_.!~*'()#"),
    "encodeURI in lower case": lambda text: lower_escapes(
        urllib.parse.quote(text, safe=";,/?:@&=+$-_.!~*'()#")
    ),
    "JSON of PHP": lambda text: json.dumps(text).replace("/", "\\/"),
    "JSON of Go": lambda text: escaped(json.dumps(text, ensure_ascii=False), "&<>"),
    "JSON of Flask": lambda text: escaped(json.dumps(text), "&<>'"),
    "JSON, every character": lambda text: "".join(
        f"\\u{int.from_bytes(unit, 'little'):04x}" for unit in utf_16_units(text)
    ),
    "JSON in a string of JSON": lambda text: json.dumps(json.dumps({"key": text})),
    "html.escape": html.escape,
    "HTML of Jinja": lambda text: html.escape(text).replace("&#x27;", "&#39;"),
    "HTML without quotes": lambda text: html.escape(text, quote=False),
    "percent, every byte": lambda text: "".join(f"%{byte:02x}" for byte in text.encode()),
    "upper case": lambda text: "".join(
        c.upper() if c.isascii() or c.isalpha() else c for c in text
    ),
    "lower case": lambda text: "".join(
        c.lower() if c.isascii() or c.isalpha() else c for c in text
    ),
    "requests": lambda text: urllib.parse.quote(text, safe="!#$%&'()*+,/:;=?@[]~"),
}
BYTES_ENCODERS: dict[str, Callable[[bytes], bytes]] = {
    "itself": bytes,
    "hex": lambda data: data.hex().encode(),
    "upper hex": lambda data: data.hex().upper().encode(),
    "base64": base64.b64encode,
    "urlsafe base64": base64.urlsafe_b64encode,
    "quote": lambda data: urllib.parse.quote(data).encode(),
    "quote_plus": lambda data: urllib.parse.quote_plus(data).encode(),
    "lower quote": lambda data: lower_escapes(urllib.parse.quote(data, safe="")).encode(),
    "repr": lambda data: repr(data).encode(),
}


def escaped(text: str, letters: str) -> str:
    return "".join(f"\\u{ord(c):04x}" if c in letters else c for c in text)


def utf_16_units(text: str) -> Iterator[bytes]:
    data = text.encode("utf-16-le")
    return (data[at : at + 2] for at in range(0, len(data), 2))


def upper_escapes(text: str) -> str:
    return re.sub(r"(?<!\\)((?:\\\\)*)\\u(....)", lambda m: f"{m[1]}\\u{m[2].upper()}", text)


def lower_escapes(text: str) -> str:
    pieces = text.split("%")
    return "%".join([pieces[0], *(p[:2].lower() + p[2:] for p in pieces[1:])])


def spelled(secret: bytes) -> list[bytes]:
    made = spellings(memoryview(secret))
    found = [one.expose_bytes() for one in made]
    for one in made:
        one.close()
    return found


@pytest.fixture(autouse=True)
def no_slot_is_left() -> Iterator[None]:
    before = arena().open_slots
    yield
    assert arena().open_slots == before


@pytest.mark.parametrize("encoder", BYTES_ENCODERS)
@given(before=around, secret=secrets, after=around)
def test_bytes_are_found_at_any_alignment(
    encoder: str, before: bytes, secret: bytes, after: bytes
) -> None:
    text = BYTES_ENCODERS[encoder](before + secret + after)
    assert any(spelling in text for spelling in spelled(secret))


@pytest.mark.parametrize("encoder", TEXT_ENCODERS)
@given(before=around_text, secret=texts, after=around_text)
def test_text_is_found_at_any_place(encoder: str, before: str, secret: str, after: str) -> None:
    text = TEXT_ENCODERS[encoder](before + secret + after).encode()
    assert any(spelling in text for spelling in spelled(secret.encode()))


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
@given(before=around_text, secret=texts, after=around_text)
def test_text_is_found_in_utf_16(encoding: str, before: str, secret: str, after: str) -> None:
    text = (before + secret + after).encode(encoding)
    assert any(spelling in text for spelling in spelled(secret.encode()))


@given(secret=secrets)
def test_the_secret_itself_is_first_and_nothing_is_there_twice(secret: bytes) -> None:
    found = spelled(secret)
    assert found[0] == secret
    assert len(found) == len(set(found))


@given(secret=secrets)
def test_nothing_else_is_searched_for(secret: bytes) -> None:
    """A spelling is as long as the secret (UTF-16: two thirds of it): no false alarms."""
    assert all(len(spelling) * 3 >= len(secret) * 2 for spelling in spelled(secret))


@pytest.mark.parametrize("length", [1, 2, 3])
def test_short_secrets_are_not_searched_for_in_base64(length: int) -> None:
    found = spelled(b"abcde"[:length])
    assert base64.b64encode(b"abcde"[:length]).rstrip(b"=") not in found
    assert b"abcde"[:length].hex().encode() in found


@pytest.mark.parametrize("length", [4, 5])
def test_secrets_of_a_few_bytes_are_searched_for_in_base64(length: int) -> None:
    secret = b"ab1c!"[:length]
    for before in (b"", b"x", b"xy"):
        text = base64.b64encode(before + secret + b"z")
        assert any(spelling in text for spelling in spelled(secret))


@pytest.mark.parametrize("width", [64, 76])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("length", [49, 58, 120, 300])
def test_base64_in_lines(width: int, end: bytes, length: int) -> None:
    plain = base64.b64encode(bytes(at * 7 % 256 for at in range(length)))
    text = end.join(plain[at : at + width] for at in range(0, len(plain), width))
    found = spelled(bytes(at * 7 % 256 for at in range(length)))
    assert any(spelling in text for spelling in found)


in_urls = st.text(st.sampled_from("az09-._~ !\"$&'()*+,:;<=>@[]^`{|}\u00e9\u20ac"), min_size=6)


@given(secret=in_urls)
def test_urls_of_httpx(secret: str) -> None:
    url = httpx.URL("https://a.example/x" + secret + "y")
    other = httpx.URL("https://a.example/?q=x" + secret + "y")
    fragment = httpx.URL("https://a.example/#x" + secret + "y")
    for one in (url, other, fragment):
        assert any(spelling in str(one).encode() for spelling in spelled(secret.encode()))


def test_spellings_are_bounded() -> None:
    assert len(spelled("p\u00e4 \"'\\\n;,/?:@&=+$!*'()#[]{}|^`<>%~\u00ff".encode())) <= 72


def test_a_plain_secret_has_few_spellings() -> None:
    assert len(spelled(b"sk-abcdefghijklmnop")) <= 14


@given(secret=st.binary(max_size=300))
def test_anything_at_all_is_spelled(secret: bytes) -> None:
    assert spelled(secret)[0] == secret


def test_a_long_secret_is_spelled_whole() -> None:
    secret = bytes(range(256)) * 256
    assert secret.hex().encode() in spelled(secret)
