"""Challenge-response for programs: what is signed, and when an answer counts. Pure.

Guarantee: a signature is over one canonical message, bound to vault, client, credential,
plugin, scopes and expiry, under one domain string; a challenge is answered once, right or
wrong, since ``close_challenge`` takes it out of the state that it is committed to; a client
signs only what it expects. The bytes are specified in docs/CHALLENGE.md.
"""

from __future__ import annotations

import contextlib
import hashlib
import struct
from collections.abc import Callable, Iterable
from enum import StrEnum
from typing import Final, Self

import msgspec

from apex_creds.auth.access_document import AccessState, Client, OpenChallenge
from apex_creds.auth.second_factor import Subject
from apex_creds.clocks import Moment
from apex_creds.crypto import kdf, public_key
from apex_creds.errors import ChallengeError, IntegrityError, InvalidInputError
from apex_creds.model import check_name, completed

DOMAIN: Final = b"apex-creds/v1/challenge"
NONCE_BYTES: Final = 32
ANSWER_BYTES: Final = NONCE_BYTES + public_key.SIGNATURE_BYTES
TTL: Final = 60.0
MAX_TTL: Final = 600.0
"""Seconds; a challenge that would be good for longer is not accepted."""
MAX_OPEN: Final = 16
"""Open challenges of a client; more are refused until some are answered or over."""
ANY: Final = "*"

_CLIENT_DOMAIN: Final = b"apex-creds/v1/client\0"
MAX_MESSAGE: Final = 64 * 1024
_MAX_SCOPES: Final = 64
_MAX_MILLIS: Final = 2**53
_SIZE: Final = struct.Struct(">I")
_MILLIS: Final = struct.Struct(">Q")


class Challenge(msgspec.Struct, frozen=True, kw_only=True):
    """What a client is asked to sign.

    Attributes:
        vault_id: 32 hexadecimal digits, as ``client``.
        nonce: 32 random bytes.
        scopes: In ascending order of their UTF-8, each once.
        expires: Milliseconds since the Unix epoch.
    """

    vault_id: str
    client: str
    nonce: bytes
    credential: str
    plugin: str
    scopes: tuple[str, ...] = ()
    expires: int

    def encode(self) -> bytes:
        """The canonical message: every field with its length before it."""
        fields = (
            DOMAIN,
            bytes.fromhex(self.vault_id),
            bytes.fromhex(self.client),
            self.nonce,
            self.credential.encode(),
            self.plugin.encode(),
            b"".join(_sized(scope.encode()) for scope in self.scopes),
            _MILLIS.pack(self.expires),
        )
        return b"".join(map(_sized, fields))

    @classmethod
    def decode(cls, message: bytes) -> Self:
        """Reads a message strictly.

        Raises:
            ChallengeError: It is not in the canonical form.
        """
        made = None
        with contextlib.suppress(InvalidInputError, ValueError, struct.error):
            domain, vault, client, nonce, credential, plugin, scopes, expires = _split(
                message[: MAX_MESSAGE + 1]
            )
            sizes = (len(vault), len(client), len(nonce))
            if domain == DOMAIN and sizes == (16, 16, NONCE_BYTES):
                made = cls(
                    vault_id=vault.hex(),
                    client=client.hex(),
                    nonce=nonce,
                    credential=check_name(credential.decode()),
                    plugin=check_name(plugin.decode()),
                    scopes=canonical_scopes(tuple(s.decode() for s in _split(scopes))),
                    expires=_MILLIS.unpack(expires)[0],
                )
        if made is None or len(message) > MAX_MESSAGE or made.encode() != message:
            raise ChallengeError("The challenge is malformed.", hint="Ask for another one.")
        return made


class Reason(StrEnum):
    """Why an answer does not count."""

    MALFORMED = "challenge_malformed"
    UNKNOWN = "challenge_unknown"
    EXPIRED = "challenge_expired"
    OTHER_SUBJECT = "challenge_for_another_subject"
    CLIENT_NOT_ALLOWED = "client_not_allowed"
    WRONG_SIGNATURE = "challenge_wrong_signature"


class Redeemed(msgspec.Struct, frozen=True, kw_only=True):
    """The state after an answer, and the client that gave it, or why it does not count."""

    state: AccessState
    client: Client | None = None
    reason: Reason | None = None


# -- clients -------------------------------------------------------------------------


def client_id(public: bytes) -> str:
    """The id of a public key (32 bytes): 32 hexadecimal digits that a client knows, too."""
    return hashlib.sha256(_CLIENT_DOMAIN + public).hexdigest()[:32]


def may_answer(client: Client | None, credential: str, *, now: float) -> bool:
    """Whether a client is enrolled, not over, and allowed that credential."""
    if client is None or (client.expires is not None and now >= client.expires):
        return False
    return ANY in client.credentials or credential in client.credentials


def find_client(state: AccessState, wanted: str) -> Client | None:
    """The client of that name or id, or the only one whose id begins so.

    Raises:
        InvalidInputError: Several do.
    """
    whole = completed(wanted, [client.id for client in state.clients])
    return next((c for c in state.clients if c.name == wanted or c.id == whole), None)


def with_client(state: AccessState, client: Client) -> AccessState:
    """The state with another client.

    Raises:
        InvalidInputError: Its name or its key is taken.
    """
    if any(client.name in (c.id, c.name) or client.id in (c.id, c.name) for c in state.clients):
        raise InvalidInputError(
            "There is a client of that name, or with that key.",
            hint="See: apex-creds client list",
        )
    return msgspec.structs.replace(state, clients=(*state.clients, client))


def without_client(state: AccessState, client: Client) -> AccessState:
    """The state without a client and its open challenges."""
    return msgspec.structs.replace(
        state,
        clients=tuple(c for c in state.clients if c.id != client.id),
        challenges=tuple(c for c in state.challenges if c.client != client.id),
    )


