"""Signatures for AWS, compared with those that botocore makes of the same requests."""

from __future__ import annotations

import datetime
import itertools
from contextlib import contextmanager
from urllib.parse import urlsplit

import httpx
import pytest

pytest.importorskip("botocore")

import botocore.auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials
from hypothesis import assume, given
from hypothesis import strategies as st

from apex_creds.crypto import sigv4
from apex_creds.errors import RequestNotAllowedError
from apex_creds.leases.outgoing_requests import inject, snapshot
from apex_creds.model import PLACEHOLDER, AwsKey
from tests.leases.test_deliveries import opened, taken_from, use

ID, SECRET = "AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"
TOKEN = "IQoJb3JpZ2luX2VjE//+=aBcD"
NOW = datetime.datetime(2030, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)
STAMP = "20300102T030405Z"
UNSIGNED = Config(s3={"payload_signing_enabled": False})

SIGNERS = {
    "s3": (botocore.auth.S3SigV4Auth, botocore.auth.S3SigV4QueryAuth),
    "dynamodb": (botocore.auth.SigV4Auth, botocore.auth.SigV4QueryAuth),
    "execute-api": (botocore.auth.SigV4Auth, botocore.auth.SigV4QueryAuth),
}
PATHS = [
    *(
        "/",
        "",
        "/a",
        "/a/",
        "/a//b",
        "/a/./b",
        "/a/../b",
        "/%C3%BC/%20x",
        "/a%2Fb",
        "/a~b-c_d.e",
    ),
    *("/key+with=signs&(parens)!'*", "/a/%7Bx%7D", "/..%2f", "/a:b@c,d;e$"),
]
QUERIES = [
    *("", "a=b", "b=2&a=1&a=0", "acl", "prefix=&delimiter=%2F", "a=%20%2B~&A=1"),
    *("list-type=2&prefix=a%2Fb%20c", "X-Id=GetObject", "partNumber=1&uploadId=x%3D"),
]


@pytest.fixture(autouse=True)
def at_one_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(botocore.auth, "get_current_datetime", lambda: NOW)


def signed_by_botocore(
    service: str,
    *,
    method: str,
    url: str,
    key: tuple[str, str, str | None],
    data: bytes = b"",
    headers: dict[str, str] | None = None,
    query: bool = False,
    context: dict[str, object] | None = None,
):
    """The request as an SDK prepares it."""
    request = AWSRequest(method=method, url=url, data=data, headers=headers or {})
    request.context.update(context or {})
    signer = SIGNERS[service][query]
    more = {"expires": 60} if query else {}
    signer(Credentials(*key), service, "eu-west-1", **more).add_auth(request)
    return request.prepare()


@contextmanager
def key(token: str = ""):
    with opened(AwsKey(ID, SECRET, token)) as whole, sigv4.key_of(whole) as found:
        yield found


def anew(request, *, token: str = "", body: bytes | None = b"", only: str = "") -> sigv4.Signed:
    """What is sent instead of a request that an SDK prepared."""
    parts = urlsplit(request.url)
    target = (parts.path or "/") + ("?" + parts.query if parts.query else "")
    headers = [
        (name, value if isinstance(value, str) else value.decode())
        for name, value in request.headers.items()
    ]
    if not any(name.lower() == "host" for name, _ in headers):
        headers.append(("Host", parts.netloc))
    with key(token) as found:
        return sigv4.sign(
            found,
            method=request.method,
            target=target,
            headers=headers,
            body=body,
            only=only,
            stamp=STAMP,
        )


def same(ours: sigv4.Signed, theirs) -> None:
    parts = urlsplit(theirs.url)
    assert ours.target == (parts.path or "/") + ("?" + parts.query if parts.query else "")
    said = {n.lower(): v for n, v in ours.headers}
    for name in ("Authorization", "X-Amz-Date", "X-Amz-Security-Token", "X-Amz-Content-SHA256"):
        value = theirs.headers.get(name)
        value = value.decode() if isinstance(value, bytes) else value
        assert said.get(name.lower()) == value, name


