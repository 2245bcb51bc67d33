"""``ApiKeyManager``: the old synchronous manager, on a vault.

Guarantee: what the old methods promised, with every secret that is handed out in the audit
log first, and a warning, once, that names the handle to use instead. Usable from any thread
and from inside a running event loop (which then waits, as it did for the old manager).
"""

from __future__ import annotations

import json
import threading
import warnings
import weakref
from collections.abc import Callable, Iterable
from contextlib import AsyncExitStack, suppress
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

from apex_creds.compat.modes import name_of
from apex_creds.compat.vault_session import (
    AnyPath,
    ApiKeyManagerError,
    open_vault,
    places,
    translated,
)
from apex_creds.concurrency import LoopThread, Work
from apex_creds.errors import (
    CorruptDocumentError,
    CredentialExistsError,
    CredentialNotFoundError,
)
from apex_creds.fs.home import CREDENTIALS, SECURITY
from apex_creds.keys import MasterKeyProvider
from apex_creds.migration import Fallback
from apex_creds.migration.entries import (
    FIELDS,
    alternative_name,
    credential_name,
    plain_fields,
    token_fields,
    token_secret,
)
from apex_creds.model import ApiKey, Closes, CredentialInfo, CredentialKind, Secret
from apex_creds.vault import Opened, PutItem, Vault

# -- from a service to a credential ---------------------------------------------------------


def names_for(service: str, kind: CredentialKind) -> tuple[str, str]:
    """The names that a service's credential may have, the first one first."""
    name = credential_name(service)
    return name, alternative_name(name, kind)


def find_info(
    infos: Iterable[CredentialInfo], service: str, kind: CredentialKind
) -> CredentialInfo | None:
    """A service's credential of a kind, whatever its name is."""
    found = [info for info in infos if info.kind is kind]
    named = named_info(found, service, kind)
    if named is not None:
        return named
    wanted = credential_name(service)
    of_service = [info for info in found if info.service == wanted]
    added = [info for info in of_service if info.name.startswith(f"{wanted}/")]
    if added:  # the manager's own, which went by the order in which they came
        return min(added, key=lambda info: (info.created, info.name))
    return max(of_service, key=lambda info: (info.updated, info.name), default=None)


def named_info(
    infos: Iterable[CredentialInfo], service: str, kind: CredentialKind
) -> CredentialInfo | None:
    """The credential of a kind that has one of a service's own names."""
    by_name = {info.name: info for info in infos if info.kind is kind}
    found = (by_name.get(name) for name in names_for(service, kind))
    return next((info for info in found if info is not None), None)


def free_name(infos: Iterable[CredentialInfo], service: str, kind: CredentialKind) -> str:
    """A name for a new credential of a service."""
    first, second = names_for(service, kind)
    return second if first in {info.name for info in infos} else first


def text_of(opened: Opened) -> str:
    """An API key."""
    return bytes(opened.view()).decode()


def token_of(opened: Opened, info: CredentialInfo | None) -> dict[str, object]:
    """A token as the old managers had it; the very mapping, if they stored it.

    Raises:
        CorruptDocumentError: What was kept beside the token is not what was stored.
    """
    access = bytes(opened.view("access")).decode()
    refresh = bytes(opened.view("refresh")).decode() if "refresh" in opened.names else ""
    if FIELDS in opened.names:
        with suppress(json.JSONDecodeError, UnicodeDecodeError, AttributeError, TypeError):
            return token_fields(bytes(opened.view(FIELDS)), access=access, refresh=refresh)
        raise CorruptDocumentError(
            "The fields of the token are malformed.", hint="Store it again."
        )
    return plain_fields(
        access=access,
        refresh=refresh,
        expires=info.expires if info else None,
        token_type=(info.token_type if info else "") or "Bearer",
        scope=info.scope if info else "",
    )


# -- the manager ----------------------------------------------------------------------------


T = TypeVar("T")
Use = Callable[[Opened, CredentialInfo | None], T]

_KINDS: Final = {
    "api_key": (CredentialKind.API_KEY,),
    "oauth_token": (CredentialKind.OAUTH_TOKEN,),
    "all": (CredentialKind.API_KEY, CredentialKind.OAUTH_TOKEN),
}
_HANDLES: Final = (
    "Use a handle instead: declare the credential in the plugin's manifest and call "
    "credentials[{service!r}].client(); see docs/MIGRATING.md."
)
_ROUNDS: Final = 3

_warned: set[str] = set()
_warning = threading.Lock()


