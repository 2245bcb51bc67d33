"""``keyring:`` - the master key in the keyring of the operating system.

Guarantee: a key is stored only in a backend that encrypts it, is read back before it is
used, and is never overwritten. Backends that store in plain text or not at all are refused
by name, also inside a chainer or a wrapper. No text of a backend's exception is passed on.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import ClassVar, Final, TypeVar

import anyio.to_thread
import filelock
import keyring
from keyring.backend import KeyringBackend
from keyring.errors import KeyringLocked, NoKeyringError, PasswordDeleteError

from apex_creds.concurrency import in_thread
from apex_creds.crypto.memory import SecretBytes
from apex_creds.errors import (
    MasterKeyError,
    MasterKeyExistsError,
    MasterKeyNotFoundError,
    MasterKeyUnavailableError,
    UnsafeKeyringError,
    WrongMasterKeyError,
)
from apex_creds.fs.lock import lock_at, release
from apex_creds.fs.private_files import make_directories
from apex_creds.keys.head_anchor import state_folder
from apex_creds.keys.provider import (
    MASTER_KEY_BYTES,
    Prompt,
    check_reference,
    decode_key,
    encode_key,
    wipe,
)

__all__ = ["SERVICE", "KeyringProvider"]

SERVICE: Final = "apex-creds"
"""The service name of every entry; the user name is ``<vault id>:v<version>``."""

_ALTERNATIVES: Final = (
    "Use file:PATH or passphrase:, or install and start a real keyring "
    "(gnome-keyring, KWallet, KeePassXC; macOS and Windows have one)."
)
_UNLOCK: Final = (
    "Unlock it (log in to the desktop, or gnome-keyring-daemon --unlock), try again."
)
_REFUSED_MODULES: Final = ("keyring.backends.null", "keyring.backends.fail")
_REFUSED_WORDS: Final = ("plaintext", "uncrypt", "unencrypt", "insecure", "nullkeyring")
_CHECK: Final = (
    "See that its daemon and D-Bus session run (keyring diagnose), or use file:PATH."
)
_LOCKED_ERRORS: Final = {
    # also a Secret Service whose default collection is not made yet
    "InitError": "The keyring can't be opened: it is locked, or not set up yet.",
    **dict.fromkeys(
        ("LockedException", "PromptDismissedException", "KeychainDenied"),
        "The keyring is locked.",
    ),
}
_LOCK_SECONDS: Final = 10.0
_MAX_DEPTH: Final = 4

_T = TypeVar("_T")
_create_lock = threading.Lock()


class KeyringProvider:
    """The OS keyring, through the ``keyring`` package.

    Args:
        backend: A backend to use instead of the one that ``keyring`` selects.
    """

    scheme: ClassVar[str] = "keyring"

    def __init__(self, backend: KeyringBackend | None = None) -> None:
        self._given = backend

    @property
    def uri(self) -> str:
        """See ``MasterKeyProvider``."""
        return "keyring:"

    async def backend_name(self) -> str:
        """The backends that would be used, for ``doctor``.

        Raises:
            UnsafeKeyringError: There is none that encrypts.
            MasterKeyUnavailableError: The selected one can't be loaded.
        """
        found = await anyio.to_thread.run_sync(self._backends)
        return ", ".join(_name(type(backend)) for backend in found)

    @in_thread
    def create(self, *, vault_id: str, version: int) -> tuple[SecretBytes, dict[str, str]]:
        """See ``MasterKeyProvider``."""
        check_reference(vault_id, version)
        with contextlib.ExitStack() as closing:
            key = closing.enter_context(SecretBytes.random(MASTER_KEY_BYTES))
            self._add(_entry(vault_id, version), key)
            closing.pop_all()
            return key, {}

    async def load(
        self,
        *,
        vault_id: str,
        version: int,
        params: Mapping[str, str],  # noqa: ARG002
    ) -> SecretBytes:
        """See ``MasterKeyProvider``."""
        check_reference(vault_id, version)
        entry = _entry(vault_id, version)
        # Abandoned on cancellation: a keyring may be waiting for its user to unlock it.
        found = await anyio.to_thread.run_sync(
            lambda: _find(self._backends(), entry), abandon_on_cancel=True
        )
        if found is not None:
            return found
        raise MasterKeyNotFoundError(
            f"The keyring has no entry {SERVICE!r} for {entry!r}.",
            hint="Use the user account and keyring that the vault was initialised with.",
        )

    @in_thread
    def discard(self, *, vault_id: str, version: int) -> None:
        """See ``MasterKeyProvider``."""
        check_reference(vault_id, version)
        entry = _entry(vault_id, version)
        for backend in self._backends():
            get = partial(_get, backend, entry)
            if _call(get) is None:
                continue
            _call(partial(_delete, backend, entry))
            if _call(get) is not None:
                raise MasterKeyUnavailableError(
                    f"The keyring did not delete its entry {SERVICE!r} for {entry!r}.",
                    hint="Delete it with the keyring's own program.",
                )

    @in_thread
    def place(self, *, vault_id: str, version: int, key: SecretBytes) -> dict[str, str]:
        """See ``MasterKeyPlacer``."""
        check_reference(vault_id, version)
        self._add(_entry(vault_id, version), key)
        return {}

    @in_thread
    def receive(self, *, vault_id: str, version: int, key: SecretBytes) -> None:
        """See ``MasterKeyReceiver``."""
        check_reference(vault_id, version)
        entry = _entry(vault_id, version)
        if not self._keeps(entry, key):
            raise WrongMasterKeyError(
                f"The keyring has another key as {entry!r}; it was left alone.",
                hint="Use apex-creds recovery reset-master, which makes a new version.",
            )

    def read_anchor(self, *, vault_id: str) -> str | None:
        """See ``AnchorStore``: an entry beside the master key's."""
        check_reference(vault_id, 1)
        return self._read(f"{vault_id}:anchor")

    def write_anchor(self, *, vault_id: str, text: str) -> None:
        """See ``AnchorStore``."""
        check_reference(vault_id, 1)
        self._write(f"{vault_id}:anchor", text)

    def delete_anchor(self, *, vault_id: str) -> None:
        """See ``AnchorRemover``."""
        check_reference(vault_id, 1)
        self._delete(f"{vault_id}:anchor")

    def read_pin(self, *, home: str) -> str | None:
        """See ``PinStore``."""
        return self._read(f"home:{home}")

    def write_pin(self, *, home: str, text: str) -> None:
        """See ``PinStore``."""
        self._write(f"home:{home}", text)

    def delete_pin(self, *, home: str) -> None:
        """See ``PinStore``."""
        self._delete(f"home:{home}")

    def _read(self, entry: str) -> str | None:
        for backend in self._backends():
            found = _call(partial(_get, backend, entry))
            if found is not None:
                return found
        return None

    def _write(self, entry: str, text: str) -> None:
        holder = self._backends()[0]
        _call(partial(_set, holder, entry, bytearray(text, "ascii")))

    def _delete(self, entry: str) -> None:
        for backend in self._backends():
            _call(partial(_delete, backend, entry))

    def _keeps(self, entry: str, key: SecretBytes) -> bool:
        """Stores ``key`` unless there is one; whether it is this one that is there now."""
        backends = self._backends()
        # One creator at a time: keyrings have no compare-and-set.
        alone = _process_lock() if self._given is None else contextlib.nullcontext()
        with _create_lock, alone:
            found = _find(backends, entry)
            new = found is None
            if new:
                text = encode_key(key)
                try:
                    _call(partial(_set, backends[0], entry, text))
                finally:
                    wipe(text)
                found = _find(backends[:1], entry)
        with found or SecretBytes(0) as there:
            same = there.equals(key)
        if new and not same:
            raise MasterKeyUnavailableError(
                f"The keyring backend {_name(type(backends[0]))} did not keep the master key.",
                hint=_ALTERNATIVES,
            )
        return same

    def _add(self, entry: str, key: SecretBytes) -> None:
        if not self._keeps(entry, key):
            raise MasterKeyExistsError(
                f"The keyring has an entry {SERVICE!r} for {entry!r} already.",
                hint="It was left alone. Make another version.",
            )

    def _backends(self) -> list[KeyringBackend]:
        selected = self._given if self._given is not None else _call(keyring.get_keyring)
        members = _call(partial(_flatten, selected))
        usable = [b for b in members if not _refused(b)]
        if usable:
            return usable
        names = ", ".join(_name(type(b)) for b in members) or _name(type(selected))
        raise UnsafeKeyringError(
            f"The keyring backend {names} does not encrypt or does not store at all.",
            hint=_ALTERNATIVES,
        )


