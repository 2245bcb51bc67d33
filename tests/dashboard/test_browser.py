"""The page in a real browser: hostile names, no mouse, live, in any light and width."""

from __future__ import annotations

import contextlib
import itertools
import json
import signal
from datetime import UTC, datetime, timedelta
from pathlib import Path

import anyio
import pytest
from playwright.async_api import Page, Route, expect

from apex_creds.audit.events import AuditEvent, EventKind
from apex_creds.dashboard.log_status import Verified
from apex_creds.dashboard.watcher import _verification
from apex_creds.documents import key_versions
from apex_creds.model import Rotation, RotationStage
from apex_creds.vault import credential_writes
from apex_creds.vault.lookup import PutItem
from tests.dashboard.browsing import CONTRAST, barriers, tab
from tests.dashboard.running import running
from tests.dashboard.town import (
    BOOKS,
    CHATTER,
    SECRET,
    WEATHER,
    ApiKey,
    Vault,
    manifest,
    need,
    town_in,
    turn_kek,
)
from tests.support.chromium import browser

pytestmark = [pytest.mark.anyio, pytest.mark.e2e]

CANARY = "\"'><img src=x onerror=pwned=1><script>pwned=1</script>{{7*7}}"
LABEL = f"{CANARY}-label"
HOSTILE = manifest(
    f"{CANARY}-plugin",
    need(LABEL, reason=f"{CANARY}-reason javascript:pwned=1", scopes=[f"{CANARY}-scope"]),
)


# What another site would try, in the browser of somebody who is logged in.
ATTACKS = """async ([origin, id]) => {
  const tried = {};
  const attempt = async (name, work) => {
    tried[name] = await work().then((r) => `${r.type ?? r} ${r.status ?? ''}`, (e) => e.name);
  };
  const post = { method: 'POST', credentials: 'include', body: '{"choice":"always"}' };
  const url = `${origin}/api/requests/${id}`;
  await attempt('read', () => fetch(`${origin}/api/log?before=3`, { credentials: 'include' }));
  await attempt('post', () => fetch(url, { ...post, mode: 'no-cors' }));
  const json = { 'content-type': 'application/json', 'x-apex-creds-key': 'x' };
  await attempt('json', () => fetch(url, { ...post, headers: json }));
  const load = (tag, more) => new Promise((done) => {
    const node = Object.assign(document.createElement(tag), more);
    node.onload = () => done('loaded');
    node.onerror = () => done('refused');
    document.body.append(node);
  });
  const script = { src: `${origin}/assets/words.js`, type: 'module' };
  await attempt('script', () => load('script', script));
  await attempt('image', () => load('img', { src: `${origin}/assets/icon.svg` }));
  return tried;
}"""


async def other_sites_get_nowhere(page: Page, origin: str) -> None:
    """Neither another port of this host, to which cookies are sent, nor a site elsewhere."""
    request = await page.locator("#requests-list li").get_attribute("data-key")
    for site in ("http://127.0.0.1:1", "http://evil.example"):
        bad = await page.context.new_page()
        await bad.route(
            f"{site}/", lambda r: r.fulfill(body="<body>", content_type="text/html")
        )
        await bad.goto(f"{site}/")
        tried = await bad.evaluate(ATTACKS, [origin, request])
        assert tried == {
            "read": "TypeError",
            "post": "TypeError",
            "json": "TypeError",
            "script": "refused ",
            "image": "refused ",
        }, (site, tried)
        await bad.close()


# What is put into a place, from now on.
CHANGES = """(place) => {
  window.changes = [];
  new MutationObserver((all) => window.changes.push(
    ...all.flatMap((one) => [...one.addedNodes]).map((node) => node.nodeName)
  )).observe(document.querySelector(place), { childList: true, subtree: true });
}"""


async def text_of(page: Page, place: str) -> str:
    return await page.locator(place).inner_text()


