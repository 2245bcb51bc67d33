"""Code and proof key in a real Chromium, at a real authorization server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from urllib.parse import parse_qs, urlsplit

import pytest
from playwright.async_api import Page

from apex_creds.errors import OAuthError
from apex_creds.oauth import Provider, connect
from tests.support.chromium import browser
from tests.support.oidc import Server
from tests.support.worlds import World

pytestmark = [pytest.mark.anyio, pytest.mark.e2e]
SCOPE = "openid offline_access api"


@pytest.fixture
async def page(anyio_backend: str) -> AsyncIterator[Page]:
    async with browser() as made:
        yield await (await made.new_context()).new_page()


async def to_the_consent(page: Page, address: str) -> None:
    """Logs in, as a person does."""
    await page.goto(address)
    await page.fill("input[name=login]", "alice")
    await page.fill("input[name=password]", "any")
    await page.click("button[type=submit]")
    await page.wait_for_selector("text=Authorize")


async def test_a_person_connects_in_a_browser(
    world: World, provider: Provider, server: Server, page: Page
) -> None:
    shown: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    before = server.count("authorization_code")
    connecting = asyncio.create_task(
        connect(
            world.vault,
            "calendar",
            provider,
            client_id="desk",
            scope=SCOPE,
            show=shown.set_result,
            principal="alice",
        )
    )
    address = await shown
    assert "code_challenge_method=S256" in address
    await to_the_consent(page, address)
    await page.click("button[type=submit]")
    made = await connecting
    await page.wait_for_selector("text=You can close this window")
    assert made.renewable
    assert made.info.principal == "alice"
    while server.count("authorization_code") == before:
        await asyncio.to_thread(server.next)
    # Nothing of the token is in what the browser keeps, and the code is good once.
    async with world.vault.open("calendar", principal="alice") as opened:
        tokens = [bytes(opened.view(part)).decode() for part in opened.names]
    kept = await page.content() + page.url
    assert not [token for token in tokens if token in kept]
    with pytest.raises(Exception, match="ERR_CONNECTION_REFUSED"):
        await page.goto(page.url)


async def test_who_says_no_stores_nothing(world: World, provider: Provider, page: Page) -> None:
    shown: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    connecting = asyncio.create_task(
        connect(
            world.vault,
            "calendar",
            provider,
            client_id="desk",
            scope=SCOPE,
            show=shown.set_result,
        )
    )
    await to_the_consent(page, await shown)
    await page.click("text=Cancel")
    with pytest.raises(OAuthError) as caught:
        await connecting
    assert caught.value.code == "access_denied"
    assert "calendar" not in [info.name for info in await world.vault.list()]


async def test_a_page_of_another_site_can_not_answer(
    world: World, provider: Provider, page: Page
) -> None:
    """It knows the port, and neither path nor state; the person goes on undisturbed."""
    shown: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    connecting = asyncio.create_task(
        connect(
            world.vault,
            "calendar",
            provider,
            client_id="desk",
            scope=SCOPE,
            show=shown.set_result,
        )
    )
    address = await shown
    redirect = parse_qs(urlsplit(address).query)["redirect_uri"][0]
    other = await page.context.new_page()
    forged = f"{redirect}?code=stolen&state=guessed"
    await other.set_content(
        f"<img src='{forged}'><iframe src='{forged}'></iframe>"
        f"<form id=f method=post action='{redirect}'><input name=code value=stolen></form>"
    )
    await other.goto(forged)
    assert "Nothing was changed" in await other.content()
    assert not connecting.done()
    await to_the_consent(page, address)
    await page.click("button[type=submit]")
    assert (await connecting).renewable
