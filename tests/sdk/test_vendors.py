"""The real SDKs of OpenAI and Anthropic, unmodified, their clients made beforehand."""

from __future__ import annotations

import asyncio
import json
import logging
import threading

import anthropic
import httpx
import httpx2
import openai
import pytest

from apex_creds import sdk
from apex_creds.model import ApiKey
from tests.support.vendor import SECRET, has_secret

pytestmark = pytest.mark.anyio
NEED = ({"name": "web"},)
ASKED = [{"role": "user", "content": "hi"}]


def completion(method, path, body):
    base = {"id": "c1", "object": "chat.completion", "created": 1, "model": "m"}
    if json.loads(body).get("stream"):
        chunks = [
            base
            | {
                "object": "chat.completion.chunk",
                "choices": [{"index": 0, "delta": {"content": word}, "finish_reason": None}],
            }
            for word in ("hel", "lo")
        ]
        chunks[-1]["choices"][0]["finish_reason"] = "stop"
        return [*(f"data: {json.dumps(chunk)}" for chunk in chunks), "data: [DONE]"]
    message = {"role": "assistant", "content": "hello"}
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
    return base | {"choices": choices, "usage": usage}


def message(method, path, body):
    base = {
        "id": "m1", "type": "message", "role": "assistant", "model": "m", "content": [],
        "stop_reason": None, "stop_sequence": None,
        "usage": {"input_tokens": 1, "output_tokens": 1},
    }  # fmt: skip
    if not json.loads(body).get("stream"):
        return base | {"content": [{"type": "text", "text": "hello"}]}
    block = {"type": "content_block_start", "index": 0}
    events = [
        {"type": "message_start", "message": base},
        block | {"content_block": {"type": "text", "text": ""}},
        *(
            {
                "type": "content_block_delta",
                "index": 0,
                "delta": {"type": "text_delta", "text": word},
            }
            for word in ("hel", "lo")
        ),
        {"type": "content_block_stop", "index": 0},
        {"type": "message_stop"},
    ]
    return [f"event: {event['type']}\ndata: {json.dumps(event)}" for event in events]


class OpenAI:
    denied, timed_out = openai.PermissionDeniedError, openai.APITimeoutError
    key = sdk.placeholder("sk-")
    prefix, header, answer = "Bearer ", "authorization", staticmethod(completion)

    def __init__(self, library) -> None:
        transport = sdk.httpx if library is httpx else sdk.httpx2
        self.clients = [
            lambda url: openai.AsyncOpenAI(
                api_key=self.key,
                base_url=url,
                http_client=library.AsyncClient(transport=transport.async_transport("web")),
            ),
            lambda url: openai.OpenAI(
                api_key=self.key,
                base_url=url,
                http_client=library.Client(transport=transport.transport("web")),
            ),
        ]

    def ask(self, client):
        return client.chat.completions.create(model="m", messages=ASKED)

    def text(self, answer):
        return answer.choices[0].message.content

    def stream(self, client):
        return client.chat.completions.create(model="m", messages=ASKED, stream=True)

    def word(self, chunk):
        return chunk.choices[0].delta.content or ""


class Anthropic:
    denied, timed_out = anthropic.PermissionDeniedError, anthropic.APITimeoutError
    key = sdk.placeholder("sk-ant-")
    prefix, header, answer = "", "x-api-key", staticmethod(message)

    def __init__(self) -> None:
        self.clients = [
            lambda url: anthropic.AsyncAnthropic(
                api_key=self.key,
                base_url=url,
                http_client=httpx2.AsyncClient(transport=sdk.httpx2.async_transport("web")),
            ),
            lambda url: anthropic.Anthropic(
                api_key=self.key,
                base_url=url,
                http_client=httpx2.Client(transport=sdk.httpx2.transport("web")),
            ),
        ]

    def ask(self, client):
        return client.messages.create(model="m", max_tokens=9, messages=ASKED)

    def text(self, answer):
        return answer.content[0].text

    def stream(self, client):
        return client.messages.create(model="m", max_tokens=9, messages=ASKED, stream=True)

    def word(self, event):
        return event.delta.text if event.type == "content_block_delta" else ""


