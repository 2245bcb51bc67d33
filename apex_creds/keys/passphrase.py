"""``passphrase:`` - the master key derived from a passphrase by Argon2id.

Guarantee: the passphrase comes from a prompt without echo or from a file descriptor, never
from arguments or the environment; it is held in locked memory and wiped once the key is
derived (of what a prompt returns, Python keeps a ``str`` that nobody can wipe). The
parameters of the derivation, which are stored in clear, are held to bounds: not weaker than
libsodium's ``MODERATE`` and not so large that a forged document could exhaust the memory
(RFC 9106).
"""

from __future__ import annotations

import base64
import contextlib
import getpass
import os
import re
import secrets
import sys
import unicodedata
from collections.abc import Mapping
from typing import ClassVar, Final

import anyio.to_thread

from apex_creds.crypto.kdf import argon2id
from apex_creds.crypto.memory import SecretBytes
from apex_creds.errors import (
    ApexCredsError,
    CorruptDocumentError,
    InvalidInputError,
    MasterKeyUnavailableError,
)
from apex_creds.keys.head_anchor import state_anchor, state_pin
from apex_creds.keys.provider import Prompt, check_reference, wipe

__all__ = [
    "MAX_PASSPHRASE_BYTES",
    "MIN_PASSPHRASE_BYTES",
    "PassphraseProvider",
    "terminal_prompt",
]

MAX_PASSPHRASE_BYTES: Final = 4096
MIN_PASSPHRASE_BYTES: Final = 15
"""Of a new one (NIST SP 800-63B-4, 3.1.1.2: where it is the only factor)."""
_DIFFERENT: Final = 5

_SALT_BYTES: Final = 16
_OPSLIMIT: Final = (3, 16)
_MEMLIMIT: Final = (256 * 1024**2, 1024**3)
_FIELDS: Final = frozenset({"salt", "opslimit", "memlimit"})
_NEWLINE: Final = ord("\n")
_FD: Final = re.compile(r"fd=(0|[1-9][0-9]{0,5})", re.ASCII)


def terminal_prompt(text: str) -> str:
    """Asks on the terminal without echo.

    Raises:
        MasterKeyUnavailableError: There is no terminal; ``getpass`` would echo then.
    """
    if not _has_terminal():
        raise _no_prompt()
    return getpass.getpass(text)


class PassphraseProvider:
    """A master key that is stored nowhere.

    Args:
        prompt: Asks without echo; without it (and ``fd``) nothing can be loaded.
        fd: A file descriptor to read from instead of asking. Each use reads one line (or
            the rest), so a rotation finds the old passphrase on the first line and the new
            one on the second.

    Raises:
        InvalidInputError: ``fd`` is negative.
    """

    scheme: ClassVar[str] = "passphrase"

    def __init__(self, *, prompt: Prompt | None = None, fd: int | None = None) -> None:
        if fd is not None and fd < 0:
            raise InvalidInputError("A file descriptor can't be negative.")
        self._prompt = prompt
        self._fd = fd

    @property
    def uri(self) -> str:
        """See ``MasterKeyProvider``."""
        return "passphrase:" if self._fd is None else f"passphrase:fd={self._fd}"

    async def create(
        self, *, vault_id: str, version: int
    ) -> tuple[SecretBytes, dict[str, str]]:
        """See ``MasterKeyProvider``; asks twice. Each call has a new salt and a new key.

        Raises also InvalidInputError: Too short, too long, or typed differently.
        """
        check_reference(vault_id, version)
        salt = secrets.token_bytes(_SALT_BYTES)
        params = {
            "salt": base64.b64encode(salt).decode(),
            "opslimit": str(_OPSLIMIT[0]),
            "memlimit": str(_MEMLIMIT[0]),
        }
        return await anyio.to_thread.run_sync(self._derive, params, True), params

    async def load(
        self, *, vault_id: str, version: int, params: Mapping[str, str]
    ) -> SecretBytes:
        """See ``MasterKeyProvider``. A wrong passphrase gives a wrong key, no error.

        Raises also CorruptDocumentError: The parameters are malformed or out of bounds.
        """
        check_reference(vault_id, version)
        return await anyio.to_thread.run_sync(self._derive, dict(params), False)

    async def discard(self, *, vault_id: str, version: int) -> None:
        """Does nothing: the key is stored nowhere."""
        check_reference(vault_id, version)

    def read_anchor(self, *, vault_id: str) -> str | None:
        """See ``AnchorStore``: in the state directory, which only the user guards."""
        check_reference(vault_id, 1)
        return state_anchor(vault_id).read()

    def write_anchor(self, *, vault_id: str, text: str) -> None:
        """See ``AnchorStore``."""
        check_reference(vault_id, 1)
        state_anchor(vault_id).write_or_refuse(text)

    def delete_anchor(self, *, vault_id: str) -> None:
        """See ``AnchorRemover``."""
        check_reference(vault_id, 1)
        state_anchor(vault_id).delete_or_refuse()

    def read_pin(self, *, home: str) -> str | None:
        """See ``PinStore``: in the state directory."""
        return state_pin(home).read()

    def write_pin(self, *, home: str, text: str) -> None:
        """See ``PinStore``."""
        state_pin(home).write_or_refuse(text)

    def delete_pin(self, *, home: str) -> None:
        """See ``PinStore``."""
        state_pin(home).delete_or_refuse()

    def _derive(self, params: Mapping[str, str], confirm: bool) -> SecretBytes:
        if not params:  # as for every other provider
            raise MasterKeyUnavailableError(
                "The key store says that its master key comes from no passphrase.",
                hint="Name where it is, or nothing: the key store knows it.",
            )
        text, salt = params.get("salt", ""), b""
        with contextlib.suppress(ValueError):
            salt = base64.b64decode(text, validate=True)
        canonical = base64.b64encode(salt).decode() == text and len(salt) == _SALT_BYTES
        opslimit = _bounded(params.get("opslimit", ""), *_OPSLIMIT)
        memlimit = _bounded(params.get("memlimit", ""), *_MEMLIMIT)
        if not (set(params) == _FIELDS and canonical and opslimit and memlimit):
            raise CorruptDocumentError(
                "The passphrase parameters of the key store are malformed or out of bounds.",
                hint="Restore the key store from its backup.",
            )
        with self._ask(confirm) as passphrase:
            with passphrase.view() as view:
                weak = len(view) < MIN_PASSPHRASE_BYTES or len(set(view)) < _DIFFERENT
            if confirm and weak:
                # Who has the files can try them for as long as they like: short ones fall.
                raise InvalidInputError(
                    "The passphrase is too easy to guess: it has less than "
                    f"{MIN_PASSPHRASE_BYTES} characters, or less than {_DIFFERENT} different "
                    "ones.",
                    hint="Take five words or more, chosen by dice or a password manager.",
                )
            return argon2id(passphrase, salt=salt, opslimit=opslimit, memlimit=memlimit)

    def _ask(self, confirm: bool) -> SecretBytes:
        if self._fd is not None:
            return _read_line(self._fd)
        first = _typed(self._prompt, "Passphrase: ")
        if not confirm:
            return first
        with contextlib.ExitStack() as closing:
            closing.enter_context(first)
            with _typed(self._prompt, "Passphrase again: ") as second:
                if first.equals(second):
                    closing.pop_all()
                    return first
        raise InvalidInputError("The two passphrases differ.", hint="Type the same one twice.")


