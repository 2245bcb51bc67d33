"""A vault is copied from any storage to any other, and is the same vault there."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from apex_creds.admin.transfer import transfer
from apex_creds.errors import VaultExistsError
from apex_creds.model import ApiKey
from apex_creds.storage import FileStorage
from apex_creds.storage.base import Storage
from apex_creds.storage.sql_storage import SqlStorage
from apex_creds.storage.storage_factory import storage_for
from apex_creds.vault import Vault
from tests.support.postgres import Postgres
from tests.support.vaults import master_in, secret_for, value_of, values

pytestmark = pytest.mark.anyio
_TARGETS = ("file", "sqlite", "postgres")
_QUICK = {
    ("file", "sqlite"),
    ("hashed", "postgres"),
    ("sqlite", "postgres"),
    ("postgres", "file"),
}
WAYS = [
    pytest.param(one, other, marks=() if (one, other) in _QUICK else pytest.mark.slow)
    for one in ("file", "hashed", "sqlite", "postgres")
    for other in _TARGETS
]
"""A few always, all of them where time is no matter."""


class Places:
    """Where a vault may be, by a word."""

    def __init__(self, where: Path, server: Postgres) -> None:
        self.where = where
        self.server = server

    def url(self, kind: str, number: int) -> str | None:
        if kind == "sqlite":
            return f"sqlite:///{self.where}/vault-{number}.db"
        if kind == "postgres":
            text = f"{self.where}{number}".encode()
            return self.server.url(space=hashlib.blake2b(text, digest_size=8).hexdigest())
        return None

    def home(self, number: int) -> Path:
        return self.where / f"home-{number}"

    async def make(self, kind: str, number: int = 1) -> Vault:
        return await Vault.create(
            self.home(number),
            master=master_in(self.where),
            storage=self.url(kind, number),
            hashed_names=kind == "hashed",
        )

    def open(self, kind: str, number: int = 2) -> Storage:
        url = self.url(kind, number)
        return FileStorage(self.home(number)) if url is None else SqlStorage(url)

    async def unseal(self, kind: str, number: int = 2, *, moved: bool = False) -> Vault:
        """Opens a copy; ``moved`` from files, whose log is anchored, to other files."""
        return await Vault.unseal(
            self.home(number),
            master=master_in(self.where),
            storage=self.url(kind, number),
            accept_rollback="moved on purpose" if moved else "",
        )


@pytest.fixture
def places(tmp_path: Path, server: Postgres) -> Places:
    tmp_path.chmod(0o700)
    return Places(tmp_path, server)


async def fill(vault: Vault) -> dict[str, bytes]:
    for number in range(12):
        await vault.put(f"key-{number}", secret_for("api_key", f"value {number}"))
    await vault.put("shop", secret_for("oauth_token", "token"), service="shop.example")
    await vault.put("door", secret_for("basic", "knock"))
    await vault.grant("a-plugin", "shop")
    return await values(vault)


async def copied(places: Places, vault: Vault, kind: str, number: int = 2) -> int:
    target = places.open(kind, number)
    try:
        done = await transfer(vault, target)
        assert done.credentials == len(await vault.list())
        return done.written
    finally:
        await target.close()


@pytest.mark.parametrize(("source", "target"), WAYS)
async def test_any_to_any(places: Places, source: str, target: str) -> None:
    async with await places.make(source) as vault:
        known = await fill(vault)
        await vault.put("key-1", secret_for("api_key", "of alice"), principal="alice")
        await vault.grant("a-plugin", "key-1", principal="alice")
        granted = list(await vault.grants())
        assert await copied(places, vault, target) > 0
        moved = source in ("file", "hashed") and target == "file"
        async with await places.unseal(target, moved=moved) as copy:
            assert copy.vault_id == vault.vault_id
            assert await values(copy) == known
            assert list(await copy.grants()) == granted
            await copy.put("key-0", secret_for("api_key", "another"))
            await copy.put("new", secret_for("api_key", "new"))
            assert await value_of(copy, "key-1") == b"value 1"
            async with copy.open("key-1", principal="alice") as opened:
                assert bytes(opened.view()) == b"of alice"
            assert {info.principal for info in await copy.list()} == {"", "alice"}
        assert await values(vault) == known


@pytest.mark.parametrize("target", ["file", "sqlite"])
async def test_a_copy_that_was_interrupted_goes_on(places: Places, target: str) -> None:
    async with await places.make("file") as vault:
        known = await fill(vault)
        storage = places.open(target)
        steps: list[str] = []

        def stop(step: str) -> None:
            steps.append(step)
            if len(steps) == 3:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            await transfer(vault, storage, progress=stop)
        assert await storage.read("keystore") is None  # no vault, so nobody can use half of one
        first = set(await storage.names())
        assert first
        await storage.close()
        await vault.put("late", secret_for("api_key", "came later"))
        await vault.delete("key-3")
        storage = places.open(target)
        done = await transfer(vault, storage)
        await storage.close()
        assert done.written < done.documents or target == "file"
        known = {**known, "late": b"came later"}
        del known["key-3"]
        async with await places.unseal(target, moved=target == "file") as copy:
            assert await values(copy) == known


async def test_what_is_wrong_in_the_target_is_written_again(places: Places) -> None:
    async with await places.make("file") as vault:
        known = await fill(vault)
        storage = places.open("sqlite")

        def stop(step: str) -> None:
            if step == "the key store":
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            await transfer(vault, storage, progress=stop)
        [one, other] = [f"api_keys_{number:02x}" for number in (7, 8)]
        [a, b] = [await storage.read(name) for name in (one, other)]
        assert a is not None
        assert b is not None
        await storage.write(one, b.data, expected=a.token)  # a row copied over another
        await storage.write(other, b"nothing", expected=b.token)
        done = await transfer(vault, storage)
        await storage.close()
        assert done.written == 3
        async with await places.unseal("sqlite") as copy:
            assert await values(copy) == known


@pytest.mark.parametrize("target", ["file", "sqlite"])
async def test_a_vault_is_not_copied_over_another(places: Places, target: str) -> None:
    """Nor over a copy that is not what the vault is now; one that is, is only compared."""
    async with await places.make("file") as vault:
        await fill(vault)
        await copied(places, vault, target, 2)
        storage = places.open(target)  # as after one that was killed before it said so
        done = await transfer(vault, storage)
        await storage.close()
        assert (done.written, done.credentials > 0) == (0, True)
        await vault.put("later", ApiKey("of the source"))
        for _ in range(2):
            with pytest.raises(VaultExistsError, match="no copy of this one as it is now"):
                await copied(places, vault, target, 2)
        known = await values(vault)
    async with await places.unseal(target, moved=target == "file") as copy:
        assert await values(copy) == {n: v for n, v in known.items() if n != "later"}


async def test_a_copy_that_is_in_use_is_not_written_to(places: Places) -> None:
    async with await places.make("file") as vault:
        await fill(vault)
        await copied(places, vault, "sqlite", 2)
        async with await places.unseal("sqlite") as copy:
            await copy.put("later", ApiKey("of the copy"))
            known = await values(copy)
            with pytest.raises(VaultExistsError):
                await copied(places, vault, "sqlite", 2)
            assert await values(copy) == known


async def test_a_home_remembers_where_its_vault_is(places: Places) -> None:
    url = places.url("sqlite", 1)
    async with await Vault.create(
        places.home(1), master=master_in(places.where), storage=url
    ) as vault:
        await fill(vault)
    assert isinstance(storage_for(places.home(1)), SqlStorage)
    async with await Vault.unseal(places.home(1)) as vault:
        assert await value_of(vault, "door", "password") == b"knock"
    assert not list((places.home(1) / "credentials").iterdir())
    with pytest.raises(VaultExistsError):
        await Vault.create(places.home(3), master=f"file:{places.where}/other", storage=url)
    assert not (places.where / "other").exists()


async def test_the_server_sees_no_secret_and_no_name(places: Places) -> None:
    async with await places.make("postgres") as vault:
        secret = secret_for("api_key", "canary-secret-value")
        await vault.put("canary-credential", secret, service="canary-service.example")
        await vault.grant("canary-plugin", "canary-credential")
        await vault.put("canary-credential", secret_for("api_key", "canary-second-value"))
    dump = places.server.dump_all() + places.server.dump()
    assert b"apex_documents" in dump
    for form in (b"canary", b"canary".hex().encode()):
        assert form not in dump
