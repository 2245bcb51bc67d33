"""The document ``access``: second factors, clients, challenges, requests that are open.

Guarantee: values are immutable and hold no secret in clear: seeds and keys are envelopes,
recovery codes are digests. A change is computed against the state and the key store as stored
now, and is durable on return; secrets are sealed under the primary of the keyset
``access/factors`` as that is when the change is committed, so none is ever left under a
destroyed key. Every field of ``AccessState`` has a default, so that a feature can add one; an
unknown field is an error, since to drop it could widen access.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final, Protocol

import msgspec

from apex_creds.audit.events import EventKind
from apex_creds.clocks import Ends, Moment
from apex_creds.crypto import envelope
from apex_creds.crypto.envelope import Context
from apex_creds.crypto.memory import SecretBytes
from apex_creds.documents import key_versions
from apex_creds.documents.cached import Document
from apex_creds.documents.keystore import Keystore
from apex_creds.documents.store import DocumentStore
from apex_creds.errors import UnknownKeyError
from apex_creds.model import Clock
from apex_creds.policy.consent import ConsentAnswer, ConsentRequest

OPERATOR: Final = "operator"
"""The principal of everything that a person decides, where no other is named."""


class Factor(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A second factor that was enrolled.

    Attributes:
        id: 32 hexadecimal digits.
        kind: ``totp``, or what another ``SecondFactor`` calls itself.
        principal: Whose it is.
        label: What its owner calls it.
        created: Unix seconds.
        sealed: Its secret, in an envelope.
        settings: Its kind's parameters.
        counter: The counter that was accepted last (of TOTP: the time step).
        runs: From which to which counters were accepted; see ``counters``. Empty where
            ``counter`` is the only one.
    """

    id: str
    kind: str
    principal: str = OPERATOR
    label: str = ""
    created: float
    sealed: bytes
    settings: dict[str, str] = {}
    counter: int = -1
    runs: tuple[tuple[int, int], ...] = ()

    @property
    def spent(self) -> tuple[tuple[int, int], ...]:
        """``runs``, as a factor of an earlier program has them, too."""
        return self.runs or (((self.counter, self.counter),) if self.counter >= 0 else ())


