"""An authorization server and its clients, for the simulation.

The server is as oidc-provider was measured: each use of a refresh token gives another, and a
second use of one ends the whole family, with all of its tokens.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from apex_creds.clocks import Ends
from apex_creds.documents.records import Record, open_record
from apex_creds.documents.store import DocumentStore
from apex_creds.errors import (
    ConflictError,
    CredentialChangedError,
    NeedsReconnectError,
    OAuthUnreachableError,
    TokenError,
    UnknownKeyError,
)
from apex_creds.model import Connection, CredentialInfo, OAuthToken
from apex_creds.oauth.endpoints import Answer, Client
from apex_creds.oauth.messages import Form
from apex_creds.oauth.refresh import Refresher, needs_person
from apex_creds.vault import credential_writes
from apex_creds.vault.lookup import Opened, PutItem
from tests.support.clocks import FakeClock

SECTION = "oauth_tokens"
NAME = "calendar"
LIFE = 600
ENDPOINT = "https://login.example.com/token"


@dataclass
class Server:
    """One that rotates refresh tokens, and takes a second use for theft."""

    made: int = 0
    family_of: dict[str, int] = field(default_factory=dict)
    current: dict[int, str] = field(default_factory=dict)
    revoked: set[int] = field(default_factory=set)
    asking: set[str] = field(default_factory=set)
    excused: set[str] = field(default_factory=set)
    sent: dict[str, Any] = field(default_factory=dict)
    refreshes: int = 0

    def connect(self) -> tuple[str, str]:
        """A person connects: an access and a refresh token of a new family."""
        return self._issue(len(self.current) + 1)

    def _issue(self, family: int) -> tuple[str, str]:
        self.made += 1
        access, refresh = f"access-{self.made}", f"refresh-{self.made}"
        self.family_of |= {access: family, refresh: family}
        self.current[family] = refresh
        return access, refresh

    def lives(self, token: str) -> bool:
        return self.family_of[token] not in self.revoked

    def refresh(self, token: str) -> Answer:
        family = self.family_of[token]
        if self.current[family] != token:
            self.revoked.add(family)
        if family in self.revoked:
            return Answer(400, b'{"error": "invalid_grant"}')
        self.refreshes += 1
        access, refresh = self._issue(family)
        answer = {"access_token": access, "refresh_token": refresh, "expires_in": LIFE}
        return Answer(200, json.dumps(answer).encode())

    def begin(self, token: str, who: Any) -> None:
        """A request: the only one with this token, or after one whose answer was lost."""
        before = self.sent.get(token)
        assert token not in self.asking, "two requests at once with one refresh token"
        lost = before is None or before.dead or token in self.excused
        assert lost, "a refresh token sent twice"
        self.asking.add(token)
        self.sent[token] = who
        self.excused.discard(token)

    def end(self, token: str, *, answered: bool) -> None:
        self.asking.discard(token)
        if not answered:
            self.excused.add(token)


class Facade:
    """What a ``Refresher`` asks of a vault, over a worker's documents."""

    def __init__(self, store: DocumentStore, clock: FakeClock) -> None:
        self.store, self.clock, self.ends = store, clock, Ends(clock)
        self.audit = self

    def encode(self, event: object) -> bytes:
        return b""

    def record(self, *args: object, **fields: object) -> None:
        pass

    async def refresh(self) -> None:
        await self.store.keystore()

    async def find(self, name: str, *, principal: str = "") -> Record:
        return (await self.store.sections.reread(SECTION)).records[name]

    async def get(self, name: str, *, principal: str = "") -> CredentialInfo:
        return (await self.find(name)).info

    def release(self, record: Record, event: bytes) -> Opened:
        keystore = self.store.unsealed()
        vault_id = bytes.fromhex(keystore.header.vault_id)
        try:
            whole = open_record(record, vault_id=vault_id, find_key=keystore.dek)
        except UnknownKeyError:  # a vault looks again, in another thread; tested by itself
            raise ConflictError("Its key moved.") from None
        return Opened(whole, record.info.kind)

    async def put(self, item: PutItem) -> CredentialInfo:
        made = await credential_writes.put(self.store, SECTION, [item], clock=self.clock)
        return made[NAME]

    async def renew(
        self, before: CredentialInfo, token: OAuthToken, *, connection: Connection
    ) -> CredentialInfo:
        return await self.put(
            PutItem(name=NAME, secret=token, connection=connection, replaces=before.version)
        )

    async def note_connection(
        self, before: CredentialInfo, connection: Connection
    ) -> CredentialInfo:
        changes = credential_writes.Edit(connection=connection, replaces=before.version)
        return await credential_writes.edit(
            self.store, SECTION, NAME, changes, clock=self.clock
        )


