"""Secrets on their way in: from a prompt without echo, or from standard input.

Guarantee: a secret is read only where nothing shows it; standard input is read up to the
size limit and no further.
"""

from __future__ import annotations

import getpass
import sys
from typing import Final

import typer

from apex_creds.cli import output
from apex_creds.errors import InvalidInputError, ValueTooLargeError
from apex_creds.model import (
    MAX_SECRET_BYTES,
    ApiKey,
    BasicAuth,
    CredentialKind,
    GenericSecret,
    OAuthToken,
    Secret,
)

_HIDDEN: Final = " (not shown): "
_AROUND: Final = " \t\r\n\v\f\ufeff\u00a0\u200b"
"""White space, and the byte order mark that PowerShell writes to a pipe."""


def read_secret(kind: CredentialKind) -> Secret:
    """Asks for the parts of a secret, or reads them from standard input.

    Standard input is the value itself (one line feed at its end is taken off, except for
    ``generic``). For ``basic`` it is two lines: user, password. For ``oauth_token`` up to
    three: access token, refresh token, scope.

    Raises:
        InvalidInputError: Empty, not text, or without the parts of its kind.
        ValueTooLargeError: Larger than 64 KiB.
    """
    if sys.stdin.isatty():
        return _ask(kind)
    return _from_bytes(kind, read_input(MAX_SECRET_BYTES))


def read_input(limit: int) -> bytes:
    """All of standard input.

    Raises:
        ValueTooLargeError: It is longer than ``limit``.
    """
    data = sys.stdin.buffer.read(limit + 1)
    if len(data) > limit:
        raise ValueTooLargeError(f"Standard input is larger than {limit // 1024} KiB.")
    return data


def read_reason(given: str) -> str:
    """Why something is done: as given, or as typed.

    Raises:
        InvalidInputError: Neither.
    """
    if not given and sys.stdin.isatty():
        given = typer.prompt("Reason", err=True)
    if not given.strip():
        raise InvalidInputError("There is no reason.", hint="Say why, with --reason.")
    return given


def _ask(kind: CredentialKind) -> Secret:
    if kind is CredentialKind.BASIC:
        user = typer.prompt("User", err=True)
        return BasicAuth(user, getpass.getpass("Password" + _HIDDEN))
    if kind is CredentialKind.OAUTH_TOKEN:
        access = getpass.getpass("Access token" + _HIDDEN)
        refresh = getpass.getpass("Refresh token (not shown; Enter for none): ")
        scope = typer.prompt("Scope (Enter for none)", default="", show_default=False, err=True)
        return OAuthToken(_trimmed(access), refresh_token=_trimmed(refresh), scope=scope)
    value = getpass.getpass("Value" + _HIDDEN)
    if kind is CredentialKind.GENERIC:
        return GenericSecret(ApiKey(value).parts["value"])
    return ApiKey(_trimmed(value))


def _from_bytes(kind: CredentialKind, data: bytes) -> Secret:
    if kind is CredentialKind.GENERIC:
        return GenericSecret(data)
    text = _text(data)
    if kind is CredentialKind.API_KEY:
        return ApiKey(_trimmed(text))
    lines = text.split("\n")
    if kind is CredentialKind.BASIC:
        if len(lines) != 2:
            raise InvalidInputError("Standard input must be two lines: user, password.")
        return BasicAuth(*lines)
    if len(lines) > 3:
        raise InvalidInputError(
            "Standard input must be at most three lines: access token, refresh token, scope."
        )
    access, refresh, scope = (*lines, "", "")[:3]
    return OAuthToken(_trimmed(access), refresh_token=_trimmed(refresh), scope=scope)


def _trimmed(text: str) -> str:
    """A key without what a shell or a page put around it, and says so."""
    trimmed = text.strip(_AROUND)
    if trimmed != text:
        output.note("White space around the value was left out.")
    return trimmed


def _text(data: bytes) -> str:
    try:
        text = data.decode()
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise InvalidInputError(
            "Standard input is not text.", hint="For other bytes use --kind generic."
        )
    return text.replace("\r\n", "\n").removesuffix("\n")
