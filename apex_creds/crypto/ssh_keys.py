"""Signs for SSH (RFC 4253, 8332, 8709) with a private key that stays here.

Guarantee: what comes out is the public key, or a signature; of a login or of a signed file
(SSHSIG) only, never of other bytes, which could be a token of something else.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple, TypeAlias

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from apex_creds.errors import InvalidInputError

_Key: TypeAlias = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey
_RSA: Final = {2: (b"rsa-sha2-256", hashes.SHA256()), 4: (b"rsa-sha2-512", hashes.SHA512())}
_CURVES: Final = {
    "secp256r1": (b"ecdsa-sha2-nistp256", hashes.SHA256()),
    "secp384r1": (b"ecdsa-sha2-nistp384", hashes.SHA384()),
    "secp521r1": (b"ecdsa-sha2-nistp521", hashes.SHA512()),
}
_USERAUTH: Final = 50


class Signed(NamedTuple):
    """A public key, and a signature by its private key; both as SSH writes them."""

    public: bytes
    signature: bytes


def public_blob(pem: memoryview) -> bytes:
    """The public key of a private key in OpenSSH's or PEM form, without a passphrase.

    Raises:
        InvalidInputError: It is none.
    """
    return _blob(_loaded(pem))


def sign(pem: memoryview, data: bytes, *, flags: int) -> Signed:
    """Signs a login or a file.

    Args:
        pem: The private key.
        data: What an agent is asked to sign.
        flags: 2 or 4 for SHA-256 or SHA-512 with an RSA key.

    Raises:
        InvalidInputError: The key is none, or the data is neither.
    """
    if not (data.startswith(b"SSHSIG") or _is_login(data)):  # PROTOCOL.sshsig
        raise InvalidInputError("An SSH key signs logins and files (ssh-keygen -Y) only.")
    key = _loaded(pem)
    if isinstance(key, ed25519.Ed25519PrivateKey):
        kind, made = b"ssh-ed25519", key.sign(data)
    elif isinstance(key, rsa.RSAPrivateKey):
        if flags not in _RSA:
            raise InvalidInputError("An RSA key does not sign with SHA-1.")
        kind, digest = _RSA[flags]
        made = key.sign(data, padding.PKCS1v15(), digest)
    else:
        kind, hashed = _CURVES[key.curve.name]
        made = b"".join(
            string(number.to_bytes(number.bit_length() // 8 + 1, "big"))
            for number in decode_dss_signature(key.sign(data, ec.ECDSA(hashed)))
        )
    return Signed(_blob(key), string(kind) + string(made))


def string(data: bytes) -> bytes:
    """With its length before it."""
    return struct.pack("!I", len(data)) + data


def read_string(data: bytes, at: int = 0) -> tuple[bytes, int]:
    """A string, and where it ends.

    Raises:
        InvalidInputError: It is longer than what there is.
    """
    end = at + 4 + int.from_bytes(data[at : at + 4], "big")
    if len(data) < at + 4 or len(data) < end:
        raise InvalidInputError("The message is cut short.")
    return data[at + 4 : end], end


def _loaded(pem: memoryview) -> _Key:
    for load in (serialization.load_ssh_private_key, serialization.load_pem_private_key):
        try:
            key = load(pem, None)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            continue
        known = isinstance(key, ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey)
        if known or (isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name in _CURVES):
            return key  # type: ignore[return-value]
    raise InvalidInputError(
        "The credential is no private key that SSH can sign with.",
        hint="Store one of Ed25519, ECDSA or RSA without a passphrase, as kind generic.",
    )


def _blob(key: _Key) -> bytes:
    from base64 import b64decode

    line = key.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    return b64decode(line.split(b" ")[1])


def _is_login(data: bytes) -> bool:
    """Whether it is a request of publickey authentication (RFC 4252, section 7)."""
    try:
        session, at = read_string(data)
        _, user = read_string(data, at + 1)
        service, end = read_string(data, user)
        method, _ = read_string(data, end)
    except InvalidInputError:
        return False
    asked = data[at : at + 1] == bytes([_USERAUTH])
    return (
        bool(session) and asked and service == b"ssh-connection" and method[:9] == b"publickey"
    )
