"""boto3 as it is, against a server that checks signatures as AWS does."""

from __future__ import annotations

import asyncio
import gc
import io
import threading
import types
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from urllib.parse import urlsplit

import pytest

pytest.importorskip("boto3")

import boto3
import botocore.auth
from boto3.s3.transfer import TransferConfig
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials
from botocore.exceptions import ClientError, EndpointConnectionError, ReadTimeoutError

from apex_creds.model import AwsKey, Origin
from apex_creds.sdk import boto3 as sdk
from tests.support.http_servers import Reply, serving
from tests.support.worlds import World

pytestmark = pytest.mark.anyio

ID, KEY, TOKEN = "AKIDEXAMPLE", "wJalrXUtnFEMI-canary-EXAMPLEKEY", "session-canary-0123"
PLAIN = ("boto3", "botocore", "urllib3", "builtins", "apex_creds", "email", "collections")
CODE = (types.FunctionType, types.ModuleType, types.CodeType)
NEED = {"name": "aws", "access": "sign"}


@dataclass
class Cloud:
    """Buckets, and what came to them."""

    objects: dict[str, bytes] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)
    failures: int = 0
    late: threading.Event | None = None
    origin: str = ""


def verified(method: str, url: str, headers, body: bytes) -> bool:
    """Whether the signature is that of the key."""
    said = headers["Authorization"]
    scope, names, signature = (part.partition("=")[2] for part in said.split(", "))
    signed = {name: headers[name] for name in names.split(";")}
    request = AWSRequest(method=method, url=url, data=body, headers=signed)
    request.context["timestamp"] = headers["X-Amz-Date"]
    _, _, region, service, _ = scope.split("/")
    kind = botocore.auth.S3SigV4Auth if service == "s3" else botocore.auth.SigV4Auth
    auth = kind(Credentials(ID, KEY, TOKEN), service, region)
    expected = auth.signature(
        auth.string_to_sign(request, auth.canonical_request(request)), request
    )
    token = headers["X-Amz-Security-Token"] == TOKEN and "x-amz-security-token" in names
    return scope.startswith(f"{ID}/") and signature == expected and token


@pytest.fixture
def cloud() -> Iterator[Cloud]:
    made = Cloud()

    def answer(asked: BaseHTTPRequestHandler, body: bytes) -> Reply:
        made.requests.append((asked.command, asked.path))
        if made.late is not None:
            made.late.wait()
        parts = urlsplit(asked.path)
        status, data = 200, b""
        if not verified(asked.command, made.origin + asked.path, asked.headers, body):
            status, data = 403, b"<Error><Code>SignatureDoesNotMatch</Code></Error>"
        elif made.failures:
            made.failures -= 1
            status, data = 503, b"<Error><Code>SlowDown</Code></Error>"
        elif asked.headers.get("X-Amz-Target"):
            data = b'{"TableNames": ["t"]}'
        elif asked.command == "PUT":
            made.objects[asked.path] = body
        elif asked.command == "POST" and "uploadId" in parts.query:
            data = b"<CompleteMultipartUploadResult/>"
        elif asked.command == "POST":
            data = (
                b"<InitiateMultipartUploadResult><UploadId>u1</UploadId>"
                b"</InitiateMultipartUploadResult>"
            )
        else:
            data = made.objects.get(parts.path, b"")
        return status, data, {"ETag": '"1"'}

    with serving(answer) as server:
        made.origin = server.origin
        yield made


@pytest.fixture
async def granted(world: World, cloud: Cloud) -> World:
    await world.vault.put("aws", AwsKey(ID, KEY, TOKEN), origins=[cloud.origin])
    await world.vault.grant("demo", "aws", sign=True)
    return world


def client(cloud: Cloud, service: str = "s3", **more):
    retries = {"max_attempts": 2, "mode": "standard"}
    return sdk.session("aws", region_name="eu-west-1").client(
        service, endpoint_url=cloud.origin, config=Config(retries=retries), **more
    )


async def called(world: World, use):
    async def plugin(credentials):
        return await asyncio.to_thread(use)

    return await world.call(plugin, needs=(NEED,))


async def test_one_client_in_two_invocations(granted: World, cloud: Cloud) -> None:
    s3 = client(cloud)
    for number in (b"1", b"2"):
        await called(granted, lambda n=number: s3.put_object(Bucket="b", Key="k ü", Body=n))
        got = await called(granted, lambda: s3.get_object(Bucket="b", Key="k ü")["Body"].read())
        assert got == number
    assert cloud.requests == [("PUT", "/b/k%20%C3%BC"), ("GET", "/b/k%20%C3%BC")] * 2
    assert {event.method for event in granted.events("redeem")} == {"PUT", "GET"}


