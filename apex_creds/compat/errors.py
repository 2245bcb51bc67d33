"""The old managers' exceptions.

Guarantee: nothing else leaves a manager but ``ValueError`` and ``TypeError`` for arguments
that are none; texts are those of this project's errors, which hold no secret.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from apex_creds import errors


class ApiKeyManagerError(errors.ApexCredsError):
    """Base of the old managers' errors."""


class MasterKeyError(ApiKeyManagerError):
    """The master key could not be had or used."""

    exit_code = errors.MasterKeyError.exit_code


class EncryptionError(ApiKeyManagerError):
    """What is stored does not open, or was changed."""

    exit_code = errors.IntegrityError.exit_code


class StorageError(ApiKeyManagerError):
    """What is stored could not be read or written."""

    exit_code = errors.StorageError.exit_code


_KINDS: tuple[tuple[type[errors.ApexCredsError], type[ApiKeyManagerError]], ...] = (
    (errors.MasterKeyError, MasterKeyError),
    (errors.IntegrityError, EncryptionError),
    (errors.StorageError, StorageError),
    (errors.VaultNotFoundError, StorageError),
    (errors.VaultExistsError, StorageError),
    (errors.AuditUnavailableError, StorageError),
)


@contextmanager
def translated() -> Iterator[None]:
    """Raises the old error for a new one."""
    try:
        yield
    except ApiKeyManagerError:
        raise
    except errors.ApexCredsError as error:
        found = next((old for new, old in _KINDS if isinstance(error, new)), ApiKeyManagerError)
        raise found(error.message, hint=error.hint) from None
