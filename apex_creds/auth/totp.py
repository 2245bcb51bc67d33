"""Time-based one-time codes (RFC 6238), by pyotp, as a ``SecondFactor``; and recovery codes.

Guarantee: a code is compared in constant time with every code of the drift window, and
what is returned is its time step, so that no earlier or equal one passes again. The seed
lies in locked memory; pyotp works on short-lived Python copies of it, and so does what
shows it to its owner once.

A recovery code has 120 random bits and is stored as an HMAC-SHA256 under a random key of its
set. That is enough: no stretching (Argon2id) makes up for entropy that is there already. NIST
SP 800-63B, 5.1.2.2, asks for stretching below 112 bits, and for limits on guessing below 64; a
stretched check of ten codes would also cost an attacker nothing and this process ten seconds
and 256 MiB for every wrong answer.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from typing import TYPE_CHECKING, ClassVar, Final, Self

import msgspec

from apex_creds.auth.access_document import Factor
from apex_creds.crypto import kdf
from apex_creds.crypto.memory import SecretBytes
from apex_creds.errors import CorruptDocumentError, InvalidInputError, NotInstalledError
from apex_creds.model import check_name

if TYPE_CHECKING:
    import pyotp


SEED_BYTES: Final = 20
"""As RFC 4226, section 4, recommends."""
ISSUER: Final = "apex-creds"
_DIGESTS: Final = {"SHA1": hashlib.sha1, "SHA256": hashlib.sha256, "SHA512": hashlib.sha512}


class TotpSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The parameters of a code: what authenticator apps assume, unless there is a reason.

    Attributes:
        digits: 6 to 8.
        period: Seconds of a time step, 15 to 120.
        algorithm: ``SHA1``, ``SHA256`` or ``SHA512`` (of the HMAC).
        drift: Steps before and after the present one that are accepted, 0 to 2.
    """

    digits: int = 6
    period: int = 30
    algorithm: str = "SHA1"
    drift: int = 1

    def __post_init__(self) -> None:
        """Checks the bounds.

        Raises:
            InvalidInputError: A parameter is outside them.
        """
        inside = (
            6 <= self.digits <= 8
            and 15 <= self.period <= 120
            and self.algorithm in _DIGESTS
            and 0 <= self.drift <= 2
        )
        if not inside:
            raise InvalidInputError(
                "The parameters of the one-time codes are out of bounds.",
                hint="6 to 8 digits, 15 to 120 s, SHA1, SHA256 or SHA512, drift 0 to 2.",
            )

    def stored(self) -> dict[str, str]:
        """As ``Factor.settings`` has them."""
        return {name: str(value) for name, value in msgspec.structs.asdict(self).items()}

    @classmethod
    def of(cls, factor: Factor) -> Self:
        """Reads what ``stored`` made.

        Raises:
            CorruptDocumentError: It did not make this.
        """
        try:
            return msgspec.convert(factor.settings, cls, strict=False)
        except (msgspec.ValidationError, InvalidInputError):
            pass
        raise CorruptDocumentError(
            f"The settings of second factor {factor.id} are malformed.",
            hint="Remove it and enrol it again.",
        )


class Totp:
    """The ``SecondFactor`` of one-time codes."""

    kind: ClassVar[str] = "totp"

    async def check(
        self, factor: Factor, secret: SecretBytes, answer: str, *, now: float
    ) -> int | None:
        """See ``SecondFactor``.

        Raises:
            NotInstalledError: pyotp is not there.
        """
        return matching_step(secret, answer, settings=TotpSettings.of(factor), now=now)

    def newest(self, factor: Factor, *, now: float) -> int:
        """See ``TimeBased``."""
        settings = TotpSettings.of(factor)
        return int(now // settings.period) + settings.drift


def matching_step(
    seed: SecretBytes, answer: str, *, settings: TotpSettings, now: float
) -> int | None:
    """The time step whose code ``answer`` is, within the drift window; None: none.

    White space in the answer is ignored, as apps show codes in groups.

    Raises:
        NotInstalledError: pyotp is not there.
    """
    code = "".join(answer.split())
    if len(code) != settings.digits or not (code.isascii() and code.isdigit()):
        return None
    made = _generator(seed, settings)
    at = int(now // settings.period)
    found: int | None = None
    for step in range(max(0, at - settings.drift), at + settings.drift + 1):
        # All are compared: the time does not reveal which one it was.
        if hmac.compare_digest(made.generate_otp(step), code):
            found = step
    return found


def code_at(seed: SecretBytes, *, settings: TotpSettings, now: float) -> str:
    """The code of a moment: what an authenticator shows. For tests and programs."""
    return _generator(seed, settings).generate_otp(int(now // settings.period))


def provisioning_uri(seed: SecretBytes, *, settings: TotpSettings, account: str) -> str:
    """The ``otpauth://`` URI for an authenticator app. It contains the seed.

    Raises:
        InvalidNameError: ``account`` can't name something.
        NotInstalledError: pyotp is not there.
    """
    check_name(account, what="label")
    return _generator(seed, settings).provisioning_uri(name=account, issuer_name=ISSUER)


def base32_of(seed: SecretBytes) -> str:
    """The seed as people type it into an app."""
    with seed.view() as view:
        return base64.b32encode(view).decode().rstrip("=")


def _generator(seed: SecretBytes, settings: TotpSettings) -> pyotp.TOTP:
    try:
        from pyotp import TOTP
    except ImportError:
        raise NotInstalledError(
            "One-time codes need the package pyotp, which is not installed.",
            hint="Run: pip install 'apex-creds[factors]'",
        ) from None
    return TOTP(
        base32_of(seed),
        digits=settings.digits,
        digest=_DIGESTS[settings.algorithm],
        interval=settings.period,
    )


RECOVERY_CODES: Final = 10
RECOVERY_KEY_BYTES: Final = 32
LETTERS: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
"""Crockford's base 32: no I, L, O and U. 32 letters, so that a byte's low bits choose."""
_LENGTH: Final = 24
RECOVERY_RANDOM_BYTES: Final = RECOVERY_CODES * _LENGTH
_READ_AS: Final = str.maketrans("OIL", "011")


def make_recovery_codes(random: bytes) -> list[str]:
    """Ten codes, like ``7KX0-93QF-M2RT-VB5C-Y8ZN-4DHE``, from 240 random bytes."""
    assert len(random) == RECOVERY_RANDOM_BYTES
    letters = "".join(LETTERS[byte & 31] for byte in random)
    return [
        "-".join(letters[i : i + 4] for i in range(at, at + _LENGTH, 4))
        for at in range(0, RECOVERY_RANDOM_BYTES, _LENGTH)
    ]


def normalised(answer: str) -> str:
    """The 24 letters of a code as typed; empty where it can't be one."""
    kept = answer.replace("-", "").upper()
    code = "".join(kept.split()).translate(_READ_AS)
    return code if len(code) == _LENGTH and set(code) <= set(LETTERS) else ""


def recovery_digest(key: SecretBytes, code: str) -> bytes:
    """What is stored of a code (normalised): 32 bytes."""
    return kdf.hmac_sha256(key, b"apex-creds/v1/recovery-code\0" + code.encode())