async def test_hostile_names_are_only_text_everywhere(tmp_path: Path) -> None:
    async with town_in(tmp_path, many=3) as town, anyio.create_task_group() as group:
        await town.vault.put(LABEL, ApiKey(SECRET), origins=["https://x.test"])
        await town.vault.grant(HOSTILE.plugin, LABEL, scopes=[f"{CANARY}-scope"], reveal=True)
        stop = anyio.Event()
        await town.use(HOSTILE, LABEL, f"{CANARY}-action")
        group.start_soon(town.hold, HOSTILE, LABEL, stop, f"{CANARY}-action")
        asked = manifest(HOSTILE.plugin, need("llm/openai", reason=f"{CANARY}-reason"))
        group.start_soon(town.ask, asked, "llm/openai", f"{CANARY}-action")
        with running(tmp_path / "home", "--allow-decisions") as made:
            async with browser() as chrome:
                seen = await tab(chrome, made.origin)
                page = seen.page
                await page.goto(made.link)
                await expect(page.locator("#requests-list li")).to_have_count(1)
                await expect(page.locator('#verified[data-kind="ok"]')).to_be_visible()
                assert "login" not in page.url
                for place, word in (
                    ("#requests", "-plugin"),
                    ("#requests", "-reason"),
                    ("#leases", "-label"),
                    ("#permissions", "-label"),
                    ("#keys-table", "-label"),
                    ("#audit-list", "-action"),
                ):
                    await page.locator("details.as-table").evaluate("e => { e.open = true; }")
                    await expect(page.locator(place)).to_contain_text(f"{CANARY}{word}")
                await page.locator("#leases button.link").click()
                await expect(page.locator(".story li")).not_to_have_count(0)
                assert CANARY in await text_of(page, "#detail")
                await page.keyboard.press("Escape")
                await page.locator("#permissions button.cell").first.click()
                await expect(page.locator("#detail")).to_be_visible()
                await page.keyboard.press("Escape")
                content = await page.content()
                for never in (SECRET, "[object ", "undefined", "NaN"):
                    assert never not in content
                await seen.innocent()
                await other_sites_get_nowhere(page, made.origin)
                await expect(page.locator("#requests-list li")).to_have_count(1)
                # The same link again, in another browser: refused, and nothing is shown.
                other = await tab(chrome, made.origin)
                await other.page.goto(made.link)
                await expect(other.page.locator("#door-error")).to_contain_text("used already")
                assert town.vault.vault_id[:8] not in await other.page.content()
        stop.set()
        group.cancel_scope.cancel()


async def test_a_request_is_approved_without_a_mouse_and_seen_live(tmp_path: Path) -> None:
    async with town_in(tmp_path, many=30) as town, anyio.create_task_group() as group:
        await town.enrol()
        await town.half_rotate("api_keys/tenants", moved=12)
        with running(tmp_path / "home", "--allow-decisions") as made:
            async with browser() as chrome:
                seen = await tab(chrome, made.origin)
                page = seen.page
                await page.goto(made.link)
                await expect(page.locator("#keys-picture svg")).to_contain_text(
                    "12 of 30 under v2"
                )
                await expect(page.locator("#requests")).to_be_hidden()
                await page.keyboard.press("Tab")
                await expect(page.locator(".skip")).to_be_focused()
                await page.keyboard.press("Enter")
                await expect(page.locator("#main")).to_be_focused()
                # What has just appeared is not answered yet.
                await page.clock.pause_at(datetime.now(UTC) + timedelta(seconds=1))
                group.start_soon(town.ask, BOOKS, "payments/stripe")
                await expect(page.locator("#requests-list li")).to_have_count(1)
                await tab_to(page, "#requests button:not(.primary)")
                await page.keyboard.press("Enter")
                await expect(page.locator(".answer .error")).to_contain_text("look again")
                await page.clock.run_for(1000)
                await page.clock.resume()
                # It is said; its code is asked for, and has the focus when it was wrong.
                await expect(page.locator("#polite")).to_contain_text("org.bookkeeper wants")
                await tab_to(page, 'input[name="code"]', key="Shift+Tab")
                await page.keyboard.type("000000")
                await page.keyboard.press("Enter")
                await expect(page.locator(".answer .error")).to_contain_text("not accepted")
                await expect(page.locator('input[name="code"]')).to_be_focused()
                await page.keyboard.press("Control+a")
                await page.keyboard.type(town.code())
                await page.keyboard.press("Tab")
                await page.keyboard.press("Enter")
                await expect(page.locator("#requests")).to_be_hidden()
                await expect(page.locator("#polite")).to_contain_text("Allowed: org.bookkeeper")
                await expect(page.locator("#keys-title")).to_be_focused()
                # What it led to is in the log on the page, without a reload.
                used = page.locator("#audit-list li", has_text="org.bookkeeper").filter(
                    has_text="used"
                )
                await expect(used).to_have_count(1)
                await tab_to(page, "#audit-list button")
                await page.keyboard.press("Enter")
                await expect(page.locator("#detail-title")).to_be_focused()
                await page.keyboard.press("Escape")
                await expect(page.locator("#audit-list button:focus")).to_have_count(1)
                await stays_closed(page)
                await goes_on_live(town, page)
                seen.console = [line for line in seen.console if "403" not in line]
                await seen.innocent()
    assert isinstance(town.answers["org.bookkeeper"], int)