@pytest.mark.parametrize("service", SIGNERS)
@pytest.mark.parametrize("query", [False, True], ids=["header", "url"])
def test_a_signature_is_that_of_botocore(service: str, query: bool) -> None:
    tokens = [None, TOKEN]
    placeholders = [("AKIAPLACEHOLDER", "x", None), ("AKIAPLACEHOLDER", "x", "placeholder")]
    cases = itertools.product(PATHS, QUERIES, ["GET", "PUT", "POST"], tokens, placeholders)
    for path, words, method, token, dummy in cases:
        url = f"https://host.eu-west-1.amazonaws.com{path}" + (f"?{words}" if words else "")
        if query and "X-" in words:
            continue
        if service == "s3" and not path:
            continue  # botocore signs no path, and the request line has one
        body = b"" if method == "GET" or query else b'{"a": 1}'
        asked = {
            "method": method,
            "url": url,
            "data": body,
            "headers": {"Content-Type": "text/x", "User-Agent": "u", "X-Amz-Meta-A": "a   b "},
            "query": query,
        }
        theirs = signed_by_botocore(service, key=(ID, SECRET, token), **asked)
        dummies = signed_by_botocore(service, key=dummy, **asked)
        same(anew(dummies, token=token or "", body=body), theirs)


@pytest.mark.parametrize(
    ("context", "headers", "expected"),
    [
        ({}, {}, None),
        ({"payload_signing_enabled": False}, {}, None),
        ({"has_streaming_input": True}, {"Content-MD5": "x"}, "UNSIGNED-PAYLOAD"),
        (
            {"client_config": Config(s3={"payload_signing_enabled": False})},
            {},
            "UNSIGNED-PAYLOAD",
        ),
        (
            {"checksum": {"request_algorithm": {"in": "trailer"}}},
            {"X-Amz-Trailer": "x-amz-checksum-crc32"},
            "STREAMING-UNSIGNED-PAYLOAD-TRAILER",
        ),
    ],
)
def test_payloads_of_s3(context: dict, headers: dict[str, str], expected: str | None) -> None:
    asked = {"method": "PUT", "url": "https://b.s3.amazonaws.com/k", "data": b"body"}
    asked |= {"headers": headers, "context": context}
    theirs = signed_by_botocore("s3", key=(ID, SECRET, None), **asked)
    dummies = signed_by_botocore("s3", key=("AKIAPLACEHOLDER", "x", None), **asked)
    if expected:
        assert theirs.headers["X-Amz-Content-SHA256"] in (expected, expected.encode())
    same(anew(dummies, body=None), theirs)


def test_a_date_header_stands_for_the_date() -> None:
    asked = {"method": "GET", "url": "https://h/x", "headers": {"Date": "now"}}
    theirs = signed_by_botocore("dynamodb", key=(ID, SECRET, None), **asked)
    dummies = signed_by_botocore("dynamodb", key=("AKIAPLACEHOLDER", "x", None), **asked)
    same(anew(dummies), theirs)


@given(
    value=st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=20),
    path=st.text("ab/.~%20ü =&+;:@", max_size=12),
    words=st.text("ab=&%20~", max_size=12),
)
def test_any_request_has_the_signature_of_botocore(value: str, path: str, words: str) -> None:
    # As it is sent: httpx escapes what an SDK did not.
    url = httpx.URL("https://host.amazonaws.com/").copy_with(
        path="/" + path, query=words.encode() or None
    )
    assume(url.raw_path.partition(b"?")[0] == urlsplit(str(url)).path.encode())
    asked = {"method": "GET", "url": str(url), "headers": {"X-Amz-Meta": value}}
    botocore.auth.get_current_datetime = lambda: NOW
    for service in SIGNERS:
        theirs = signed_by_botocore(service, key=(ID, SECRET, TOKEN), **asked)
        dummies = signed_by_botocore(service, key=("AKIAPLACEHOLDER", "x", None), **asked)
        same(anew(dummies, token=TOKEN), theirs)


def test_a_request_that_no_sdk_signed_is_signed_for_what_the_delivery_says() -> None:
    url = "https://host.amazonaws.com/x?b=1&a=2"
    for service in ("s3", "dynamodb"):
        theirs = signed_by_botocore(
            service, method="POST", url=url, key=(ID, SECRET, TOKEN), data=b"{}"
        )
        plain = AWSRequest(method="POST", url=url, data=b"{}").prepare()
        del plain.headers["Content-Length"]
        ours = anew(plain, token=TOKEN, body=b"{}", only=f"eu-west-1/{service}")
        same(ours, theirs)


# -- what is refused -----------------------------------------------------------------


def changed(request, **headers: str):
    for name, value in headers.items():
        name = name.replace("_", "-")
        if name in request.headers:
            del request.headers[name]
        request.headers[name] = value
    return request


