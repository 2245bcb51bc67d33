"""Heavy SDKs, unmodified: a call in each of two invocations, and a refusal that is tried once.

Their packages are in the group ``sdk-all`` only: ``scripts/sdk_tests.sh``.
"""

from __future__ import annotations

import importlib

import httpx
import pytest

from apex_creds import sdk
from tests.sdk.test_vendors import ASKED, completion
from tests.sdk.vendor import has_secret

pytestmark = [
    pytest.mark.anyio,
    # Their own: of Pydantic, of names that go away, of sessions that they don't close.
    pytest.mark.filterwarnings("ignore"),
]
NEED = ({"name": "web"},)
KEY = sdk.placeholder("sk-")


def async_httpx2():
    httpx2 = importlib.import_module("httpx2")
    return httpx2.AsyncClient(transport=sdk.httpx2.async_transport("web"))


def sync_httpx2():
    httpx2 = importlib.import_module("httpx2")
    return httpx2.Client(transport=sdk.httpx2.transport("web"))


def stripe(url):
    module = importlib.import_module("stripe")
    module.enable_telemetry = False  # it keeps an id in the home
    client = module.StripeClient(
        KEY,
        base_addresses={"api": url},
        http_client=module.RequestsClient(session=sdk.requests.session("web")),
        max_network_retries=0,
    )
    return client, lambda: client.v1.balance.retrieve(), module.PermissionError


def twilio(url):
    module = importlib.import_module("twilio.rest")
    http = importlib.import_module("twilio.http.http_client").TwilioHttpClient()
    http.session = sdk.requests.session("web")
    client = module.Client("AC0", KEY, http_client=http)
    client.api.base_url = url
    error = importlib.import_module("twilio.base.exceptions").TwilioRestException
    return client, lambda: client.api.v2010.accounts("AC0").fetch(), error


def mistral(url):
    module = importlib.import_module("mistralai.client")
    client = module.Mistral(
        api_key=KEY, server_url=url, async_client=async_httpx2(), client=sync_httpx2()
    )
    errors = importlib.import_module("mistralai.client.errors")
    return (
        client,
        lambda: client.chat.complete_async(model="m", messages=ASKED),
        errors.SDKError,
    )


def cohere(url):
    module = importlib.import_module("cohere")
    client = module.ClientV2(
        KEY,
        base_url=url,
        httpx_client=httpx.Client(transport=sdk.httpx.transport("web")),
    )
    errors = importlib.import_module("cohere.errors")
    return client, lambda: client.chat(model="m", messages=ASKED), errors.ForbiddenError


def google(url):
    module = importlib.import_module("google.genai")
    options = importlib.import_module("google.genai.types").HttpOptions(
        base_url=url, httpx_async_client=async_httpx2(), httpx_client=sync_httpx2()
    )
    client = module.Client(api_key=KEY, http_options=options)
    error = importlib.import_module("google.genai.errors").ClientError
    return (
        client,
        lambda: client.aio.models.generate_content(model="m", contents="hi"),
        error,
    )


def langchain(url):
    module = importlib.import_module("langchain_openai")
    client = module.ChatOpenAI(
        model="m",
        api_key=KEY,
        base_url=url,
        http_async_client=async_httpx2(),
        http_client=sync_httpx2(),
    )
    error = importlib.import_module("openai").PermissionDeniedError
    return client, lambda: client.ainvoke("hi"), error


def replicate(url):
    module = importlib.import_module("replicate")
    client = module.Client(api_token=KEY, base_url=url, transport=sdk.httpx.transport("web"))
    error = importlib.import_module("replicate.exceptions").ReplicateError
    return client, lambda: client.models.get("a/b"), error


def slack(url):
    module = importlib.import_module("slack_sdk.web.async_client")
    aiohttp = importlib.import_module("aiohttp")

    async def call():
        connector = sdk.aiohttp.connector("web")
        async with aiohttp.ClientSession(connector=connector) as session:
            client = module.AsyncWebClient(token=KEY, base_url=f"{url}/", session=session)
            return await client.auth_test()

    return call, call, importlib.import_module("slack_sdk.errors").SlackApiError


def answers(method, path, body):
    """What each of them takes for an answer."""
    if "chat" in path and "v2" not in path:
        return completion(method, path, body)
    if "v2/chat" in path:
        said = {"role": "assistant", "content": [{"type": "text", "text": "hello"}]}
        return {"id": "1", "finish_reason": "COMPLETE", "message": said}
    if "generateContent" in path:
        return {"candidates": [{"content": {"role": "model", "parts": [{"text": "hello"}]}}]}
    if "auth.test" in path:
        return {"ok": True, "url": "x"}
    if "models" in path:
        return {"url": "u", "owner": "a", "name": "b", "visibility": "public", "run_count": 1}
    return {"object": "balance", "sid": "AC0", "available": [], "livemode": False}


SDKS = [stripe, twilio, mistral, cohere, google, langchain, replicate, slack]
PACKAGES = {
    "mistral": "mistralai",
    "google": "google.genai",
    "langchain": "langchain_openai",
    "slack": "slack_sdk",
}
ASYNC = {"mistral", "google", "langchain", "slack"}


async def called(world, name, call):
    async def action(credentials):
        return await call()

    def in_thread(credentials):
        return call()

    return await world.call(action if name in ASYNC else in_thread, needs=NEED)


@pytest.fixture(params=SDKS, ids=lambda each: each.__name__)
def vendor_sdk(request, service):
    name = request.param.__name__
    pytest.importorskip(PACKAGES.get(name, name))
    service.answer = answers
    if name == "google":
        service.header, service.prefix = "x-goog-api-key", ""
    return name, request.param


async def test_two_invocations_with_one_client(world, service, vendor_sdk) -> None:
    name, make = vendor_sdk
    client, call, _ = make(service.origin)
    await service.allow(world)
    for _ in range(2):
        found = await called(world, name, call)
        assert not has_secret(found)
    assert len(world.events("redeem")) == 2
    assert not has_secret(client)


async def test_a_refusal_is_its_permission_error_at_the_first_try(
    world, service, vendor_sdk
) -> None:
    name, make = vendor_sdk
    _, call, denied = make("http://127.0.0.1:9")
    await service.allow(world)
    with pytest.raises(denied) as caught:
        await called(world, name, call)
    assert not has_secret(caught.value)
    assert world.reasons() == [("web", "request_not_allowed")]
    assert service.requests == []
