"""A master key on a memory stick: the smallest provider that another package can add.

With this package installed, `apex-creds init --master stick:/media/key` keeps the master key
in that folder, and nothing can be read while the stick is not there: its entry point (see
pyproject.toml) names `Stick.from_uri`. It passes the suite that every provider should:
`apex_creds.testing.providers.MasterKeyProviderContract`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import ClassVar, TypeVar

import anyio.to_thread

from apex_creds.crypto.memory import SecretBytes
from apex_creds.errors import (
    MasterKeyExistsError,
    MasterKeyNotFoundError,
    MasterKeyUnavailableError,
    WrongMasterKeyError,
)
from apex_creds.keys.provider import check_reference, decode_key, encode_key

T = TypeVar("T")


class Stick:
    """One file for each vault and version, which is never overwritten."""

    scheme: ClassVar[str] = "stick"

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @classmethod
    def from_uri(cls, uri: str) -> Stick:
        return cls(Path(uri.removeprefix("stick:")))

    @property
    def uri(self) -> str:
        return f"stick:{self._folder}"

    async def create(
        self, *, vault_id: str, version: int
    ) -> tuple[SecretBytes, dict[str, str]]:
        key = SecretBytes.random(32)
        text = encode_key(key)
        try:
            await self._do(_write, self._path(vault_id, version), text)
        except FileExistsError:
            raise MasterKeyExistsError(
                "The stick has this version already.",
                hint="Another process made it: try again.",
            ) from None
        finally:
            key.close()
            text[:] = bytes(len(text))
        # Read back: what is not on the stick must not be depended on.
        return await self.load(vault_id=vault_id, version=version, params={}), {}

    async def load(
        self,
        *,
        vault_id: str,
        version: int,
        params: Mapping[str, str],
    ) -> SecretBytes:
        try:
            text = await self._do(_read, self._path(vault_id, version))
        except FileNotFoundError:
            raise MasterKeyNotFoundError(
                "The stick has no such key.", hint="Plug in the one that has it."
            ) from None
        key = decode_key(text)
        text[:] = bytes(len(text))
        if key is None:
            raise WrongMasterKeyError(
                "What is in the key's file is no key.", hint="Put it back from a copy."
            )
        return key

    async def discard(self, *, vault_id: str, version: int) -> None:
        await self._do(Path.unlink, self._path(vault_id, version), True)

    def _path(self, vault_id: str, version: int) -> Path:
        check_reference(vault_id, version)
        return self._folder / f"{vault_id}.{version}.key"

    async def _do(self, call: Callable[..., T], *arguments: object) -> T:
        """In a thread: a stick is slow. Where it is not plugged in, that is said."""
        if not self._folder.is_dir():
            raise MasterKeyUnavailableError(
                f"{self._folder} is not there.", hint="Plug in the stick that has the key."
            )
        try:
            return await anyio.to_thread.run_sync(call, *arguments)
        except (FileExistsError, FileNotFoundError):
            raise
        except OSError as error:
            raise MasterKeyUnavailableError(
                f"The stick can't be used ({error.strerror}).",
                hint="Look at it, and try again.",
            ) from None


def _write(path: Path, text: bytearray) -> None:
    """Durable on return; whole or not there: the name is given when the content is safe."""
    unfinished = path.with_name(f"{path.name}.{os.urandom(4).hex()}")
    fd = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.write(fd, text)
        os.fsync(fd)
        os.link(unfinished, path)  # fails where there is one, unlike rename
    finally:
        os.close(fd)
        unfinished.unlink()
    folder = os.open(path.parent, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)


def _read(path: Path) -> bytearray:
    text = bytearray(64)
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        del text[os.readv(fd, [text]) :]
    finally:
        os.close(fd)
    return text