@pytest.mark.parametrize("key", ["a/../b", "./b", "a/.."])
async def test_a_key_that_a_path_can_not_say_is_not_another_object(
    granted: World, cloud: Cloud, key: str
) -> None:
    with pytest.raises(ClientError, match="segment of dots"):
        await called(granted, lambda: client(cloud).put_object(Bucket="b", Key=key, Body=b""))
    assert cloud.requests == []


async def test_another_service(granted: World, cloud: Cloud) -> None:
    dynamodb = client(cloud, "dynamodb")
    assert (await called(granted, dynamodb.list_tables))["TableNames"] == ["t"]


async def test_a_body_that_is_a_file_and_a_try_after_a_failure(
    granted: World, cloud: Cloud
) -> None:
    s3 = client(cloud)
    cloud.failures = 1
    body = io.BytesIO(b"x" * 100_000)
    await called(granted, lambda: s3.put_object(Bucket="b", Key="k", Body=body))
    assert cloud.objects["/b/k"] == b"x" * 100_000
    assert len(cloud.requests) == 2


async def test_threads_of_a_transfer_send_with_the_callers_rights(
    granted: World, cloud: Cloud
) -> None:
    s3 = client(cloud)
    config = TransferConfig(multipart_threshold=5 << 20, multipart_chunksize=5 << 20)
    data = b"a" * (5 << 20) + b"b" * 1000

    def transfer() -> bytes:
        s3.upload_fileobj(io.BytesIO(data), "b", "big", Config=config)
        s3.put_object(Bucket="b", Key="small", Body=b"small")
        found = io.BytesIO()
        s3.download_fileobj("b", "small", found)
        return found.getvalue()

    assert await called(granted, transfer) == b"small"
    parts = [body for path, body in sorted(cloud.objects.items()) if "partNumber" in path]
    assert b"".join(parts) == data


async def test_a_refusal_is_the_sdks_own_and_is_tried_once(
    granted: World, cloud: Cloud
) -> None:
    s3 = client(cloud)
    with pytest.raises(ClientError) as outside:
        await asyncio.to_thread(s3.list_buckets)
    assert outside.value.response["Error"]["Code"] == "AccessDenied"
    assert outside.value.operation_name == "ListBuckets"

    need = {**NEED, "methods": ["GET"]}

    async def plugin(credentials):
        with pytest.raises(ClientError, match="outside"):
            await asyncio.to_thread(s3.put_object, Bucket="b", Key="k", Body=b"")

    await granted.vault.grant("demo", "aws", sign=True)
    await granted.call(plugin, needs=(need,))
    assert cloud.requests == []
    assert [reason for _, reason in granted.reasons()].count("request_not_allowed") == 1


async def test_a_server_that_is_not_there(granted: World, cloud: Cloud) -> None:
    await granted.vault.edit("aws", origins=[str(Origin.parse("http://127.0.0.1:1"))])
    s3 = sdk.session("aws", region_name="eu-west-1").client(
        "s3",
        endpoint_url="http://127.0.0.1:1",
        config=Config(retries={"total_max_attempts": 1}),
    )

    def use() -> None:
        with pytest.raises(EndpointConnectionError):
            s3.list_buckets()

    await called(granted, use)


async def test_a_client_waits_as_long_as_it_says(granted: World, cloud: Cloud) -> None:
    impatient = sdk.session("aws", region_name="eu-west-1").client(
        "s3",
        endpoint_url=cloud.origin,
        config=Config(read_timeout=0.2, retries={"total_max_attempts": 1}),
    )
    cloud.late = threading.Event()

    def use() -> None:
        with pytest.raises(ReadTimeoutError):
            impatient.put_object(Bucket="b", Key="k", Body=b"")
        cloud.late.set()
        client(cloud).put_object(Bucket="b", Key="k", Body=b"")

    await called(granted, use)


async def test_a_session_of_ones_own(granted: World, cloud: Cloud) -> None:
    own = boto3.Session("AKIAMINE", "mine", region_name="eu-west-1")
    sdk.attach(own, "aws")
    s3 = own.client("s3", endpoint_url=cloud.origin)
    await called(granted, lambda: s3.put_object(Bucket="b", Key="k", Body=b"1"))
    assert cloud.objects == {"/b/k": b"1"}


async def test_the_secret_is_in_no_object_of_the_sdk(granted: World, cloud: Cloud) -> None:
    s3 = client(cloud)
    answer = await called(granted, lambda: s3.put_object(Bucket="b", Key="k", Body=b"1"))
    seen: set[int] = set()
    left: list[object] = [s3, answer]
    while left:
        each = left.pop()
        if id(each) in seen or isinstance(each, type) or len(seen) > 200_000:
            continue
        seen.add(id(each))
        if isinstance(each, str | bytes):
            text = each if isinstance(each, str) else each.decode("latin-1")
            assert KEY not in text
            assert TOKEN not in text
        elif type(each).__module__.split(".")[0] in PLAIN and not isinstance(each, CODE):
            left += gc.get_referents(each)
