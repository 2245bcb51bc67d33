"""Who gets in, what is told, and that nothing changes unless decisions were allowed."""

from __future__ import annotations

import json

import anyio
import pytest

from apex_creds.audit.verify import read
from apex_creds.dashboard.live_feed import MAX_READERS
from apex_creds.dashboard.routes import KEY_HEADER, page_files
from apex_creds.errors import AccessDeniedError
from apex_creds.fs.home import audit_directory
from tests.dashboard.conftest import Served, serve
from tests.dashboard.town import BOOKS, SECRET, WEATHER, manifest, need
from tests.support.loops import WITHIN

pytestmark = pytest.mark.anyio

PATHS = ("/api/stream", "/api/log?before=5", "/api/story/" + "0" * 32)
POSTS = ("/api/logout", "/api/verify", "/api/requests/12345678")
TRANSLATOR = manifest("org.translator", need("llm/anthropic", reason="to translate"))


def events(served: Served) -> list[object]:
    served.town.vault.audit.flush()
    vault = served.town.vault
    return list(read(audit_directory(vault.home), vault_id=vault.vault_id))


# -- the door ----------------------------------------------------------------------------


async def test_without_a_session_there_is_only_the_empty_page(served: Served) -> None:
    page = await served.get("/")
    assert page.status_code == 200
    assert served.town.vault.vault_id[:8] not in page.text
    for path in PATHS:
        assert (await served.get(path)).status_code == 401
    for path in POSTS:
        assert (await served.post(path, {})).status_code == 401


async def test_a_link_lets_in_once_and_the_log_says_so(served: Served) -> None:
    token = served.doorkeeper.new_link()
    first = await served.post("/login", {"token": token})
    again = await served.post("/login", {"token": token})
    assert (first.status_code, again.status_code) == (200, 403)
    assert "set-cookie" not in again.headers
    logged = [(e.action, e.decision, e.reason) for e in events(served) if e.kind == "client"]
    assert logged == [("dashboard", "allow", "login"), ("dashboard", "deny", "bad_link")]


async def test_refused_logins_don_t_fill_the_log(served: Served) -> None:
    for _ in range(50):
        await served.post("/login", {"token": "x"})
    assert sum(e.kind == "client" for e in events(served)) == 20


async def test_the_cookie_is_for_this_site_and_no_script(served: Served) -> None:
    cookie = (await served.log_in()).headers["set-cookie"]
    name, _, rest = cookie.partition("=")
    assert name == "apex-creds-8765"
    attributes = [part.strip().lower() for part in rest.split(";")[1:]]
    assert attributes == ["httponly", "path=/api", "samesite=strict"]


async def test_cookie_or_key_alone_is_nothing(served: Served) -> None:
    await served.log_in()
    assert (await served.get("/api/log?before=3")).status_code == 200
    headers, served.headers = served.headers, {}
    assert (await served.get("/api/log?before=3")).status_code == 401
    served.headers = headers
    served.client.cookies.clear()
    assert (await served.get("/api/log?before=3")).status_code == 401


async def test_who_left_is_out(served: Served) -> None:
    await served.log_in()
    assert (await served.post("/api/logout", {})).status_code == 200
    assert (await served.get("/api/log?before=3")).status_code == 401


async def test_what_the_page_does_not_send_is_refused(served: Served) -> None:
    bad = (b"", b"{", b"[]", b'{"token":1}', b'{"token":"x","more":1}', b"\xff", b"null")
    for body in bad:
        assert (await served.post("/login", body)).status_code == 400, body


# -- the page's files --------------------------------------------------------------------


async def test_only_the_page_s_files_are_served(served: Served) -> None:
    for name, (data, kind) in page_files().items():
        if name != "index.html":
            answer = await served.get(f"/assets/{name}")
            assert (answer.content, answer.headers["content-type"]) == (data, kind)
    for path in ("/assets/../app.py", "/assets/%2e%2e%2fapp.py", "/assets/", "/assets/x.js"):
        assert (await served.get(path)).status_code == 404


def test_the_files_hold_nothing_inline_and_nothing_from_elsewhere() -> None:
    for name, (data, _) in page_files().items():
        text = data.decode()
        allowed = text.replace("http://www.w3.org/2000/svg", "")
        assert "://" not in allowed, name
        for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "eval(", "document.write"):
            assert word not in text, name
    page = page_files()["index.html"][0].decode()
    assert " style=" not in page
    assert " onclick=" not in page
    assert page.count("<script") == page.count('<script type="module" src="/assets/') == 1


