"""The vault's side of challenge-response: clients, challenges, answers.

Guarantee: a challenge is durable before it is given out, and closed, durably and by
compare-and-set, before its answer counts; so no answer counts twice, after a restart or in
another process either. Revoking a client closes its challenges in the same commit.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

import msgspec

from apex_creds.audit.events import EventKind
from apex_creds.auth import challenge
from apex_creds.auth.access_document import AccessState, Client, HasAccess
from apex_creds.auth.challenge import Challenge, Redeemed
from apex_creds.auth.second_factor import Subject
from apex_creds.clocks import Moment
from apex_creds.crypto import public_key
from apex_creds.documents.keystore import Keystore
from apex_creds.errors import ChallengeError, InvalidInputError, NotFoundError
from apex_creds.model import check_name, check_time


class Challenger:
    """Gives out challenges and judges the answers.

    Args:
        vault: Unsealed.
        ttl: Seconds that a challenge is good for, at most ten minutes.
    """

    def __init__(self, vault: HasAccess, *, ttl: float = challenge.TTL) -> None:
        self.access = vault.access
        self._ttl = ttl

    # -- clients -----------------------------------------------------------------

    async def enrol(
        self,
        name: str,
        public: bytes,
        *,
        credentials: Iterable[str],
        expires: float | None = None,
    ) -> Client:
        """Lets a program answer challenges.

        Args:
            name: What the operator calls it; unique.
            public: Its Ed25519 public key, 32 bytes.
            credentials: Names that it may answer for; ``*``: all.
            expires: Unix seconds; without end by default.

        Raises:
            InvalidInputError: Name or key are taken or not acceptable, or no credential.
        """
        if len(public) != public_key.PUBLIC_BYTES:
            raise InvalidInputError(
                f"A public key has {public_key.PUBLIC_BYTES} bytes.",
                hint="Paste what apex-creds client keygen printed.",
            )
        made = Client(
            id=challenge.client_id(public),
            name=check_name(name),
            public=bytes(public),
            credentials=tuple(sorted({check_name(c) for c in credentials})),
            created=self.access.clock.time(),
            expires=check_time(expires, what="end of the client"),
        )
        if not made.credentials:
            raise InvalidInputError(
                "The client may answer for no credential.", hint="Name one, or * for all."
            )
        challenge.with_client(await self.access.read(), made)
        self._log("enrol", detail=f"{made.name} {made.id}")
        await self.access.change(lambda state, _: challenge.with_client(state, made))
        return made

    async def clients(self) -> list[Client]:
        """All clients, oldest first."""
        return list((await self.access.read()).clients)

    async def revoke(self, wanted: str) -> Client:
        """Takes a client's right away, by name or id, and closes its challenges.

        Raises:
            NotFoundError: There is no such client.
        """
        found = challenge.find_client(await self.access.read(), wanted)
        if found is None:
            raise NotFoundError("There is no such client.", hint="See: apex-creds client list")
        self._log("revoke", detail=f"{found.name} {found.id}")
        await self.access.change(lambda state, _: challenge.without_client(state, found))
        return found

    # -- challenges --------------------------------------------------------------

    async def issue(self, client: str, subject: Subject) -> bytes:
        """A challenge for a client (by id or name), to be answered once; durable.

        Raises:
            ChallengeError: There is no such client, it may not answer for the credential,
                or has too many challenges open.
        """
        nonce, now = os.urandom(challenge.NONCE_BYTES), self._now()
        made: Challenge | None = None

        def change(state: AccessState, _: Keystore) -> AccessState:
            nonlocal made
            found = challenge.find_client(state, client)
            if found is None:
                raise challenge.refused()
            made = Challenge(
                vault_id=self.access.vault_id,
                client=found.id,
                nonce=nonce,
                credential=subject.credential,
                plugin=subject.plugin,
                scopes=challenge.canonical_scopes(subject.scopes),
                expires=challenge.millis(now.wall + self._ttl),
            )
            return challenge.issue(state, made, now=now, ttl=self._ttl)

        try:
            await self.access.change(change)
        except ChallengeError as error:
            self._log_answer(subject, decision="deny", reason="not_issued", detail=client[:64])
            raise error from None
        assert made is not None
        return made.encode()

    async def redeem(self, answer: bytes, subject: Subject) -> Client:
        """The client whose answer for ``subject`` this is; the challenge is used up.

        Raises:
            ChallengeError: It does not count; the log says why.
        """
        redeemed: Redeemed | None = None

        def change(state: AccessState, _: Keystore) -> AccessState:
            nonlocal redeemed
            now = self._now()
            redeemed = challenge.close_challenge(state, answer, subject, now=now)
            return redeemed.state

        await self.access.change(change)
        assert redeemed is not None
        client = redeemed.client
        self._log_answer(
            subject,
            decision="allow" if client else "deny",
            reason=redeemed.reason.value if redeemed.reason else "answered",
            detail=f"{client.name} {client.id}" if client else "",
        )
        if client is None:
            raise challenge.refused()
        return client

    async def withdraw(self, message: bytes, subject: Subject) -> None:
        """Closes a challenge that was not answered; idempotent."""

        def change(state: AccessState, _: Keystore) -> AccessState:
            kept = tuple(c for c in state.challenges if c.message != message)
            if len(kept) == len(state.challenges):
                return state
            return msgspec.structs.replace(state, challenges=kept)

        await self.access.change(change)
        self._log_answer(subject, decision="deny", reason="not_answered", detail="")

    # -- inside ------------------------------------------------------------------

    def _now(self) -> Moment:
        return msgspec.structs.replace(self.access.moment(), wall=self.access.ends.now())

    def _log(self, action: str, *, detail: str) -> None:
        self.access.record(EventKind.CLIENT, action=action, detail=detail)

    def _log_answer(self, subject: Subject, *, decision: str, reason: str, detail: str) -> None:
        self.access.record(
            EventKind.CHALLENGE,
            action=subject.action,
            plugin=subject.plugin,
            credential=subject.credential,
            decision=decision,
            reason=reason,
            detail=detail,
        )
