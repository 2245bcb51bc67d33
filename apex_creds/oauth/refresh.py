"""Keeps OAuth tokens valid: one refresh at a time for each, over tasks, threads and processes.

Guarantee: before a request with a refresh token is sent, it is on record that it will be; its
answer replaces exactly the version that it was made with (compare-and-set). What a crash leaves
on record is a request whose answer is not known: it is made again, and the server's answer says
whether it had used the token up. Then, or if no answer is known five times in a row, a person
has to connect again. What a person stores meanwhile wins, and a lockdown does not lose what was
obtained already; what can't be stored is revoked at the provider, where it does that. An
expired access token is never handed out. No token is in a log, an event or an error, nor in the
frames of one.

Why single flight: servers that rotate refresh tokens take a second use of one for theft, and
revoke all tokens of that connection (RFC 9700, section 4.14.2).
"""

from __future__ import annotations

import contextlib
import shlex
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Final
from urllib.parse import urlsplit

import anyio
import msgspec

from apex_creds.audit.events import AuditEvent, EventKind
from apex_creds.concurrency import Pauses, SingleFlight, in_lanes, run_to_completion
from apex_creds.documents.records import Record
from apex_creds.errors import (
    ApexCredsError,
    AuditUnavailableError,
    CredentialChangedError,
    InvalidInputError,
    LockedDownError,
    MasterKeyError,
    NeedsReconnectError,
    NotFoundError,
    OAuthError,
    OAuthUnreachableError,
    TokenError,
)
from apex_creds.model import Connection, ConnectionState, CredentialInfo, key_of, split_key
from apex_creds.oauth import endpoints, flows
from apex_creds.oauth.endpoints import Answer, Client
from apex_creds.oauth.messages import Form, Tokens, is_final, parse_tokens
from apex_creds.storage.base import leading
from apex_creds.vault import Opened, Vault

Post = Callable[[str, Form, Client], Awaitable[Answer]]

_MARGIN: Final = 300.0
"""Seconds before its end in which the worker renews a token."""
_PART: Final = 0.1
"""Of a token's life: neither of both is longer."""
_PATIENCE: Final = 60.0
_POLL: Final = 0.05
_NOT_STORED: Final = (
    CredentialChangedError,
    LockedDownError,
    MasterKeyError,
    AuditUnavailableError,
)
_MOST_ATTEMPTS: Final = 5
_PAUSE: Final = 5.0
_LONGEST_PAUSE: Final = 300.0


def is_due(info: CredentialInfo, now: float) -> bool:
    """Whether it is time to renew a token in the background.

    The moment differs between credentials (jitter), so that those that were connected
    together are not renewed together.
    """
    at = renews_at(info)
    return at is not None and (at <= now or info.is_of_another_time(now))


def renews_at(info: CredentialInfo) -> float | None:
    """When it is renewed in the background, Unix seconds; None: it is not."""
    if info.connection is None or info.expires is None or needs_person(info):
        return None
    spread = 1 + zlib.crc32(info.id.encode()) / (1 << 32)
    early = min(_MARGIN, info.life * _PART) * spread
    return info.expires - early


def needs_person(info: CredentialInfo) -> bool:
    """Whether somebody has to connect it again."""
    found = info.connection
    return found is not None and found.state is ConnectionState.NEEDS_RECONNECT


def refresher_of(vault: Vault) -> Refresher:
    """The one that renews the tokens of a vault, for all in this process."""
    return vault.one_of(Refresher, Refresher)


