"""``EnhancedApiKeyManager``: the old manager with permissions and rotation.

Guarantee: a permission is a grant in the vault. A plugin is refused where there is none,
where policy refuses or would ask a person, and while the vault is locked down; a refusal is
in the log and returns nothing but None to the plugin.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

from msgspec.structs import replace

from apex_creds.audit.events import AuditEvent, EventKind
from apex_creds.compat import vault_session
from apex_creds.compat.manager import (
    ApiKeyManager,
    _check_text,
    _checked,
    _warn,
    find_info,
    free_name,
    names_for,
    text_of,
    token_of,
)
from apex_creds.compat.modes import ApiKeyMode, parse_mode, read_mode, write_mode
from apex_creds.compat.vault_session import AnyPath, translated
from apex_creds.errors import CredentialNotFoundError, InvalidInputError
from apex_creds.keys import MasterKeyProvider
from apex_creds.migration.entries import api_key_entry, credential_name
from apex_creds.migration.progress import MigrationState, migration_document
from apex_creds.model import CredentialInfo, CredentialKind, new_id
from apex_creds.policy.decide import decide
from apex_creds.policy.display import check_plugin
from apex_creds.policy.grants import Grant, GrantDecision
from apex_creds.policy.manifest import Access, Need
from apex_creds.policy.policy_file import load_policy
from apex_creds.scheduler.schedule import Level
from apex_creds.vault import Opened

T = TypeVar("T")

_KINDS: Final = (CredentialKind.API_KEY, CredentialKind.OAUTH_TOKEN)
_ROTATIONS: Final = {
    "kek": (Level.KEK,),
    "dek": (Level.DEK,),
    "all": (Level.KEK, Level.DEK),
}
_MAX_DAYS: Final = 36_500


class EnhancedApiKeyManager(ApiKeyManager):
    """As ``ApiKeyManager``, with permissions for plugins, several keys of a provider, rotation.

    The methods of both builds: of the one that has ``set_api_key`` and permissions, and of
    the present one, which has ``add_user_api_key`` and a mode.

    Args:
        config_dir: See ``ApiKeyManager``, as for the next three, and ``master``.
        installation_config_dir: Where ``installation.json`` says the mode.
    """

    def __init__(
        self,
        config_dir: AnyPath | None = None,
        credentials_dir: AnyPath | None = None,
        create_dirs: bool = True,
        migrate_legacy: bool = True,
        *,
        installation_config_dir: AnyPath | None = None,
        master: str | MasterKeyProvider | None = None,
    ) -> None:
        super().__init__(
            config_dir, credentials_dir, create_dirs, migrate_legacy, master=master
        )
        given = installation_config_dir
        self._installation = Path(given) if given else self._vault.home.parent / "config"
        self._mode = read_mode(self._installation)

    # -- access control ------------------------------------------------------------

    def enable_access_control(self, enabled: bool = True) -> None:
        """Whether the ``…_secure`` methods ask for a permission; for good. They do at first."""
        on = bool(enabled)

        async def work() -> None:
            await migration_document(self._vault.store).change(
                lambda s: s if s.access_control is on else replace(s, access_control=on)
            )

        self._call(work)

    def set_plugin_permissions(
        self, plugin_id: str, allowed_services: Iterable[str | Enum]
    ) -> None:
        """Permits a plugin these services and no others.

        Raises:
            ApiKeyManagerError: The plugin's id can't be one, or it could not be stored.
        """
        services = [_checked(service) for service in allowed_services]

        async def work() -> None:
            check_plugin(plugin_id)
            infos = await self._vault.list(principal="")
            wanted = {name for service in services for name in _names(infos, service)}
            grants = [
                grant
                for grant in await self._vault.grants()
                if grant.plugin == plugin_id and not grant.principal
            ]
            for grant in grants:
                if grant.credential not in wanted:
                    await self._vault.revoke(
                        plugin=plugin_id, credential=grant.credential, keep_denials=True
                    )
            kept = {grant.credential for grant in grants if _permits(grant)}
            for name in sorted(wanted - kept):
                await self._vault.grant(plugin_id, name, reveal=True)

        self._call(work)

    def check_plugin_permission(self, plugin_id: str, service_name: str | Enum) -> bool:
        """Whether a plugin may have a service's API key or token."""
        return self._call(partial(self._may_any, plugin_id, _checked(service_name)))

    def get_plugin_permissions(self, plugin_id: str) -> list[str]:
        """The services that a plugin is permitted."""

        async def work() -> list[str]:
            services = {
                info.name: info.service for info in await self._vault.list(principal="")
            }
            grants = [grant for grant in await self._vault.grants() if _permits(grant)]
            mine = [g for g in grants if g.plugin == plugin_id and not g.principal]
            names = [grant.credential for grant in mine]
            return sorted({services.get(name, name) for name in names})

        return self._call(work)

    def audit_log(
        self, plugin_id: str, action: str, service_name: str | Enum, success: bool
    ) -> None:
        """Puts what the program says of a use into the audit log, as said by it."""
        service, decision = _checked(service_name), "allow" if success else "deny"
        event = AuditEvent(
            time=self._vault.clock.time(),
            kind=EventKind.INVOCATION,
            plugin=plugin_id,
            action=f"compat.{action}",
            credential=service,
            decision=decision,
            reason="reported by the program",
        )

        async def work() -> None:
            self._vault.audit.append(event)

        self._call(work)

    def get_api_key_secure(self, plugin_id: str, service_name: str | Enum) -> str | None:
        """A service's API key for a plugin; None when denied, or when there is none."""
        service = _checked(service_name)
        _warn("get_api_key_secure", service)
        kind = CredentialKind.API_KEY
        action = "compat.get_api_key_secure"
        return self._call(
            partial(self._secure, plugin_id, service, kind, action, lambda o, _: text_of(o))
        )

    def get_oauth_token_secure(
        self, plugin_id: str, service_name: str | Enum
    ) -> dict[str, object] | None:
        """A service's token for a plugin; None when denied, or when there is none."""
        service = _checked(service_name)
        _warn("get_oauth_token_secure", service)
        kind = CredentialKind.OAUTH_TOKEN
        action = "compat.get_oauth_token_secure"
        return self._call(partial(self._secure, plugin_id, service, kind, action, token_of))

    # -- keys of the user ----------------------------------------------------------

    def get_api_key_mode(self) -> ApiKeyMode:
        """Whose keys the installation uses, as it says. No key in the vault is hidden by it."""
        return self._mode

    def set_api_key_mode(self, mode: ApiKeyMode | Enum | str) -> None:
        """Sets the mode, also in ``installation.json`` where there is one.

        Raises:
            ValueError: There is no such mode.
        """
        self._mode = parse_mode(mode)
        write_mode(self._installation, self._mode)

    def add_user_api_key(
        self,
        provider: str | Enum,
        api_key: str,
        name: str | None = None,
        additional_config: Mapping[str, object] | None = None,
    ) -> str:
        """Stores one more API key of a provider; the first one stays the one that is used.

        Args:
            provider: Whose key it is.
            api_key: The key.
            name: To show.
            additional_config: Kept with the key, encrypted.

        Returns:
            Its id, for ``remove_user_api_key``.

        Raises:
            ApiKeyManagerError: It could not be stored.
        """
        service = _checked(provider)
        _check_text(api_key, "API key")
        extra = {"metadata": {"name": name, "additional_config": additional_config}}
        with translated():
            entry = api_key_entry(service, api_key, extra=extra)
            if entry.secret is None:
                raise InvalidInputError(f"The API key can't be stored: {entry.detail}.")
        secret = entry.secret

        async def work() -> str:
            infos, kind = await self._vault.list(principal=""), CredentialKind.API_KEY
            if find_info(infos, service, kind) is None:
                stored_as = free_name(infos, service, kind)
            else:
                stored_as = credential_name(f"{service}/{new_id()[:16]}")
            info = await self._put(stored_as, secret, credential_name(service))
            await self._entitle(info.name, name or "")
            return info.id

        return self._call(work)

    def has_api_key(self, provider: str | Enum) -> bool:
        """Whether there is an API key of a provider."""
        service, kind = _checked(provider), CredentialKind.API_KEY

        async def work() -> bool:
            if find_info(await self._vault.list(principal=""), service, kind) is not None:
                return True
            legacy = await self._fallback.entries() if self._fallback else ()
            names = names_for(service, kind)
            return any(entry.kind is kind and name in names for _, entry, name in legacy)

        return self._call(work)

    def list_user_api_keys(self) -> list[dict[str, object]]:
        """All API keys, without their values, the first stored first.

        Each has ``id``, ``provider_type``, ``created_at``, ``last_used`` (None: the audit log
        has every use) and ``name``.
        """

        async def work() -> list[dict[str, object]]:
            titles = (await migration_document(self._vault.store).read()).titles
            infos = [
                i
                for i in await self._vault.list(principal="")
                if i.kind is CredentialKind.API_KEY
            ]
            return [
                {
                    "id": info.id,
                    "provider_type": info.service,
                    "created_at": info.created,
                    "last_used": None,
                    "name": titles.get(info.name, f"{info.service} API Key"),
                }
                for info in sorted(infos, key=lambda info: (info.created, info.name))
            ]

        return self._call(work)

    def remove_user_api_key(self, key_id: str) -> bool:
        """Deletes an API key by its id; whether there was one."""

        async def work() -> bool:
            for info in await self._vault.list(principal=""):
                if info.id == key_id and info.kind is CredentialKind.API_KEY:
                    with suppress(CredentialNotFoundError):
                        await self._vault.delete(info.name)
                        await self._entitle(info.name, "")
                        return True
            return False

        return self._call(work)

    # -- rotation ------------------------------------------------------------------

    def rotate_master_key(self) -> bool:
        """Renews the master key (and the KEK with it).

        Raises:
            MasterKeyError: The provider can't make one.
            StorageError: Another worker rotates at this moment.
        """
        self._call(partial(vault_session.rotate_levels, self._vault, (Level.MASTER,)))
        return True

    def rotate_encryption_keys(self, key_type: str = "all") -> bool:
        """Renews ``kek``, ``dek`` or ``all``; credentials are re-encrypted on return.

        Raises:
            ValueError: Another type.
            StorageError: Another worker rotates at this moment.
        """
        levels = _ROTATIONS.get(key_type)
        if levels is None:
            raise ValueError(f"key_type is one of {', '.join(_ROTATIONS)}.")
        self._call(partial(vault_session.rotate_levels, self._vault, levels))
        return True

    def set_key_rotation_interval(self, key_type: str, interval_days: float) -> None:
        """How often the keys of a level are renewed.

        Raises:
            ValueError: No such level, or no such interval.
        """
        if key_type not in vault_session.LEVELS:
            raise ValueError(f"key_type is one of {', '.join(vault_session.LEVELS)}.")
        if isinstance(interval_days, bool) or not 0 < interval_days <= _MAX_DAYS:
            raise ValueError("interval_days is a number greater than zero.")
        self._call(partial(vault_session.set_intervals, self._vault, {key_type: interval_days}))

    def check_key_rotation_status(self) -> dict[str, dict[str, object]]:
        """By level: ``rotation_interval_days``, ``last_rotation``, and what follows."""
        return self._call(partial(vault_session.rotation_status, self._vault))

    # -- in the event loop's thread ------------------------------------------------

    async def _entitle(self, name: str, title: str) -> None:
        def change(state: MigrationState) -> MigrationState:
            titles = {key: text for key, text in state.titles.items() if key != name}
            titles |= {name: title} if title else {}
            return state if titles == state.titles else replace(state, titles=titles)

        await migration_document(self._vault.store).change(change)

    async def _may_any(self, plugin: str, service: str) -> bool:
        infos = await self._vault.list(principal="")
        found = [info for kind in _KINDS if (info := find_info(infos, service, kind))]
        if found:
            return any([not await self._refusal(plugin, info) for info in found])
        # As the old manager: a permission may come before the credential.
        grants = await self._vault.grants()
        if not (await migration_document(self._vault.store).read()).access_control:
            return grants.lockdown is None
        names = {name for kind in _KINDS for name in names_for(service, kind)}
        chosen = (grants.find(plugin, name) for name in names)
        return grants.lockdown is None and any(g is not None and _permits(g) for g in chosen)

    async def _refusal(self, plugin: str, info: CredentialInfo) -> str:
        """Why a plugin may not have a credential; empty where it may."""
        grants, now = await self._vault.grants(), self._vault.clock.time()
        if grants.lockdown is not None:
            return "locked_down"
        grant = grants.find(plugin, info.name)
        controlled = (await migration_document(self._vault.store).read()).access_control
        if not controlled and (grant is None or grant.decision is GrantDecision.ALLOW):
            grant = Grant(id="", plugin=plugin, credential=info.name, reveal=True, created=now)
        decision = decide(
            need=Need(name=info.name, access=Access.REVEAL),
            grant=grant,
            info=info,
            now=now,
            policy=load_policy(self._vault.home),
            plugin=plugin,
            action="compat",
        )
        if decision.permission is None or not decision.permission.reveal:
            return decision.reason.value
        return ""

    async def _secure(
        self,
        plugin: str,
        service: str,
        kind: CredentialKind,
        action: str,
        use: Callable[[Opened, CredentialInfo | None], T],
    ) -> T | None:
        info = find_info(await self._vault.list(principal=""), service, kind)
        if info is None:
            if not await self._may_any(plugin, service):
                self._log(EventKind.DENIAL, plugin, service, action, reason="not_granted")
                return None
            legacy = await self._legacy(service, kind, action, plugin)
            if legacy is None:
                return None
            with legacy:
                return use(legacy, None)
        refusal = await self._refusal(plugin, info)
        if refusal:
            self._log(EventKind.DENIAL, plugin, info.name, action, reason=refusal)
            return None
        record = await self._vault.find(info.name)
        if record.info.challenge:
            self._log(EventKind.DENIAL, plugin, info.name, action, reason="challenge_needed")
            return None
        await self._vault.store.keystore()
        event = self._event(EventKind.EXPOSE, plugin, info.name, action, reason="compat")
        with self._vault.release(record, self._vault.audit.encode(event)) as opened:
            return use(opened, info)

    def _log(
        self, kind: EventKind, plugin: str, name: str, action: str, *, reason: str
    ) -> None:
        self._vault.audit.append(self._event(kind, plugin, name, action, reason=reason))

    def _event(
        self, kind: EventKind, plugin: str, name: str, action: str, *, reason: str
    ) -> AuditEvent:
        return AuditEvent(
            time=self._vault.clock.time(),
            kind=kind,
            plugin=plugin,
            action=action,
            credential=name,
            decision="deny" if kind is EventKind.DENIAL else "allow",
            reason=reason,
        )


def _names(infos: list[CredentialInfo], service: str) -> set[str]:
    """The credentials that a permission for a service is about."""
    if service == "*":
        return {info.name for info in infos if info.kind in _KINDS}
    found = {info.name for kind in _KINDS if (info := find_info(infos, service, kind))}
    return found or {names_for(service, CredentialKind.API_KEY)[0]}


def _permits(grant: Grant) -> bool:
    return grant.reveal and grant.decision is GrantDecision.ALLOW