async def stays_closed(page: Page) -> None:
    """A story that comes when its dialog was closed already does not open it again."""
    come = anyio.Event()

    async def late(route: Route) -> None:
        await come.wait()
        await route.continue_()

    await page.route("**/api/story/*", late)
    await page.keyboard.press("Enter")
    await expect(page.locator("#detail-title")).to_be_focused()
    await page.keyboard.press("Escape")
    async with page.expect_response("**/api/story/*"):
        come.set()
    await page.unroute("**/api/story/*")
    await page.evaluate("fetch(location.pathname).then((again) => again.text())")  # later still
    await expect(page.locator("#detail")).to_be_hidden()
    await expect(page.locator("#audit-list button:focus")).to_have_count(1)


async def goes_on_live(town, page: Page) -> None:
    """Leases come and go, and a rotation ends, under the eyes of who looks."""
    stop = anyio.Event()
    async with anyio.create_task_group() as group:
        group.start_soon(town.hold, CHATTER, "llm/openai", stop, "stream")
        await expect(page.locator("#leases-list li")).to_have_count(1)
        await expect(page.locator("#leases-list .pill")).to_have_text("open")
        await town.vault.revoke(plugin="org.chatter")
        await expect(page.locator("#leases-list .pill")).to_have_text("revoked")
        stop.set()
    await expect(page.locator("#leases-list li")).to_have_count(0)
    await town.finish_rotation()
    await expect(page.locator("#keys-picture svg")).not_to_contain_text("of 30 under")
    await expect(page.locator("#alarm")).to_be_hidden()
    await town.vault.lockdown(reason="laptop stolen")
    await expect(page.locator("#alerts")).to_contain_text("laptop stolen")
    await expect(page.locator("#alarm")).to_have_text("Locked down")


# Parts of names that stand on more than one line.
_BROKEN = r"""() => {
  const lines = (text) => {
    const range = document.createRange();
    range.selectNodeContents(text);
    return new Set([...range.getClientRects()].map((at) => at.top)).size;
  };
  return [...document.querySelectorAll('.word')]
    .filter((node) => node.checkVisibility())
    .flatMap((node) => [...node.childNodes])
    .filter((node) => node.nodeType === 3 && !/\s/.test(node.data) && lines(node) > 1)
    .map((node) => node.data);
}"""
_ONE_LINE = """() => {
  const box = (node) => node.getBoundingClientRect();
  const [brand, pills] = ['.brand', '.status'].map((s) => box(document.querySelector(s)));
  const tiles = [...document.querySelectorAll('#tiles strong')].map((node) => box(node).top);
  return pills.top < brand.bottom && new Set(tiles).size === 1;
}"""


