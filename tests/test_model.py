"""Names, origins, deliveries, secrets: what is accepted, in one form, and what is masked."""

from __future__ import annotations

import contextlib
import copy
import math
import pickle
import socket
import unicodedata

import httpx
import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from apex_creds.errors import (
    InvalidInputError,
    InvalidNameError,
    SecretMisuseError,
    ValueTooLargeError,
)
from apex_creds.model import (
    MAX_NAME_BYTES,
    MAX_SECRET_BYTES,
    SECTIONS,
    ApiKey,
    BasicAuth,
    CredentialKind,
    Delivery,
    GenericSecret,
    OAuthToken,
    Origin,
    Secret,
    SystemClock,
    canonical_host,
    check_name,
    check_time,
    new_id,
)
from apex_creds.policy.patterns import Matcher, origin_pattern

# -- names ---------------------------------------------------------------------------


@given(name=st.text(max_size=300))
def test_a_name_is_one_printable_line_of_256_bytes_or_refused(name: str) -> None:
    try:
        assert check_name(name) == name
    except InvalidNameError:
        return
    assert 1 <= len(name.encode()) <= MAX_NAME_BYTES
    assert name.splitlines() == [name]
    assert unicodedata.normalize("NFC", name) == name
    assert not any(unicodedata.category(c)[0] == "C" and c not in private(name) for c in name)


def private(name: str) -> set[str]:
    return {c for c in name if unicodedata.category(c) == "Co"}


@given(name=st.text("abcXYZ019-_./:@ é日", min_size=1, max_size=60).map(str.strip).filter(bool))
def test_ordinary_names_are_accepted(name: str) -> None:
    assert check_name(name) == name


def test_an_error_names_what_was_wrong_and_not_the_value() -> None:
    with pytest.raises(InvalidNameError, match="plugin id") as caught:
        check_name("sk-secret-pasted-here\n", what="plugin id")
    assert "sk-secret" not in str(caught.value)


@pytest.mark.parametrize("moment", [math.nan, math.inf, -math.inf])
def test_what_is_no_time(moment: float) -> None:
    with pytest.raises(InvalidInputError, match="end"):
        check_time(moment, what="end")
    assert check_time(None, what="end") is None
    assert check_time(1.5, what="end") == 1.5


# -- origins -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("https://api.example.com", "https://api.example.com"),
        ("HTTPS://API.example.COM:443/", "https://api.example.com"),
        ("http://localhost:8080", "http://localhost:8080"),
        ("http://127.0.0.1", "http://127.0.0.1"),
        ("https://[::1]:8443", "https://[::1]:8443"),
        ("https://bücher.example", "https://xn--bcher-kva.example"),
        ("https://a_b.example", "https://a_b.example"),
        ("wss://stream.example.com", "https://stream.example.com"),
        ("ws://127.0.0.1:8080", "http://127.0.0.1:8080"),
        ("postgres://DB.example.com", "postgresql://db.example.com"),
        ("postgresql://db.example.com:5433", "postgresql://db.example.com:5433"),
        ("postgresql://[::1]:5432", "postgresql://[::1]"),
        ("postgresql://%2fvar%2FRun/", "postgresql://%2Fvar%2FRun"),
        ("postgresql://%2Ftmp%2Fa-b_c.d:6000", "postgresql://%2Ftmp%2Fa-b_c.d:6000"),
        ("redis://cache:6379", "redis://cache"),
        ("rediss://cache", "rediss://cache"),
        ("smtp://mail.example.com:587", "smtp://mail.example.com"),
        ("smtps://mail.example.com", "smtps://mail.example.com"),
        ("ssh://git.example.com:22", "ssh://git.example.com"),
    ],
)
def test_an_origin_has_one_form(text: str, canonical: str) -> None:
    origin = Origin.parse(text)
    assert str(origin) == canonical
    assert Origin.parse(str(origin)) == origin


BAD_ORIGINS = [
    "",
    "example.com",
    "//example.com",
    "https://",
    "https:///",
    "ftp://a",
    "file:///a",
    "https:a",
    "https://a/b",
    "https://a?b",
    "https://a#b",
    "https://u@a",
    "https://u:p@a",
    "https://@a",
    "https://a:0",
    "https://a:65536",
    "https://a:-1",
    "https://a:x",
    "https://[::1",
    "https://*",
    "https://*.example.com",
    "https://a b",
    "https://a\n.example",
    "https://a\t",
    " https://a",
    "https://a\\b",
    "https://a\\@b",
    "https://a%2eb",
    "https://a,b",
    "https://" + "a" * 300,
    "https://a\u202e",
    "https://a..b",
    "https://.a",
    "https://[::1%25eth0]",
    "https://a\0",
    "https://a?",
    "https://a#",
    "https://\u212a.example/x",
    "https://" + "a" * 64 + ".example",
    "https://%2Ftmp",
    "redis://%2Ftmp",
    "postgresql://%2Ftmp%2F",
    "postgresql://%2Ftmp%2F..%2Froot",
    "postgresql://%2F%2Ftmp",
    "postgresql://%2Ftmp%252F",
    "postgresql://%2Ftmp%00",
    "postgresql://%2Ftmp%FF",
    "postgresql:///tmp",
    "mysql://db",
]

