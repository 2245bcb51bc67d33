"""``file:PATH`` - master keys in a file, for containers and systemd credentials.

Guarantee: the file is read only when it is a regular file, no link, owned by us or root,
and closed to everybody else. It changes only as a whole: complete before or complete after,
durable on return, one writer at a time. A version in it is never overwritten, nor taken
for one that was just made, and the newest is deleted only by the provider that made it.

The format is text: one line ``v<N> <base64 of 32 bytes>`` per version in rising order; a
bare base64 line is ``v1``. Every line ends with a line feed, the last one may lack it.
One file serves one vault: rotation deletes old versions from it. Where a vault adopted keys
that were there already, a file beside it says so, and nothing is deleted any more.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import ClassVar, Final

import anyio.to_thread

from apex_creds.crypto.memory import SecretBytes
from apex_creds.errors import (
    InvalidInputError,
    MasterKeyExistsError,
    MasterKeyNotFoundError,
    MasterKeyUnavailableError,
    WrongMasterKeyError,
)
from apex_creds.fs.private_files import expanded
from apex_creds.keys.anchor import AnchorFile, state_anchor, state_pin
from apex_creds.keys.base import ADOPTED, MASTER_KEY_BYTES, check_reference
from apex_creds.keys.file_read import Keys, close_keys, pick, read_keys, read_or_nothing
from apex_creds.keys.file_write import (
    READ_ONLY,
    clean,
    exclusive,
    remove_keys,
    shredding,
    write_keys,
)

__all__ = ["FileProvider"]

_FIRST: Final = 1
_ADOPTED: Final = ".adopted"


class FileProvider:
    """Master keys in one text file.

    Args:
        path: The file; ``~`` is expanded, and a relative path is made absolute.

    Raises:
        InvalidInputError: The path is empty or has characters that are not printable.
    """

    scheme: ClassVar[str] = "file"

    def __init__(self, path: str | os.PathLike[str]) -> None:
        text = os.fspath(path)
        if not text or not text.isprintable():
            raise InvalidInputError(
                "The path of the master key file is empty or not printable.",
                hint="Write file:PATH, like file:/etc/apex-creds/master.key.",
            )
        self._path = expanded(text)
        self._made: set[int] = set()

    @property
    def uri(self) -> str:
        """See ``MasterKeyProvider``."""
        return f"file:{self._path}"

    async def create(
        self, *, vault_id: str, version: int
    ) -> tuple[SecretBytes, dict[str, str]]:
        """See ``MasterKeyProvider``; version 1 only where the file has no keys at all.

        Raises also the errors of ``load``, StorageFullError and StorageLockedError.
        """
        check_reference(vault_id, version)
        key = SecretBytes.random(MASTER_KEY_BYTES)
        try:
            await anyio.to_thread.run_sync(self._place, version, key, False)
        except BaseException:
            key.close()
            raise
        return key, {}

    async def place(self, *, vault_id: str, version: int, key: SecretBytes) -> dict[str, str]:
        """See ``MasterKeyPlacer``; raises as ``create``."""
        check_reference(vault_id, version)
        await anyio.to_thread.run_sync(self._place, version, key, True)
        return {}

    async def adopt(self, *, vault_id: str, version: int) -> tuple[SecretBytes, dict[str, str]]:
        """See ``MasterKeyAdopter``."""
        key = await self.load(vault_id=vault_id, version=version, params={})
        # Where nothing can be written beside the keys, none can be deleted either.
        with contextlib.suppress(MasterKeyUnavailableError):
            await self.share(vault_id=vault_id)
        return key, {ADOPTED: "yes"}

    async def share(self, *, vault_id: str) -> bool:
        """See ``SharedPlace``."""
        check_reference(vault_id, _FIRST)
        return await anyio.to_thread.run_sync(self._share, vault_id)

    async def load(
        self,
        *,
        vault_id: str,
        version: int,
        params: Mapping[str, str],  # noqa: ARG002
    ) -> SecretBytes:
        """See ``MasterKeyProvider``.

        Raises also UnsafePathError and UnsafePermissionsError.
        """
        check_reference(vault_id, version)
        return await anyio.to_thread.run_sync(self._load, version)

    async def discard(self, *, vault_id: str, version: int) -> None:
        """See ``MasterKeyProvider``; keeps the newest version, unless it made that itself.

        The file does not know whose keys it holds: where a vault adopted them, all stay.
        """
        check_reference(vault_id, version)
        await anyio.to_thread.run_sync(self._discard, version)

    async def receive(self, *, vault_id: str, version: int, key: SecretBytes) -> None:
        """See ``MasterKeyReceiver``; the file is made when absent.

        Raises also StorageFullError and StorageLockedError.
        """
        check_reference(vault_id, version)
        await anyio.to_thread.run_sync(self._receive, version, key)

    def read_anchor(self, *, vault_id: str) -> str | None:
        """See ``AnchorStore``: a file beside the keys, else in the state directory."""
        check_reference(vault_id, 1)
        return _read(self._anchor(vault_id), lambda: state_anchor(vault_id))

    def write_anchor(self, *, vault_id: str, text: str) -> None:
        """See ``AnchorStore``; where the keys lie read-only, in the state directory."""
        check_reference(vault_id, 1)
        _write(self._anchor(vault_id), lambda: state_anchor(vault_id), text)

    def delete_anchor(self, *, vault_id: str) -> None:
        """See ``AnchorRemover``."""
        check_reference(vault_id, 1)
        _delete(self._anchor(vault_id), lambda: state_anchor(vault_id))

    def read_pin(self, *, home: str) -> str | None:
        """See ``PinStore``: as for anchors."""
        return _read(self._pin(home), lambda: state_pin(home))

    def write_pin(self, *, home: str, text: str) -> None:
        """See ``PinStore``."""
        _write(self._pin(home), lambda: state_pin(home), text)

    def delete_pin(self, *, home: str) -> None:
        """See ``PinStore``."""
        _delete(self._pin(home), lambda: state_pin(home))

    def _pin(self, home: str) -> AnchorFile:
        return self._beside(f"{home}.home")

    def _anchor(self, vault_id: str) -> AnchorFile:
        return self._beside(f"{vault_id}.anchor")

    def _beside(self, suffix: str) -> AnchorFile:
        return AnchorFile(self._path.with_name(f"{self._path.name}.{suffix}"))

    def _share(self, vault_id: str) -> bool:
        if not _versions(self._path):
            return False
        mark = self._beside(f"{vault_id}{_ADOPTED}")
        mark.write_or_refuse("No key is deleted from here: several vaults may need it.\n")
        return True

    def _adopted(self) -> bool:
        prefix = f"{self._path.name}."
        return any(
            name.startswith(prefix) and name.endswith(_ADOPTED)
            for name in os.listdir(self._path.parent)
        )

    def _load(self, version: int) -> SecretBytes:
        clean(self._path)
        found = pick(read_keys(self._path), version)
        if found is not None:
            return found
        raise MasterKeyNotFoundError(
            f"{self._path} has no master key v{version}.",
            hint="Use the file that the vault was initialised with, or its backup.",
        )

    def _place(self, version: int, key: SecretBytes, again: bool) -> None:
        if not again:  # before anything else can fail
            self._refuse(version, _versions(self._path))
        with exclusive(self._path):
            keys = read_or_nothing(self._path)
            try:
                if not (again and version in keys and keys[version].equals(key)):
                    self._refuse(version, frozenset(keys))
                    self._append(keys, version, SecretBytes.copy_of(key))
                self._made.add(version)
            finally:
                close_keys(keys)

    def _refuse(self, version: int, there: frozenset[int]) -> None:
        """A new key is never one that is there, nor the first beside somebody else's."""
        if version in there or (version == _FIRST and there):
            raise MasterKeyExistsError(
                f"{self._path} has master keys already.",
                hint="Name another file. To use a key that was provisioned: "
                "apex-creds init --use-existing-key.",
            )

    def _receive(self, version: int, key: SecretBytes) -> None:
        with exclusive(self._path):
            keys = read_or_nothing(self._path)
            try:
                if version not in keys:
                    self._append(keys, version, SecretBytes.copy_of(key))
                elif not keys[version].equals(key):
                    raise WrongMasterKeyError(
                        f"{self._path} has another master key v{version}; it was left alone.",
                        hint="Name another file, or use apex-creds recovery reset-master.",
                    )
            finally:
                close_keys(keys)

    def _append(self, keys: Keys, version: int, key: SecretBytes) -> None:
        new = not keys
        keys[version] = key
        write_keys(self._path, keys, new=new)
        with _reread(self._path, version) as back:
            if back is not None and back.equals(keys[version]):
                return
        raise MasterKeyUnavailableError(
            f"{self._path} did not keep the master key.", hint="Use another file system."
        )

    def _discard(self, version: int) -> None:
        if self._may_go(version):
            with exclusive(self._path):
                self._remove(version)

    def _may_go(self, version: int) -> bool:
        there = _versions(self._path)
        superseded = version in there and (version != max(there) or version in self._made)
        return superseded and not self._adopted()

    def _remove(self, version: int) -> None:
        if not self._may_go(version):
            return
        keys = read_keys(self._path)
        try:
            keys.pop(version).close()
            with shredding(self._path):
                if keys:
                    write_keys(self._path, keys, new=False)
                else:
                    remove_keys(self._path)
            self._made.discard(version)
        finally:
            close_keys(keys)