async def tab_to(page: Page, selector: str, *, key: str = "Tab") -> None:
    """Presses Tab until something that is meant has the focus."""
    for _ in range(60):
        await page.keyboard.press(key)
        if await page.evaluate("s => document.activeElement.matches(s)", selector):
            return
    raise AssertionError(f"{selector} is not reached by Tab")


async def test_any_light_any_width_and_only_looking(tmp_path: Path) -> None:
    async with town_in(tmp_path, many=30) as town, anyio.create_task_group() as group:
        await turn_kek(town.vault)
        await town.half_rotate("api_keys/tenants", moved=12)
        await town.leak()
        await town.denied()
        await town.use(WEATHER, "weather/openweather")
        group.start_soon(town.ask, BOOKS, "payments/stripe")
        with running(tmp_path / "home") as made:
            async with browser() as chrome:
                seen = await tab(chrome, made.origin, color_scheme="light")
                page = seen.page
                await page.goto(made.link)
                await expect(page.locator("#requests-list")).to_contain_text(
                    "apex-creds approve"
                )
                assert (
                    await page.locator("#requests-list").locator("button, select").count() == 0
                )
                await expect(page.locator("#mode")).to_have_text("read only")
                await expect(page.locator('#verified[data-kind="ok"]')).to_be_visible()
                for scheme in ("light", "dark"):
                    await page.emulate_media(color_scheme=scheme)
                    assert await page.evaluate(CONTRAST) == [], scheme
                for width in (390, 320, 360, 768, 834, 1920):
                    await page.set_viewport_size({"width": width, "height": 844})
                    await expect(page.locator("#keys-picture svg")).to_be_visible()
                    await seen.fits()
                    assert "…" not in await page.locator("#keys-picture").text_content(), width
                    if width >= 360:
                        await page.wait_for_function(f"() => ({_BROKEN})().length === 0")
                    if width >= 768:
                        assert await page.evaluate(_ONE_LINE), width
                await page.locator("#filter-kind").select_option("refused")
                rows = page.locator("#audit-list li")
                await expect(rows.filter(has_text="leak")).not_to_have_count(0)
                await expect(rows.filter(has_text="lease")).to_have_count(0)
                await page.locator("#leave").click()
                await expect(page.locator("#door")).to_be_visible()
                assert town.vault.vault_id[:8] not in await page.content()
                await seen.innocent()
        group.cancel_scope.cancel()


@pytest.mark.parametrize("state", ["full", "locked down", "empty"])
async def test_nothing_shuts_people_out(tmp_path: Path, state: str) -> None:
    async with contextlib.AsyncExitStack() as stack:
        group = await stack.enter_async_context(anyio.create_task_group())
        if state == "empty":
            master = f"file:{tmp_path}/m.key"
            await stack.enter_async_context(
                await Vault.create(tmp_path / "home", master=master)
            )
        else:
            town = await stack.enter_async_context(town_in(tmp_path, many=30))
            await town.half_rotate("api_keys/tenants", moved=12)
            await town.leak()
            await town.denied()
        group = await stack.enter_async_context(anyio.create_task_group())
        stack.callback(group.cancel_scope.cancel)
        if state == "full":
            group.start_soon(town.hold, CHATTER, "llm/openai", anyio.Event(), "stream")
            group.start_soon(town.ask, BOOKS, "payments/stripe")
        if state == "locked down":
            await town.vault.lockdown(reason="laptop stolen", keep_grants=True)
        made = stack.enter_context(running(tmp_path / "home", "--allow-decisions"))
        chrome = await stack.enter_async_context(browser())
        page = (await tab(chrome, made.origin)).page
        await page.goto(f"{made.origin}/")
        await expect(page.locator("#door")).to_be_visible()
        assert await barriers(page) == []
        await page.goto(made.link)
        await expect(page.locator("#verified")).to_contain_text("verify")
        await expect(page.locator("#permissions-table")).not_to_be_empty()
        if state == "full":
            await expect(page.locator("#requests-list li")).to_have_count(1)
            await expect(page.locator("#leases-list li")).to_have_count(1)
        await page.locator("details.as-table").evaluate("e => { e.open = true; }")
        for width, scheme in itertools.product((360, 1440), ("light", "dark")):
            await page.set_viewport_size({"width": width, "height": 800})
            await page.emulate_media(color_scheme=scheme)
            assert await barriers(page) == [], (width, scheme)
        if state == "full":
            await page.locator("#audit-list button").first.click()
            await expect(page.locator(".story li")).not_to_have_count(0)
            assert await barriers(page) == []


