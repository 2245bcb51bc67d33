"""Reads another vault of this project as a source.

Guarantee: the other vault is read through its own front door (each opening is in its own
log) and nothing in it changes.
"""

from __future__ import annotations

from apex_creds.errors import InvalidInputError
from apex_creds.keys import MasterKeyProvider
from apex_creds.migration.entries import Entry, Reading
from apex_creds.model import CredentialInfo, CredentialKind, OAuthToken, Secret
from apex_creds.vault import Opened, Vault


async def read_vault(
    path: str, *, into: Vault, master: str | MasterKeyProvider | None = None
) -> Reading:
    """Every credential of the vault at ``path``.

    Args:
        path: Its directory.
        into: The vault that takes them.
        master: Where its master key is; as it says itself, by default.

    Raises:
        InvalidInputError: It is the very same vault.
        ApexCredsError: It can't be unsealed.
    """
    async with await Vault.unseal(path, master=master) as vault:
        if vault.vault_id == into.vault_id:
            raise InvalidInputError(
                "That is this vault itself.", hint="Name another one with --from."
            )
        entries = []
        for info in await vault.list():
            async with vault.open(info.name, action="migrate") as opened:
                entries.append(_entry(info, opened))
        granted = len(await vault.grants())
    notes = (f"Its {granted} grants are not taken: grant again what you want.",)
    return Reading(entries=tuple(entries), notes=notes if granted else ())


def _entry(info: CredentialInfo, opened: Opened) -> Entry:
    parts = {name: bytes(opened.view(name)) for name in opened.names}
    return Entry(
        service=info.service,
        kind=info.kind,
        secret=_secret(info, parts),
        label=info.name,
        like=info,
    )


def _secret(info: CredentialInfo, parts: dict[str, bytes]) -> Secret:
    if info.kind is not CredentialKind.OAUTH_TOKEN:
        return Secret(info.kind, parts)
    made = OAuthToken(
        "-", expires_at=info.expires, token_type=info.token_type, scope=info.scope
    )
    made.parts = parts
    return made
