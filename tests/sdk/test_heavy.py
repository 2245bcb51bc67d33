"""Heavy SDKs, unmodified: what each does with an adapter that was made beforehand.

Each is called in two invocations with one client, by a task or thread of its own, streams where
it has streams, is refused (and tries once), and tries again what the vendor can't do now. The
vendor says the key back to each in a header and in the text: nothing that the SDK has then,
logs or raises has it. Their packages are in the group ``sdk-all``: ``scripts/sdk_tests.sh``.
"""

from __future__ import annotations

import asyncio
import functools
import importlib
import json
import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

from apex_creds import sdk
from tests.sdk.test_vendors import ASKED, completion, message
from tests.support.snippets import blocks
from tests.support.vendor import SECRET, has_secret

pytestmark = [
    pytest.mark.anyio,
    # Their own: of Pydantic, of names that go away, of sessions that they don't close.
    pytest.mark.filterwarnings("ignore"),
]
NEED = ({"name": "web"},)
KEY = sdk.placeholder("sk-")


class Made(NamedTuple):
    """One SDK's client, and what is done with it.

    Attributes:
        call: A call; asynchronous, if ``asynchronous``.
        denied: What it raises for a refusal.
        stream: A call whose answer streams; gives all of it.
        retrying: Of a number of further tries: a call; None: the SDK has none of its own.
        header: Where the key goes, and what stands before it.
    """

    client: Any
    call: Callable[[], Any]
    denied: type[Exception]
    stream: Callable[[], Any] | None = None
    retrying: Callable[[], Any] | None = None
    header: tuple[str, str] = ("authorization", "Bearer ")
    asynchronous: bool = False


def async_httpx2(**options):
    httpx2 = importlib.import_module("httpx2")
    return httpx2.AsyncClient(transport=sdk.httpx2.async_transport("web"), **options)


def sync_httpx2(**options):
    httpx2 = importlib.import_module("httpx2")
    return httpx2.Client(transport=sdk.httpx2.transport("web"), **options)


async def whole(stream):
    return [each async for each in stream]


def stripe(url):
    module = importlib.import_module("stripe")
    module.enable_telemetry = False  # it keeps an id in the home

    def made(**options):
        return module.StripeClient(
            KEY,
            base_addresses={"api": url, "files": url},
            http_client=module.RequestsClient(session=sdk.requests.session("web")),
            **options,
        )

    client, again = made(max_network_retries=0), made(max_network_retries=1)
    return Made(
        client,
        lambda: client.v1.balance.retrieve(),
        module.PermissionError,
        lambda: client.v1.quotes.pdf("qt_1").io.read(),
        lambda: again.v1.balance.retrieve(),
    )


def stripe_async(url):
    module = importlib.import_module("stripe")
    module.enable_telemetry = False  # it keeps an id in the home
    aiohttp = importlib.import_module("aiohttp")

    async def call(retries=0):
        connector = sdk.aiohttp.connector("web")
        async with aiohttp.ClientSession(connector=connector) as session:
            client = module.StripeClient(
                KEY,
                base_addresses={"api": url},
                http_client=module.AIOHTTPClient(session=session),
                max_network_retries=retries,
            )
            found = await client.v1.balance.retrieve_async()
            assert not has_secret(client, session, found)
            return found

    return Made(call, call, module.PermissionError, retrying=lambda: call(1), asynchronous=True)


def twilio(url):
    module = importlib.import_module("twilio.rest")
    http = importlib.import_module("twilio.http.http_client").TwilioHttpClient()
    http.session = sdk.requests.session("web")
    client = module.Client("AC0", KEY, http_client=http)
    client.api.base_url = url
    error = importlib.import_module("twilio.base.exceptions").TwilioRestException
    return Made(client, lambda: client.api.v2010.accounts("AC0").fetch().friendly_name, error)


def pygithub(url):
    module = importlib.import_module("github")
    requester = importlib.import_module("github.Requester")

    class Connection(requester.HTTPRequestsConnectionClass):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            self.session = sdk.requests.session("web")
            self.session.mount("http://", sdk.requests.adapter("web", max_retries=self.retry))

    requester.Requester.injectConnectionClasses(Connection, Connection)
    auth = module.Auth.Token(KEY)

    def made(**options):
        return module.Github(auth=auth, base_url=url, **options)

    client = made(retry=0)
    urllib3 = importlib.import_module("urllib3")
    again = made(retry=urllib3.Retry(total=1, status_forcelist=[503]))
    return Made(
        client,
        lambda: client.get_repo("a/b").full_name,
        module.GithubException,
        retrying=lambda: again.get_repo("a/b").full_name,
        header=("authorization", "token "),
    )