class ApiKeyManager(Closes):
    """API keys and OAuth tokens by service.

    Args:
        config_dir: ``…/security``: the vault is what that is in; any other directory is
            the vault's own. ``~/.apex_agent`` by default.
        credentials_dir: ``…/credentials``, likewise; where older files are, besides.
        create_dirs: Make a vault where there is none.
        migrate_legacy: Take over what older programs left there.
        master: Where the master key is; by default as the vault says, and for a new one as
            ``$APEX_CREDS_MASTER`` does (a URI, never a key), or in the OS keyring.

    Attributes:
        config_dir: The vault's ``security`` folder.
        credentials_dir: Its ``credentials`` folder.

    Raises:
        ApiKeyManagerError: One of its subclasses says what is wrong.
    """

    def __init__(
        self,
        config_dir: AnyPath | None = None,
        credentials_dir: AnyPath | None = None,
        create_dirs: bool = True,
        migrate_legacy: bool = True,
        *,
        master: str | MasterKeyProvider | None = None,
    ) -> None:
        found = places(config_dir, credentials_dir)
        self._thread = LoopThread("apex-creds-compat")
        opening = partial(
            open_vault, found, create=create_dirs, migrating=migrate_legacy, master=master
        )
        try:
            with translated():
                self._vault = self._thread.call(opening)
        except BaseException:
            self._thread.close()
            raise
        self._vault.obey_lockdown()
        self.config_dir = str(self._vault.home / SECURITY)
        self.credentials_dir = str(self._vault.home / CREDENTIALS)
        self._fallback = Fallback(self._vault) if migrate_legacy else None
        self._close = weakref.finalize(self, _close, self._thread, self._vault)

    # -- life --------------------------------------------------------------------

    def close(self) -> None:
        """Seals the vault; idempotent. It happens at the interpreter's end, too."""
        self._close()

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> object:
            # Only what is not there comes here, as the attributes that held keys and secrets.
            raise AttributeError(
                f"{type(self).__name__} has no attribute {name!r}. Keys and secrets are not "
                "held in attributes any more; docs/MIGRATING.md says what there is instead."
            )

    # -- API keys and tokens -------------------------------------------------------

    def set_api_key(self, service_name: str | Enum, api_key: str) -> None:
        """Stores a service's API key, in place of the one before.

        Raises:
            ApiKeyManagerError: It could not be stored.
        """
        service = _checked(service_name)
        _check_text(api_key, "API key")
        with translated():
            secret = ApiKey(api_key)
        self._call(partial(self._store, service, secret))

    def get_api_key(self, service_name: str | Enum) -> str | None:
        """A service's API key, or None. Audited as an exposure.

        Raises:
            ApiKeyManagerError: It could not be read.
        """
        service = _checked(service_name)
        _warn("get_api_key", service)
        return self._read(
            service, CredentialKind.API_KEY, "compat.get_api_key", lambda o, _: text_of(o)
        )

    def set_oauth_token(self, service_name: str | Enum, token_data: dict[str, object]) -> None:
        """Stores a service's OAuth token, in place of the one before.

        Args:
            service_name: Names it.
            token_data: ``access_token``, ``refresh_token``, ``expires_at`` (Unix seconds),
                ``token_type``, ``scope``; whatever else there is, is kept with it.

        Raises:
            ApiKeyManagerError: It could not be stored.
        """
        service = _checked(service_name)
        if not isinstance(token_data, dict):
            raise TypeError("The token is not a dict.")
        with translated():
            secret = token_secret(token_data)
        self._call(partial(self._store, service, secret))

    def get_oauth_token(self, service_name: str | Enum) -> dict[str, object] | None:
        """A service's OAuth token as it was stored, or None. Audited as an exposure.

        Raises:
            ApiKeyManagerError: It could not be read.
        """
        service = _checked(service_name)
        _warn("get_oauth_token", service)
        kind = CredentialKind.OAUTH_TOKEN
        return self._read(service, kind, "compat.get_oauth_token", token_of)

    def delete_credential(self, service_name: str | Enum, credential_type: str = "all") -> bool:
        """Deletes ``api_key``, ``oauth_token`` or ``all`` of a service.

        Returns:
            Whether there was anything to delete.

        Raises:
            ValueError: Another type.
            ApiKeyManagerError: It could not be deleted.
        """
        service = _checked(service_name)
        kinds = _KINDS.get(credential_type)
        if kinds is None:
            raise ValueError(f"credential_type is one of {', '.join(_KINDS)}.")

        async def delete(kind: CredentialKind) -> bool:
            forgotten = await self._forget(service, kind)
            info = find_info(await self._vault.list(principal=""), service, kind)
            if info is not None:
                with suppress(CredentialNotFoundError):
                    await self._vault.delete(info.name)
                    return True
            return forgotten

        deleted = [self._call(partial(delete, kind)) for kind in kinds]
        return any(deleted)

    def list_configured_services(self) -> dict[str, list[str]]:
        """The services that have an API key, and those that have a token."""

        async def work() -> dict[str, list[str]]:
            found: dict[CredentialKind, set[str]] = {kind: set() for kind in _KINDS["all"]}
            for info in await self._vault.list(principal=""):
                if info.kind in found:
                    found[info.kind].add(info.service)
            legacy = await self._fallback.entries() if self._fallback else ()
            for _, entry, _ in legacy:
                if entry.kind in found:
                    found[entry.kind].add(credential_name(entry.service))
            return {
                "api_keys": sorted(found[CredentialKind.API_KEY]),
                "oauth_tokens": sorted(found[CredentialKind.OAUTH_TOKEN]),
            }

        return self._call(work)

    # -- in the event loop's thread ----------------------------------------------

    def _call(self, work: Work[T]) -> T:
        if not self._close.alive:
            raise ApiKeyManagerError("The manager is closed.", hint="Make another one.")
        with translated():
            return self._thread.call(work)

    def _read(self, service: str, kind: CredentialKind, action: str, use: Use[T]) -> T | None:
        async def work() -> T | None:
            info = find_info(await self._vault.list(principal=""), service, kind)
            async with AsyncExitStack() as stack:
                if info is not None:
                    with suppress(CredentialNotFoundError):  # deleted in this very moment
                        opened = await stack.enter_async_context(
                            self._vault.open(info.name, action=action, for_program=True)
                        )
                        return use(opened, info)
                legacy = await self._legacy(service, kind, action)
                return None if legacy is None else use(stack.enter_context(legacy), None)

        return self._call(work)

    async def _legacy(
        self, service: str, kind: CredentialKind, action: str, plugin: str = ""
    ) -> Opened | None:
        """Out of an old file that is not migrated yet."""
        if self._fallback is None:
            return None
        for name in names_for(service, kind):
            found = await self._fallback.find(name, kind=kind)
            if found is not None:
                return await self._fallback.release(found, action=action, plugin=plugin)
        return None

    async def _store(self, service: str, secret: Secret) -> None:
        await self._forget(service, secret.kind)
        for attempt in range(_ROUNDS):
            infos = await self._vault.list(principal="")
            known = named_info(infos, service, secret.kind)
            name = known.name if known else free_name(infos, service, secret.kind)
            try:
                await self._put(name, secret, None if known else credential_name(service))
            except CredentialExistsError:  # another writer took the name for another kind
                if attempt + 1 == _ROUNDS:
                    raise
            else:
                return

    async def _put(self, name: str, secret: Secret, service: str | None) -> CredentialInfo:
        """Stores any text, as the old managers did, also one that no request can carry."""
        item = PutItem(name=name, secret=secret, service=service, as_is=True)
        return (await self._vault.put_many([item]))[0]

    async def _forget(self, service: str, kind: CredentialKind) -> bool:
        """So that an old file's value neither comes back nor is in conflict later."""
        if self._fallback is None:
            return False
        for name in names_for(service, kind):
            found = await self._fallback.find(name, kind=kind)
            if found is not None:
                await self._fallback.forget(found)
                return True
        return False


def _close(thread: LoopThread, vault: Vault) -> None:
    with suppress(RuntimeError):  # at the interpreter's end no thread can be started
        thread.call(vault.close)
    thread.close()


def _checked(service_name: object) -> str:
    """A service's name, also as a member of the program's enumeration of providers."""
    name = name_of(service_name)
    _check_text(name, "service")
    assert isinstance(name, str)
    return name


def _check_text(value: object, what: str) -> None:
    if not isinstance(value, str):
        raise TypeError(f"The {what} is not a str.")
    if not value:
        raise ValueError(f"The {what} is empty.")


def _warn(method: str, service: str) -> None:
    """Once in a process for each method: the caller's code is what is to be changed."""
    with _warning:
        if method in _warned:
            return
        _warned.add(method)
    text = f"{method} hands out a raw secret. " + _HANDLES.format(service=service)
    warnings.warn(text, DeprecationWarning, stacklevel=3)