# -- the stream --------------------------------------------------------------------------


async def test_the_stream_tells_everything_and_no_secret(served: Served) -> None:
    town = served.town
    await town.use(WEATHER, "weather/openweather", "forecast")
    await town.leak()
    await town.denied()
    await served.log_in()
    await served.look()
    async with anyio.create_task_group() as group:
        answers: list[str] = []

        async def listen() -> None:
            answers.append((await served.get("/api/stream")).text)

        group.start_soon(listen)
        while not served.hub.readers:
            await anyio.lowlevel.checkpoint()
        served.hub.close()
    frames = {
        frame.split("\n")[0][7:]: json.loads(frame.split("\n")[1][6:])
        for frame in answers[0].strip().split("\n\n")
    }
    assert {"hello", "keys", "leases", "matrix", "requests", "lockdown", "log"} <= set(frames)
    assert frames["hello"]["decisions"] is False
    assert [e["seq"] for e in frames["log"]] == list(range(1, len(frames["log"]) + 1))
    assert SECRET not in answers[0]
    assert served.town.vault.vault_id in answers[0]


async def test_a_stream_ends_with_its_session(served: Served) -> None:
    await served.log_in()
    with anyio.fail_after(WITHIN):
        async with anyio.create_task_group() as group:
            group.start_soon(served.get, "/api/stream")
            while not served.hub.readers:
                await anyio.lowlevel.checkpoint()
            await served.post("/api/logout", {})
            served.hub.publish("any", 1)
    assert served.hub.readers == 0


async def test_streams_are_few(served: Served) -> None:
    await served.log_in()
    served.hub.readers = MAX_READERS
    assert (await served.get("/api/stream")).status_code == 503


# -- stories -----------------------------------------------------------------------------


async def test_a_story_is_all_of_an_invocation_and_its_kin(served: Served) -> None:
    await served.town.hand_on()
    await served.town.use(WEATHER, "weather/openweather")
    await served.log_in()
    logged = events(served)
    inner = next(e for e in logged if e.plugin == "org.summariser")
    told = (await served.get(f"/api/story/{inner.invocation}")).json()
    assert told["whole"]
    assert {e["plugin"] for e in told["events"]} == {"org.summariser", "org.chatter"}
    assert "org.weather" not in {e["plugin"] for e in told["events"]}
    by_lease = (await served.get(f"/api/story/{inner.lease}")).json()
    assert by_lease == told


async def test_no_such_story(served: Served) -> None:
    await served.log_in()
    for bad in ("x", "0" * 32, "0" * 31, "g" * 32, "%00", "A" * 32):
        assert (await served.get(f"/api/story/{bad}")).status_code == 400, bad


async def test_earlier_events(served: Served) -> None:
    await served.log_in()
    told = (await served.get("/api/log?before=4")).json()["events"]
    assert [event["seq"] for event in told] == [1, 2, 3]
    assert (await served.get("/api/log?before=4")).json()["reached"] == 1
    for bad in ("", "-1", "1.5", "٣", "9" * 16, "x"):
        assert (await served.get(f"/api/log?before={bad}")).status_code == 400


async def test_a_search_finds_what_the_page_would_show_in_all_of_the_log(
    served: Served,
) -> None:
    await served.town.use(WEATHER, "weather/openweather", "forecast")
    await served.town.denied()
    await served.log_in()
    logged = events(served)
    end = logged[-1].seq + 1

    async def found(query: str) -> set[int]:
        told = (await served.get(f"/api/log?before={end}&{query}")).json()
        assert told["reached"] == 1
        return {event["seq"] for event in told["events"]}

    def numbers(kind: str, **more: object) -> set[int]:
        same = [e for e in logged if e.kind == kind]
        return {e.seq for e in same if all(getattr(e, k) == v for k, v in more.items())}

    assert await found("text=TAKEN%20OUT") == numbers("expose")
    assert await found("text=denied%20org.snoop") == numbers("denial")
    assert await found("kind=refused") == {e.seq for e in logged if e.decision == "deny"}
    assert await found("kind=use&text=org.weather%20forecast") >= numbers("expose")
    assert await found("text=redeem") == set(), "that word is not on the screen"
    assert await found(f"text={logged[-1].invocation or logged[-1].hash}") == set()
    secret = next(e for e in logged if e.key_version)
    assert secret.seq in await found(f"text=key%20v{secret.key_version}")