def mistral(url):
    module = importlib.import_module("mistralai.client")
    retries = importlib.import_module("mistralai.client.utils")
    client = module.Mistral(
        api_key=KEY, server_url=url, async_client=async_httpx2(), client=sync_httpx2()
    )
    errors = importlib.import_module("mistralai.client.errors")
    once = retries.RetryConfig("backoff", retries.BackoffStrategy(1, 1, 1, 1000), False)

    async def stream():
        found = await whole(await client.chat.stream_async(model="m", messages=ASKED))
        return [each.data.choices[0].delta.content for each in found]

    def call(**options):
        return client.chat.complete_async(model="m", messages=ASKED, **options)

    return Made(
        client,
        call,
        errors.SDKError,
        stream,
        lambda: call(retries=once),
        asynchronous=True,
    )


def cohere(url):
    module = importlib.import_module("cohere")
    client = module.ClientV2(
        KEY,
        base_url=url,
        httpx_client=httpx.Client(transport=sdk.httpx.transport("web")),
    )
    errors = importlib.import_module("cohere.errors")

    def stream():
        found = list(client.chat_stream(model="m", messages=ASKED))
        return [each.delta.message.content.text for each in found]

    def call():
        return client.chat(model="m", messages=ASKED)

    return Made(client, call, errors.ForbiddenError, stream, call)


def google_genai(url):
    module = importlib.import_module("google.genai")
    types = importlib.import_module("google.genai.types")
    options = types.HttpOptions(
        base_url=url,
        httpx_async_client=async_httpx2(),
        httpx_client=sync_httpx2(),
        retry_options=types.HttpRetryOptions(attempts=2, initial_delay=0.001, jitter=0.001),
    )
    client = module.Client(api_key=KEY, http_options=options)
    error = importlib.import_module("google.genai.errors").ClientError
    models = client.aio.models

    async def stream():
        found = await models.generate_content_stream(model="m", contents="hi")
        return [each.text for each in await whole(found)]

    def call():
        return models.generate_content(model="m", contents="hi")

    return Made(client, call, error, stream, call, ("x-goog-api-key", ""), asynchronous=True)


def langchain_openai(url):
    module = importlib.import_module("langchain_openai")
    client = module.ChatOpenAI(
        model="m",
        api_key=KEY,
        base_url=url,
        http_async_client=async_httpx2(),
        http_client=sync_httpx2(),
    )
    error = importlib.import_module("openai").PermissionDeniedError

    async def stream():
        return [each.content for each in await whole(client.astream("hi"))]

    def call():
        return client.ainvoke("hi")

    return Made(client, call, error, stream, call, asynchronous=True)


def langchain_anthropic(url):
    module = importlib.import_module("langchain_anthropic")
    anthropic = importlib.import_module("anthropic")

    class Chat(module.ChatAnthropic):
        """It takes no client: where it makes its own is the place."""

        @functools.cached_property
        def _async_client(self):
            return anthropic.AsyncAnthropic(
                **{**self._client_params, "http_client": async_httpx2()}
            )

    client = Chat(model="m", api_key=KEY, base_url=url)

    async def stream():
        return [each.text for each in await whole(client.astream("hi"))]

    def call():
        return client.ainvoke("hi")

    denied = anthropic.PermissionDeniedError
    return Made(client, call, denied, stream, call, ("x-api-key", ""), asynchronous=True)


def litellm(url):
    module = importlib.import_module("litellm")
    openai = importlib.import_module("openai")
    client = openai.AsyncOpenAI(
        api_key=KEY, base_url=url, http_client=async_httpx2(), max_retries=1
    )

    def call(**options):
        return module.acompletion(model="openai/m", messages=ASKED, client=client, **options)

    async def stream():
        found = await whole(await call(stream=True))
        return [each.choices[0].delta.content or "" for each in found]

    denied = module.exceptions.APIError
    if hasattr(module.exceptions, "PermissionDeniedError"):
        denied = (denied, module.exceptions.PermissionDeniedError)
    return Made(client, call, denied, stream, call, asynchronous=True)


