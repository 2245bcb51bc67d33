"""The SecretBox format: at this project's own paths, set aside, read, migrated."""

from __future__ import annotations

import os
from logging import WARNING
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from apex_creds.errors import (
    DecryptionError,
    UnsafePathError,
    UnsafePermissionsError,
    VaultExistsError,
)
from apex_creds.migration import Options, is_legacy, migrate, on_unseal, set_aside
from apex_creds.migration.progress import SourceReport, migration_document
from apex_creds.model import ApiKey
from apex_creds.vault import Vault
from tests.support import old
from tests.support.vaults import tree

pytestmark = pytest.mark.anyio

LISTED = [
    {"provider": "openai", "key": "sk-1", "name": "work"},
    {"provider": "openai", "key": "sk-2", "name": "home"},
    {"provider": "later", "key": None},
    {"provider": "single", "key": "s-1"},
]


@pytest.fixture
def home(place: Path) -> Path:
    return place / ".apex_agent"


async def moved(home: Path, master: str, **options: object) -> tuple[Vault, SourceReport]:
    """Sets aside, creates, migrates; as ``init`` and the first unsealing do."""
    assert await set_aside(home, environ=old.ENV)
    vault = await Vault.create(home, master=master)
    report = await migrate(vault, options=Options(**options), environ=old.ENV)
    assert len(report.sources) == 1
    return vault, report.sources[0]


async def test_an_installation_moves(home: Path, master: str) -> None:
    files = old.box_files()
    old.install(home, files)
    assert is_legacy(home)
    vault, report = await moved(home, master)
    async with vault:
        assert report.complete, report
        assert sorted(await old.secrets(vault)) == old.NAMES
        assert not is_legacy(home)
    left = {p.name: p.read_bytes() for p in (home / "legacy").iterdir()}
    assert left == {f"{Path(name).name}.bak": data for name, data in files.items()}


async def test_the_variable_in_url_safe_form_or_the_keyring_will_do(
    home: Path, master: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import keyring

    old.install(home, old.box_files())
    with pytest.raises(DecryptionError):
        await set_aside(home, environ={})
    entries = {("ApexAgent", "master_key"): old.b64(old.MASTER)}
    monkeypatch.setattr(keyring, "get_password", lambda *names: entries.get(names))
    assert await set_aside(home, environ=old.WRONG)


async def test_string_order_of_versions(home: Path, master: str) -> None:
    """``v9`` was chosen after ``v10`` was made; items are under others still."""
    named = old.deks("dek_api", (1, 2, 9, 10, 11))
    api = old.listed(named["dek_api_v2"], LISTED[:1])
    api["keys"] += old.listed(named["dek_api_v11"], [{"provider": "b", "key": "b-1"}])["keys"]
    old.install(home, old.box_files(api, api_deks=named))
    vault, report = await moved(home, master)
    async with vault:
        assert report.complete, report
        assert await old.value(vault, "openai") == "sk-1"
        assert await old.value(vault, "b") == "b-1"


async def test_the_list_form(home: Path, master: str) -> None:
    named = old.deks("dek_api")
    tokens = old.deks("dek_oauth")
    api = old.listed(named["dek_api_v1"], LISTED)
    token = old.listed(
        tokens["dek_oauth_v1"],
        [{"provider": "g", "key": old.TOKEN}, {"provider": "p", "key": "x"}],
    )
    old.install(home, old.box_files(api, token))
    vault, report = await moved(home, master)
    async with vault:
        assert report.complete, report
        assert await old.secrets(vault) == {
            "openai": "sk-1", "openai/id-1": "sk-2", "single": "s-1", "g": "at-1",
            "p": "x",
        }  # fmt: skip
        assert (await vault.get("openai/id-1")).service == "openai"
        fields = await old.value(vault, "openai/id-1", "fields")
        assert '"additional_config":{"n":1}' in fields
        assert [e.fate.value for e in report.entries].count("placeholder") == 1


async def test_partial_damage(home: Path, master: str) -> None:
    named = old.deks("dek_api")
    api = old.listed(named["dek_api_v1"], LISTED)
    api["keys"][0]["encrypted_key"] = old.b64(b"\0" * 60)
    api["keys"][1]["encrypted_key"] = "not base64!"
    api["keys"].append("not an entry")
    files = old.box_files(api)
    files["credentials/oauth_tokens.enc"] = os.urandom(200)
    old.install(home, files)
    vault, report = await moved(home, master)
    async with vault:
        assert [(e.service, e.fate.value) for e in report.entries] == [
            ("openai", "unreadable"), ("openai", "unreadable"), ("later", "placeholder"),
            ("single", "migrated"), ("(entry 5)", "invalid"),
            ("(oauth_tokens.enc)", "unreadable"),
        ]  # fmt: skip
        assert await old.secrets(vault) == {"single": "s-1"}
    assert (home / "legacy/oauth_tokens.enc").read_bytes() == files[
        "credentials/oauth_tokens.enc"
    ]


async def test_configuration_becomes_grants_and_intervals(home: Path, master: str) -> None:
    config = {
        "rotation": {
            "master_key": {"rotation_interval_days": 365},
            "data_encryption_keys": 30,
            "key_encryption_keys": "often",
        },
        "plugin_permissions": {"p1": ["openai", "absent"], "p2": ["*"], "p3": "all", "": ["*"]},
    }
    old.install(home, old.box_files(config=config))
    vault, report = await moved(home, master)
    async with vault:
        assert report.complete
        pairs = sorted((g.plugin, g.credential) for g in await vault.grants())
        assert pairs == [("p1", "openai"), *(("p2", name) for name in old.NAMES)]
        state = await migration_document(vault.store).read()
        assert state.intervals == {"master_key": 365, "data_encryption_keys": 30}


async def test_a_grant_that_was_revoked_does_not_come_back(home: Path, master: str) -> None:
    api = {"openai": "sk-1", "bad": 7}
    config = {"plugin_permissions": {"p1": ["openai"]}}
    old.install(home, old.box_files(api, config=config))
    vault, report = await moved(home, master)
    async with vault:
        assert not report.complete
        await vault.revoke(plugin="p1")
        await migrate(vault, environ=old.ENV)
        assert not list(await vault.grants())


async def test_a_wrong_key_moves_nothing(home: Path) -> None:
    old.install(home, old.box_files())
    before = tree(home)
    for environ in ({}, old.WRONG):
        with pytest.raises(DecryptionError, match="does not open"):
            await set_aside(home, environ=environ)
    assert tree(home) == before


async def test_ours_is_never_set_aside_however_damaged(vault: Vault, home: Path) -> None:
    await vault.put("a", ApiKey("1"))
    path = home / "security/keystore.enc"
    data = path.read_bytes()
    for at in range(0, len(data), 29):
        for damaged in (data[:at], data[:at] + b"\xff" + data[at + 1 :], data[at:]):
            path.write_bytes(damaged)
            assert not await set_aside(home, environ=old.ENV)
            assert path.read_bytes() == damaged


async def test_an_old_key_store_over_a_vault_is_refused(vault: Vault, home: Path) -> None:
    await vault.put("a", ApiKey("1"))
    files = old.box_files()
    (home / "security/keystore.enc").write_bytes(files["security/keystore.enc"])
    before = tree(home)
    with pytest.raises(VaultExistsError, match="of a vault"):
        await set_aside(home, environ=old.ENV)
    assert tree(home) == before


async def test_noise_is_not_taken_for_an_old_key_store(home: Path) -> None:
    old.install(home, {"security/keystore.enc": os.urandom(500)})
    with pytest.raises(DecryptionError):
        await set_aside(home, environ=old.ENV)


async def test_links_and_open_directories_are_refused(home: Path, tmp_path: Path) -> None:
    old.install(home, old.box_files())
    for folder, mode in ((home, 0o775), (home, 0o757), (home / "security", 0o755)):
        folder.chmod(mode)
        with pytest.raises(UnsafePermissionsError):
            await set_aside(home, environ=old.ENV)
        folder.chmod(0o700)
    home.chmod(0o700)
    (home / "legacy").symlink_to(tmp_path)
    with pytest.raises(UnsafePathError):
        await set_aside(home, environ=old.ENV)
    (home / "legacy").unlink()
    path = home / "security/keystore.enc"
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UnsafePathError):
        await set_aside(home, environ=old.ENV)


