"""Short-lived, scoped credential handles for the plugins of asyncio agent runtimes."""

from __future__ import annotations

from apex_creds.crypto.memory import SecretBytes, harden_process
from apex_creds.errors import AccessDeniedError, ApexCredsError
from apex_creds.leases import CredentialHandle, CredentialMap, current_credentials
from apex_creds.middleware import CredentialMiddleware, OnLeak
from apex_creds.model import (
    ApiKey,
    BasicAuth,
    CredentialInfo,
    CredentialKind,
    GenericSecret,
    OAuthToken,
)
from apex_creds.policy.grants import Grant
from apex_creds.policy.manifest import Manifest, parse_manifest
from apex_creds.vault import Deletion, Vault

__all__ = [
    "AccessDeniedError",
    "ApexCredsError",
    "ApiKey",
    "BasicAuth",
    "CredentialHandle",
    "CredentialInfo",
    "CredentialKind",
    "CredentialMap",
    "CredentialMiddleware",
    "Deletion",
    "GenericSecret",
    "Grant",
    "Manifest",
    "OAuthToken",
    "OnLeak",
    "SecretBytes",
    "Vault",
    "current_credentials",
    "harden_process",
    "parse_manifest",
]