class Tokens:
    """A worker's OAuth: it uses a token, and connects again where a person has to."""

    def __init__(self, world: Any, store: DocumentStore, life: Any) -> None:
        self._world, self._life = world, life
        self.vault = Facade(store, world.clock)
        facade: Any = self.vault
        self.refresher = Refresher(facade, post=self._post)

    async def _post(self, url: str, form: Form, client: Client) -> Answer:
        server, chaos = self._world.server, self._world.chaos
        assert url == ENDPOINT
        token = form["refresh_token"]

        async def answer() -> Answer:
            return server.refresh(token)

        server.begin(token, self._life)
        answered = False
        try:
            roll = chaos.random.random() if chaos.armed else 1.0
            if roll < 0.05:
                raise OAuthUnreachableError("down", sent=False)
            around: Callable[..., Awaitable[Answer]] = chaos.around
            found = await around(self._life, answer)
            if roll < 0.12:
                raise OAuthUnreachableError("lost", sent=True)
            answered = found.status == 200
            return found
        finally:
            server.end(token, answered=answered)

    async def use(self) -> None:
        """What a redeem does: a token that is valid now, or a refusal that says why."""
        early = self._world.chaos.random.random() < 0.3
        connections = len(self._world.server.current)
        try:
            await self.refresher.ensure(NAME, early=early)
        except NeedsReconnectError:
            needs_one = needs_person(await self.vault.get(NAME))
            # A person may have connected since the refusal.
            assert needs_one or len(self._world.server.current) > connections
            return
        except (TokenError, ConflictError, CredentialChangedError):
            return
        record = await self.vault.find(NAME)
        now = self.vault.ends.now()
        if record.info.has_expired(now):
            return  # the clock went on meanwhile: it would be renewed again
        try:
            with self.vault.release(record, b"") as opened:
                access = bytes(opened.view()).decode()
        except ConflictError:
            return
        assert access in self._world.server.family_of, "a token that nobody issued"

    async def reconnect(self) -> None:
        """A person connects again: where it is needed, and now and then just so."""
        info = await self.vault.get(NAME)
        if needs_person(info) or self._world.chaos.random.random() < 0.1:
            with suppress(ConflictError):
                await self.connect()

    async def connect(self) -> None:
        access, refresh = self._world.server.connect()
        now = self._world.clock.now
        connection = Connection(
            provider="example",
            token_endpoint=ENDPOINT,
            client_id="desk",
            refreshed=now,
            attempted=now,
            outcome="ok",
        )
        token = OAuthToken(access, refresh_token=refresh, expires_at=now + LIFE)
        await self.vault.put(PutItem(name=NAME, secret=token, connection=connection))

    async def settle(self) -> None:
        """It works, or says that it needs a person; it does not go on forever."""
        server, clock = self._world.server, self._world.clock
        for _ in range(8):
            clock.now += 2 * LIFE  # the token's end, and every pause, is over
            try:
                info = await self.refresher.ensure(NAME)
            except NeedsReconnectError:
                info = await self.vault.get(NAME)
                assert needs_person(info)
                assert info.connection is not None
                assert info.connection.outcome in ("invalid_grant", "answer_lost")
                return
            except TokenError:
                continue
            assert not info.has_expired(self.vault.ends.now())
            record = await self.vault.find(NAME)
            with self.vault.release(record, b"") as opened:
                access = bytes(opened.view()).decode()
                refresh = bytes(opened.view("refresh")).decode()
            assert server.lives(access)
            assert server.current[server.family_of[refresh]] == refresh
            return
        raise AssertionError("it neither works nor needs a person")
