"""Migration: everything arrives, nothing is replaced, the source goes only in the end."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections import Counter
from pathlib import Path

import pytest

from apex_creds.errors import ConflictError, CredentialNotFoundError, StorageLockedError
from apex_creds.migration import (
    Fate,
    OnConflict,
    Options,
    Report,
    SourceReport,
    cleanup,
    finish,
    legacy_files,
    migrate,
    migration_document,
    on_unseal,
    switch,
)
from apex_creds.migration.legacy_files import exclusive
from apex_creds.migration.progress import Phase
from apex_creds.model import ApiKey, BasicAuth
from apex_creds.vault import Vault
from tests.support import old

pytestmark = pytest.mark.anyio


def fates(report: SourceReport) -> dict[str, str]:
    return {f"{entry.kind}:{entry.service}": entry.fate.value for entry in report.entries}


async def run(vault: Vault, *paths: Path | str, **options: object) -> SourceReport:
    found = await migrate(
        vault, paths or None, options=Options(**options), environ=old.ENV, wait=0
    )
    assert len(found.sources) == 1
    return found.sources[0]


async def test_a_fernet_file_moves_by_itself(vault: Vault, place: Path) -> None:
    path = old.fernet_file(place)
    data = path.read_bytes()
    report = await on_unseal(vault, environ=old.ENV)
    assert report.complete
    assert await old.secrets(vault) == {
        "github": "gh-1", "github/oauth_token": "at-1", "google": "at-2", "openai": "sk-1",
    }  # fmt: skip
    assert not path.exists()
    assert Path(f"{path}.bak").read_bytes() == data
    assert report.sources[0].phase is Phase.BACKED_UP
    info = await vault.get("github/oauth_token")
    assert (info.service, info.expires, info.scope) == ("github", 1_900_000_000, "repo user")
    assert not (await on_unseal(vault, environ=old.ENV)).sources


@pytest.mark.parametrize("switched", ["environment", "for good"])
async def test_it_can_be_switched_off(vault: Vault, place: Path, switched: str) -> None:
    path = old.fernet_file(place)
    environ = dict(old.ENV)
    if switched == "environment":
        environ["APEX_CREDS_AUTO_MIGRATE"] = "off"
    else:
        await switch(vault, automatic=False)
    assert not (await on_unseal(vault, environ=environ)).sources
    assert path.exists()
    assert await vault.list() == []


async def test_nothing_beside_the_vault_costs_no_document(vault: Vault) -> None:
    assert not (await on_unseal(vault, environ=old.ENV)).sources
    assert not (vault.home / "security/migration.enc").exists()


async def test_a_dry_run_changes_nothing(vault: Vault, place: Path) -> None:
    path = old.fernet_file(place)
    report = await run(vault, dry_run=True)
    assert Counter(fates(report).values()) == {"migrated": 4}
    assert path.exists()
    assert await vault.list() == []
    assert not (vault.home / "security/migration.enc").exists()


async def test_a_wrong_key_is_told_and_nothing_happens(vault: Vault, place: Path) -> None:
    path = old.fernet_file(place)
    for environ in (old.WRONG, {}, {old.VARIABLE: "no key"}):
        report = (await on_unseal(vault, environ=environ)).sources[0]
        assert "does not open" in report.problem
        assert "APEX_AGENT_MASTER_KEY" in report.hint
    assert "not 32 bytes" in report.notes[0]
    assert path.exists()
    assert (await on_unseal(vault, environ=old.ENV)).complete


async def test_a_conflict_is_reported_and_decided_by_the_flag(
    vault: Vault, place: Path
) -> None:
    path = old.fernet_file(place, {"api_keys": {"a": "old", "b": "same"}})
    await vault.put("a", ApiKey("new"))
    await vault.put("b", ApiKey("same"))
    report = await run(vault)
    assert fates(report) == {"api_key:a": "conflict", "api_key:b": "present"}
    assert (report.phase, report.missing, path.exists()) == (Phase.PARTIAL, 1, True)
    assert (await vault.get("b")).version == 1
    assert not (await on_unseal(vault, environ=old.ENV)).sources, "tried twice"
    report = await run(vault, on_conflict=OnConflict.REPLACE)
    assert fates(report)["api_key:a"] == "replaced"
    assert await old.value(vault, "a") == "old"
    assert (await vault.get("a")).version == 2
    assert not path.exists()


async def test_a_conflict_can_be_decided_for_the_vault(vault: Vault, place: Path) -> None:
    path = old.fernet_file(place, {"api_keys": {"a": "old"}})
    await vault.put("a", ApiKey("new"))
    report = await run(vault, on_conflict=OnConflict.KEEP)
    assert fates(report) == {"api_key:a": "kept"}
    assert await old.value(vault, "a") == "new"
    assert not path.exists()


async def test_a_name_of_another_kind_gets_another_name(vault: Vault, place: Path) -> None:
    await vault.put("a", BasicAuth("user", "password"))
    old.fernet_file(
        place, {"api_keys": {"a": "1"}, "oauth_tokens": {"a": {"access_token": "2"}}}
    )
    report = await run(vault)
    assert report.complete
    assert [entry.name for entry in report.entries] == ["a/api_key", "a/oauth_token"]


async def test_what_changed_in_the_vault_since_is_no_conflict(
    vault: Vault, place: Path
) -> None:
    content = {"api_keys": {"a": "1", "b": "2", "c": "3", "bad": 7}}
    path = old.fernet_file(place, content)
    assert (await run(vault)).phase is Phase.PARTIAL
    await vault.put("a", ApiKey("newer"))
    await vault.delete("b")
    report = await run(vault)
    assert fates(report) == {
        "api_key:a": "changed", "api_key:b": "removed", "api_key:c": "present",
        "api_key:bad": "invalid",
    }  # fmt: skip
    assert await old.secrets(vault) == {"a": "newer", "c": "3"}
    old.fernet_file(place, {"api_keys": {"a": "changed there, too"}})
    assert fates(await run(vault)) == {"api_key:a": "conflict"}
    assert path.exists()


@pytest.mark.parametrize("choice", [OnConflict.KEEP, OnConflict.REPLACE])
async def test_what_was_deleted_in_the_vault_and_changed_in_the_source_is_not_erased(
    vault: Vault, place: Path, choice: OnConflict
) -> None:
    path = old.fernet_file(place, {"api_keys": {"a": "1", "bad": 7}})
    await run(vault)
    await vault.delete("a")
    old.fernet_file(place, {"api_keys": {"a": "changed since"}})
    for _ in range(2):
        report = await run(vault)
        assert (fates(report), report.phase) == ({"api_key:a": "conflict"}, Phase.PARTIAL)
        assert not await finish(vault)
    assert path.exists()
    report = await run(vault, on_conflict=choice)
    fate = "removed" if choice is OnConflict.KEEP else "migrated"
    assert (fates(report), report.phase) == ({"api_key:a": fate}, Phase.BACKED_UP)
    found = {} if choice is OnConflict.KEEP else {"a": "changed since"}
    assert await old.secrets(vault) == found


async def test_a_conflict_of_two_changes_stays_one(vault: Vault, place: Path) -> None:
    path = old.fernet_file(place, {"api_keys": {"a": "1", "bad": 7}})
    await run(vault)
    await vault.put("a", ApiKey("newer"))
    old.fernet_file(place, {"api_keys": {"a": "changed there, too"}})
    for _ in range(2):
        assert fates(await run(vault)) == {"api_key:a": "conflict"}
    assert path.exists()


async def test_partial_damage_leaves_the_source(vault: Vault, place: Path) -> None:
    content = {"api_keys": {"good": "1", "empty": "", "none": None, "list": ["x"]}}
    path = old.fernet_file(place, content)
    report = await run(vault)
    assert fates(report) == {
        "api_key:good": "migrated", "api_key:empty": "empty",
        "api_key:none": "placeholder", "api_key:list": "invalid",
    }  # fmt: skip
    assert path.exists()
    assert not await finish(vault)
    report = await run(vault, accept_partial=True)
    assert report.phase is Phase.BACKED_UP
    assert not path.exists()


async def test_finish_erases_what_was_backed_up(vault: Vault, place: Path) -> None:
    path = old.fernet_file(place)
    await run(vault)
    erased = await finish(vault)
    assert [item.path for item in erased] == [f"{path}.bak"]
    assert not list(place.glob(".apex_agent_api*"))
    assert len(await vault.list()) == 4
    assert not await finish(vault)


async def test_a_backup_that_is_another_file_is_not_erased(vault: Vault, place: Path) -> None:
    path = old.fernet_file(place)
    await run(vault)
    old.write(Path(f"{path}.bak"), b"something else")
    with pytest.raises(ConflictError, match="not the file"):
        await finish(vault)
    assert Path(f"{path}.bak").exists()


async def test_a_hard_link_is_not_overwritten(vault: Vault, place: Path) -> None:
    path = old.fernet_file(place)
    os.link(path, place / "backup of the user")
    data = path.read_bytes()
    await run(vault)
    assert (await finish(vault))[0].shredded == "unverifiable"
    assert (place / "backup of the user").read_bytes() == data


async def test_after_a_period_that_was_confirmed_it_is_erased(place: Path, master: str) -> None:
    from tests.support.clocks import FakeClock

    clock = FakeClock()
    async with await Vault.create(place / "v", master=master, clock=clock) as vault:
        path = old.fernet_file(place)
        await run(vault, erase_after=3600.0)
        await on_unseal(vault, environ={})
        assert Path(f"{path}.bak").exists()
        clock.now += 3601
        await on_unseal(vault, environ={})
        assert not Path(f"{path}.bak").exists()


async def test_a_source_can_be_kept(vault: Vault, place: Path) -> None:
    path = old.fernet_file(place)
    assert (await run(vault, keep_source=True)).phase is Phase.LEFT
    assert path.exists()
    assert not (await on_unseal(vault, environ=old.ENV)).sources
    assert path.exists()
    old.fernet_file(place, {"api_keys": {"new": "1"}})
    assert (await on_unseal(vault, environ=old.ENV)).complete
    assert not path.exists()


async def test_backups_do_not_replace_each_other(vault: Vault, place: Path) -> None:
    for number in range(3):
        old.fernet_file(place, {"api_keys": {f"k{number}": "v"}})
        await run(vault)
    assert len(list(place.glob(".apex_agent_api_keys.enc.bak*"))) == 3
    assert len(await finish(vault)) == 3
    assert not list(place.glob(".apex_agent_api*"))


async def test_a_source_that_changes_meanwhile_is_not_renamed(
    vault: Vault, place: Path
) -> None:
    path = old.fernet_file(place)

    def progress(*_: object) -> None:
        old.fernet_file(place, {"api_keys": {"late": "1"}})

    report = await run(vault, progress=progress)
    assert "was changed" in report.problem
    assert path.exists()
    assert (await on_unseal(vault, environ=old.ENV)).complete
    assert await old.value(vault, "late") == "1"


async def test_one_at_a_time(vault: Vault, place: Path) -> None:
    path = old.fernet_file(place)
    async with exclusive(vault.home):
        assert not (await on_unseal(vault, environ=old.ENV)).sources
        with pytest.raises(StorageLockedError):
            await migrate(vault, environ=old.ENV, wait=0)
    assert path.exists()


async def test_a_large_file_comes_in_batches_and_tells(vault: Vault, place: Path) -> None:
    old.fernet_file(place, {"api_keys": {f"s{n}": f"v{n}" for n in range(450)}})
    told = []
    await run(vault, progress=lambda path, done, total: told.append((done, total)))
    assert told == [(200, 450), (400, 450), (450, 450)]
    assert len(await vault.list()) == 450


# -- hostile files ---------------------------------------------------------------------


async def test_a_link_is_refused(vault: Vault, place: Path, tmp_path: Path) -> None:
    real = old.write(tmp_path / "elsewhere", old.fernet_bytes())
    (place / ".apex_agent_api_keys.enc").symlink_to(real)
    report = (await on_unseal(vault, environ=old.ENV)).sources[0]
    assert "symbolic link" in report.problem
    assert real.exists()
    assert await vault.list() == []


async def test_a_pipe_and_a_directory_do_not_hang(vault: Vault, place: Path) -> None:
    os.mkfifo(place / ".apex_agent_api_keys.enc")
    assert (await on_unseal(vault, environ=old.ENV)).sources[0].problem
    os.unlink(place / ".apex_agent_api_keys.enc")
    (place / ".apex_agent_api_keys.enc").mkdir()
    assert (await on_unseal(vault, environ=old.ENV)).sources[0].problem


async def test_a_huge_file_is_refused_before_it_is_read(vault: Vault, place: Path) -> None:
    with (place / ".apex_agent_api_keys.enc").open("wb") as file:
        file.truncate(1 << 40)
    assert "larger than" in (await on_unseal(vault, environ=old.ENV)).sources[0].problem


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="needs root")
async def test_another_users_file_is_refused(vault: Vault, place: Path) -> None:
    os.chown(old.fernet_file(place), 1234, 1234)
    assert "belongs to" in (await on_unseal(vault, environ=old.ENV)).sources[0].problem


async def test_an_open_file_is_read_and_told(
    vault: Vault, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        legacy_files, "_is_reachable", lambda _: True
    )  # pytest's folder is closed
    old.fernet_file(place).chmod(0o644)
    report = (await on_unseal(vault, environ=old.ENV)).sources[0]
    assert report.complete
    assert "Other users can read" in report.notes[0]


@pytest.mark.parametrize(
    "content",
    [[], "text", 7, None, {"api_keys": []}, {"api_keys": "x"}, {"oauth_tokens": [1]}],
)
async def test_a_file_that_opens_to_something_else_stays(
    vault: Vault, place: Path, content: object
) -> None:
    path = old.fernet_file(place, content)
    report = (await on_unseal(vault, environ=old.ENV)).sources[0]
    assert not report.complete
    assert path.exists()


@pytest.mark.parametrize("content", [{}, {"api_keys": {}}, {"oauth_tokens": {}}, b""])
async def test_an_empty_file_is_done_at_once(
    vault: Vault, place: Path, content: object
) -> None:
    data = content if isinstance(content, bytes) else old.fernet_bytes(content)
    path = old.write(place / ".apex_agent_api_keys.enc", data)
    assert (await on_unseal(vault, environ=old.ENV)).complete
    assert not path.exists()


async def test_deep_nesting_and_large_values(vault: Vault, place: Path) -> None:
    deep: object = "x"
    for _ in range(500):
        deep = [deep]
    content = {
        "api_keys": {"huge": "x" * 70_000, "fits": "y" * 65_000},
        "oauth_tokens": {"deep": {"access_token": "a", "deep": deep}},
    }
    old.fernet_file(place, content)
    report = await run(vault)
    assert fates(report)["api_key:huge"] == "invalid"
    assert fates(report)["api_key:fits"] == "migrated"
    assert fates(report)["oauth_token:deep"] == "migrated"


# -- .env, keyring, other vaults -----------------------------------------------------------


async def test_a_dotenv_file(vault: Vault, tmp_path: Path) -> None:
    path = old.write(tmp_path / "secrets", b"A=1\nexport B='two'\nC=${A}\nD=\nA=3\nB=two\n")
    report = await run(vault, path)
    assert fates(report) == {
        "api_key:A": "migrated", "api_key:B": "migrated", "api_key:C": "skipped",
        "api_key:D": "empty", "api_key:(before line 5)": "skipped",
    }  # fmt: skip
    assert await old.secrets(vault) == {"A": "3", "B": "two"}
    assert path.exists(), "one of its entries is only there"


async def test_another_vault(vault: Vault, tmp_path: Path) -> None:
    async with await Vault.create(tmp_path / "other", master=f"file:{tmp_path}/2") as other:
        await other.put(
            "x", ApiKey("1"), service="s", origins=["https://a.example"], delivery="query:k"
        )
        await other.put("y", BasicAuth("user", "2"), service="s", sensitivity="critical")
        await other.put("z", BasicAuth("user", "3"), service="s")
    report = await run(vault, tmp_path / "other")
    assert report.complete
    assert (report.phase, len(report.entries)) == (Phase.LEFT, 3)
    assert await old.secrets(vault) == {"x": "1", "y": "2", "z": "3"}
    info = await vault.get("x")
    assert (info.service, str(info.delivery), str(info.origins[0])) == (
        "s", "query:k", "https://a.example",
    )  # fmt: skip
    assert "this vault itself" in (await run(vault, vault.home)).problem


async def test_another_vaults_value_takes_no_guard_off(vault: Vault, tmp_path: Path) -> None:
    await vault.put(
        "k",
        ApiKey("old"),
        sensitivity="critical",
        challenge=True,
        origins=["https://a.example"],
    )
    await vault.put("plain", ApiKey("old"), sensitivity="normal", origins=[])
    async with await Vault.create(tmp_path / "other", master=f"file:{tmp_path}/2") as other:
        await other.put("k", ApiKey("new"), origins=["https://evil.example"])
        await other.put(
            "plain", ApiKey("new"), sensitivity="critical", challenge=True,
            origins=["https://b.example"],
        )  # fmt: skip
    report = await run(vault, tmp_path / "other", on_conflict=OnConflict.REPLACE)
    kept, stricter = await vault.get("k"), await vault.get("plain")
    assert (kept.version, kept.sensitivity, kept.challenge) == (2, "critical", True)
    assert [str(origin) for origin in kept.origins] == ["https://a.example"]
    assert (stricter.sensitivity, stricter.challenge) == ("critical", True)
    assert [str(origin) for origin in stricter.origins] == ["https://b.example"]
    details = {entry.name: entry.detail for entry in report.entries}
    assert details == {
        "k": "version 1 had another value; it stays critical; it still takes a challenge; "
        "its origins stay https://a.example",
        "plain": "version 1 had another value",
    }


async def test_nothing_and_nonsense(vault: Vault, tmp_path: Path) -> None:
    assert "There is no" in (await run(vault, tmp_path / "nothing")).problem
    assert (await run(vault, tmp_path)).problem
    for data in (b"{}", b"\x80" * 100, b"plain words\n", b'{"api_keys": {"a": "b"}}'):
        path = old.write(tmp_path / "file", data)
        assert (await run(vault, path)).problem
        assert path.read_bytes() == data
    assert "no entry" in (await run(vault, "keyring:nothing")).problem


async def test_a_document_of_ours_is_never_migrated(vault: Vault, place: Path) -> None:
    """Neither whole nor damaged at any place, nor at the old path."""
    data = (vault.home / "security/keystore.enc").read_bytes()
    path = place / ".apex_agent_api_keys.enc"
    for at in range(0, len(data), 37):
        for damaged in (data[:at], data[:at] + b"\xff" + data[at + 1 :]):
            if not damaged:
                continue
            old.write(path, damaged)
            report = (await on_unseal(vault, environ=old.ENV)).sources[0]
            assert report.problem
            assert path.read_bytes() == damaged


async def test_every_release_is_in_the_log(vault: Vault, place: Path) -> None:
    old.fernet_file(place)
    await run(vault)
    await vault.close()
    text = b"".join(p.read_bytes() for p in (vault.home / "security/audit").glob("*.jsonl"))
    assert text.count(b'"read back"') == 4
    for secret in (b"sk-1", b"gh-1", b"at-1", b"rt-1", b"idt-1"):
        assert secret not in text


async def test_a_report_holds_no_secret(vault: Vault, place: Path) -> None:
    secret = hashlib.sha256(b"canary").hexdigest()
    old.fernet_file(place, {"api_keys": {"a": secret, "b": [secret], "c": {"x": secret}}})
    report = Report([await run(vault)])
    assert secret not in repr(report)
    assert secret not in str(dataclasses.asdict(report.sources[0]))
    state = await migration_document(vault.store).read()
    assert secret not in repr(state)
    with pytest.raises(CredentialNotFoundError):
        await vault.get("b")
    assert Fate.INVALID in report.sources[0].counts


async def test_a_source_that_changed_after_a_kill_stays_whole_and_is_read_again(
    vault: Vault, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before the renaming; then the old program stores one more credential."""

    async def killed(*_: object) -> None:
        raise KeyboardInterrupt

    home = old.install(tmp_path / "older", old.box_files({"a": "1"}))
    with monkeypatch.context() as patched:
        patched.setattr(cleanup, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            await run(vault, home)
    sealed = old.box(old.deks("dek_api")["dek_api_v1"], {"a": "1", "b": "2"})
    old.write(home / "credentials/api_keys.enc", sealed)
    old.fernet_file(place, {"api_keys": {"other": "3"}})
    report = await migrate(vault, environ=old.ENV)
    assert ["was changed" in source.problem for source in report.sources] == [True, False]
    assert (home / "security/keystore.enc").exists()
    assert (await migrate(vault, environ=old.ENV)).complete
    assert {"a", "b", "other"} <= {info.name for info in await vault.list()}