def huggingface_hub(url):
    module = importlib.import_module("huggingface_hub")
    # Its first request in a process asks huggingface.co which agents there are: it is refused.
    importlib.import_module("huggingface_hub.constants").HF_HUB_DISABLE_TELEMETRY = True
    module.set_client_factory(sync_httpx2)
    client = module.InferenceClient(base_url=url, api_key=KEY)
    errors = importlib.import_module("huggingface_hub.errors")

    def stream():
        found = client.chat_completion(ASKED, model="m", stream=True)
        return [each.choices[0].delta.content or "" for each in found]

    return Made(
        client,
        lambda: client.chat_completion(ASKED, model="m"),
        errors.HfHubHTTPError,
        stream,
    )


def elasticsearch(url):
    module = importlib.import_module("elasticsearch")
    transport = importlib.import_module("elastic_transport")

    class Node(transport.RequestsHttpNode):
        def __init__(self, config):
            super().__init__(config)
            self.session.mount(f"{config.scheme}://", sdk.requests.adapter("web"))

    client = module.Elasticsearch(url, node_class=Node, retry_on_status=[503])
    return Made(
        client,
        lambda: client.search(index="i").body,
        module.AuthorizationException,
        retrying=lambda: client.search(index="i").body,
    )


def replicate(url):
    module = importlib.import_module("replicate")
    client = module.Client(api_token=KEY, base_url=url, transport=sdk.httpx.transport("web"))
    error = importlib.import_module("replicate.exceptions").ReplicateError

    def call():
        return client.models.get("a/b").description

    return Made(client, call, error, lambda: [str(each) for each in client.stream("a/b")], call)


def slack(url):
    module = importlib.import_module("slack_sdk.web.async_client")
    handlers = importlib.import_module("slack_sdk.http_retry.builtin_async_handlers")
    aiohttp = importlib.import_module("aiohttp")

    async def call(**options):
        connector = sdk.aiohttp.connector("web")
        async with aiohttp.ClientSession(connector=connector) as session:
            client = module.AsyncWebClient(
                token=KEY, base_url=f"{url}/", session=session, **options
            )
            found = await client.auth_test()
            assert not has_secret(client, session, found)
            return found.data

    retry = [
        handlers.AsyncRateLimitErrorRetryHandler(),
        handlers.AsyncServerErrorRetryHandler(),
    ]
    denied = importlib.import_module("slack_sdk.errors").SlackApiError
    return Made(
        call, call, denied, retrying=lambda: call(retry_handlers=retry), asynchronous=True
    )


def answers(origin, method, path, body):
    """What each of them takes for an answer; its text has the key in it."""
    hello = f"hello; you sent {SECRET}"
    if path.endswith("/messages"):
        return message(method, path, body)
    if "v2/chat" in path:
        if not json.loads(body).get("stream"):
            said = {"role": "assistant", "content": [{"type": "text", "text": hello}]}
            return {"id": "1", "finish_reason": "COMPLETE", "message": said}
        deltas = [{"message": {"content": {"text": word}}} for word in ("hel", "lo")]
        events = [{"type": "content-delta", "index": 0, "delta": delta} for delta in deltas]
        return [f"event: {each['type']}\ndata: {json.dumps(each)}" for each in events]
    if "chat" in path:
        return completion(method, path, body)
    if "enerateContent" in path:
        words = ("hel", "lo") if "stream" in path else (hello,)
        parts = [[{"text": word}] for word in words]
        said = [{"candidates": [{"content": {"role": "model", "parts": p}}]} for p in parts]
        return [f"data: {json.dumps(each)}" for each in said] if "stream" in path else said[0]
    if path.endswith("/events"):
        words = [f"event: output\nid: {word}\ndata: {word}" for word in ("hel", "lo")]
        return [*words, "event: done\nid: 3\ndata: {}"]
    if path.endswith("/predictions"):
        started = {"id": "1", "model": "a/b", "version": "1", "status": "starting"}
        return started | {"urls": {"stream": f"{origin}/events"}}
    if path.endswith("/pdf"):
        return ["hel", "lo"]
    if "auth.test" in path:
        return {"ok": True, "url": hello}
    if "/repos/" in path:
        return {"full_name": hello, "url": path, "id": 1}
    if "_search" in path:
        return {"took": 1, "hits": {"hits": [{"_source": hello}]}}
    if "models" in path:
        return {
            "url": "u",
            "owner": "a",
            "name": "b",
            "description": hello,
            "visibility": "public",
            "run_count": 1,
        }
    return {
        "object": "balance",
        "sid": "AC0",
        "friendly_name": hello,
        "available": [],
        "livemode": False,
    }


