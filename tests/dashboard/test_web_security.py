"""What every request meets: Host, Origin, headers; whatever is asked, and however."""

from __future__ import annotations

import pytest

from apex_creds.dashboard.web_security import CSP, HEADERS
from tests.dashboard.conftest import ORIGIN, Served

pytestmark = pytest.mark.anyio


async def test_another_host_is_refused(served: Served) -> None:
    await served.log_in()
    port = "127.0.0.1:8765"
    for host in (
        "evil.example:8765",
        "127.0.0.1",
        "127.0.0.1:8766",
        "localhost:8765",
        f"{port}.",
    ):
        for path in ("/", "/assets/main.js", "/api/stream", "/nowhere"):
            answer = await served.get(path, host=host)
            assert answer.status_code == 421, (host, path)
            assert ORIGIN in answer.json()["error"]
        assert (await served.post("/login", {"token": "x"}, host=host)).status_code == 421


async def test_two_hosts_are_refused(served: Served) -> None:
    request = served.client.build_request("GET", "/")
    request.headers = type(request.headers)(
        [("host", "127.0.0.1:8765"), ("host", "evil.example")]
    )
    assert (await served.client.send(request)).status_code == 421


FOREIGN = ("null", "http://evil.example", "http://127.0.0.1:9", "https://127.0.0.1:8765", "")


async def test_a_post_of_another_origin_is_refused(served: Served) -> None:
    await served.log_in()
    token = served.doorkeeper.new_link()
    for origin in FOREIGN:
        for path in ("/login", "/api/logout", "/api/verify", "/api/requests/12345678"):
            answer = await served.post(path, {"token": token}, origin=origin)
            assert answer.status_code == 403, (origin, path)
    assert (await served.post("/login", {"token": token})).status_code == 200, "not used up"


async def test_a_post_without_an_origin_is_refused(served: Served) -> None:
    answer = await served.client.post(
        "/login", content=b"{}", headers={"content-type": "application/json"}
    )
    assert answer.status_code == 403


async def test_data_is_for_the_own_page_only(served: Served) -> None:
    await served.log_in()
    for site in ("cross-site", "same-site", "none"):
        answer = await served.get("/api/log?before=3", **{"sec-fetch-site": site})
        assert answer.status_code == 403, site
    same = await served.get("/api/log?before=3", **{"sec-fetch-site": "same-origin"})
    assert same.status_code == 200


async def test_scripts_are_for_the_own_page_only(served: Served) -> None:
    cross = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}
    assert (await served.get("/assets/main.js", **cross)).status_code == 403
    visit = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}
    assert (await served.get("/", **visit)).status_code == 200
    assert (await served.get("/api/log?before=3", **visit)).status_code == 403


async def test_a_form_is_refused(served: Served) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        answer = await served.post("/login", {"token": "x"}, **{"content-type": kind})
        assert answer.status_code == 415, kind


async def test_a_long_body_is_refused(served: Served) -> None:
    assert (await served.post("/login", b"x" * 9000)).status_code == 413
    lies = await served.post("/login", b"[" * 9000, **{"content-length": "2"})
    assert lies.status_code == 400
    assert (await served.post("/login", b"{}", **{"content-length": "+2"})).status_code == 411


async def test_other_methods_are_refused(served: Served) -> None:
    for method in ("PUT", "DELETE", "OPTIONS", "TRACE", "PATCH"):
        answer = await served.client.request(method, "/", headers={"origin": ORIGIN})
        assert answer.status_code == 405, method
        assert "access-control-allow-origin" not in answer.headers


async def test_every_answer_is_hardened(served: Served) -> None:
    await served.log_in()
    answers = [
        await served.get("/"),
        await served.get("/assets/style.css"),
        await served.get("/nowhere"),
        await served.get("/api/log?before=x"),
        await served.get("/api/log?before=2"),
        await served.get("/", host="evil.example"),
        await served.post("/login", b"{"),
        await served.post("/", {}),
        await served.client.request("PUT", "/"),
    ]
    assert [a.status_code for a in answers] == [200, 200, 404, 400, 200, 421, 400, 404, 405]
    for answer in answers:
        for name, value in HEADERS.items():
            assert answer.headers.get_list(name) == [value]


def test_the_policy_allows_nothing_inline_and_nobody_else() -> None:
    parts = dict(part.split(" ", 1) for part in CSP.split("; "))
    assert parts["default-src"] == "'none'"
    for name in ("script-src", "style-src", "img-src", "connect-src"):
        assert parts[name] == "'self'"
    for word in ("unsafe", "http:", "data:", "*"):
        assert word not in CSP
    assert parts["frame-ancestors"] == parts["base-uri"] == parts["form-action"] == "'none'"


async def test_a_bug_says_nothing_and_is_hardened(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    await served.log_in()

    def wrong() -> None:
        raise RuntimeError("private words")

    monkeypatch.setattr(served.watcher, "verify_all", wrong)
    answer = await served.post("/api/verify", {})
    assert answer.status_code == 500
    assert "private" not in answer.text
    assert answer.headers["content-security-policy"] == CSP


async def test_a_websocket_is_closed(served: Served) -> None:
    sent: list[dict[str, object]] = []

    async def send(message: dict[str, object]) -> None:
        sent.append(message)

    app = served.client._transport.app  # type: ignore[attr-defined]
    await app({"type": "websocket", "headers": [], "path": "/"}, None, send)
    assert sent == [{"type": "websocket.close", "code": 1008}]