class RecoverySet(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The recovery codes of a principal that are not used yet.

    Attributes:
        id: 32 hexadecimal digits.
        sealed: The key of the digests, in an envelope.
        digests: HMAC-SHA256 of each code, 32 bytes.
    """

    id: str
    principal: str = OPERATOR
    created: float
    sealed: bytes
    digests: tuple[bytes, ...]


class Lockout(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Failures of a principal since it last passed.

    Attributes:
        last: When the last one was, Unix seconds.
        until: When it may try again, if the clock is right.
        moment: ``last`` on both clocks; None where an earlier program wrote it.
    """

    principal: str
    failures: int
    last: float
    until: float
    moment: Moment | None = None


class Passed(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A principal showed a second factor, for this plugin and that credential, then.

    Attributes:
        at: Unix seconds.
        moment: The same on both clocks; None where an earlier program wrote it.
    """

    principal: str
    plugin: str
    credential: str
    at: float
    moment: Moment | None = None

    def at_by(self, now: Moment) -> float:
        """When it was, by the wall clock as it is now."""
        return self.at if self.moment is None else self.moment.wall_by(now)


class Client(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A program that may answer challenges.

    Attributes:
        id: 32 hexadecimal digits, made from the public key.
        public: Ed25519, 32 bytes.
        credentials: Names it may answer for; ``*``: all that take a challenge.
        created: Unix seconds; so is ``expires`` (None: without end).
    """

    id: str
    name: str
    public: bytes
    credentials: tuple[str, ...]
    created: float
    expires: float | None = None


class OpenChallenge(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A challenge that was given out and not answered yet; the bytes that are signed."""

    nonce: bytes
    client: str
    expires: float
    message: bytes
    made: Moment | None = None


class PendingRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A question that waits for a person; from ``asked`` to ``expires``, Unix seconds.

    Attributes:
        id: 8 hexadecimal digits.
        answer: None: not yet.
        moment: ``asked`` on both clocks; None where an earlier program wrote it.
    """

    id: str
    request: ConsentRequest
    asked: float
    expires: float
    answer: ConsentAnswer | None = None
    moment: Moment | None = None

    def seconds_left(self, now: Moment) -> float:
        """How long it can still be answered; 0 if it can't.

        One from far ahead was asked while the clock was wrong.
        """
        life = self.expires - self.asked
        asked = self.asked if self.moment is None else self.moment.wall_by(now)
        left = asked + life - now.wall
        return min(left, life) if 0.0 < left <= 2 * life else 0.0


class AccessState(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """The document's value. A new field comes last, with a default."""

    factors: tuple[Factor, ...] = ()
    recovery: tuple[RecoverySet, ...] = ()
    lockouts: tuple[Lockout, ...] = ()
    passed: tuple[Passed, ...] = ()
    clients: tuple[Client, ...] = ()
    challenges: tuple[OpenChallenge, ...] = ()
    requests: tuple[PendingRequest, ...] = ()


def takes_away(before: AccessState, after: AccessState) -> bool:
    """Whether a change used something up, took it back, or counted a failure.

    A new factor, challenge or question does not; a code that was shown, a challenge that
    was answered, a client that was revoked do.
    """
    if before.lockouts != after.lockouts:
        return True
    return any(
        item not in getattr(after, field)
        for field in AccessState.__struct_fields__
        for item in getattr(before, field)
    )


DOCUMENT: Final = "access"
DEK_LABEL: Final = "access/factors"
"""No section is called ``access``: this keyset's users are in the document alone."""

Change = Callable[[AccessState, Keystore], AccessState]


class Record(Protocol):
    """Writes an event of the vault's to its audit log."""

    def __call__(
        self,
        kind: EventKind,
        *,
        action: str = "",
        decision: str = "",
        reason: str = "",
        plugin: str = "",
        principal: str = "",
        credential: str = "",
        detail: str = "",
    ) -> None:
        """Stamps and writes it.

        Raises:
            AuditUnavailableError: It could not be written.
        """


class AccessStore:
    """The access document of a vault, and what the parts that keep something in it share.

    Args:
        store: The vault's documents.
        ends: The time by which what ends is judged.
        record: Writes audit events.
    """

    def __init__(self, store: DocumentStore, *, ends: Ends, record: Record) -> None:
        self._store = store
        self.document = Document(
            store, name=DOCUMENT, empty=AccessState(), takes_away=takes_away
        )
        self.clock: Clock = store.clock
        self.ends = ends
        self.vault_id = store.unsealed().header.vault_id
        self.record = record

    def now(self) -> AccessState | None:
        """The state if what is in memory is current, without waiting; else None."""
        return self.document.now()

    async def read(self) -> AccessState:
        """The state as stored now."""
        return await self.document.read()

    async def change(self, change: Change) -> AccessState:
        """Commits ``change(state, keystore)``; see ``Document.change_keyed``.

        Raises:
            ConflictError: Other writers were first, again and again.
        """
        return await self.document.change_keyed(change)

    async def ensure_key(self) -> None:
        """Makes the DEK that ``seal`` uses, where there is none yet."""
        await key_versions.ensure(self._store, [DEK_LABEL], now=self.clock.time())

    async def open(self, record_id: str, sealed: bytes) -> SecretBytes:
        """The secret in an envelope, in locked memory; the caller closes it.

        Raises:
            UnknownKeyError: Its key is not there; if it was moved, the record has changed.
            DecryptionError: It is not this record's.
        """
        return self._open(await self._store.keystore(), record_id, sealed)

    def seal(self, keystore: Keystore, record_id: str, secret: SecretBytes) -> bytes:
        """An envelope for a record's secret; for use inside a change."""
        keyset = keystore.by_label.get(DEK_LABEL)
        if keyset is None:
            raise UnknownKeyError("The key of the second factors is gone.", hint="Try again.")
        version = keyset.primary.version
        return envelope.encrypt(
            keystore.hierarchy.unwrap(keyset, version),
            secret,
            context=self._context(record_id),
            key_id=bytes.fromhex(keyset.id),
            key_version=version,
        )

    async def rekey(self) -> bool:
        """Gives the secrets a new DEK version and destroys the old ones.

        Returns:
            Whether no old version is left that could decrypt.
        """
        now = self.clock.time()
        await key_versions.renew(self._store, DEK_LABEL, now=now)

        def move(state: AccessState, keystore: Keystore) -> AccessState:
            keyset = keystore.by_label.get(DEK_LABEL)
            current = keyset.primary.version if keyset else 0

            def moved(record_id: str, sealed: bytes) -> bytes:
                if envelope.header(sealed)[1] == current:
                    return sealed
                with self._open(keystore, record_id, sealed) as secret:
                    return self.seal(keystore, record_id, secret)

            replace = msgspec.structs.replace
            return replace(
                state,
                factors=tuple(replace(f, sealed=moved(f.id, f.sealed)) for f in state.factors),
                recovery=tuple(
                    replace(r, sealed=moved(r.id, r.sealed)) for r in state.recovery
                ),
            )

        # Written even if nothing moves: a writer that is based on an older state must come
        # second, so that it sees the keys as they are now.
        state = await self.change(move)
        sealed = [f.sealed for f in state.factors] + [r.sealed for r in state.recovery]
        used = {(key_id.hex(), version) for key_id, version in map(envelope.header, sealed)}
        keyset = (await self._store.keystore()).by_label.get(DEK_LABEL)
        if keyset is not None:
            step = partial(key_versions.destroy_now, now=now)
            await key_versions.step_spent(self._store, [keyset], used, step)
        return key_versions.is_alone((await self._store.keystore()).by_label.get(DEK_LABEL))

    def moment(self) -> Moment:
        """This moment, on both clocks."""
        return Moment.now(self.clock)

    # -- inside ------------------------------------------------------------------

    def _open(self, keystore: Keystore, record_id: str, sealed: bytes) -> SecretBytes:
        return envelope.decrypt(keystore.dek, sealed, context=self._context(record_id))

    def _context(self, record_id: str) -> Context:
        return Context(
            vault_id=bytes.fromhex(self.vault_id),
            section=DOCUMENT,
            record_id=bytes.fromhex(record_id),
            record_version=1,
        )


class HasAccess(Protocol):
    """What factors, challenges and requests use of a vault."""

    @property
    def access(self) -> AccessStore:
        """The vault's access document."""
