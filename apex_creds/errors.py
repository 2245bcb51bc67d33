"""Every error that a public function of apex-creds raises for what it defines.

Guarantee: a message says what happened, and ``hint`` what to do next; neither ever
contains a secret. Each class carries the exit code that the CLI ends with.
"""

from __future__ import annotations

from functools import partial
from typing import ClassVar

__all__ = [
    "AccessDeniedError",
    "AnswerWithheldError",
    "ApexCredsError",
    "AuditTamperedError",
    "AuditUnavailableError",
    "ChallengeError",
    "CommitmentError",
    "ConflictError",
    "CorruptDocumentError",
    "CredentialChangedError",
    "CredentialExistsError",
    "CredentialNotFoundError",
    "DecryptionError",
    "EventLoopError",
    "ForeignDocumentError",
    "ForeignVaultError",
    "GrantVoidError",
    "HandleExhaustedError",
    "HandleExpiredError",
    "HandleForeignError",
    "HandleRevokedError",
    "IntegrityError",
    "InvalidInputError",
    "InvalidManifestError",
    "InvalidNameError",
    "InvalidPolicyError",
    "IsolationError",
    "IsolationUnavailableError",
    "KeyStateError",
    "LeaseEndedError",
    "LockedDownError",
    "LockedOutError",
    "MasterKeyError",
    "MasterKeyNotFoundError",
    "MasterKeyReadOnlyError",
    "MasterKeyUnavailableError",
    "NeedsReconnectError",
    "NotFoundError",
    "NotInstalledError",
    "OAuthError",
    "OAuthUnreachableError",
    "OutputWithheldError",
    "PluginRaisedError",
    "RateLimitedError",
    "RequestNotAllowedError",
    "RetiredKeyError",
    "RollbackDetectedError",
    "RotatorError",
    "RotatorRefusedError",
    "SecondFactorError",
    "SecretLeakError",
    "SecretMisuseError",
    "SecretWipedError",
    "StorageBusyError",
    "StorageError",
    "StorageFullError",
    "StorageLockedError",
    "StorageReadOnlyError",
    "StorageSchemaError",
    "StorageStaleError",
    "StorageTimeoutError",
    "StorageUncertainError",
    "StorageUnreachableError",
    "TokenError",
    "UnknownKeyError",
    "UnsafeKeyringError",
    "UnsafePathError",
    "UnsafePermissionsError",
    "UnsupportedFormatError",
    "ValueTooLargeError",
    "VaultExistsError",
    "VaultNotFoundError",
    "VaultSealedError",
    "WorkerEndedError",
    "WrongMasterKeyError",
]


class ApexCredsError(Exception):
    """Base of all errors of this package.

    Args:
        message: What happened, in one line, without any secret.
        hint: What to do next, in one line; may be empty.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}" if self.hint else self.message

    def __reduce__(self) -> tuple[object, ...]:
        return (partial(type(self), self.message, hint=self.hint), ())


# -- vault -----------------------------------------------------------------------


class VaultNotFoundError(ApexCredsError):
    """There is no vault at the given place."""

    exit_code = 3


class VaultExistsError(ApexCredsError):
    """A vault is there already; it is never initialised twice."""

    exit_code = 3


class VaultSealedError(ApexCredsError):
    """The vault is sealed (or the process was forked): no key is in memory."""

    exit_code = 3


# -- master key ------------------------------------------------------------------


class MasterKeyError(ApexCredsError):
    """The master key could not be had or used."""

    exit_code = 4


class MasterKeyNotFoundError(MasterKeyError):
    """The provider has no such master key (or no such version of it)."""


class MasterKeyUnavailableError(MasterKeyError):
    """The provider does not answer: no keyring, a locked one, no prompt."""


class MasterKeyReadOnlyError(MasterKeyError):
    """The provider can't be written, so the master key can't be made or rotated."""


class MasterKeyExistsError(MasterKeyError):
    """The provider has a key in that place already; it was neither used nor overwritten."""


class UnsafeKeyringError(MasterKeyError):
    """The selected keyring backend stores in plain text, or not at all."""


class WrongMasterKeyError(MasterKeyError):
    """This master key does not open this vault."""


# -- integrity -------------------------------------------------------------------


class IntegrityError(ApexCredsError):
    """Stored bytes are not what this vault wrote. Nothing was changed on disk."""

    exit_code = 5


class CorruptDocumentError(IntegrityError):
    """A document is truncated, malformed, or its MAC does not match."""


class ForeignDocumentError(IntegrityError):
    """A document belongs to another vault or another section."""


class ForeignVaultError(IntegrityError):
    """A home has another vault than before, though its master key is known here."""


class UnsupportedFormatError(IntegrityError):
    """A document or envelope has a format version this program does not know."""


class UnknownKeyError(IntegrityError):
    """A key id or key version is referred to that the key store does not hold."""


class RetiredKeyError(UnknownKeyError):
    """A document is sealed under a key version that nothing is under any more."""


class DecryptionError(IntegrityError):
    """A ciphertext does not open: wrong key, wrong place, or altered bytes."""


class CommitmentError(DecryptionError):
    """A ciphertext was made under another key; its content was not read."""


class RollbackDetectedError(IntegrityError):
    """A document is older than one that was seen before."""


class KeyStateError(IntegrityError):
    """A transition between key states that the design forbids."""


# -- storage ---------------------------------------------------------------------


class StorageError(ApexCredsError):
    """The storage backend failed."""

    exit_code = 6


class UnsafePathError(StorageError):
    """A symbolic link, a foreign owner, or something that is not a regular file."""


class UnsafePermissionsError(StorageError):
    """A file or directory can be read or written by others."""


class StorageFullError(StorageError):
    """No space left; the previous version of the document is intact."""


class StorageReadOnlyError(StorageError):
    """The place can't be written."""