@pytest.fixture(params=[lambda: OpenAI(httpx), lambda: OpenAI(httpx2), Anthropic])
def vendor_sdk(request, service):
    made = request.param()
    service.prefix, service.header, service.answer = made.prefix, made.header, made.answer
    return made


async def asked(world, vendor_sdk, client, *, needs=NEED):
    async def action(credentials):
        return vendor_sdk.text(await vendor_sdk.ask(client))

    def in_thread(credentials):
        return vendor_sdk.text(vendor_sdk.ask(client))

    asynchronous = type(client).__name__.startswith("Async")
    return await world.call(action if asynchronous else in_thread, needs=needs)


@pytest.mark.parametrize("which", [0, 1], ids=["async", "sync"])
async def test_two_calls_and_what_it_keeps(
    world, service, vendor_sdk, which, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    client = vendor_sdk.clients[which](service.origin)
    await service.allow(world)
    for _ in range(2):
        assert await asked(world, vendor_sdk, client) == "hello"
    assert len(world.events("redeem")) == 2
    assert not has_secret(client, [record.getMessage() for record in caplog.records])


async def test_a_stream(world, service, vendor_sdk) -> None:
    client = vendor_sdk.clients[0](service.origin)
    await service.allow(world)

    async def action(credentials):
        words = [vendor_sdk.word(each) async for each in await vendor_sdk.stream(client)]
        return "".join(words)

    assert await world.call(action, needs=NEED) == "hello"

    in_thread = vendor_sdk.clients[1](service.origin)

    def blocking(credentials):
        return "".join([vendor_sdk.word(each) for each in vendor_sdk.stream(in_thread)])

    assert await world.call(blocking, needs=NEED) == "hello"


async def test_a_thread_of_ones_own(world, service, vendor_sdk) -> None:
    client = vendor_sdk.clients[1](service.origin)
    await service.allow(world)

    async def action(credentials):
        with sdk.Executor(1) as pool:
            return await asyncio.wrap_future(pool.submit(vendor_sdk.ask, client))

    assert vendor_sdk.text(await world.call(action, needs=NEED)) == "hello"


@pytest.mark.parametrize("which", [0, 1], ids=["async", "sync"])
async def test_a_refusal_is_tried_once_and_is_its_permission_error(
    world, service, vendor_sdk, which
) -> None:
    client = vendor_sdk.clients[which](service.origin)
    await service.allow(world)
    await world.vault.put("web", ApiKey(SECRET), origins=["https://elsewhere.test"])
    with pytest.raises(vendor_sdk.denied, match="may not be sent to") as caught:
        await asked(world, vendor_sdk, client)
    assert not has_secret(caught.value)
    assert world.reasons() == [("web", "request_not_allowed")]  # once
    assert service.requests == []


@pytest.mark.parametrize("status", [429, 500])
async def test_what_the_vendor_can_not_do_now_is_tried_again(
    world, service, vendor_sdk, status, monkeypatch
) -> None:
    client = vendor_sdk.clients[0](service.origin)
    monkeypatch.setattr(client, "_calculate_retry_timeout", lambda *_, **__: 0.0)
    await service.allow(world)
    service.statuses = [status]
    assert await asked(world, vendor_sdk, client) == "hello"
    assert len(service.requests) == 2
    assert len(world.events("redeem")) == 2


@pytest.mark.parametrize("which", [0, 1], ids=["async", "sync"])
async def test_a_vendor_that_does_not_answer_is_its_time_out(
    world, service, vendor_sdk, which: int
) -> None:
    made = vendor_sdk.clients[which](service.origin)
    client = made.with_options(timeout=0.2, max_retries=1)
    never = threading.Event()
    service.answer = lambda *_: never.wait()
    await service.allow(world)
    try:
        with pytest.raises(vendor_sdk.timed_out):
            await asked(world, vendor_sdk, client)
    finally:
        never.set()
    assert len(service.requests) == 2