async def test_earlier_events_come_and_stay_and_a_search_is_of_the_whole_log(
    tmp_path: Path,
) -> None:
    async with town_in(tmp_path, many=3) as town:
        audit, now = town.vault.audit, town.vault.clock.time()
        await town.denied()
        for n in range(900):
            audit.append(AuditEvent(now, EventKind.REDEEM, plugin="org.busy", action=f"n{n}"))
        audit.flush()
        with running(tmp_path / "home") as made:
            async with browser() as chrome:
                seen = await tab(chrome, made.origin)
                page = seen.page
                await page.goto(made.link)
                rows, more = page.locator("#audit-list li"), page.locator("#earlier")
                await expect(rows).to_have_count(100)
                for least in (300, 500, 700):
                    await more.click()
                    await expect(rows.nth(least - 1)).to_be_attached()
                    await expect(more).to_be_enabled()
                # What was asked for stays, and what is new comes besides.
                last = await rows.last.get_attribute("data-seq")
                many = await rows.count()
                audit.append(AuditEvent(now, EventKind.POLICY, detail="just-now"))
                audit.flush()
                await expect(rows.first).to_contain_text("just-now")
                await expect(rows).to_have_count(many + 1)
                assert await rows.last.get_attribute("data-seq") == last
                # A denial that was never loaded is found, by the words on the screen.
                await page.locator("#filter-text").fill("DENIED")
                await expect(rows).to_have_text(["No event matches."])
                await more.click()
                await expect(rows.filter(has_text="payroll/datev")).to_have_count(1)
                await expect(more).to_be_hidden()
                await expect(page.locator("#searched")).to_have_text(
                    "all of the log was searched"
                )
                await page.locator("#filter-text").fill("redeem")
                await more.click()
                await expect(more).to_be_hidden()
                await expect(rows).to_have_text(["No event matches."])
                # Back to all of them, to the first.
                await page.locator("#filter-text").fill("")
                await expect(rows).to_have_count(100)
                while await more.is_visible():
                    before = await rows.count()
                    await more.click()
                    await expect(rows).not_to_have_count(before)
                await expect(rows.last).to_contain_text("vault made")
                await expect(page.locator("#audit-list .none")).to_have_count(0)
                # What is read in a line finds it, here and on the server.
                ended = AuditEvent(
                    now, EventKind.INVOCATION, plugin="org.busy", action="pay", principal="ann"
                )
                audit.append(ended)
                audit.flush()
                await page.locator("#filter-text").fill("pay FOR ann")
                await expect(rows).to_have_count(1)
                await expect(rows).to_contain_text("org.busy pay for ann")
                await more.click()
                await expect(more).to_be_hidden()
                await expect(rows).to_have_count(1)
                await seen.innocent()


