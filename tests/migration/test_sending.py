"""Where migrated credentials may be sent: by what is known of a service, or by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from apex_creds.migration import OnConflict, Options, migrate, preview
from apex_creds.migration.entries import _HOSTS, sending
from apex_creds.model import ApiKey, CredentialKind
from apex_creds.vault import Vault
from tests.support import old

KEY, TOKEN = CredentialKind.API_KEY, CredentialKind.OAUTH_TOKEN
GEMINI = ["https://generativelanguage.googleapis.com"]


@pytest.mark.parametrize(
    ("service", "kind", "origins", "delivery"),
    [
        ("openai", KEY, ["https://api.openai.com"], "None"),
        ("OPENAI_API_KEY", KEY, ["https://api.openai.com"], "None"),
        ("Anthropic", KEY, ["https://api.anthropic.com"], "header:x-api-key"),
        ("google", KEY, GEMINI, "header:x-goog-api-key"),
        ("google", TOKEN, ["https://www.googleapis.com"], "None"),
        ("google-calendar", TOKEN, ["https://www.googleapis.com"], "None"),
        ("STRIPE_SECRET_KEY", KEY, ["https://api.stripe.com"], "None"),
        ("GITHUB_TOKEN", TOKEN, ["https://api.github.com"], "None"),
        ("azure_openai", KEY, [], "None"),
        ("openai.evil", KEY, [], "None"),
        ("key", KEY, [], "None"),
        ("openai", CredentialKind.BASIC, [], "None"),
    ],
)
def test_what_is_known(
    service: str, kind: CredentialKind, origins: list[str], delivery: str
) -> None:
    found = sending(service, kind)
    assert [str(origin) for origin in found.origins] == origins
    assert str(found.delivery) == delivery


def test_the_table_holds_hosts_that_can_be_origins() -> None:
    for service in _HOSTS:
        for kind in (KEY, TOKEN):
            assert all(o.scheme == "https" for o in sending(service, kind).origins)


@pytest.mark.anyio
async def test_known_services_are_ready_and_the_rest_is_named(
    vault: Vault, place: Path
) -> None:
    old.fernet_file(place, {"api_keys": {"anthropic": "sk-1", "inhouse": "k-1"}})
    shown = (await preview(vault.home, environ=old.ENV)).sources[0]
    report = (await migrate(vault, environ=old.ENV)).sources[0]
    for found in (shown, report):
        assert found.nowhere == ("inhouse",)
        assert found.entries[0].origins == ("https://api.anthropic.com",)
        assert found.entries[0].delivery == "header:x-api-key"
    info = await vault.get("anthropic")
    assert [str(origin) for origin in info.origins] == ["https://api.anthropic.com"]
    assert str(info.delivery) == "header:x-api-key"
    assert not (await vault.get("inhouse")).origins


@pytest.mark.anyio
async def test_what_the_owner_said_stays(vault: Vault, place: Path) -> None:
    await vault.put("openai", ApiKey("1"), origins=["https://proxy.example"])
    old.fernet_file(place, {"api_keys": {"openai": "2"}})
    await migrate(vault, options=Options(on_conflict=OnConflict.REPLACE), environ=old.ENV)
    info = await vault.get("openai")
    assert [str(origin) for origin in info.origins] == ["https://proxy.example"]
    assert await old.value(vault, "openai") == "2"