@contextlib.contextmanager
def _process_lock() -> Iterator[None]:
    lock: filelock.BaseFileLock | None = None
    with contextlib.suppress(OSError, MasterKeyUnavailableError, filelock.Timeout):
        directory = state_folder()
        make_directories(directory)
        lock = lock_at(directory / "keyring.lock")
        lock.acquire(timeout=_LOCK_SECONDS)
    if lock is None or not lock.is_locked:
        raise MasterKeyUnavailableError(
            "The lock that guards writing to the keyring can't be had.",
            hint="Set HOME (or XDG_STATE_HOME) to a directory that this user can write.",
        )
    try:
        yield
    finally:
        release(lock)


def _entry(vault_id: str, version: int) -> str:
    return f"{vault_id}:v{version}"


def _find(backends: list[KeyringBackend], entry: str) -> SecretBytes | None:
    for backend in backends:
        text = _call(partial(_get, backend, entry))
        if text is not None:
            key = decode_key(text)
            if key is not None:
                return key
            raise WrongMasterKeyError(
                f"The keyring entry {SERVICE!r} for {entry!r} is not a master key.",
                hint="It was left as it is. Restore it from a backup of the keyring.",
            )
    return None


def _call(function: Callable[[], _T]) -> _T:
    """Calls a backend; raises outside ``except``, as its exceptions may carry a secret."""
    try:
        return function()
    except NoKeyringError:
        failure: MasterKeyError = UnsafeKeyringError(
            "There is no keyring on this machine.", hint=_ALTERNATIVES
        )
    except KeyringLocked:
        failure = MasterKeyUnavailableError("The keyring is locked.", hint=_UNLOCK)
    except Exception as error:  # noqa: BLE001 - backends raise what they like
        kind = type(error).__name__
        failure = MasterKeyUnavailableError(
            _LOCKED_ERRORS.get(kind, f"The keyring does not answer ({kind})."),
            hint=_UNLOCK if kind in _LOCKED_ERRORS else _CHECK,
        )
    raise failure


