"""``connect`` and ``disconnect``: OAuth tokens from a provider, and back.

Guarantee: no token is printed; the address that a person opens has none in it. What was not
issued is not stored.
"""

from __future__ import annotations

import webbrowser
from contextlib import suppress
from threading import Thread
from typing import Annotated

from apex_creds.cli import console
from apex_creds.cli.command import (
    ForOption,
    NameArgument,
    OriginOption,
    Settings,
    command,
    with_vault,
)
from apex_creds.cli.console import Note, Report, done, note
from apex_creds.cli.credential_commands import about_origins, as_json
from apex_creds.cli.program import argument, flag, option
from apex_creds.errors import CredentialNotFoundError, InvalidInputError
from apex_creds.model import Assertion, key_of, shown_key
from apex_creds.oauth import Way
from apex_creds.oauth import connect as connect_to
from apex_creds.oauth import disconnect as disconnect_from
from apex_creds.oauth import provider_presets as providers
from apex_creds.oauth.connect import way_of
from apex_creds.policy.display import show_time
from apex_creds.vault import Vault


@command()
async def connect(
    vault: Vault,
    provider: Annotated[
        str,
        argument(
            "PROVIDER",
            f"{', '.join(providers.PRESETS)}; an issuer's https address; or a JSON file.",
        ),
    ],
    name: Annotated[
        str | None, option("NAME", "Of the credential; the provider's name by default.")
    ] = None,
    client_id: Annotated[
        str | None,
        option("ID", "Of the client that you have registered there; as before by default."),
    ] = None,
    client_secret: Annotated[
        str | None,
        option("NAME", "The credential that holds that client's secret, if it has one."),
    ] = None,
    scope: Annotated[
        str | None, option("SCOPES", "What is asked for, with blanks between.")
    ] = None,
    origin: OriginOption = None,
    device: Annotated[
        bool, flag("Type a code on another device; for machines without a browser.", "--device")
    ] = False,
    client: Annotated[
        bool, flag("A token for the client itself; nobody is asked.", "--client")
    ] = False,
    jwt_key: Annotated[
        str | None,
        option(
            "NAME",
            "The credential whose private key signs (RFC 7523); nobody is asked.",
        ),
    ] = None,
    exchange: Annotated[
        str | None,
        option("NAME", "The credential whose token is exchanged (RFC 8693); nobody is asked."),
    ] = None,
    issuer: Annotated[str, option("TEXT", "With --jwt-key: who signs.")] = "",
    subject: Annotated[str, option("TEXT", "With --jwt-key: for whom.")] = "",
    audience: Annotated[
        str, option("TEXT", "Who the signature, or the new token, is for.")
    ] = "",
    key_id: Annotated[str, option("TEXT", "With --jwt-key: the key's id there.")] = "",
    algorithm: Annotated[str, option("NAME", "RS256, ES256 or EdDSA.")] = "RS256",
    port: Annotated[
        int, option("PORT", "Of the redirect to this machine; any by default.")
    ] = 0,
    browser: Annotated[bool, flag("Open a browser.", "--browser/--no-browser")] = True,
    whose: ForOption = None,
) -> Report:
    """Get an OAuth token from a provider, and keep it valid from then on.

    Register a client there first: as a native or desktop application, with the redirect
    http://127.0.0.1/callback.
    """
    if sum((device, client, jwt_key is not None, exchange is not None)) > 1:
        raise InvalidInputError("--device, --client, --jwt-key and --exchange exclude another.")
    found = await providers.find(provider)
    chosen = name or found.name
    try:
        before = (await vault.get(chosen, principal=whose or "")).connection
    except CredentialNotFoundError:
        before = None
    assertion = before.assertion if before is not None else None
    if source := jwt_key or exchange:
        owner = ""  # the principal, where the source is their own; else it is the shared one
        with suppress(CredentialNotFoundError):
            owner = (await vault.get(source, principal=whose or "")).principal
        assertion = Assertion(
            credential=source,
            principal=owner,
            issuer=issuer,
            subject=subject,
            audience=audience,
            key_id=key_id,
            algorithm=algorithm,
        )
    if client_id is None and before is None and jwt_key is None:
        raise InvalidInputError(
            "The provider has to know who asks.",
            hint="Register a client there, and say --client-id ID.",
        )
    ways = (
        (device, Way.DEVICE),
        (client, Way.CLIENT),
        (jwt_key, Way.JWT),
        (exchange, Way.EXCHANGE),
    )
    way = next((each for asked, each in ways if asked), way_of(before))

    def show(address: str) -> None:
        note(f"Open this, and allow it: {address}")
        if browser and way is Way.BROWSER:
            Thread(target=webbrowser.open, args=(address,), daemon=True).start()

    made = await connect_to(
        vault,
        chosen,
        found,
        client_id=client_id or (before.client_id if before else ""),
        client_secret=(before.client_secret if before else "")
        if client_secret is None
        else client_secret,
        scope=(before.scope if before else "") if scope is None else scope,
        way=way,
        origins=origin,
        show=show,
        port=port,
        principal=whose or "",
        assertion=assertion,
    )
    until = show_time(made.info.expires) or "further notice"
    renewed = "renewed before that" if made.renewable else "not renewed: no refresh token came"
    return done(
        as_json(made.info, vault.clock.time()),
        f"Connected {shown_key(made.info.key)} to {found.name}; the token is good until "
        f"{until}, and {renewed}.",
        notes=[
            *about_origins(made.info),
            *(() if made.info.expires is None or made.renewable else (_ASK_OFFLINE,)),
        ],
    )


_ASK_OFFLINE = Note("Most providers give a refresh token for the scope offline_access.")


@command()
def disconnect(
    chosen: Settings,
    name: NameArgument,
    yes: Annotated[bool, flag("Do not ask.", "--yes", "-y")] = False,
    whose: ForOption = None,
) -> Report:
    """Revoke a connection's tokens at its provider, and delete the credential."""
    called = shown_key(key_of(name, whose or ""))
    question = f"Revoke and delete {console.safe(called)} for good?"
    if not yes and not console.confirmed(question, about="whether to disconnect it"):
        return Report({"disconnected": None}, notes=[Note("Nothing was changed.")], code=1)
    revoked = with_vault(
        chosen, lambda vault: disconnect_from(vault, name, principal=whose or "")
    )
    where = "Its tokens are revoked at the provider." if revoked else _NO_REVOCATION
    return done({"disconnected": name, "revoked": revoked}, f"Deleted {called}. {where}")


_NO_REVOCATION = "The provider has no way to revoke tokens: end it on its own page, too."
