"""What the vault promises to its callers: values, metadata, audit first, nothing in clear."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import anyio
import pytest

from apex_creds.audit.verify import read
from apex_creds.crypto.memory import arena
from apex_creds.errors import (
    AuditUnavailableError,
    CredentialNotFoundError,
    InvalidInputError,
    SecretWipedError,
    VaultExistsError,
)
from apex_creds.model import ApiKey, BasicAuth, GenericSecret, OAuthToken, Secret
from apex_creds.policy.grants import GrantDecision
from apex_creds.vault import PutItem, Vault
from tests.support.clocks import FakeClock
from tests.support.vaults import (
    REPOSITORY,
    create,
    home_in,
    tree,
    unseal,
    value_of,
    values,
)

pytestmark = pytest.mark.anyio

SECRETS: dict[str, tuple[Secret, dict[str, bytes]]] = {
    "api_keys": (ApiKey("sk-£-key"), {"value": "sk-£-key".encode()}),
    "oauth_tokens": (
        OAuthToken("the-access", refresh_token="the-refresh", scope="a b", token_type="MAC"),
        {"access": b"the-access", "refresh": b"the-refresh"},
    ),
    "basic_auth": (BasicAuth("the-user", ""), {"user": b"the-user", "password": b""}),
    "generic": (GenericSecret(bytes(range(256))), {"value": bytes(range(256))}),
}


@pytest.mark.parametrize("section", SECRETS)
async def test_every_kind_comes_back_part_by_part(tmp_path: Path, section: str) -> None:
    secret, parts = SECRETS[section]
    async with await create(tmp_path) as vault:
        await vault.put("name", secret)
    async with await unseal(tmp_path) as vault, vault.open("name") as opened:
        assert opened.kind == secret.kind
        assert {part: bytes(opened.view(part)) for part in opened.names} == parts
        with opened.part(next(iter(parts))) as part:
            assert part.expose_bytes() == next(iter(parts.values()))
        with pytest.raises(InvalidInputError, match="no such part"):
            opened.view("other")


async def test_metadata_grows_with_each_put(tmp_path: Path) -> None:
    clock = FakeClock(100.0)
    async with await create(tmp_path, clock=clock) as vault:
        first = await vault.put(
            "name", ApiKey("one"), service="s", delivery="header:X-Key",
            origins=["https://a.example"], expires=900.0,
        )  # fmt: skip
        clock.now = 200.0
        second = await vault.put("name", ApiKey("two"))
        assert await vault.get("name") == second
    assert (first.version, second.version) == (1, 2)
    assert (first.id, first.service, first.delivery) == (second.id, "s", second.delivery)
    assert [str(origin) for origin in second.origins] == ["https://a.example"]
    assert (second.created, second.updated) == (100.0, 200.0)
    assert (first.expires, second.expires) == (900.0, None)


async def test_a_token_ends_when_it_says(tmp_path: Path) -> None:
    async with await create(tmp_path) as vault:
        token = OAuthToken("access", expires_at=500.0, scope="a b")
        info = await vault.put("name", token)
        assert (info.expires, info.scope, info.token_type) == (500.0, "a b", "Bearer")
        assert (await vault.put("name", token, expires=400.0)).expires == 400.0


async def test_a_name_that_was_deleted_begins_anew(tmp_path: Path) -> None:
    async with await create(tmp_path) as vault:
        first = await vault.put("name", ApiKey("one"), service="s")
        await vault.delete("name")
        with pytest.raises(CredentialNotFoundError):
            await vault.get("name")
        second = await vault.put("name", BasicAuth("user", "two"))
        assert (second.version, second.service) == (1, "name")
        assert second.id != first.id
        assert await value_of(vault, "name") == b"two"


async def test_a_batch_is_one_commit_for_each_section(tmp_path: Path) -> None:
    async with await create(tmp_path) as vault:
        items = [PutItem(name=str(n), secret=GenericSecret(b"v%d" % n)) for n in range(50)]
        infos = await vault.put_many([*items, PutItem(name="x", secret=ApiKey("x"))])
        assert [info.name for info in infos] == [*map(str, range(50)), "x"]
        assert (await vault._store.sections.read("generic")).generation == 1
        assert await vault.put_many([]) == []
        assert len(await values(vault)) == 51


async def test_what_was_opened_is_wiped(tmp_path: Path) -> None:
    async with await create(tmp_path) as vault:
        await vault.put("name", ApiKey("value"))
        before = arena().open_slots
        async with vault.open("name") as opened:
            pass
        with pytest.raises(SecretWipedError):
            opened.view()
        with pytest.raises(RuntimeError, match="mine"):
            async with vault.open("name"):
                raise RuntimeError("mine")
        assert arena().open_slots <= before + 1  # the DEK, unwrapped once


async def test_nothing_is_left_in_memory_after_close(tmp_path: Path) -> None:
    before = arena().open_slots
    vault = await create(tmp_path)
    await vault.put("name", ApiKey("value"))
    await vault.delete("name")
    await vault.close()
    vault = await unseal(tmp_path)
    await vault.close()
    assert arena().open_slots == before


async def test_the_event_is_in_the_log_before_the_secret_is_out(tmp_path: Path) -> None:
    async with await create(tmp_path) as vault:
        await vault.put("name", ApiKey("value"))
        async with vault.open("name", action="cli.get"):
            last = [*read(home_in(tmp_path) / "security/audit", vault_id=vault.vault_id)][-1]
        assert (last.kind, last.credential, last.action) == ("expose", "name", "cli.get")


async def test_without_a_log_nothing_is_released_or_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with await create(tmp_path) as vault:
        await vault.put("name", ApiKey("value"))
        slots, before = arena().open_slots, tree(home_in(tmp_path))

        def refuse(*_: object, **__: object) -> None:
            raise AuditUnavailableError("no", hint="none")

        for method in ("append", "append_encoded"):
            monkeypatch.setattr(type(vault.audit), method, refuse)
        for use in (
            lambda: value_of(vault, "name"),
            lambda: vault.put("name", ApiKey("other")),
            lambda: vault.put("new", ApiKey("other")),
            lambda: vault.delete("name"),
            lambda: vault.grant("plugin", "name"),
            lambda: vault.revoke(plugin="plugin"),
        ):
            with pytest.raises(AuditUnavailableError):
                await use()
        monkeypatch.undo()
        assert (arena().open_slots, tree(home_in(tmp_path))) == (slots, before)


async def test_everything_that_changes_the_vault_is_in_the_log(tmp_path: Path) -> None:
    async with await create(tmp_path) as vault:
        await vault.put("name", ApiKey("value"))
        await vault.grant("plugin", "name")
        await vault.revoke(plugin="plugin")
        await vault.delete("name")
    async with await unseal(tmp_path):
        pass
    events = [*read(home_in(tmp_path) / "security/audit", vault_id=vault.vault_id)]
    kinds = [event.kind for event in events]
    assert kinds == ["init", "put", "grant", "revoke", "delete", "unseal"]


async def test_nothing_that_names_or_is_a_secret_is_on_disk_in_clear(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with await create(tmp_path) as vault:
        for section, (secret, _) in SECRETS.items():
            await vault.put(f"name-of-{section}", secret, service="the-service")
        await vault.grant("the-plugin", "name-of-generic")
    files = [data for _, data in tree(home_in(tmp_path)).values()]
    words = [b"name-of", b"the-service", b"the-plugin"]
    words += [part for _, parts in SECRETS.values() for part in parts.values() if part]
    for word in words:
        assert not any(word in data for data in files), word
    assert not any(part.decode("latin-1") in caplog.text for part in words[3:])


async def test_the_same_secret_never_looks_the_same(tmp_path: Path) -> None:
    async with await create(tmp_path) as vault:
        sealed = set()
        for _ in range(5):
            await vault.put("name", ApiKey("value"))
            sealed.add((await vault.find("name")).sealed)
        assert len(sealed) == 5


async def test_grants_are_kept_replaced_and_removed(tmp_path: Path) -> None:
    async with await create(tmp_path) as vault:
        await vault.grant("p", "a", scopes=["read"], until=5.0)
        second = await vault.grant("p", "a", reveal=True)
        await vault.grant("p", "b")
        await vault.grant("q", "a")
        assert len(await vault.grants()) == 3
    async with await unseal(tmp_path) as vault:
        assert (await vault.grants()).find("p", "a") == second
        removed = await vault.revoke(plugin="p", credential="a")
        assert removed == (second,)
        assert await vault.revoke(plugin="p", credential="a") == ()
        assert len(await vault.revoke(credential="a")) == 1
        assert [(g.plugin, g.credential) for g in await vault.grants()] == [("p", "b")]


async def test_a_twin_gets_no_grant_and_an_old_one_can_be_seen_and_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    twin = "org.weather\ufe0f"
    async with await create(tmp_path) as vault:
        with monkeypatch.context() as before:
            before.setattr("apex_creds.vault.vault.check_plugin", str)
            await vault.grant(twin, "a")
    async with await unseal(tmp_path) as vault:
        assert [g.plugin for g in await vault.grants()] == [twin]
        with pytest.raises(InvalidInputError, match="deceive"):
            await vault.grant(twin, "b")
        await vault.grant(twin, "b", decision=GrantDecision.DENY)
        assert len(await vault.revoke(plugin=twin)) == 2


async def test_a_vault_finds_its_home_and_master_key_itself(
    fresh_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    async with await Vault.create(master="file:master.key") as vault:
        await vault.put("name", ApiKey("value"))
    assert (fresh_home / ".apex_agent/security/keystore.enc").exists()
    monkeypatch.chdir("/")
    async with await Vault.unseal() as vault:
        assert await value_of(vault, "name") == b"value"
    monkeypatch.setenv("APEX_CREDS_HOME", str(tmp_path / "elsewhere"))
    async with await Vault.create(master=f"file:{tmp_path}/other.key") as vault:
        assert await vault.list() == []
    assert (tmp_path / "elsewhere/security/keystore.enc").exists()


async def test_reads_are_from_memory_while_nothing_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with await create(tmp_path) as vault:
        await vault.put("name", ApiKey("value"))
        await vault.refresh()

        async def fail(*_: object) -> None:
            raise AssertionError("read again")

        with monkeypatch.context() as patch:
            patch.setattr(vault._store.storage, "read", fail)
            for _ in range(10):
                assert await value_of(vault, "name") == b"value"
                assert await vault.grants() is not None


def test_a_closed_vault_is_not_kept_in_memory(tmp_path):
    code = """