# Names that IDNA 2003 and IDNA 2008 (which httpx goes by) read as two hosts.
TWO_HOSTS = [
    "https://straße.de",
    "https://STRASSE.faß.de",
    "https://βόλος.com",
    "https://\u0646\u0627\u0645\u0647\u200c\u0627\u06cc.com",
    "https://क्\u200dष.example",
]


@pytest.mark.parametrize("text", BAD_ORIGINS)
def test_what_is_no_origin(text: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        Origin.parse(text)
    assert caught.value.hint


@given(
    text=st.text(max_size=40)
    | st.text("htps:/.@[]a1%\\?#*:-é ", max_size=20).map("https://".__add__)
)
def test_any_text_is_an_origin_in_one_form_or_refused(text: str) -> None:
    try:
        origin = Origin.parse(text)
    except InvalidInputError:
        return
    assert Origin.parse(str(origin)) == origin
    assert origin.host == origin.host.lower()
    assert origin.host.isascii()
    assert 1 <= origin.port <= 65535


@pytest.mark.parametrize("text", TWO_HOSTS)
def test_a_name_that_means_two_hosts_is_refused_and_in_ascii_accepted(text: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        Origin.parse(text)
    assert "xn--" in caught.value.hint
    host = httpx.URL(text).raw_host.decode()
    assert Origin.parse(f"https://{host}").host == host


SPELLINGS = "aÄßς\u03c3Σ\u0131\u200d\u0301.。\uff11-x日ы"


@given(name=st.text(min_size=1, max_size=12) | st.text(SPELLINGS, max_size=9))
@example(name="bücher.example")
@example(name="ᏸ.example")
@example(name="日本語。jp")
def test_an_origin_and_a_url_mean_the_same_host(name: str) -> None:
    try:
        origin = Origin.parse(f"https://{name}")
    except InvalidInputError:
        return
    with contextlib.suppress(httpx.InvalidURL):
        assert canonical_host(httpx.URL(f"https://{name}/").raw_host.decode()) == origin.host


SAME_HOST = {
    "https://127.0.0.1": [
        "https://127.1", "https://127.0.1", "https://2130706433", "https://0x7f000001",
        "https://0X7F.1", "https://0177.0.0.01", "https://017700000001", "https://127.0.0.1.",
        "https://[::ffff:127.0.0.1]", "https://[::FFFF:7f00:1]", "https://[0:0:0:0:0:ffff:7f00:1]",
        "https://127.0.0.1:443", "HTTPS://127.0.0.1:0443",
    ],
    "https://[::1]:8443": [
        "https://[0:0:0:0:0:0:0:1]:8443", "https://[::0001]:8443", "https://[::0.0.0.1]:8443",
        "https://[0::1]:08443",
    ],
    "https://[2001:db8::a]": [
        "https://[2001:DB8:0:0:0:0:0:A]", "https://[2001:0db8:0000::000a]",
    ],
    "https://db.internal.example": [
        "https://db.internal.example.", "https://DB.Internal.EXAMPLE", "https://db。internal。example",
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("canonical", "other"), [(form, each) for form, all_ in SAME_HOST.items() for each in all_]
)
def test_other_spellings_of_a_host_are_that_host(canonical: str, other: str) -> None:
    origin = Origin.parse(canonical)
    assert str(origin) == canonical
    assert Origin.parse(other) == origin
    assert hash(Origin.parse(other)) == hash(origin)
    rule = Matcher([(origin_pattern(canonical),)])
    assert rule.origin(Origin.parse(other))
    written = Matcher([(origin_pattern(other),)])
    assert written.origin(origin)


@given(
    number=st.integers(0, 2**32 - 1),
    cut=st.integers(1, 4),
    bases=st.lists(
        st.sampled_from(["{:d}", "0{:o}", "0x{:x}", "0X{:X}"]), min_size=4, max_size=4
    ),
)
def test_an_address_is_read_as_the_resolver_reads_it(
    number: int, cut: int, bases: list[str]
) -> None:
    high = number.to_bytes(4, "big")[: cut - 1]
    rest = number & (256 ** (5 - cut) - 1)
    text = ".".join(b.format(n) for b, n in zip(bases, [*high, rest], strict=False))
    address = socket.inet_ntoa(socket.inet_aton(text))
    assert Origin.parse(f"https://{text}").host == address
    assert Origin.parse(f"https://[::ffff:{address}]").host == address


@pytest.mark.parametrize(
    "host", ["1.2.3.4.5", "256.1.1.1", "1.2.3.256", "08.1.1.1", "4294967296", "a.0x", "b.1"]
)
def test_what_ends_in_a_number_is_an_address_or_nothing(host: str) -> None:
    with pytest.raises(InvalidInputError):
        Origin.parse(f"https://{host}")


def test_an_origin_that_is_stored_in_another_spelling_is_read_as_the_one() -> None:
    """Older vaults have them, some that would not be accepted now: none is in the way."""
    stored = b'{"scheme":"https","host":"127.1","port":443}'
    assert msgspec.json.decode(stored, type=Origin) == Origin.parse("https://127.0.0.1")
    odd = b'{"scheme":"https","host":"1.2.3.4.5","port":443}'
    assert msgspec.json.decode(odd, type=Origin).host == "1.2.3.4.5"


@pytest.mark.parametrize(
    ("text", "here"),
    [
        ("https://127.0.0.2", True),
        ("redis://localhost", True),
        ("smtp://a.localhost", True),
        ("postgresql://%2Frun%2Fpostgresql", True),
        ("https://[::1]", True),
        ("https://10.0.0.1", False),
        ("https://localhost.example", False),
    ],
)
def test_an_origin_knows_whether_it_is_this_machine(text: str, here: bool) -> None:
    assert Origin.parse(text).here is here


@pytest.mark.parametrize("scheme", ["postgresql", "redis", "rediss", "smtp", "smtps", "ssh"])
def test_a_rule_for_one_scheme_does_not_cover_another(scheme: str) -> None:
    login = Origin.parse(f"{scheme}://db.example.com:443")
    web = Origin.parse("https://db.example.com")
    rule = Matcher([(origin_pattern(f"{scheme}://db.example.com:443"),)])
    assert rule.origin(login)
    assert not rule.origin(web)
    assert not Matcher([(origin_pattern(str(web)),)]).origin(login)


# -- deliveries ----------------------------------------------------------------------

DELIVERIES = [
    *("bearer", "basic", "header:X-Api-Key", "query:api_key", "scheme:Bot", "scheme:token"),
    *("cookie:__Host-session", "path:bot{}", "path:{}", "json:api_key", "form:api_key"),
]


@pytest.mark.parametrize("text", DELIVERIES)
def test_a_delivery_is_shown_as_it_is_written(text: str) -> None:
    assert str(Delivery.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Bearer",
        "bearer:",
        "bearer:x",
        "basic:x",
        "header",
        "header:",
        "query:",
        "header:a b",
        "header:a\r\nb",
        "header:a:b",
        "cookie:",
        "cookie:a;b",
        "header:" + "x" * 129,
        "header:é",
        "scheme:",
        "scheme:Bearer",
        "scheme:basic",
        "scheme:a b",
        "json:",
        "json:a.é",
        "form:a=b",
        "path:",
        "path:bot",
        "path:{}{}",
        "path:/bot{}",
        "path:bot{}%2f",
        "path:bot{}?a",
        "path:é{}",
        "path:" + "x" * 127 + "{}",
    ],
)
def test_what_is_no_delivery(text: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        Delivery.parse(text)
    assert caught.value.hint


# -- secrets -------------------------------------------------------------------------

MAKERS = {
    "api_key": lambda: ApiKey("hush-hush"),
    "oauth_token": lambda: OAuthToken("hush-hush", refresh_token="hush-too", expires_at=1.0),
    "basic": lambda: BasicAuth("user", "hush-hush"),
    "generic": lambda: GenericSecret(b"hush-hush"),
}


@pytest.mark.parametrize("kind", MAKERS)
def test_a_secret_is_masked_and_can_not_be_taken_along(kind: str) -> None:
    secret: Secret = MAKERS[kind]()
    assert secret.kind == kind
    assert SECTIONS[CredentialKind(kind)]
    for shown in (repr(secret), str(secret), f"{secret}", f"{secret!r}"):
        assert "hush" not in shown
    for take in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(SecretMisuseError) as caught:
            take(secret)
        assert caught.value.hint
    for encode in (msgspec.json.encode, msgspec.msgpack.encode):
        with pytest.raises(TypeError):
            encode(secret)


def test_what_is_no_secret() -> None:
    for make in (
        lambda: ApiKey(""),
        lambda: GenericSecret(b""),
        lambda: OAuthToken(""),
        lambda: BasicAuth("a:b", "p"),
        lambda: BasicAuth("", ""),
        lambda: ApiKey("\ud800"),
    ):
        with pytest.raises(InvalidInputError) as caught:
            make()
        assert caught.value.hint


def test_a_secret_is_at_most_64_kib() -> None:
    assert GenericSecret(bytes([1]) * MAX_SECRET_BYTES)
    with pytest.raises(ValueTooLargeError) as caught:
        OAuthToken("x" * MAX_SECRET_BYTES, refresh_token="y")
    assert caught.value.hint


# -- clocks and identifiers ----------------------------------------------------------


def test_identifiers_do_not_repeat() -> None:
    found = {new_id() for _ in range(10_000)}
    assert len(found) == 10_000
    assert all(len(one) == 32 and int(one, 16) >= 0 for one in found)


def test_the_system_clock() -> None:
    clock = SystemClock()
    assert clock.time() > 1.7e9
    assert clock.monotonic() <= clock.monotonic()
