"""Credentials as they go into the vault and come out of it, with their grants.

Guarantee: ``Facts`` are current, and the key store in memory has the record's key: neither the
grants nor the record has moved since the other was read. The parts of ``Opened`` lie in locked
memory. All else is a value.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from typing import Final, NamedTuple

from apex_creds.concurrency import BoundedCache, until_committed
from apex_creds.crypto.memory import SecretBytes
from apex_creds.documents.keystore import Keystore
from apex_creds.documents.records import Layout, Record, layout_of
from apex_creds.documents.store import DocumentStore
from apex_creds.errors import InvalidInputError
from apex_creds.model import (
    SECTIONS,
    AwsKey,
    Closes,
    Connection,
    CredentialInfo,
    CredentialKind,
    Delivery,
    DeliveryStyle,
    OAuthToken,
    Origin,
    Rotation,
    Secret,
    Sensitivity,
    key_of,
    new_id,
)
from apex_creds.policy.grants import Grants
from apex_creds.storage.base import GRANTS, KEYSTORE, Shredded, Stamp, Stamped

MAIN_PART: Final[dict[CredentialKind, str]] = {
    CredentialKind.API_KEY: "value",
    CredentialKind.OAUTH_TOKEN: "access",
    CredentialKind.BASIC: "password",
    CredentialKind.GENERIC: "value",
}
"""The part that a redeem gives where none is named."""

_DEFAULT_DELIVERY: Final = {
    kind: Delivery.parse("basic" if kind is CredentialKind.BASIC else "bearer")
    for kind in CredentialKind
}


_AWS4: Final = Delivery(DeliveryStyle.AWS4)
_IN_HEADERS: Final = frozenset(
    {
        DeliveryStyle.BEARER,
        DeliveryStyle.SCHEME,
        DeliveryStyle.HEADER,
        DeliveryStyle.COOKIE,
    }
)
_DEFAULT_LEVEL: Final = Sensitivity.SENSITIVE
_MANY: Final = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class PutItem:
    """One credential to put; what is None keeps its value, or gets the kind's default.

    Attributes:
        service: Chooses the DEK keyset; the name, by default.
        expires: Unix seconds.
        challenge: Whether each use takes a signed challenge; not, by default.
        as_is: Whether a secret that can't be sent is stored all the same: what a migration
            finds must not be lost.
        connection: How the token is renewed; one that is put without it is not.
        replaces: The version that it takes the place of; None: any.
        rotation: Of a step of a rotation: the state after it.
        rotates: The state that it is a step from.
        principal: Whose it is; empty: it is shared.
    """

    name: str
    secret: Secret
    service: str | None = None
    delivery: Delivery | None = None
    origins: tuple[Origin, ...] | None = None
    expires: float | None = None
    sensitivity: Sensitivity | None = None
    challenge: bool | None = None
    as_is: bool = False
    connection: Connection | None = None
    replaces: int | None = None
    rotation: Rotation | None = None
    rotates: Rotation | None = None
    principal: str = ""

    @property
    def key(self) -> str:
        """What identifies the credential."""
        return key_of(self.name, self.principal)


@dataclass(frozen=True, slots=True, kw_only=True)
class Deletion:
    """What a deletion could verify.

    Attributes:
        shredded: The key that protected the secret is destroyed; read back.
        overwritten: Whether the replaced document was overwritten in place.
    """

    name: str
    shredded: bool
    overwritten: Shredded


class Facts(NamedTuple):
    """What decides on a credential, as of one moment; ``key`` is the credential's."""

    grants: Grants
    record: Record | None
    key: str = ""