GOOD = (
    f"AWS4-HMAC-SHA256 Credential=A/20300102/eu-west-1/dynamodb/aws4_request, "
    f"SignedHeaders=host;x-amz-date, Signature={'0' * 64}"
)


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": GOOD.replace("20300102", "20300103")},
        {"Authorization": GOOD.replace("aws4_request", "aws4")},
        {"Authorization": GOOD.replace("AWS4-HMAC-SHA256", "AWS4-HMAC-SHA256-X")},
        {"Authorization": GOOD.replace("eu-west-1", "a/b")},
        {"Authorization": GOOD + "x"},
        {"Authorization": "AWS4-ECDSA-P256-SHA256 Credential=A/20300102/dynamodb/aws4_request"},
        {"Authorization": "Bearer x"},
        {"X_Amz_Date": "20300102"},
        {"X_Amz_Content_SHA256": "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"},
        {"X_Amz_Content_SHA256": "0" * 63},
    ],
)
def test_what_is_no_signature_is_not_signed_anew(headers: dict[str, str]) -> None:
    asked = {"method": "GET", "url": "https://h/x", "key": ("AKIAPLACEHOLDER", "x", None)}
    request = changed(signed_by_botocore("dynamodb", **asked), **headers)
    with pytest.raises(RequestNotAllowedError, match="signed anew") as caught:
        anew(request)
    assert caught.value.hint


def test_only_for_the_region_and_service_of_the_delivery() -> None:
    asked = {"method": "GET", "url": "https://h/x", "key": ("AKIAPLACEHOLDER", "x", None)}
    request = signed_by_botocore("dynamodb", **asked)
    anew(request, only="eu-west-1/dynamodb")
    for only in ("us-east-1/dynamodb", "eu-west-1/s3"):
        with pytest.raises(RequestNotAllowedError, match="region or service"):
            anew(request, only=only)


def test_a_stream_without_its_hash_is_not_signed() -> None:
    asked = {"method": "POST", "url": "https://h/x", "key": ("AKIAPLACEHOLDER", "x", None)}
    request = signed_by_botocore("dynamodb", **asked)
    with pytest.raises(RequestNotAllowedError, match="stream"):
        anew(request, body=None)


def test_a_date_in_a_query_has_digits_of_ascii() -> None:
    asked = {"X-Amz-Algorithm": "AWS4-HMAC-SHA256", "X-Amz-Signature": "00"}
    asked |= {"X-Amz-Date": "\uff120300102T000000Z", "X-Amz-Expires": "60"}
    asked["X-Amz-Credential"] = "A/\uff120300102/eu-west-1/s3/aws4_request"
    with pytest.raises(RequestNotAllowedError, match="signature with its date"):
        sigv4.request_of_query(list(asked.items()))


def test_a_header_that_is_signed_for_and_not_there_is_refused() -> None:
    asked = {"method": "GET", "url": "https://h/x", "key": ("AKIAPLACEHOLDER", "x", None)}
    request = signed_by_botocore("dynamodb", headers={"X-Amz-Meta-A": "1"}, **asked)
    del request.headers["X-Amz-Meta-A"]
    with pytest.raises(RequestNotAllowedError, match="x-amz-meta-a"):
        anew(request)


# -- in a request --------------------------------------------------------------------


def test_the_secret_is_in_no_part_of_the_request() -> None:
    asked = {"method": "GET", "url": "https://h.amazonaws.com/x?a=1"}
    dummies = signed_by_botocore("dynamodb", key=(PLACEHOLDER, "x", None), **asked)
    theirs = signed_by_botocore("dynamodb", key=(ID, SECRET, TOKEN), **asked)
    headers = {n: v if isinstance(v, str) else v.decode() for n, v in dummies.headers.items()}
    taken = taken_from(httpx.Request("GET", dummies.url, headers=headers))
    secret = opened(AwsKey(ID, SECRET, TOKEN))
    both = [use(secret, "aws4"), use(opened("k-12345678"), "header:X-Api-Key")]
    sent = inject(taken, both, body=httpx.ByteStream(b""))
    said = {name.lower(): value for name, value in sent.headers}
    assert said[b"authorization"].decode() == theirs.headers["Authorization"]
    assert said[b"x-amz-security-token"] == TOKEN.encode()
    assert SECRET.encode() not in repr(sent).encode()
    assert PLACEHOLDER not in repr(sent)


def test_a_url_that_was_signed_by_an_sdk_is_sent_as_botocore_writes_it() -> None:
    asked = {"method": "GET", "url": "https://b.s3.amazonaws.com/k%20e?versionId=a%2Fb"}
    dummies = signed_by_botocore("s3", key=("AKIAPLACEHOLDER", "x", None), query=True, **asked)
    theirs = signed_by_botocore("s3", key=(ID, SECRET, TOKEN), query=True, **asked)
    taken = snapshot("GET", dummies.url, [], None, {})
    secret = opened(AwsKey(ID, SECRET, TOKEN))
    sent = inject(taken, [use(secret, "aws4:eu-west-1/s3")], body=httpx.ByteStream(b""))
    assert str(sent.url) == theirs.url