async def test_opened_in_a_lockdown_it_shows_keys_and_grants(tmp_path: Path) -> None:
    async with town_in(tmp_path, many=3) as town:
        await town.vault.lockdown(reason="laptop stolen", keep_grants=True)
        with running(tmp_path / "home") as made:
            async with browser() as chrome:
                seen = await tab(chrome, made.origin)
                page = seen.page
                await page.goto(made.link)
                await expect(page.locator("#alerts")).to_contain_text("No key is in memory")
                await expect(page.locator("#keys-note")).to_contain_text("sealed")
                await expect(page.locator("#keys-picture svg")).to_contain_text("Master key")
                granted = page.locator("#permissions-table button", has_text="granted until")
                await expect(granted).to_have_count(1)
                refused = page.locator("#permissions-table button", has_text="refused")
                await expect(refused).to_have_count(1)
                await town.vault.unlock()
                await expect(page.locator("#alarm")).to_be_hidden()
                await expect(page.locator("#keys-note")).not_to_contain_text("sealed")
                await seen.innocent()


async def test_a_page_that_hears_nothing_says_so_and_goes_on(tmp_path: Path) -> None:
    async with town_in(tmp_path, many=30) as town:
        with running(tmp_path / "home") as made:
            async with browser() as chrome:
                seen = await tab(chrome, made.origin)
                page = seen.page
                await page.clock.install()
                await page.goto(made.link)
                await expect(page.locator("#live")).to_have_text("live")
                search = page.get_by_label("Filter credentials", exact=True)
                await expect(search).to_be_visible()
                made.process.send_signal(signal.SIGSTOP)
                await search.fill("llm")
                await page.clock.run_for(1_000)
                await expect(page.locator("#permissions-tools")).to_contain_text("looking…")
                await page.clock.run_for(60_000)
                away = page.locator(
                    "#alerts", has_text="does not answer. What is shown is as it"
                )
                await expect(away).to_be_visible()
                await expect(page.locator("#alarm")).to_have_text("Not connected")
                assert await barriers(page) == []
                made.process.send_signal(signal.SIGCONT)
                await page.clock.run_for(10_000)
                await expect(page.locator("#live")).to_have_text("live")
                await expect(page.locator("#alarm")).to_be_hidden()
                rows = page.locator("#permissions-table tbody tr")
                await expect(rows).to_have_count(2)
                await town.vault.grant("org.new", "llm/openai")
                await expect(page.locator("#permissions-table")).to_contain_text("org.new")


async def test_a_tab_that_outlives_its_dashboard_keeps_nothing_and_takes_a_new_link(
    tmp_path: Path,
) -> None:
    async with town_in(tmp_path, many=3) as town, browser() as chrome:
        shown = town.vault.vault_id[:8]
        with running(tmp_path / "home") as made:
            seen = await tab(chrome, made.origin)
            page = seen.page
            await page.goto(made.link)
            await expect(page.locator("#vault")).to_have_text(shown)
            made.process.kill()
            made.process.wait()
            await expect(page.locator("#alerts")).to_contain_text("does not answer")
            assert await barriers(page) == []
        with running(tmp_path / "home", "--port", made.origin.rpartition(":")[2]) as again:
            await expect(page.locator("#door-error")).to_contain_text(
                "not logged in (any more)"
            )
            assert shown not in await page.content()
            assert await barriers(page) == []
            await page.evaluate("hash => { location.hash = hash; }", f"login={again.token}")
            await expect(page.locator("#vault")).to_have_text(shown)
            await expect(page.locator("#audit-list")).to_contain_text("vault made")
            assert "login" not in page.url


async def test_a_log_that_was_not_read_yet_has_no_number_of_events(tmp_path: Path) -> None:
    checking = f"event: verified\ndata: {json.dumps(_verification(Verified()))}\n\n"
    async with town_in(tmp_path, many=0):
        with running(tmp_path / "home") as made:
            async with browser() as chrome:
                page = (await tab(chrome, made.origin)).page
                await page.route("**/api/stream", lambda r: r.fulfill(body=checking))
                await page.goto(made.link)
                tile = page.locator("#tiles a", has_text="Audit log")
                await expect(tile).to_contain_text("checking")
                await expect(tile).not_to_contain_text("0 events")