class Opened(Closes):
    """A credential's parts in locked memory, wiped by ``close``.

    Args:
        whole: All of them.
        kind: Says which is the main one.
        layout: Where they lie, if that is known.
    """

    __slots__ = ("_layout", "_whole", "kind")

    def __init__(
        self, whole: SecretBytes, kind: CredentialKind, layout: Layout | None = None
    ) -> None:
        self._whole = whole
        self._layout = layout_of(whole) if layout is None else layout
        self.kind = kind

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the parts."""
        return tuple(self._layout)

    def view(self, part: str = "") -> memoryview:
        """A part where it lies; valid until ``close``. The main part by default.

        Raises:
            InvalidInputError: The credential has no such part.
        """
        start, length = self._place(part)
        return self._whole.view()[start : start + length]

    def part(self, part: str = "") -> SecretBytes:
        """A copy of a part in another slot, which the caller closes.

        Raises:
            InvalidInputError: The credential has no such part.
        """
        return SecretBytes.part_of(self._whole, *self._place(part))

    def take(self, part: str = "") -> SecretBytes:
        """A part where it lies, for the caller to close; the others are wiped.

        Raises:
            InvalidInputError: The credential has no such part; all are wiped.
        """
        whole = self._whole
        try:
            start, length = self._layout.get(part or MAIN_PART[self.kind]) or self._place(part)
            whole._narrow(start, length)
        except BaseException:
            whole.close()
            raise
        return whole

    def _place(self, part: str) -> tuple[int, int]:
        found = self._layout.get(part or MAIN_PART[self.kind])
        if found is None:
            raise InvalidInputError(
                "The credential has no such part.", hint=f"It has: {', '.join(self.names)}."
            )
        return found

    def close(self) -> None:
        """Wipes the parts; idempotent."""
        self._whole.close()


def next_info(item: PutItem, old: Record | None, now: float) -> CredentialInfo:
    """The metadata of the version that ``item`` makes, after ``old``.

    Raises:
        InvalidInputError: The secret can't be sent as it is to be sent.
    """
    kind, before = item.secret.kind, old.info if old else None
    usual = _AWS4 if isinstance(item.secret, AwsKey) else _DEFAULT_DELIVERY[kind]
    delivery = item.delivery or (before.delivery if before else usual)
    origins = item.origins
    if origins is None:
        origins = before.origins if before else ()
    if origins and not item.as_is:  # what is sent nowhere is for reveal()
        _check_sendable(item, delivery)
    oauth = item.secret if isinstance(item.secret, OAuthToken) else None
    expires = oauth.expires_at if oauth and item.expires is None else item.expires
    version = before.version + 1 if before else 1
    rotation = item.rotation
    if rotation is None and before is not None and before.rotation is not None:
        rotation = before.rotation.with_new_value(version, now)
    return CredentialInfo(
        id=before.id if before else new_id(),
        name=item.name,
        service=service_of(item, old),
        kind=kind,
        version=version,
        delivery=delivery,
        origins=origins,
        created=before.created if before else now,
        updated=now,
        expires=expires,
        token_type=oauth.token_type if oauth else "",
        scope=oauth.scope if oauth else "",
        sensitivity=item.sensitivity or (before.sensitivity if before else _DEFAULT_LEVEL),
        challenge=marked(item.challenge, before),
        connection=item.connection,
        rotation=rotation,
        principal=item.principal,
    )


def _check_sendable(item: PutItem, delivery: Delivery) -> None:
    """Of a key or token: nothing in it that a page, a word processor or a shell put there."""
    if item.secret.kind is CredentialKind.GENERIC and item.delivery is None:
        return  # for reveal()
    header = delivery.style in _IN_HEADERS
    for part in ("value", "access"):  # a refresh token goes into a form, escaped
        data = item.secret.parts.get(part, b"")
        wrong = _what_is_wrong(data.decode("utf-8", "surrogateescape"), header=header)
        if wrong:
            raise InvalidInputError(
                f"The secret of {item.name!r} can't be used as it is: it has {wrong}.",
                hint="Copy it again, without that; store text of several lines, or bytes, as a "
                "generic secret (--kind generic).",
            )


def _what_is_wrong(text: str, *, header: bool) -> str:
    if text != text.strip():
        return "white space around it"
    for char in text:
        category = unicodedata.category(char)
        if char != " " and category[0] in "CZ":
            return f"an invisible character in it ({_named(char)})"
        if header and category in ("Pd", "Pi", "Pf") and not char.isascii():
            return f"a character of a word processor in it ({_named(char)})"
        if header and not char.isascii():
            return "a character that can't be sent in a header"
    return ""


def _named(char: str) -> str:
    return f"U+{ord(char):04X} {unicodedata.name(char, '')}".rstrip()


def service_of(item: PutItem, old: Record | None) -> str:
    """The service that ``item`` is for: the one asked for, or as before, or its own."""
    return item.service or (old.info.service if old else item.name)


def marked(asked: bool | None, before: CredentialInfo | None) -> bool:
    """Whether a credential takes a signed challenge from now on."""
    return asked if asked is not None else before is not None and before.challenge


def parse_level(text: str | Sensitivity) -> Sensitivity:
    """A level by its name.

    Raises:
        InvalidInputError: There is no such level.
    """
    try:
        return Sensitivity(text)
    except ValueError:
        raise InvalidInputError(
            f"{text[:40]!r} is not a level.", hint=f"Use {', '.join(Sensitivity)}."
        ) from None


def dek_label(info: CredentialInfo) -> str:
    """Which keyset protects a credential: one for each section and service."""
    return label_of(SECTIONS[info.kind], info.service)


def label_of(section: str, service: str) -> str:
    """The label of the keyset of a section's service."""
    return f"{section}/{service}"


class _Known(NamedTuple):
    """Facts, and what says that they are current."""

    facts: Facts
    keystore: Keystore
    stamp: Stamp


class Lookup:
    """Finds the facts of credentials; one step where nothing has changed since the last time.

    Args:
        store: Unsealed.
    """

    def __init__(self, store: DocumentStore) -> None:
        self._store = store
        self._stamped = store.storage if isinstance(store.storage, Stamped) else None
        self._known: BoundedCache[str, _Known] = BoundedCache(_MANY)

    def now(self, key: str) -> Facts | None:
        """The facts, without waiting; None where memory is not current.

        Raises:
            VaultSealedError: The vault is sealed.
        """
        storage, known = self._stamped, self._known.get(key)
        if (
            storage is not None
            and known is not None
            and known.keystore is self._store.unsealed()
            and storage.stands(known.stamp)
        ):
            return known.facts
        keystore = self._store.keystore_now()
        if keystore is None:
            return None
        found, grants = self._store.sections.find_now(key), self._store.grants.now(keystore)
        if found is None or grants is None:
            return None
        facts = Facts(grants, found.get(key), key)
        if storage is not None and facts.record is not None and not keystore.hierarchy.closed:
            # Every document that the facts are from.
            documents = (KEYSTORE, GRANTS, self._store.sections.document_of(key))
            stamp = storage.stamp([each for each in documents if each is not None])
            if stamp is not None:
                self._known.remember(key, _Known(facts, keystore, stamp))
        return facts

    async def fresh(self, key: str) -> Facts:
        """The facts as of some moment after the call.

        Raises:
            ConflictError: Other writers keep changing the vault.
        """

        async def attempt() -> Facts | None:
            await self._store.sections.read_all()
            await self._store.grants.read()
            return self.now(key)

        return await until_committed("keystore", attempt)
