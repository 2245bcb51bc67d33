"""SCRAM-SHA-256 (RFC 5802, RFC 7677), the client's side, from a password in locked memory.

Guarantee: the password itself never leaves; what does proves that it is known, to this server
and in this exchange only. A server that does not prove that it knows it, too, is refused, and
so is one that asks for so little work that the proof could be tried out, or for so much that
it would stand still.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import stringprep
import unicodedata
from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from typing import Final

from apex_creds.crypto.memory import Buffer
from apex_creds.errors import LoginError

MECHANISM: Final = b"SCRAM-SHA-256"
_WORK: Final = range(4096, 1_000_001)
_HEADER: Final = b"n,,"
_CHALLENGE: Final = re.compile(rb"r=([\x21-\x2b\x2d-\x7e]+),s=([A-Za-z0-9+/=]+),i=([0-9]{1,9})")
_BANNED: Final = (
    stringprep.in_table_c12, stringprep.in_table_c21_c22, stringprep.in_table_c3,
    stringprep.in_table_c4, stringprep.in_table_c5, stringprep.in_table_c6,
    stringprep.in_table_c7, stringprep.in_table_c8, stringprep.in_table_c9,
)  # fmt: skip


class ScramClient:
    """One exchange: ``first``, ``proof``, ``verify``, in this order.

    Args:
        nonce: Fresh random bytes.
    """

    def __init__(self, nonce: bytes) -> None:
        self._nonce = b64encode(nonce)
        self._bare = b"n=,r=" + self._nonce
        self._signature = b""

    @property
    def first(self) -> bytes:
        """The client's first message; the user is named elsewhere."""
        return _HEADER + self._bare

    def proof(self, challenge: bytes, password: Buffer) -> bytes:
        """The client's final message, in answer to the server's first.

        Raises:
            LoginError: The server's message is not as it should be.
        """
        parts = _CHALLENGE.fullmatch(challenge)
        if parts is None or not parts[1].startswith(self._nonce) or parts[1] == self._nonce:
            raise _broken()
        if int(parts[3]) not in _WORK:
            raise LoginError(
                "The server stores the password with too little work, or asks for too much.",
                hint="PostgreSQL: scram_iterations is 4096 or more; set the password again.",
            )
        final = b"c=" + b64encode(_HEADER) + b",r=" + parts[1]
        signed = b",".join((self._bare, challenge, final))
        salted = hashlib.pbkdf2_hmac(
            "sha256", prepared(password), _decoded(parts[2]), int(parts[3])
        )
        key = hmac.digest(salted, b"Client Key", "sha256")
        mask = hmac.digest(hashlib.sha256(key).digest(), signed, "sha256")
        server = hmac.digest(salted, b"Server Key", "sha256")
        self._signature = hmac.digest(server, signed, "sha256")
        proof = bytes(a ^ b for a, b in zip(key, mask, strict=True))
        return final + b",p=" + b64encode(proof)

    def verify(self, final: bytes) -> None:
        """Checks the server's final message.

        Raises:
            LoginError: It does not know the password.
        """
        mark, _, value = final.partition(b"=")
        known = bool(self._signature) and mark == b"v"
        if not known or not hmac.compare_digest(_decoded(value), self._signature):
            raise LoginError(
                "The server did not prove that it knows the password.",
                hint="It may be another server than it claims to be.",
            )


def prepared(password: Buffer) -> Buffer:
    """The password as SASLprep (RFC 4013) has it; as it is, where it can't be prepared.

    ASCII, as almost every password is, stays where it lies.
    """
    if max(password, default=0) < 0x80:
        return password
    try:
        text = str(password, "utf-8")
    except UnicodeDecodeError:
        return password
    mapped = "".join(
        " " if stringprep.in_table_c12(one) else one
        for one in text
        if not stringprep.in_table_b1(one)
    )
    result = unicodedata.ucd_3_2_0.normalize("NFKC", mapped)
    odd = any(check(one) for one in result for check in _BANNED)
    right = [stringprep.in_table_d1(one) for one in result]
    if any(right):  # RFC 3454, section 6
        odd |= not (right[0] and right[-1]) or any(map(stringprep.in_table_d2, result))
    odd |= any(map(stringprep.in_table_a1, result))
    return password if odd or not result else result.encode()


def _decoded(text: bytes) -> bytes:
    try:
        return b64decode(text, validate=True)
    except Base64Error:
        raise _broken() from None


def _broken() -> LoginError:
    return LoginError(
        "The server's answer is not of SCRAM-SHA-256.", hint="Check the server's address."
    )