class StorageLockedError(StorageError):
    """Another process holds the write lock for too long."""


class StorageUnreachableError(StorageError):
    """The database server can't be reached, also not by trying again; nothing was written."""


class StorageUncertainError(StorageError):
    """A write may have happened or not: read again.

    The server went away meanwhile, or the disk failed after the new version had its name.
    """


class StorageStaleError(StorageError):
    """The server can't be reached, and what is in memory is too old to be relied on."""


class StorageBusyError(StorageError):
    """No connection became free in time: too many at once, here or at the server."""


class StorageTimeoutError(StorageError):
    """A statement took longer than it may; nothing was changed."""


class StorageSchemaError(StorageError):
    """The tables in the database are not of this program's version, or are missing."""


class ConflictError(StorageError):
    """The document moved under a compare-and-set: read again and retry."""


# -- input -----------------------------------------------------------------------


class InvalidInputError(ApexCredsError):
    """An argument is not acceptable."""

    exit_code = 7


class InvalidNameError(InvalidInputError):
    """A name is empty, too long, or has characters that are not allowed."""


class InvalidManifestError(InvalidInputError):
    """Plugin metadata does not follow the manifest schema."""


class InvalidPolicyError(InvalidInputError):
    """The policy file does not follow its schema; the message names the line.

    Attributes:
        line: Of the file, from 1; 0 where none can be named.
    """

    line: int = 0


class ValueTooLargeError(InvalidInputError):
    """A secret is larger than 64 KiB."""


class NotFoundError(ApexCredsError):
    """Nothing has that name or id: a request, a client, a factor, a lease, a credential."""

    exit_code = 8


class CredentialNotFoundError(NotFoundError):
    """No such credential (said to operators only, never to plugins)."""


class CredentialExistsError(ApexCredsError):
    """The name is taken by a credential of another kind."""

    exit_code = 8


class CredentialChangedError(ApexCredsError):
    """Another writer has replaced the version that a change was based on."""

    exit_code = 8


class EventLoopError(ApexCredsError):
    """It needs an asyncio event loop, or the one it was begun in, which is gone."""


class NotInstalledError(ApexCredsError):
    """An optional part of the package is needed and not installed."""

    exit_code = 11


# -- isolation -------------------------------------------------------------------


class IsolationError(ApexCredsError):
    """A plugin can't be run behind the wall, or what it does there breaks the rules."""


class IsolationUnavailableError(IsolationError):
    """This machine has no wall, or none that is complete; nothing was run without it."""

    exit_code = 11


class WorkerEndedError(IsolationError):
    """The process that a plugin ran in has ended before its call had."""


class PluginRaisedError(IsolationError):
    """What a plugin raised behind the wall, as far as it is known here: type, text, notes.

    An exception of Python's own comes back as itself. One of another class is both this and
    the nearest of Python's own that it was; its class has its name, and nothing else of it.
    """