async def test_without_scripts_it_says_what_it_needs(tmp_path: Path) -> None:
    async with town_in(tmp_path, many=0):
        with running(tmp_path / "home") as made:
            async with browser() as chrome:
                context = await chrome.new_context(java_script_enabled=False)
                page = await context.new_page()
                await page.goto(made.link)
                await expect(page.locator("noscript p")).to_be_visible()
                await expect(page.locator("#door")).to_be_hidden()


async def test_a_day_of_another_year_has_its_year(tmp_path: Path) -> None:
    async with town_in(tmp_path, many=0):
        with running(tmp_path / "home") as made:
            async with browser() as chrome:
                page = (await tab(chrome, made.origin, timezone_id="UTC")).page
                await page.clock.install(time=datetime(2026, 11, 30, 12, tzinfo=UTC))
                await page.goto(made.origin)
                said = await page.evaluate(
                    """async (days) => {
                  const { moment } = await import("/assets/words.js");
                  return days.map((day) => moment(Date.now() / 1000 + 86400 * day));
                }""",
                    [0, -3, 364, -400],
                )
    assert [word.count("202") for word in said] == [0, 0, 1, 1]
    assert said[0] == "12:00:00"
    assert said[1].endswith("12:00")
    assert ("2027" in said[2], "2025" in said[3]) == (True, True)


async def test_a_rotation_that_needs_a_person_is_in_list_and_detail(tmp_path: Path) -> None:
    lost = Rotation(
        rotator="fake:https://x.test", stage=RotationStage.NEEDS_PERSON, outcome="refused"
    )
    async with town_in(tmp_path, many=3) as town:
        await credential_writes.edit(
            town.vault.store,
            "api_keys",
            "weather/openweather",
            credential_writes.Edit(rotation=lost),
            clock=town.vault.clock,
        )
        with running(tmp_path / "home") as made:
            async with browser() as chrome:
                seen = await tab(chrome, made.origin)
                page = seen.page
                await page.goto(made.link)
                row = page.locator("#permissions-table tbody tr", has_text="needs a person")
                await expect(row).to_contain_text("weather/openweather")
                await row.locator("button.cell").first.click()
                await expect(page.locator("#detail")).to_contain_text("last step: refused")
                await seen.innocent()


async def test_an_empty_vault_shows_the_next_step(tmp_path: Path) -> None:
    async with await Vault.create(tmp_path / "home", master=f"file:{tmp_path}/m.key") as vault:
        with running(tmp_path / "home") as made:
            async with browser() as chrome:
                seen = await tab(chrome, made.origin)
                table = seen.page.locator("#permissions-table")
                await seen.page.goto(made.link)
                await expect(table).to_contain_text("apex-creds set NAME")
                await vault.put("a/key", ApiKey(SECRET), origins=["https://x.test"])
                await expect(table).to_contain_text("apex-creds grant PLUGIN NAME")
                await vault.grant("org.weather", "a/key")
                await expect(table.locator("button", has_text="granted")).to_have_count(1)
                await seen.innocent()