def _get(backend: KeyringBackend, entry: str) -> str | None:
    try:
        return backend.get_password(SERVICE, entry)
    except UnicodeDecodeError:
        return ""  # an entry of binary data; its bytes are in the exception


def _set(backend: KeyringBackend, entry: str, text: bytearray) -> None:
    backend.set_password(SERVICE, entry, text.decode("ascii"))


def _delete(backend: KeyringBackend, entry: str) -> None:
    with contextlib.suppress(PasswordDeleteError):
        backend.delete_password(SERVICE, entry)


def _flatten(backend: KeyringBackend, depth: int = 0) -> list[KeyringBackend]:
    """The backends behind a chainer, in its order; a chainer itself is never used.

    Its reads fall through to members that may be plain text, and so do its writes.
    """
    members = getattr(backend, "backends", None)
    if not isinstance(members, (list, tuple)):
        return [backend]
    if depth > _MAX_DEPTH:
        return []
    return [found for member in members for found in _flatten(member, depth + 1)]


def _refused(backend: KeyringBackend, depth: int = 0) -> bool:
    if depth > _MAX_DEPTH:
        return True
    for cls in type(backend).__mro__:
        name = cls.__qualname__.lower()
        if cls.__module__ in _REFUSED_MODULES or any(word in name for word in _REFUSED_WORDS):
            return True
    wrapped = getattr(backend, "_keyring", None)  # keyrings.alt's MultipartKeyringWrapper
    return isinstance(wrapped, KeyringBackend) and _refused(wrapped, depth + 1)


def _name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def from_uri(rest: str, _: Prompt | None) -> KeyringProvider | None:
    """``keyring:``; see ``provider.FromUri``."""
    return None if rest else KeyringProvider()