import gc, sys, weakref
import anyio
from pathlib import Path
from tests.support.vaults import create

async def main():
    async with await create(Path(sys.argv[1])) as vault:
        gone = weakref.ref(vault), weakref.ref(vault.store)
    del vault
    while any(found() for found in gone):  # a worker thread may hold its last call for a moment
        gc.collect()
        await anyio.sleep(0.01)

anyio.run(main)
"""
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=REPOSITORY, check=True, timeout=300
    )


async def test_open_or_create_makes_a_vault_once_and_opens_it_then(tmp_path):
    home, master = tmp_path / "home", f"file:{tmp_path}/m.key"
    async with await Vault.open_or_create(home, master=master) as vault:
        made = vault.vault_id
        await vault.put("key", ApiKey("sk-1"))
    async with await Vault.open_or_create(home) as vault:
        assert vault.vault_id == made
        assert [info.name for info in await vault.list()] == ["key"]


async def test_open_or_create_makes_none_of_what_is_left_of_one(tmp_path):
    home, master = tmp_path / "home", f"file:{tmp_path}/m.key"
    async with await Vault.open_or_create(home, master=master) as vault:
        await vault.put("key", ApiKey("sk-1"))
    (home / "security/keystore.enc").unlink()
    with pytest.raises(VaultExistsError, match="no key store"):
        await Vault.open_or_create(home, master=f"file:{tmp_path}/other.key")
    assert not (tmp_path / "other.key").exists()


async def test_of_several_that_open_or_create_at_once_one_makes_it(tmp_path):
    opened = []

    async def go():
        master = f"file:{tmp_path}/m.key"
        opened.append(await Vault.open_or_create(tmp_path / "home", master=master))

    async with anyio.create_task_group() as group:
        for _ in range(4):
            group.start_soon(go)
    assert len({vault.vault_id for vault in opened}) == 1
    for vault in opened:
        await vault.close()