def _read(beside: AnchorFile, elsewhere: Callable[[], AnchorFile]) -> str | None:
    found = beside.read()
    if found is None:
        # Of a user without a state directory nothing can have been kept there.
        with contextlib.suppress(MasterKeyUnavailableError):
            found = elsewhere().read()
    return found


def _write(beside: AnchorFile, elsewhere: Callable[[], AnchorFile], text: str) -> None:
    try:
        beside.write(text)
    except OSError as error:
        # One that is there would be read before the one in the state directory.
        if error.errno not in READ_ONLY or os.path.lexists(beside.path):
            raise beside.unusable(error.strerror or "an error") from None
        elsewhere().write_or_refuse(text)


def _delete(beside: AnchorFile, elsewhere: Callable[[], AnchorFile]) -> None:
    beside.delete_or_refuse()
    try:
        other = elsewhere()
    except MasterKeyUnavailableError:  # as for reading
        return
    other.delete_or_refuse()


def _versions(path: Path) -> frozenset[int]:
    keys = read_or_nothing(path)
    close_keys(keys)
    return frozenset(keys)


@contextlib.contextmanager
def _reread(path: Path, version: int) -> Iterator[SecretBytes | None]:
    back = pick(read_keys(path), version)
    try:
        yield back
    finally:
        if back is not None:
            back.close()