# -- access ----------------------------------------------------------------------


class AccessDeniedError(ApexCredsError):
    """The plugin may not use this credential; the text never says why."""

    exit_code = 9


class GrantVoidError(AccessDeniedError):
    """What was to be granted was revoked, or the vault locked down, while it was decided."""


class RequestNotAllowedError(AccessDeniedError):
    """An outgoing request is outside the allowed origins, methods or paths."""


class RateLimitedError(AccessDeniedError):
    """Too many uses, or too many refusals, in a stretch of time.

    Attributes:
        retry_after: Seconds after which it makes sense to try again.
    """

    retry_after: float = 0.0


class LockedDownError(AccessDeniedError):
    """The vault is locked down: nothing is released until it is unlocked."""


class LoginError(ApexCredsError):
    """A server refused a login, or did not keep to its protocol; no more was sent to it."""

    exit_code = 6


class LeaseEndedError(AccessDeniedError):
    """The handle's lease is over."""


class HandleExpiredError(LeaseEndedError):
    """The lease passed its deadline."""


class HandleRevokedError(LeaseEndedError):
    """The lease was revoked, or its invocation ended."""


class HandleExhaustedError(LeaseEndedError):
    """The lease's number of uses is spent."""


class HandleForeignError(AccessDeniedError):
    """The handle belongs to another invocation."""


class SecondFactorError(AccessDeniedError):
    """A second factor is needed, and there is none, no answer, or not the right one."""


class LockedOutError(SecondFactorError):
    """Too many wrong answers; ``retry_after`` is in how many seconds to try again."""

    def __init__(self, message: str, *, hint: str = "", retry_after: float = 0.0) -> None:
        super().__init__(message, hint=hint)
        self.retry_after = retry_after

    def __reduce__(self) -> tuple[object, ...]:
        return (*super().__reduce__(), {"retry_after": self.retry_after})


class ChallengeError(AccessDeniedError):
    """A challenge was not answered, not in time, or not by a client that may."""


class TokenError(AccessDeniedError):
    """There is no valid token, and none could be had now."""


class NeedsReconnectError(TokenError):
    """The provider does not renew the token any more: a person has to connect again."""


class OAuthError(ApexCredsError):
    """An authorization server refused, or its answer is not one that can be used.

    Attributes:
        code: The error of RFC 6749 (section 5.2), RFC 8628 or RFC 7009; else empty.
    """

    exit_code = 12

    def __init__(self, message: str, *, hint: str = "", code: str = "") -> None:
        super().__init__(message, hint=hint)
        self.code = code

    def __reduce__(self) -> tuple[object, ...]:
        return (*super().__reduce__(), {"code": self.code})


class OAuthUnreachableError(OAuthError):
    """No answer came.

    Attributes:
        sent: Whether the request may have reached the server.
    """

    def __init__(self, message: str, *, hint: str = "", sent: bool = True) -> None:
        super().__init__(message, hint=hint)
        self.sent = sent

    def __reduce__(self) -> tuple[object, ...]:
        return (*super().__reduce__(), {"sent": self.sent})


class RotatorError(ApexCredsError):
    """A secret could not be replaced at its provider now; it is tried again."""

    exit_code = 13


class RotatorRefusedError(RotatorError):
    """The provider refused, and would again: an operator has to act."""


class SecretLeakError(ApexCredsError):
    """A plugin let a secret out and policy makes that an error."""

    exit_code = 9


class OutputWithheldError(ApexCredsError):
    """A plugin's output has an object in it that can't be searched for secrets."""

    exit_code = 9


class AnswerWithheldError(ApexCredsError):
    """A service's answer can't be searched for the secret that it was sent."""

    exit_code = 9


# -- secrets in memory -----------------------------------------------------------


class SecretMisuseError(ApexCredsError, TypeError):
    """A secret or handle was to be pickled, copied, serialised or compared."""


class SecretWipedError(ApexCredsError):
    """The secret was used after it was wiped."""

    exit_code = 9


# -- audit -----------------------------------------------------------------------


class AuditUnavailableError(ApexCredsError):
    """The audit log can't be written, so nothing is released."""

    exit_code = 10


class AuditTamperedError(AuditUnavailableError):
    """The audit log does not verify; where it is to be written, it can't be any more."""