class Refresher:
    """Renews the tokens of a vault; see ``refresher_of``.

    Args:
        vault: Unsealed.
        post: Sends a form to an authorization server.
    """

    def __init__(self, vault: Vault, *, post: Post = endpoints.post) -> None:
        self._vault = vault
        self._post = post
        self._flights: SingleFlight[str, CredentialInfo] = SingleFlight()
        self._pauses: Pauses[str] = Pauses(
            vault.clock.monotonic, first=_PAUSE, longest=_LONGEST_PAUSE
        )

    async def ensure(
        self, name: str, *, early: bool = False, principal: str = ""
    ) -> CredentialInfo:
        """A token that is valid now; it is renewed first if it is not.

        All that want the same one wait for one refresh.

        Args:
            name: The credential's.
            early: Renew it in good time before it expires, as the worker does.
            principal: Whose it is; empty: the shared one.

        Raises:
            NeedsReconnectError: Its provider does not renew it any more.
            TokenError: It could not be renewed now.
            CredentialNotFoundError: There is none of that name.
        """
        needed, key = is_due if early else CredentialInfo.has_expired, key_of(name, principal)
        while True:
            info = await self._vault.get(name, principal=principal)
            if not needed(info, self._vault.ends.now()):
                return info
            found, failed = None, None
            try:
                found = await self._flights.shared(key, partial(self._in_turn, info, needed))
            except Exception as error:  # noqa: BLE001 - raised below, to plugins as well
                # The frames hold the refresh token and the client's secret.
                error.__traceback__ = error.__cause__ = error.__context__ = None
                failed = error
            if failed is not None:
                raise failed
            if found is not None:
                return found

    async def renew_due(self) -> int:
        """Renews what expires soon; what fails waits for the next time.

        One after the other at each provider, so that one which does not answer holds up
        nothing at others.

        Returns:
            How many credentials need a person.
        """
        lost = set[str]()

        async def due() -> dict[str, str]:
            now, found = self._vault.ends.now(), list[tuple[float, str, str]]()
            for info in await self._vault.list():
                if needs_person(info):
                    lost.add(info.key)
                elif info.connection and is_due(info, now) and info.key not in self._pauses:
                    place = urlsplit(info.connection.token_endpoint).netloc
                    found.append((info.connection.attempted, info.key, place))
            return {key: place for _, key, place in sorted(found)}

        async def renew(key: str) -> bool:
            name, principal = split_key(key)
            try:
                await self.ensure(name, early=True, principal=principal)
            except NeedsReconnectError:
                lost.add(key)
            except (TokenError, CredentialChangedError, NotFoundError):
                pass
            return key not in self._pauses

        await in_lanes(due, renew)
        return len(lost)

    async def _in_turn(
        self, info: CredentialInfo, needed: Callable[[CredentialInfo, float], bool]
    ) -> CredentialInfo:
        """As the only one of all processes, or after another has done it."""
        deadline = self._vault.clock.monotonic() + _PATIENCE
        while True:
            info = await self._again(info)
            if not needed(info, self._vault.ends.now()):
                return info
            with contextlib.suppress(CredentialChangedError):  # by a person: that one is used
                async with leading(self._vault.store.storage, f"refresh_{info.id}") as lead:
                    if lead:
                        await self._vault.refresh()
                        info = await self._again(info)
                        if not needed(info, self._vault.ends.now()):
                            return info
                        # Cancelled between answer and commit, it would lose the new token.
                        return await run_to_completion(self._renewed(info))
            await self._wait(deadline)

    @contextlib.asynccontextmanager
    async def alone(self, info: CredentialInfo) -> AsyncIterator[CredentialInfo]:
        """A token as it is while nobody renews it, in any process, until the end of the block.

        Raises:
            TokenError: Another process has been renewing it for a minute.
            CredentialNotFoundError: There is none of that name any more.
        """
        deadline = self._vault.clock.monotonic() + _PATIENCE
        while True:
            async with leading(self._vault.store.storage, f"refresh_{info.id}") as lead:
                if lead:
                    await self._vault.refresh()
                    yield await self._again(info)
                    return
            await self._wait(deadline)

    async def _wait(self, deadline: float) -> None:
        if self._vault.clock.monotonic() > deadline:
            raise TokenError(
                "Another process has been renewing the token for a minute.",
                hint="Try again; see: apex-creds list",
            )
        await anyio.sleep(_POLL)
        await self._vault.refresh()

    async def _again(self, info: CredentialInfo) -> CredentialInfo:
        return await self._vault.get(info.name, principal=info.principal)

    async def _renewed(self, info: CredentialInfo) -> CredentialInfo:
        before = info.connection
        assert before is not None
        if needs_person(info):
            raise needs_reconnect(info)
        if before.grant == "refresh_token" and before.attempts >= _MOST_ATTEMPTS:
            raise await self._given_up(info, "answer_lost")
        if info.key in self._pauses:
            raise TokenError(
                "The token has expired, and its provider could not be reached a moment ago.",
                hint="Try again in some seconds.",
            )
        secret = await self._client_secret(before)
        client = Client(id=before.client_id, auth=before.client_auth, secret=secret)
        info = await self._noted(
            info,
            state=ConnectionState.REFRESHING,
            attempts=before.attempts + 1,
            attempted=self._vault.clock.time(),
        )
        form, old = await self._asked(info, before)
        sent = self._vault.ends.now()
        try:
            answer = await self._post(before.token_endpoint, form, client)
            tokens = parse_tokens(answer.status, answer.body)
        except OAuthError as error:
            raise await self._refused(info, error) from None
        try:
            return await self._stored(info, tokens, old=old, at=sent)
        except _NOT_STORED as error:
            await self._withdraw(info, tokens, client)
            if isinstance(error, CredentialChangedError):
                raise
            why = error.message
        raise TokenError(
            f"The token was renewed and could not be stored: {why}",
            hint="It was given back. Try again when that is fixed; see: apex-creds list",
        )

    async def _asked(self, info: CredentialInfo, before: Connection) -> tuple[Form, str]:
        """What is sent, and the refresh token in it; may have a person called for."""
        form: Form = {"grant_type": before.grant}
        if before.grant == "refresh_token":
            old = form["refresh_token"] = await self._refresh_token(info)
            if not old:
                raise await self._given_up(info, "no_refresh_token")
            return form, old
        if before.assertion is None:
            if before.scope:
                form["scope"] = before.scope
            return form, ""
        failed = "no_assertion"
        try:
            return await self.asserted(before.grant, before, action="refresh"), ""
        except TokenError:
            raise  # the token that is exchanged could not be renewed now
        except (NotFoundError, InvalidInputError) as error:
            failed = type(error).__name__
        self._log(info.key, failed)
        raise await self._given_up(info, "no_assertion")

    async def asserted(self, grant: str, asked: Connection, *, action: str) -> Form:
        """The form of a grant with an assertion, whose credential is valid.

        Raises:
            CredentialNotFoundError: There is no such credential.
            InvalidInputError: It is none that this can be asserted with.
            TokenError: It is a token that has expired, and could not be renewed.
        """
        given = asked.assertion
        assert given is not None
        found = await self._vault.get(given.credential, principal=given.principal)
        if found.connection is not None and found.connection.assertion is not None:
            raise InvalidInputError(
                "That token is itself issued for another credential.", hint="Name that one."
            )
        if found.connection is not None:
            await self.ensure(given.credential, principal=given.principal)
        record = await self._vault.find(given.credential, principal=given.principal)
        now = self._vault.ends.now()
        if (end := record.info.ends) is not None and end <= now:
            raise InvalidInputError("The credential that it is issued for has expired.")
        if record.info.has_expired(now):
            raise TokenError(
                "The credential that it is issued for is being replaced at its provider.",
                hint="See: apex-creds rotation status",
            )
        with self._released(record, action) as opened:
            return flows.form_of(
                grant,
                given,
                opened,
                endpoint=asked.token_endpoint,
                scope=asked.scope,
                now=self._vault.clock.time(),
            )

    async def _refused(self, info: CredentialInfo, error: OAuthError) -> TokenError:
        """Puts on record what came instead of a token."""
        if is_final(error) or error.code in ("not_understood", "refused"):
            return await self._given_up(info, error.code)
        self._pauses.begin(info.key)
        code = error.code or "unreachable"
        if not (isinstance(error, OAuthUnreachableError) and error.sent):
            await self._noted(info, state=ConnectionState.CONNECTED, attempts=0, outcome=code)
        self._log(info.key, code)
        return TokenError(
            f"The token has expired and could not be renewed: {error.message}",
            hint="Try again; see: apex-creds list",
        )

    async def _stored(
        self, info: CredentialInfo, tokens: Tokens, *, old: str, at: float
    ) -> CredentialInfo:
        connection = info.connection
        assert connection is not None
        renewed = tokens.secret(at=at, refresh=old, scope=info.scope)
        made = msgspec.structs.replace(
            connection,
            state=ConnectionState.CONNECTED,
            attempts=0,
            refreshed=at,
            outcome="ok",
        )
        self._pauses.end(info.key)
        # A lockdown forbids the use, not the saving of what was obtained already.
        async with self._vault.store.holding():
            return await self._vault.renew(info, renewed, connection=made)

    async def _withdraw(self, info: CredentialInfo, tokens: Tokens, client: Client) -> None:
        """Revokes at its provider what came and was not stored; best effort."""
        before = info.connection
        assert before is not None
        with contextlib.suppress(ApexCredsError):
            present = await self._again(info)
            again = present.connection if present.version != info.version else None
            if again is not None and again.client_id == before.client_id:
                return  # connected again: a server may end that with it (RFC 7009, 2.1)
        if before.revocation_endpoint:
            token, part = (
                (tokens.refresh, "refresh") if tokens.refresh else (tokens.access, "access")
            )
            form: Form = {"token": token, "token_type_hint": f"{part}_token"}
            with contextlib.suppress(OAuthError):
                await self._post(before.revocation_endpoint, form, client)

    async def _client_secret(self, connection: Connection) -> str:
        if not connection.client_secret:
            return ""
        record = await self._vault.find(connection.client_secret)
        with self._released(record) as opened:
            return bytes(opened.view()).decode()

    async def _refresh_token(self, info: CredentialInfo) -> str:
        record = await self._vault.find(info.name, principal=info.principal)
        if record.info.version != info.version:
            # Of another token, whose answer could not be stored in the place of this one.
            raise CredentialChangedError(f"{info.name!r} was changed meanwhile.")
        with self._released(record) as opened:
            has_one = "refresh" in opened.names
            return bytes(opened.view("refresh")).decode() if has_one else ""

    def _released(self, record: Record, action: str = "refresh") -> Opened:
        """The secret, for a request to the authorization server; audited before."""
        key_id, version = record.key
        event = AuditEvent(
            time=self._vault.clock.time(),
            kind=EventKind.ROTATION,
            action=action,
            credential=record.info.key,
            decision="allow",
            key_id=key_id.hex(),
            key_version=version,
        )
        return self._vault.release(record, self._vault.audit.encode(event))

    async def _noted(self, info: CredentialInfo, **changes: object) -> CredentialInfo:
        assert info.connection is not None
        made = msgspec.structs.replace(info.connection, **changes)
        return await self._vault.note_connection(info, made)

    async def _given_up(self, info: CredentialInfo, code: str) -> NeedsReconnectError:
        """Puts on record that a person has to connect again."""
        await self._noted(info, state=ConnectionState.NEEDS_RECONNECT, outcome=code)
        self._log(info.key, code)
        return needs_reconnect(info)

    def _log(self, name: str, code: str) -> None:
        self._vault.record(
            EventKind.ROTATION, action="refresh", credential=name, decision="deny", reason=code
        )


def needs_reconnect(info: CredentialInfo) -> NeedsReconnectError:
    """What is said where a person has to connect again."""
    whose = f" --for {shlex.quote(info.principal)}" if info.principal else ""
    return NeedsReconnectError(
        f"The provider does not renew {info.name!r} any more.",
        hint="Its owner runs: apex-creds connect PROVIDER --name "
        f"{shlex.quote(info.name)}{whose}",
    )
