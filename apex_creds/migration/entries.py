"""What old programs stored, as credentials: entries, their names, and where they may be sent.

Guarantee: pure. Whatever an entry has that a credential has no place for is kept. Where a key
may be sent is taken from the API hosts that a service's own documentation names; a service
whose host differs from customer to customer (Azure OpenAI, Bedrock, a self-hosted one) is not
among them: its origin is for the operator to say.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from apex_creds.errors import ApexCredsError, InvalidInputError, InvalidNameError
from apex_creds.model import (
    ApiKey,
    CredentialInfo,
    CredentialKind,
    Delivery,
    OAuthToken,
    Origin,
    Secret,
    check_name,
)

# -- entries --------------------------------------------------------------------------------


FIELDS: Final = "fields"
"""The part that keeps what an old format had beside the secret, as JSON."""

ENTRY: Final = "apex_creds.entry"
"""In those fields of a token: what the old file had around it."""

_KEPT_CHARACTERS: Final = 40
_TOKEN_PARTS: Final = {"access_token": "access", "refresh_token": "refresh"}
_MAX_WORD: Final = 1024


class Format(StrEnum):
    """What a source is."""

    FERNET = "fernet"
    SECRETBOX = "secretbox"
    DOTENV = "dotenv"
    VAULT = "vault"
    KEYRING = "keyring"
    EMPTY = "empty"


class Problem(StrEnum):
    """Why an entry has no secret."""

    PLACEHOLDER = "placeholder"
    EMPTY = "empty"
    UNREADABLE = "unreadable"
    INVALID = "invalid"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One credential of a source.

    Attributes:
        service: As the source names it.
        secret: None where there is a ``problem``.
        detail: More on the problem, in words.
        label: Tells entries of one service and kind apart; may be empty.
        like: Metadata to take over, of a credential of another vault.
        title: What the old program's user called it.
    """

    service: str
    kind: CredentialKind
    secret: Secret | None = field(default=None, repr=False)
    problem: Problem | None = None
    detail: str = ""
    label: str = ""
    like: CredentialInfo | None = None
    title: str = ""

    @property
    def key(self) -> str:
        """Names the entry within its source."""
        digest = hashlib.sha256()
        for text in (self.kind.value, self.service, self.label):
            data = text.encode("utf-8", "surrogatepass")
            digest.update(len(data).to_bytes(8, "big") + data)
        return digest.hexdigest()[:32]

    @property
    def name(self) -> str:
        """The name that its credential should have."""
        wanted = f"{self.service}/{self.label}" if self.label else self.service
        return self.like.name if self.like else credential_name(wanted)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """All that a source holds.

    Attributes:
        permissions: Services by plugin; ``*`` is all.
        intervals: Days by level of key.
        notes: What the operator should know.
    """

    entries: tuple[Entry, ...] = ()
    permissions: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    intervals: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def credential_name(service: str) -> str:
    """The credential name for a service's name in an old file.

    That is the name itself where it can name something. Else its readable characters and
    a digest of it, so that two services never get one name.
    """
    try:
        return check_name(service)
    except InvalidNameError:
        pass
    digest = hashlib.sha256(service.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    text = unicodedata.normalize("NFC", "".join(c for c in service if c.isprintable()))
    short = text.strip().encode()[:_KEPT_CHARACTERS].decode(errors="ignore").strip()
    return unicodedata.normalize("NFC", f"{short}~{digest}")


def alternative_name(name: str, kind: CredentialKind) -> str:
    """Where ``name`` is taken by a credential of another kind."""
    return credential_name(f"{name}/{kind.value}")


def api_key_entry(
    service: str,
    value: object,
    *,
    label: str = "",
    extra: Mapping[str, object] | None = None,
) -> Entry:
    """An entry for what an old file has as the API key of a service."""
    kind = CredentialKind.API_KEY
    if value is None or value == "":
        problem = Problem.PLACEHOLDER if value is None else Problem.EMPTY
        return Entry(service=service, kind=kind, problem=problem, label=label)
    if not isinstance(value, str):
        return _invalid(service, kind, f"is a {_json_type(value)}, not a text", label)
    try:
        secret: Secret = ApiKey(value)
        _attach(secret, extra)
    except ApexCredsError as error:
        return _invalid(service, kind, error.message, label)
    return Entry(service=service, kind=kind, secret=secret, label=label)


def token_entry(
    service: str,
    value: object,
    *,
    label: str = "",
    extra: Mapping[str, object] | None = None,
) -> Entry:
    """An entry for what an old file has as the OAuth token of a service."""
    kind = CredentialKind.OAUTH_TOKEN
    if isinstance(value, str):
        value = {"access_token": value}
    if value is None or value == {}:
        return Entry(service=service, kind=kind, problem=Problem.PLACEHOLDER, label=label)
    if not isinstance(value, dict):
        return _invalid(service, kind, f"is a {_json_type(value)}, not a token", label)
    try:
        secret = token_secret({**value, **(extra or {})})
    except ApexCredsError as error:
        if not any(value.values()):
            return Entry(service=service, kind=kind, problem=Problem.EMPTY, label=label)
        return _invalid(service, kind, error.message, label)
    return Entry(service=service, kind=kind, secret=secret, label=label)


def token_secret(token: Mapping[str, object]) -> OAuthToken:
    """The secret for a token as the old programs had it.

    Whatever an ``OAuthToken`` has no place for is kept in another part, so that
    ``token_fields`` gives back the very mapping.

    Raises:
        InvalidInputError: It has no access or refresh token, or not as text.
    """
    scope = token.get("scope")
    if isinstance(scope, list) and all(isinstance(item, str) for item in scope):
        scope = " ".join(scope)
    made = OAuthToken(
        _text_or_empty(token.get("access_token")),
        refresh_token=_text_or_empty(token.get("refresh_token")),
        expires_at=moment(token.get("expires_at")),
        token_type=_word(token.get("token_type")) or "Bearer",
        scope=_word(scope),
    )
    plain = plain_fields(
        access=_text_or_empty(token.get("access_token")),
        refresh=_text_or_empty(token.get("refresh_token")),
        expires=made.expires_at,
        token_type=made.token_type,
        scope=made.scope,
    )
    if plain != dict(token) or _types(plain) != _types(token):
        kept = dict(token)
        for name in _TOKEN_PARTS:
            if isinstance(kept.get(name), str):
                kept[name] = ""  # it is a part of the secret
        _attach(made, kept)
    return made


def plain_fields(
    *, access: str, refresh: str, expires: float | None, token_type: str, scope: str
) -> dict[str, object]:
    """A token in the old form, made from what the vault knows of it."""
    found: dict[str, object] = {"access_token": access}
    if refresh:
        found["refresh_token"] = refresh
    if expires is not None:
        found["expires_at"] = expires
    found["token_type"] = token_type
    if scope:
        found["scope"] = scope
    return found


def token_fields(fields: bytes, *, access: str, refresh: str) -> dict[str, object]:
    """The mapping from which ``token_secret`` was made, from its parts."""
    found: dict[str, object] = json.loads(fields)
    found.pop(ENTRY, None)
    values = {"access_token": access, "refresh_token": refresh}
    for name, value in values.items():
        if found.get(name) == "":
            found[name] = value
    return found


def moment(value: object) -> float | None:
    """Unix seconds, if the value is a point in time in that form."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        seconds = float(value)
    except (ValueError, OverflowError):
        return None
    return seconds if math.isfinite(seconds) else None


def _attach(secret: Secret, extra: Mapping[str, object] | None) -> None:
    """Adds the part ``fields``.

    Raises:
        InvalidInputError: It is more than a credential can hold, or not JSON.
    """
    if not extra:
        return
    try:
        data = json.dumps(extra, separators=(",", ":")).encode()
    except (TypeError, ValueError, RecursionError):
        data = b""
    if not data:
        raise InvalidInputError("has fields that are nested too deep")
    parts = {**secret.parts, FIELDS: data}
    Secret(secret.kind, parts)  # for its check of the size
    secret.parts = parts


def _types(token: Mapping[str, object]) -> list[tuple[str, type]]:
    return [(name, type(value)) for name, value in token.items()]


def _text_or_empty(value: object) -> str:
    return value if isinstance(value, str) else ""


def _word(value: object) -> str:
    """``value`` if it can stand in the metadata."""
    usable = isinstance(value, str) and len(value) <= _MAX_WORD and value.isprintable()
    return value if usable and isinstance(value, str) else ""


def _json_type(value: object) -> str:
    names = {bool: "boolean", int: "number", float: "number", list: "list", dict: "mapping"}
    return names.get(type(value), "value")


def _invalid(service: str, kind: CredentialKind, detail: str, label: str) -> Entry:
    return Entry(
        service=service, kind=kind, problem=Problem.INVALID, detail=detail, label=label
    )


# -- known services -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Sending:
    """Where a credential may be sent; how, where that is not the kind's default."""

    origins: tuple[Origin, ...] = ()
    delivery: Delivery | None = None


_HOSTS: Final = {
    "anthropic": "api.anthropic.com",
    "cohere": "api.cohere.com",
    "deepseek": "api.deepseek.com",
    "discord": "discord.com",
    "elevenlabs": "api.elevenlabs.io",
    "gemini": "generativelanguage.googleapis.com",
    "github": "api.github.com",
    "gitlab": "gitlab.com",
    "google": "generativelanguage.googleapis.com",
    "google_calendar": "www.googleapis.com",
    "google_drive": "www.googleapis.com",
    "google_gemini": "generativelanguage.googleapis.com",
    "gmail": "gmail.googleapis.com",
    "groq": "api.groq.com",
    "huggingface": "huggingface.co router.huggingface.co api-inference.huggingface.co",
    "hubspot": "api.hubapi.com",
    "mistral": "api.mistral.ai",
    "notion": "api.notion.com",
    "openai": "api.openai.com",
    "openrouter": "openrouter.ai",
    "perplexity": "api.perplexity.ai",
    "replicate": "api.replicate.com",
    "sendgrid": "api.sendgrid.com",
    "slack": "slack.com",
    "stripe": "api.stripe.com",
    "tavily": "api.tavily.com",
    "together": "api.together.xyz",
    "together_ai": "api.together.xyz",
}
_OF_TOKENS: Final = {"google": "www.googleapis.com", "gemini": "", "google_gemini": ""}
"""Where a service's tokens are for other hosts than its keys; none is known for the empty."""

_DELIVERIES: Final = {
    "anthropic": "header:x-api-key",
    "elevenlabs": "header:xi-api-key",
    "gemini": "header:x-goog-api-key",
    "gitlab": "header:PRIVATE-TOKEN",
    "google": "header:x-goog-api-key",
    "google_gemini": "header:x-goog-api-key",
}
"""Of API keys; tokens are sent as bearer."""

_ENDING: Final = re.compile(r"(_api)?(_(access_)?token|_(secret_|api_)?key|_api)$")


def sending(service: str, kind: CredentialKind) -> Sending:
    """What is known of a service; nowhere, if nothing is.

    Args:
        service: By its name, or as a variable is called (``OPENAI_API_KEY``).
        kind: What its credential is; known are API keys and OAuth tokens.
    """
    name = re.sub(r"[\s-]", "_", service.strip().lower())
    name = name if name in _HOSTS else _ENDING.sub("", name)
    hosts = _HOSTS.get(name, "")
    delivery = _DELIVERIES.get(name) if kind is CredentialKind.API_KEY else None
    if kind is CredentialKind.OAUTH_TOKEN:
        hosts = _OF_TOKENS.get(name, hosts)
    if not hosts or kind not in (CredentialKind.API_KEY, CredentialKind.OAUTH_TOKEN):
        return Sending()
    origins = tuple(Origin.parse(f"https://{host}") for host in hosts.split())
    return Sending(origins, None if delivery is None else Delivery.parse(delivery))