async def test_a_search_that_makes_no_sense_is_refused(served: Served) -> None:
    await served.log_in()
    for bad in ("kind=all", "kind=REFUSED", f"text={'x' * 201}", "kind=%00"):
        assert (await served.get(f"/api/log?before=4&{bad}")).status_code == 400, bad
    assert (await served.get("/api/log?before=4&text=%20&kind=")).status_code == 200


# -- decisions ---------------------------------------------------------------------------


async def test_one_that_only_shows_changes_nothing(served: Served) -> None:
    await served.log_in()
    async with anyio.create_task_group() as group:
        group.start_soon(served.town.ask, TRANSLATOR, "llm/anthropic")
        question = await served.question()
        for choice in ("once", "always", "deny", "never"):
            answer = await served.post(f"/api/requests/{question['id']}", {"choice": choice})
            assert answer.status_code == 403
            assert "--allow-decisions" in answer.json()["hint"]
        assert (await served.question())["id"] == question["id"], "it still waits"
        group.cancel_scope.cancel()


async def test_a_yes_is_given_once(deciding: Served) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(deciding.town.ask, TRANSLATOR, "llm/anthropic")
        question = await deciding.question()
        assert question["reason"] == "to translate"
        path = f"/api/requests/{question['id']}"
        assert (await deciding.post(path, {"choice": "once"})).status_code == 200
        assert (await deciding.post(path, {"choice": "once"})).status_code == 404
    assert isinstance(deciding.town.answers["org.translator"], int)
    assert any(e.reason == "consent_once" and e.detail == "dashboard" for e in events(deciding))


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ({"choice": "always"}, "allow"),
        ({"choice": "until", "seconds": 3600}, "allow"),
        ({"choice": "never"}, "deny"),
        ({"choice": "deny"}, ""),
        ({"choice": "session"}, ""),
    ],
)
async def test_what_answers_leave_behind(deciding: Served, said: object, kept: str) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(deciding.town.ask, TRANSLATOR, "llm/anthropic")
        question = await deciding.question()
        answer = await deciding.post(f"/api/requests/{question['id']}", said)
        assert answer.status_code == 200, answer.text
    found = (await deciding.town.vault.grants()).find("org.translator", "llm/anthropic")
    assert ("" if found is None else found.decision) == kept


NONSENSE = (
    {"choice": "until"},
    {"choice": "once", "seconds": 60},
    {"choice": "until", "seconds": 1},
    {"choice": "until", "seconds": 1e12},
    {"choice": "until", "seconds": "60"},
    {"choice": "yes"},
    {},
    {"choice": "once", "extra": True},
)


async def test_an_answer_that_makes_no_sense_is_none(deciding: Served) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(deciding.town.ask, TRANSLATOR, "llm/anthropic")
        question = await deciding.question()
        path = f"/api/requests/{question['id']}"
        for said in NONSENSE:
            assert (await deciding.post(path, said)).status_code == 400, said
        assert (await deciding.post(path, {"choice": "deny"})).status_code == 200


async def test_a_critical_one_takes_the_second_factor(deciding: Served) -> None:
    town = deciding.town
    await town.enrol()
    async with anyio.create_task_group() as group:
        group.start_soon(town.ask, BOOKS, "payments/stripe")
        question = await deciding.question()
        assert question["factor"] is True
        path = f"/api/requests/{question['id']}"
        bare = await deciding.post(path, {"choice": "once"})
        assert (bare.status_code, bare.json()["factor"]) == (403, True)
        wrong = await deciding.post(path, {"choice": "once", "code": "000000x"})
        assert (wrong.status_code, wrong.json()["factor"]) == (403, True)
        good = await deciding.post(path, {"choice": "once", "code": town.code()})
        assert good.status_code == 200, good.text
    assert isinstance(town.answers["org.bookkeeper"], int)


async def test_without_a_factor_enrolled_a_critical_one_is_not_allowed(
    deciding: Served,
) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(deciding.town.ask, BOOKS, "payments/stripe")
        question = await deciding.question()
        path = f"/api/requests/{question['id']}"
        answer = await deciding.post(path, {"choice": "once", "code": "123456"})
        assert answer.status_code == 403
        assert (await deciding.post(path, {"choice": "deny"})).status_code == 200
    assert isinstance(deciding.town.answers["org.bookkeeper"], AccessDeniedError)


