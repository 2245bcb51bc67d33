"""JSON Web Tokens (RFC 7519) signed with a private key: RS256, ES256 and EdDSA.

Guarantee: the algorithm is the caller's and fits the key, never ``none``; RSA keys have 2,048
bits or more. The key is parsed by OpenSSL from where it lies; OpenSSL's own copy is in
memory that is not locked, until the function returns.
"""

from __future__ import annotations

from base64 import urlsafe_b64encode
from collections.abc import Mapping
from typing import Final

import msgspec
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from apex_creds.errors import InvalidInputError

ALGORITHMS: Final = ("RS256", "ES256", "EdDSA")
_SHORTEST: Final = 2048


def mint(
    key: memoryview, claims: Mapping[str, object], *, algorithm: str, key_id: str = ""
) -> str:
    """A signed token.

    Args:
        key: A private key in PEM (PKCS #8, or what it was before), without a passphrase.
        claims: The payload: what can be JSON.
        algorithm: One of ``ALGORITHMS``.
        key_id: The header ``kid``; empty: there is none.

    Raises:
        InvalidInputError: The key is none, or is not for this algorithm.
    """
    if algorithm not in ALGORITHMS:
        raise InvalidInputError(
            "Tokens are not signed with this algorithm.", hint=f"Use {', '.join(ALGORITHMS)}."
        )
    head = {"alg": algorithm, "typ": "JWT"}
    if key_id:
        head["kid"] = key_id
    signed = b".".join([_encoded(msgspec.json.encode(part)) for part in (head, claims)])
    return b".".join((signed, _encoded(_signature(key, algorithm, signed)))).decode()


def _signature(key: memoryview, algorithm: str, message: bytes) -> bytes:
    try:
        loaded = load_pem_private_key(key, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):  # its words may quote the key
        loaded = None
    if algorithm == "RS256" and isinstance(loaded, rsa.RSAPrivateKey):
        if loaded.key_size >= _SHORTEST:
            return loaded.sign(message, padding.PKCS1v15(), SHA256())
    elif algorithm == "ES256" and isinstance(loaded, ec.EllipticCurvePrivateKey):
        if isinstance(loaded.curve, ec.SECP256R1):
            r, s = decode_dss_signature(loaded.sign(message, ec.ECDSA(SHA256())))
            return r.to_bytes(32, "big") + s.to_bytes(32, "big")
    elif algorithm == "EdDSA" and isinstance(loaded, ed25519.Ed25519PrivateKey):
        return loaded.sign(message)
    raise InvalidInputError(
        f"The credential is no private key that signs with {algorithm}.",
        hint="Store it as generic bytes: PEM without a passphrase; RSA of 2,048 bits or more, "
        "P-256, or Ed25519.",
    )


def _encoded(data: bytes) -> bytes:
    return urlsafe_b64encode(data).rstrip(b"=")
