"""A town, its dashboard, and a client that sends what a browser would."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import anyio
import httpx
import pytest

from apex_creds.dashboard.lease_view import names_of
from apex_creds.dashboard.live_feed import LiveFeed
from apex_creds.dashboard.routes import KEY_HEADER, Dashboard, Site
from apex_creds.dashboard.sessions import SessionGate
from apex_creds.dashboard.watcher import Watcher
from apex_creds.dashboard.web_security import encode
from tests.dashboard.town import Town, town_in
from tests.support.loops import WITHIN

ORIGIN = "http://127.0.0.1:8765"


@dataclass
class Served:
    """A dashboard of a town, without a socket."""

    town: Town
    client: httpx.AsyncClient
    doorkeeper: SessionGate
    hub: LiveFeed
    watcher: Watcher
    headers: dict[str, str] = field(default_factory=dict)
    bodies: list[str] = field(default_factory=list)

    async def get(self, path: str, **headers: str) -> httpx.Response:
        answer = await self.client.get(path, headers={**self.headers, **headers})
        self.bodies.append(answer.text)
        return answer

    async def post(self, path: str, body: object = None, **headers: str) -> httpx.Response:
        sent = {"origin": ORIGIN, "content-type": "application/json", **self.headers, **headers}
        data = body if isinstance(body, bytes) else json.dumps(body or {}).encode()
        answer = await self.client.post(path, content=data, headers=sent)
        self.bodies.append(answer.text)
        return answer

    async def log_in(self) -> httpx.Response:
        answer = await self.post("/login", {"token": self.doorkeeper.new_link()})
        assert answer.status_code == 200, answer.text
        self.headers = {KEY_HEADER: answer.json()["key"]}
        return answer

    async def look(self) -> None:
        """What the watcher does again and again, once."""
        self.town.vault.audit.flush()
        await self.watcher.read_log()
        await self.watcher.read_vault()

    def told(self, topic: str) -> object:
        text = self.hub.latest(topic).decode()
        self.bodies.append(text)
        return json.loads(text)

    def window(self, name: str, **query: str) -> dict[str, object]:
        """A list, as the page asks for it."""
        text = encode(self.watcher.window(name, query)).decode()
        self.bodies.append(text)
        return json.loads(text)

    async def question(self) -> dict[str, object]:
        """The first question, as soon as it is asked."""
        with anyio.fail_after(WITHIN):
            while True:
                await self.watcher.read_vault()
                found = self.window("requests")["items"]
                if found:
                    return found[0]
                await anyio.lowlevel.checkpoint()


async def serve(town: Town, *, decisions: bool = False, named: bool = False) -> Served:
    names = await names_of(town.vault, named=named)
    hub, doorkeeper = LiveFeed(), SessionGate()
    watcher = Watcher(town.vault, hub, names=names)
    site = Site(origins=(ORIGIN,), decisions=decisions)
    made = Dashboard(town.vault, site, names=names, gate=doorkeeper, feed=hub, watcher=watcher)
    transport = httpx.ASGITransport(made.app(), raise_app_exceptions=False)
    client = httpx.AsyncClient(transport=transport, base_url=ORIGIN)
    return Served(town, client, doorkeeper, hub, watcher)


@pytest.fixture
async def town(tmp_path: Path, anyio_backend: str) -> AsyncIterator[Town]:
    async with town_in(tmp_path, many=3) as made:
        yield made


@pytest.fixture
async def served(town: Town) -> AsyncIterator[Served]:
    """One that only shows."""
    made = await serve(town)
    async with made.client:
        yield made


@pytest.fixture
async def deciding(town: Town) -> AsyncIterator[Served]:
    """One that takes decisions, logged in."""
    made = await serve(town, decisions=True)
    async with made.client:
        await made.log_in()
        yield made
