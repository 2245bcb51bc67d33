"""Which cryptographic libraries are here."""

from __future__ import annotations

import cryptography
import nacl
from cryptography.hazmat.backends.openssl import backend


def versions() -> dict[str, str]:
    """By name; libsodium is part of PyNaCl, which does not say its version."""
    return {
        "PyNaCl": nacl.__version__,
        "cryptography": cryptography.__version__,
        "its OpenSSL": backend.openssl_version_text().removeprefix("OpenSSL ").split()[0],
    }