async def test_guessing_is_locked_out_and_a_no_is_not(deciding: Served) -> None:
    await deciding.town.enrol()
    async with anyio.create_task_group() as group:
        group.start_soon(deciding.town.ask, BOOKS, "payments/stripe")
        question = await deciding.question()
        path = f"/api/requests/{question['id']}"
        codes = []
        for _ in range(5):
            answer = await deciding.post(path, {"choice": "once", "code": "918273x"})
            codes.append(answer.status_code)
        assert codes[-1] == 429
        assert (await deciding.post(path, {"choice": "deny"})).status_code == 200


async def test_nothing_is_allowed_in_a_lockdown(deciding: Served) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(deciding.town.ask, TRANSLATOR, "llm/anthropic")
        question = await deciding.question()
        await deciding.town.vault.lockdown(reason="laptop stolen")
        answer = await deciding.post(f"/api/requests/{question['id']}", {"choice": "once"})
        assert answer.status_code == 403
        await deciding.look()
        told = deciding.told("lockdown")
        assert (told["reason"], told["sealed"]) == ("laptop stolen", True)
        assert deciding.told("requests") == {"count": 0, "ids": []}
        assert deciding.window("requests")["items"] == []
        granted = {c.get("grant") for c in deciding.window("permissions")["cells"]} - {None}
        assert granted == {"deny"}, "what was granted is taken back"
        group.cancel_scope.cancel()


# -- names -------------------------------------------------------------------------------


@pytest.mark.parametrize("named", [False, True])
async def test_names_follow_the_log_s_pseudonyms(tmp_path, named: bool) -> None:
    from apex_creds.vault import Vault
    from tests.dashboard.town import town_in

    async with town_in(tmp_path, many=2):
        pass
    config = tmp_path / "home" / "security" / "config.json"
    config.write_text('{"audit":{"pseudonyms":true}}')
    config.chmod(0o600)
    async with await Vault.unseal(tmp_path / "home") as vault:
        from apex_creds import CredentialMiddleware
        from apex_creds.auth.consent_queue import QueueConsent
        from tests.dashboard.town import Town

        async with CredentialMiddleware(vault, consent=QueueConsent(vault)) as middleware:
            made = await serve(Town(vault, middleware), named=named)
            await made.town.use(WEATHER, "weather/openweather")
            await made.town.leak()
            await made.town.half_rotate("api_keys/tenants", moved=1)
            async with made.client, anyio.create_task_group() as group:
                await made.log_in()
                group.start_soon(made.town.ask, TRANSLATOR, "llm/anthropic")
                await made.question()
                await made.look()
                told_of = events(made)[-1].seq + 1
                searched = f"/api/log?before={told_of}&text=org.weather%20run%20weather/"
                assert bool((await made.get(searched)).json()["events"]) is named
                for topic in ("keys", "leases", "matrix", "requests"):
                    made.told(topic)
                lists = ("keys", "leases", "permissions", "requests")
                told = [json.dumps(made.window(name)) for name in lists]
                by_name = made.window("permissions", text="weather/openw")
                assert bool(by_name["credentials"]["of"]) is named, "a search gives none away"
                told += made.bodies
                group.cancel_scope.cancel()
    shown = "".join(told)
    for name in ("weather/openweather", "llm/anthropic", "tenants/customer-000", "openai"):
        assert (name in shown) is named, name
    assert ("api_keys/tenants" in shown) is named


async def test_nothing_that_was_ever_told_holds_a_secret(deciding: Served) -> None:
    town = deciding.town
    await town.enrol()
    await town.use(WEATHER, "weather/openweather")
    await town.leak()
    await town.hand_on()
    async with anyio.create_task_group() as group:
        group.start_soon(town.ask, BOOKS, "payments/stripe")
        question = await deciding.question()
        await deciding.look()
        for topic in ("keys", "leases", "matrix", "requests", "trouble"):
            deciding.told(topic)
        for name in ("keys", "leases", "permissions", "requests"):
            deciding.window(name)
        code = town.code()
        await deciding.post(f"/api/requests/{question['id']}", {"choice": "once", "code": code})
    everything = "".join(deciding.bodies)
    assert SECRET not in everything
    assert town.seed.hex() not in everything
    assert code not in everything
    assert deciding.headers[KEY_HEADER] in deciding.bodies[0]
    assert everything.count(deciding.headers[KEY_HEADER]) == 1