# -- the vault's side ------------------------------------------------------------------


def issue(
    state: AccessState, challenge: Challenge, *, now: float | Moment, ttl: float
) -> AccessState:
    """The state in which ``challenge`` is open; those that are over are forgotten.

    Raises:
        ChallengeError: Its client may not answer it, or has too many open.
        InvalidInputError: ``ttl`` is not within ``MAX_TTL``.
    """
    if not 0 < ttl <= MAX_TTL:
        raise InvalidInputError(f"A challenge is good for up to {MAX_TTL:.0f} seconds.")
    client, now = find_client(state, challenge.client), Moment.of(now)
    if not may_answer(client, challenge.credential, now=now.wall):
        raise refused()
    alive = tuple(c for c in state.challenges if _is_open(c, now))
    if sum(c.client == challenge.client for c in alive) >= MAX_OPEN:
        raise ChallengeError(
            "The client has too many challenges open.", hint="Answer them, or wait a minute."
        )
    made = OpenChallenge(
        nonce=challenge.nonce,
        client=challenge.client,
        expires=challenge.expires / 1000,
        message=challenge.encode(),
        made=now if now.boot else None,
    )
    return msgspec.structs.replace(state, challenges=(*alive, made))


def close_challenge(
    state: AccessState, answer: bytes, subject: Subject, *, now: float | Moment
) -> Redeemed:
    """Judges an answer. A challenge that it names is closed, whatever else is wrong."""
    if len(answer) != ANSWER_BYTES:
        return Redeemed(state=state, reason=Reason.MALFORMED)
    nonce, signature = answer[:NONCE_BYTES], answer[NONCE_BYTES:]
    found = [c for c in state.challenges if kdf.constant_time_equal(c.nonce, nonce)]
    if not found:
        return Redeemed(state=state, reason=Reason.UNKNOWN)
    challenge, now = found[0], Moment.of(now)
    kept = tuple(c for c in state.challenges if c is not challenge)
    closed = msgspec.structs.replace(state, challenges=kept)
    client = find_client(state, challenge.client)
    if not _is_open(challenge, now):
        return Redeemed(state=closed, reason=Reason.EXPIRED)
    if client is None or not may_answer(client, subject.credential, now=now.wall):
        return Redeemed(state=closed, reason=Reason.CLIENT_NOT_ALLOWED)
    signed = Challenge.decode(challenge.message)
    wanted = (subject.credential, subject.plugin, canonical_scopes(subject.scopes))
    if (signed.credential, signed.plugin, signed.scopes) != wanted:
        return Redeemed(state=closed, reason=Reason.OTHER_SUBJECT)
    try:
        public_key.verify(client.public, challenge.message, signature)
    except IntegrityError:
        return Redeemed(state=closed, reason=Reason.WRONG_SIGNATURE)
    return Redeemed(state=closed, client=client)


def _is_open(challenge: OpenChallenge, now: Moment) -> bool:
    """By the boot-time clock while the machine runs on, whatever the wall clock does."""
    made, expires = challenge.made, challenge.expires
    if made is not None:
        expires += made.wall_by(now) - made.wall
    return now.wall < expires <= now.wall + MAX_TTL


def refused() -> ChallengeError:
    """The one refusal; the audit log says why."""
    return ChallengeError(
        "The challenge was not answered by a client that may.",
        hint="See apex-creds client list, and the audit log.",
    )


# -- the client's side -----------------------------------------------------------------

Allow = Callable[[Challenge], bool]
"""Whether the client wants to sign this."""


def expecting(*, credential: str, plugin: str, scopes: Iterable[str] = ()) -> Allow:
    """Allows challenges for exactly this."""
    wanted = (credential, plugin, canonical_scopes(scopes))
    return lambda found: (found.credential, found.plugin, found.scopes) == wanted


def sign_challenge(
    key: public_key.SigningKey, message: bytes, *, vault_id: str, allow: Allow, now: float
) -> bytes:
    """Signs a challenge: 96 bytes, the nonce and the signature.

    Raises:
        ChallengeError: It is malformed, over, of another vault or for another client, or
            ``allow`` says no. Nothing is signed.
    """
    challenge = Challenge.decode(message)
    ours = challenge.vault_id == vault_id and challenge.client == client_id(key.public)
    if not ours or not allow(challenge):
        raise ChallengeError(
            "This challenge is not one that this client expects.",
            hint="Check the vault's id, and what the client asked for.",
        )
    if not now < challenge.expires / 1000 <= now + MAX_TTL:
        raise ChallengeError(
            "The challenge is over, or good for too long.", hint="Check the clocks."
        )
    return challenge.nonce + key.sign(message)


def canonical_scopes(scopes: Iterable[str]) -> tuple[str, ...]:
    """Scopes as a challenge has them: checked, sorted by their UTF-8, each once.

    Raises:
        InvalidInputError: One is not acceptable, or there are more than 64.
    """
    chosen = {check_name(scope, what="scope") for scope in scopes}
    if len(chosen) > _MAX_SCOPES:
        raise InvalidInputError(f"There are more than {_MAX_SCOPES} scopes.")
    return tuple(sorted(chosen, key=str.encode))


def millis(when: float) -> int:
    """Unix seconds as a challenge has them."""
    return min(max(0, int(when * 1000)), _MAX_MILLIS)


def _sized(field: bytes) -> bytes:
    return _SIZE.pack(len(field)) + field


def _split(message: bytes) -> list[bytes]:
    fields, at = [], 0
    while at < len(message):
        start = at + _SIZE.size
        at = start + _SIZE.unpack_from(message, at)[0]
        if at > len(message):
            raise ValueError
        fields.append(message[start:at])
    return fields