async def test_another_installation_is_migrated_where_it_is(
    vault: Vault, tmp_path: Path
) -> None:
    there = old.install(tmp_path / "old", old.box_files())
    for form in (there, there / "security", there / "security/keystore.enc"):
        report = await migrate(vault, [form], options=Options(dry_run=True), environ=old.ENV)
        assert report.complete
        assert len(report.sources[0].entries) == 4
    report = await migrate(vault, [there], environ=old.ENV)
    assert report.complete
    assert sorted(p.name for p in there.rglob("*.bak")) == [
        "api_keys.enc.bak", "keystore.enc.bak", "oauth_tokens.enc.bak",
    ]  # fmt: skip
    assert sorted(await old.secrets(vault)) == old.NAMES


async def test_both_formats_at_once(home: Path, place: Path, master: str) -> None:
    old.install(home, old.box_files())
    old.fernet_file(place, {"api_keys": {"openai": "another", "only": "1"}})
    assert await set_aside(home, environ=old.ENV)
    async with await Vault.create(home, master=master) as vault:
        report = await on_unseal(vault, environ=old.ENV)
        assert [s.complete for s in report.sources] == [True, False]
        assert await old.value(vault, "openai") == "sk-1"
        assert await old.value(vault, "only") == "1"


async def test_a_default_installation_is_closed_where_it_counts(
    home: Path, master: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Its home can be looked into, and its configuration has no secret."""
    old.install_by_default(home, old.box_files(config={"version": "1.0.0"}))
    vault, report = await moved(home, master)
    async with vault:
        assert (report.complete, report.notes) == (True, ())
    assert home.stat().st_mode & 0o777 == 0o755
    async with await Vault.unseal(home, master=master) as vault:
        assert sorted(await old.secrets(vault)) == old.NAMES
        await vault.grant("p", "openai")
        await vault.revoke(plugin="p")
    assert not [entry.getMessage() for entry in caplog.records if entry.levelno >= WARNING]


async def test_a_file_that_others_can_reach_is_named(
    vault: Vault, request: pytest.FixtureRequest
) -> None:
    open_place = TemporaryDirectory()  # pytest's own is closed to others
    request.addfinalizer(open_place.cleanup)
    there = old.install(Path(open_place.name) / "old", old.box_files())
    path = there / "credentials/api_keys.enc"
    path.chmod(0o644)
    for mode, seen in ((0o700, False), (0o711, True)):
        for folder in (there.parent, there, path.parent):
            folder.chmod(mode)
        report = await migrate(vault, [there], options=Options(dry_run=True), environ=old.ENV)
        assert any(str(path) in note for note in report.sources[0].notes) is seen