SDKS = [
    *(stripe, stripe_async, twilio, pygithub, mistral, cohere, google_genai, langchain_openai),
    *(langchain_anthropic, litellm, huggingface_hub, elasticsearch, replicate, slack),
]
PACKAGES = {
    "stripe_async": "stripe",
    "pygithub": "github",
    "mistral": "mistralai",
    "google_genai": "google.genai",
    "slack": "slack_sdk",
}


@pytest.fixture(params=SDKS, ids=lambda each: each.__name__)
def vendor_sdk(request, service):
    name = request.param.__name__
    pytest.importorskip(PACKAGES.get(name, name))
    service.answer, service.echoes = functools.partial(answers, service.origin), True
    made = request.param(service.origin)
    service.header, service.prefix = made.header
    return made


async def allow(world, service) -> None:
    header, prefix = service.header, service.prefix
    scheme = prefix.strip().lower()
    delivery = f"header:{header}" if not prefix else "bearer"
    if scheme not in ("", "bearer"):
        delivery = f"scheme:{scheme}"
    await service.allow(world, delivery=delivery)


async def called(world, made, call):
    async def action(credentials):
        return await call()

    def in_thread(credentials):
        return call()

    return await world.call(action if made.asynchronous else in_thread, needs=NEED)


async def test_two_invocations_with_one_client(
    world, service, vendor_sdk, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    await allow(world, service)
    for _ in range(2):
        found = await called(world, vendor_sdk, vendor_sdk.call)
        assert "****" in repr(found) or "hello" in repr(found)
        assert not has_secret(found)
    assert len(world.events("redeem")) == 2
    # httpcore's own log, at this level, has the headers as they came: they are taken out there.
    assert (
        {"response"} <= {event.detail for event in world.events("leak")} <= {"response", "log"}
    )
    assert not has_secret(vendor_sdk, [record.getMessage() for record in caplog.records])


async def test_a_stream(world, service, vendor_sdk) -> None:
    if vendor_sdk.stream is None:
        pytest.skip("it has none")
    await allow(world, service)
    found = await called(world, vendor_sdk, vendor_sdk.stream)
    parts = found if isinstance(found, bytes) else "".join(map(str, found)).encode()
    assert parts.replace(b"\n", b"") == b"hello"
    assert not has_secret(vendor_sdk, found)


async def test_tasks_and_threads_of_ones_own(world, service, vendor_sdk) -> None:
    await allow(world, service)

    async def action(credentials):
        if vendor_sdk.asynchronous:
            return await asyncio.gather(*[vendor_sdk.call() for _ in range(3)])
        with sdk.Executor(3) as pool:
            waiting = [pool.submit(vendor_sdk.call) for _ in range(3)]
            return [await asyncio.wrap_future(each) for each in waiting]

    assert len(await world.call(action, needs=NEED)) == 3
    assert len(world.events("redeem")) == 3


async def test_a_refusal_is_its_permission_error_at_the_first_try(
    world, service, vendor_sdk
) -> None:
    await allow(world, service)
    await world.vault.edit("web", origins=["https://elsewhere.test"])
    with pytest.raises(vendor_sdk.denied) as caught:
        await called(world, vendor_sdk, vendor_sdk.call)
    assert not has_secret(caught.value)
    said = getattr(caught.value, "body", None) or caught.value  # as elasticsearch has it
    assert "may not be sent to" in str(said)
    assert world.reasons() == [("web", "request_not_allowed")]
    assert service.requests == []


async def test_what_the_vendor_can_not_do_now_is_tried_again(
    world, service, vendor_sdk
) -> None:
    if vendor_sdk.retrying is None:
        pytest.skip("it tries nothing again")
    await allow(world, service)
    service.statuses = [503]
    await called(world, vendor_sdk, vendor_sdk.retrying)
    assert len(service.requests) == 2
    assert len(world.events("redeem")) == 2


HEAVY = [
    block.text
    for block in blocks((Path(__file__).parents[2] / "docs" / "SDKS.md").read_text())
    if block.language == "python" and block.argument.startswith("sdk-all")
]


@pytest.mark.parametrize("snippet", HEAVY, ids=range(len(HEAVY)))
def test_a_snippet_of_the_page(snippet: str, tmp_path: Path) -> None:
    pytest.importorskip("langchain_anthropic")
    subprocess.run([sys.executable, "-c", snippet], cwd=tmp_path, check=True)