def _bounded(text: str, low: int, high: int) -> int:
    """The number, in its canonical form and within bounds; else 0."""
    if not (text.isascii() and text.isdigit() and len(text) <= 12):
        return 0
    value = int(text)
    return value if str(value) == text and low <= value <= high else 0


# -- asking ------------------------------------------------------------------------


def _typed(prompt: Prompt | None, text: str) -> SecretBytes:
    if prompt is None:
        raise _no_prompt()
    failure: ApexCredsError
    try:
        # The same passphrase, whatever keyboard composed its accents (RFC 8265).
        data = bytearray(unicodedata.normalize("NFC", prompt(text)).encode())
    except UnicodeEncodeError:
        failure = InvalidInputError("The passphrase is not valid Unicode text.")
    except (EOFError, OSError):
        failure = _no_prompt()
    else:
        return _accepted(data)
    raise failure


def _no_prompt() -> MasterKeyUnavailableError:
    return MasterKeyUnavailableError(
        "There is no terminal to ask for the passphrase.",
        hint="Use passphrase:fd=N with the passphrase on that file descriptor.",
    )


def _has_terminal() -> bool:
    if os.name != "posix":
        return sys.stdin is not None and sys.stdin.isatty()
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def _read_line(fd: int) -> SecretBytes:
    if os.isatty(fd):
        raise MasterKeyUnavailableError(
            f"File descriptor {fd} is a terminal, which would show the passphrase.",
            hint="Use passphrase: to be asked without echo.",
        )
    data, length = bytearray(MAX_PASSPHRASE_BYTES + 1), 0
    try:
        os.set_inheritable(fd, False)
        # Up to a line feed, byte by byte so as to take nothing that follows it.
        with open(fd, "rb", 0, closefd=False) as raw, memoryview(data) as view:
            while length < len(data) and raw.readinto(view[length : length + 1]):
                if data[length] == _NEWLINE:
                    break
                length += 1
    except OSError as error:
        failure = MasterKeyUnavailableError(
            f"File descriptor {fd} can't be read ({error.strerror}).",
            hint="Open it for the process, like: apex-creds ... 3< FILE",
        )
        wipe(data)
    else:
        line = data[:length]  # a copy: shrinking could leave the old bytes behind
        wipe(data)
        return _accepted(line)
    raise failure


def _accepted(data: bytearray) -> SecretBytes:
    """Moves the passphrase into locked memory."""
    if 0 < len(data) <= MAX_PASSPHRASE_BYTES:
        passphrase = SecretBytes.from_bytes(data)
        wipe(data)
        return passphrase
    empty = not data
    wipe(data)
    if empty:
        raise InvalidInputError("The passphrase is empty.", hint="Give one; longer is better.")
    raise InvalidInputError(f"The passphrase is longer than {MAX_PASSPHRASE_BYTES} bytes.")


def from_uri(rest: str, prompt: Prompt | None) -> PassphraseProvider | None:
    """``passphrase:`` and ``passphrase:fd=N``; see ``provider.FromUri``."""
    if not rest:
        return PassphraseProvider(prompt=prompt)
    descriptor = _FD.fullmatch(rest)
    return PassphraseProvider(fd=int(descriptor[1])) if descriptor else None