async def test_the_matrix_is_one_stop_and_only_what_changed_is_made_anew(
    tmp_path: Path,
) -> None:
    async with town_in(tmp_path, many=3) as town:
        for plugin in ("org.a", "org.b", "org.c"):
            for name in ("llm/openai", "mail/smtp"):
                await town.vault.grant(plugin, name)
        with running(tmp_path / "home") as made:
            async with browser() as chrome:
                seen = await tab(chrome, made.origin)
                page = seen.page
                await page.goto(made.link)
                buttons = page.locator("#permissions-table button")
                await expect(buttons).not_to_have_count(0)
                assert (
                    await page.locator("#permissions-table button[tabindex='0']").count() == 1
                )
                await tab_to(page, "#permissions-table button")

                async def pair() -> str:
                    return await page.evaluate("document.activeElement.dataset.stop ?? null")

                first = await pair()
                assert first == '["org.a","llm/openai"]'
                await page.keyboard.press("ArrowRight")
                assert await pair() == '["org.b","llm/openai"]'
                await page.keyboard.press("ArrowDown")
                assert await pair() == '["org.b","mail/smtp"]'
                await page.keyboard.press("ArrowDown")
                assert await pair() == '["org.b","payroll/datev"]', "without a grant, too"
                for _ in range(20):
                    await page.keyboard.press("ArrowDown")
                assert await pair() == '["org.b","tenants/customer-002"]', "the last"
                for _ in range(20):
                    await page.keyboard.press("ArrowUp")
                await page.keyboard.press("ArrowDown")
                await page.keyboard.press("Tab")
                assert await pair() is None, "one press leaves it"
                await page.keyboard.press("Shift+Tab")
                assert await pair() == '["org.b","mail/smtp"]'
                # An update leaves the focus, and makes only the cell anew that changed.
                await page.evaluate(CHANGES, "#permissions-table")
                await town.vault.revoke(plugin="org.b", credential="llm/openai")
                cell = page.locator("""button[data-stop='["org.b","llm/openai"]']""")
                await expect(cell).to_have_attribute("data-kind", "none")
                assert await pair() == '["org.b","mail/smtp"]'
                assert await page.evaluate("window.changes") == ["TD"]
                await seen.innocent()


async def test_a_vault_of_any_size_is_shown_by_windows_that_the_keyboard_reaches(
    tmp_path: Path,
) -> None:
    async with town_in(tmp_path, many=0) as town:
        names = [f"s{n:03}/key" for n in range(200)]
        await town.vault.put_many(PutItem(name=name, secret=ApiKey(SECRET)) for name in names)
        for n, name in enumerate(names):
            await town.vault.grant(f"org.p{n:03}", name)
        with running(tmp_path / "home") as made:
            async with browser() as chrome:
                seen = await tab(chrome, made.origin)
                page = seen.page
                await page.goto(made.link)
                rows = page.locator("#permissions-table tbody tr")
                await expect(page.locator("#permissions-tools")).to_contain_text("of 206")
                await expect(page.locator("#keys-tools")).to_contain_text("1–8 of")
                for width, columns in ((360, 2), (768, 4), (1440, 8)):
                    await page.set_viewport_size({"width": width, "height": 800})
                    heads = page.locator("#permissions-table thead th")
                    await expect(heads).to_have_count(columns + 1)
                    await seen.fits()
                assert await page.evaluate("document.querySelectorAll('*').length") < 2500
                # By arrows beyond the edges of the window, by a filter to any cell.
                await tab_to(page, "#permissions-table button")
                await expect(rows).to_have_count(15)
                for _ in range(15):
                    await page.keyboard.press("ArrowDown")
                focus = page.locator("#permissions-table button:focus")
                await expect(page.locator("#permissions-tools")).to_contain_text("16–30 of 206")
                await expect(focus).to_have_count(1)
                await page.get_by_label("Filter credentials", exact=True).fill("S199")
                await page.get_by_label("Filter plugins", exact=True).fill("p199")
                cell = page.locator("""button[data-stop='["org.p199","s199/key"]']""")
                await expect(cell).to_have_attribute("data-kind", "allow")
                await expect(rows).to_have_count(1)
                await page.get_by_label("Filter plugins", exact=True).fill("nobody")
                await expect(page.locator("#permissions-table")).to_have_text(
                    "Nothing matches."
                )
                await page.get_by_label("Filter data keys").fill("s150")
                await expect(page.locator("#keys-picture svg")).to_contain_text("s150")
                # What is due is a list as the others are.
                labels = [f"api_keys/{name}" for name in names]
                await key_versions.renew_all(
                    town.vault.store, labels, now=town.vault.clock.time()
                )
                steps = page.locator("#steps-list li")
                await expect(steps).to_have_count(10)
                await expect(page.locator("#steps-tools")).to_contain_text("1–10 of 200")
                await page.get_by_label("Filter steps").fill("s177/key still")
                await expect(steps).to_have_count(1)
                await expect(steps).to_contain_text("there is a newer one")
                await seen.innocent()
