"""The libsodium calls that work on ``SecretBytes``, each with its lengths checked.

Guarantees: keys and secret plaintexts are read and written where they lie, in locked
memory; derived keys are wiped before a function returns, or with the key that keeps them;
what was computed with a key that another thread closed meanwhile is thrown away. The
protocols on top of these are in ``aead``, ``kdf`` and ``public_key``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from apex_creds.crypto import memory
from apex_creds.crypto.memory import Buffer, SecretBytes
from apex_creds.errors import InvalidInputError

_lib: Final = memory.lib
_memzero: Final = memory.lib.sodium_memzero
_memcmp: Final = memory.lib.sodium_memcmp
_blake2b: Final = memory.lib.crypto_generichash_blake2b_salt_personal
_encrypt: Final = memory.lib.crypto_aead_xchacha20poly1305_ietf_encrypt
_decrypt: Final = memory.lib.crypto_aead_xchacha20poly1305_ietf_decrypt
_from_buffer: Final = memory.ffi.from_buffer
_buffer: Final = memory.ffi.buffer
_NULL: Final[Any] = memory.ffi.NULL
_ZERO_SALT: Final = bytes(16)
_ARENA: Final = memory.arena()
_TAG: Final = 16
_COPY_BELOW: Final = 4096  # where slicing bytes is cheaper than a buffer and its pointer


def seal_committed(
    key: SecretBytes,
    nonce: bytes,
    plaintext: SecretBytes | Buffer,
    *,
    aad: bytes,
    personal: bytes,
) -> bytes:
    """Returns nonce ‖ commitment(32) ‖ ciphertext ‖ tag(16) under a subkey of ``key``.

    Raises:
        InvalidInputError: The key is not 32 bytes, or the nonce not 24.
        SecretWipedError: Key or plaintext were closed, perhaps meanwhile.
    """
    _require(nonce, 24)
    length = len(plaintext) if isinstance(plaintext, SecretBytes) else _size(plaintext)
    out = bytearray(56 + length + _TAG)
    secret = plaintext if isinstance(plaintext, SecretBytes) else key
    source = plaintext._pointer() if isinstance(plaintext, SecretBytes) else _cut(plaintext)
    _seal(out, key, nonce, source, length, aad=aad, personal=personal)
    secret._still_open()
    return bytes(out)


def seal_committed_in_place(
    message: memoryview, key: SecretBytes, nonce: bytes, *, aad: bytes, personal: bytes
) -> None:
    """As ``seal_committed``; the plaintext lies where its ciphertext will, from byte 56 on.

    Raises:
        InvalidInputError: The key is not 32 bytes, the nonce not 24, or it is too short.
        SecretWipedError: The key was closed, perhaps meanwhile.
    """
    _require(nonce, 24)
    length = _size(message) - 56 - _TAG
    if length < 0:
        raise InvalidInputError("The buffer is shorter than an empty message.")
    source = _from_buffer("unsigned char[]", message, require_writable=True) + 56
    _seal(message, key, nonce, source, length, aad=aad, personal=personal)
    key._still_open()


def _seal(
    out: bytearray | memoryview,
    key: SecretBytes,
    nonce: bytes,
    source: Any,
    length: int,
    *,
    aad: bytes,
    personal: bytes,
) -> None:
    start = _from_buffer("unsigned char[]", out, require_writable=True)
    pair = _subkey(key, nonce, personal)
    try:
        out[:24] = nonce
        out[24:56] = memory.ffi.buffer(pair.tail, 32)
        _encrypt(start + 56, _NULL, source, length, aad, len(aad), _NULL, nonce, pair.pointer)
    finally:
        _give_back(pair)


class Sealed(NamedTuple):
    """What ``seal_committed`` made, taken apart.

    Attributes:
        length: Of the plaintext; below zero where it is too short to have one.
    """

    nonce: bytes
    commitment: bytes
    body: Any
    length: int


def take_apart(sealed: Buffer) -> Sealed:
    """The parts of a sealed message, which is not to be changed any more."""
    nonce, commitment = bytes(sealed[:24]), bytes(sealed[24:56])
    return Sealed(nonce, commitment, _cut(sealed, 56), _size(sealed) - 56 - _TAG)


def open_committed(
    key: SecretBytes, sealed: Sealed, *, aad: bytes, personal: bytes, again: bool = False
) -> SecretBytes | bool:
    """Opens what ``seal_committed`` made into a new slot.

    Args:
        key: 32 bytes.
        sealed: The message.
        aad: What it is bound to.
        personal: 16 bytes.
        again: Whether it is opened often: the key keeps its subkey.

    Returns:
        The plaintext; or False if the commitment is wrong, True if only the tag is, or
        if there is none.

    Raises:
        InvalidInputError: The key is not 32 bytes.
        SecretWipedError: The key was closed, perhaps meanwhile.
    """
    nonce, commitment, body, length = sealed
    if length < 0:
        return True
    known = key._subkeys
    kept = None if known is None else known.get(nonce)
    pair = kept or _subkey(key, nonce, personal)
    opened: SecretBytes | bool = False
    try:
        if not _memcmp(pair.tail, commitment, 32):
            out = SecretBytes(length)
            failed = _decrypt(
                out._held[0].pointer, _NULL, _NULL, body, length + _TAG,
                aad, len(aad), nonce, pair.pointer,
            )  # fmt: skip
            opened = True if failed else out
            if again and not (kept or failed):
                key._keep_subkey(nonce, pair)
    finally:
        if kept is None:
            _give_back(pair)
    key._pointer()  # or another thread may have wiped what it kept
    return opened


def open_committed_bytes(
    key: SecretBytes, sealed: Buffer, *, aad: bytes, personal: bytes
) -> bytes | bool:
    """As ``open_committed``, for plaintexts that are not secret."""
    out = bytearray(max(_size(sealed) - 56 - _TAG, 0))
    target = _from_buffer("unsigned char[]", out)
    failure = _open(target, key, sealed, _cut(sealed, 56), aad=aad, personal=personal)
    return bytes(out) if failure is None else failure


def open_committed_in_place(
    key: SecretBytes, sealed: memoryview, *, aad: bytes, personal: bytes
) -> memoryview | bool:
    """As ``open_committed_bytes``; the plaintext takes the place of its ciphertext."""
    start = _from_buffer("unsigned char[]", sealed, require_writable=True)
    failure = _open(start + 56, key, sealed, start + 56, aad=aad, personal=personal)
    return sealed[56:-_TAG] if failure is None else failure


def _open(
    target: Any, key: SecretBytes, sealed: Buffer, source: Any, *, aad: bytes, personal: bytes
) -> bool | None:
    """None where it opened; else as ``open_committed``."""
    size = _size(sealed) - 56
    if size < _TAG:
        return True
    nonce = bytes(sealed[:24])
    pair = _subkey(key, nonce, personal)
    try:
        if _memcmp(pair.tail, bytes(sealed[24:56]), 32):
            return False
        failed = _decrypt(
            target, _NULL, _NULL, source, size, aad, len(aad), nonce, pair.pointer
        )
    finally:
        _give_back(pair)
    return True if failed else None


def reseal_committed(
    messages: Sequence[tuple[bytes, bytes, bytes]],
    old: SecretBytes,
    new: SecretBytes,
    *,
    start: int,
    head: bytes,
    nonces: bytes,
    personal: bytes,
) -> list[bytes | None]:
    """Opens what ``seal_committed`` made under one key, and seals it under another.

    The plaintexts pass through locked memory, which is wiped, as are the copies of the keys.
    One loop, in which nothing but libsodium is called: it takes a rotation's time.

    Args:
        messages: Each with its additional data under the old key, and under the new one.
        old: 32 bytes.
        new: 32 bytes.
        start: Where each begins in its bytes.
        head: Put before each that is made.
        nonces: 24 fresh random bytes for each.
        personal: Of both; 16 bytes.

    Returns:
        Of each what was made, or None: it does not open.

    Raises:
        SecretWipedError: A key was closed, perhaps meanwhile.
    """
    if old._length != 32 or new._length != 32 or len(personal) != 16:
        raise InvalidInputError("A key has 32 bytes, and a personalisation 16.")
    _require(nonces, 24 * len(messages))
    made: list[bytes | None] = []
    body = start + 56
    longest = max((len(whole) for whole, _, _ in messages), default=0)
    with SecretBytes(128 + longest) as room:
        subkey = room._pointer()
        commitment, own_old, own_new, plain = (subkey + at for at in (32, 64, 96, 128))
        memory.ffi.memmove(own_old, old._pointer(), 32)
        memory.ffi.memmove(own_new, new._pointer(), 32)
        out = memory.ffi.new("unsigned char[]", longest + 1)
        shown, sealed = memoryview(_buffer(commitment, 32)), memoryview(_buffer(out))
        at = 0
        for whole, old_aad, new_aad in messages:
            size, nonce, at = len(whole) - body, nonces[at : at + 24], at + 24
            if size < _TAG:
                made.append(None)
                continue
            before = whole[start : start + 24]
            _blake2b(subkey, 64, before, 24, own_old, 32, _ZERO_SALT, personal)
            if _memcmp(commitment, whole[start + 24 : body], 32) or _decrypt(
                plain, _NULL, _NULL, whole[body:], size, old_aad, len(old_aad), before, subkey
            ):
                made.append(None)
                continue
            _blake2b(subkey, 64, nonce, 24, own_new, 32, _ZERO_SALT, personal)
            _encrypt(
                out, _NULL, plain, size - _TAG, new_aad, len(new_aad), _NULL, nonce, subkey
            )
            made.append(b"".join((head, nonce, shown, sealed[:size])))
        shown.release()
        old._still_open()
        new._still_open()
    return made


def argon2id(passphrase: SecretBytes, salt: bytes, opslimit: int, memlimit: int) -> SecretBytes:
    """Argon2id version 1.3 (RFC 9106), one lane, 32 bytes of output.

    Raises:
        InvalidInputError: The salt is not 16 bytes, or the memory can't be had.
        SecretWipedError: The passphrase was closed, perhaps meanwhile.
    """
    _require(salt, 16)
    source, out = passphrase._pointer(), SecretBytes(32)
    failed = _lib.crypto_pwhash(
        out._held[0].pointer, 32, memory.ffi.cast("char *", source), len(passphrase),
        salt, opslimit, memlimit, _lib.crypto_pwhash_alg_argon2id13(),
    )  # fmt: skip
    passphrase._still_open()
    if failed:
        raise InvalidInputError(
            "Argon2id could not run with these limits.",
            hint=f"It needs {memlimit >> 20} MiB of free memory.",
        )
    return out


def ed25519_keypair(seed: SecretBytes) -> tuple[SecretBytes, bytes]:
    """Returns the expanded secret key (64 bytes) and the public key (32), RFC 8032.

    Raises:
        InvalidInputError: The seed is not 32 bytes.
        SecretWipedError: The seed was closed, perhaps meanwhile.
    """
    _require(seed, 32)
    secret, public = SecretBytes(64), bytearray(32)
    out = _from_buffer("unsigned char[]", public)
    _lib.crypto_sign_seed_keypair(out, secret._held[0].pointer, seed._pointer())
    seed._still_open()
    return secret, bytes(public)


def ed25519_sign(secret: SecretBytes, message: bytes) -> bytes:
    """Returns the 64-byte signature of ``message`` under an expanded secret key.

    Raises:
        InvalidInputError: The key is not 64 bytes.
        SecretWipedError: The key was closed, perhaps meanwhile.
    """
    _require(secret, 64)
    out = bytearray(64 + len(message))
    signed = _from_buffer("unsigned char[]", out)
    _lib.crypto_sign(signed, _NULL, message, len(message), secret._pointer())
    secret._still_open()
    return bytes(out[:64])


def _subkey(key: SecretBytes, nonce: bytes, personal: bytes) -> memory._Slot:
    """A slot of subkey(32) ‖ commitment(32); hand it to ``_give_back``."""
    pointer = key._pointer()
    if key._length != 32 or len(personal) != 16:
        raise InvalidInputError("A key has 32 bytes, and a personalisation 16.")
    pair = _ARENA._take(64)
    _blake2b(pair.pointer, 64, nonce, len(nonce), pointer, 32, _ZERO_SALT, personal)
    if not key._held:
        _give_back(pair)
        key._still_open()
    return pair


def _give_back(pair: memory._Slot) -> None:
    _memzero(pair.pointer, 64)
    _ARENA._give(pair)


def _require(value: SecretBytes | bytes, length: int) -> None:
    if len(value) != length:
        raise InvalidInputError(f"{length} bytes are needed here, not {len(value)}.")


def _size(data: Buffer) -> int:
    return data.nbytes if isinstance(data, memoryview) else len(data)


def _cut(data: Buffer, start: int = 0) -> Any:
    # libsodium takes bytes as they are; from_buffer refuses what is not contiguous.
    if isinstance(data, bytes) and (not start or len(data) < _COPY_BELOW):
        return data[start:]
    return _from_buffer("unsigned char[]", memoryview(data)[start:])


def library_versions() -> dict[str, str]:
    """Of the cryptographic libraries, by name; PyNaCl does not say that of its libsodium."""
    import cryptography
    import nacl
    from cryptography.hazmat.backends.openssl import backend

    return {
        "PyNaCl": nacl.__version__,
        "cryptography": cryptography.__version__,
        "its OpenSSL": backend.openssl_version_text().removeprefix("OpenSSL ").split()[0],
    }
