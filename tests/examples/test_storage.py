"""The example of a storage: it passes the suite, and a vault lives in it, commands included."""

from __future__ import annotations

import subprocess

import pytest

from apex_creds import ApiKey, CredentialMiddleware, Vault, parse_manifest
from apex_creds.errors import InvalidInputError, NotInstalledError
from apex_creds.storage import MemoryStorage
from apex_creds.testing.storage import StorageContract
from tests.support.commands import PROGRAM


class TestOneFile(StorageContract):
    @pytest.fixture(autouse=True)
    def _loaded(self, load):
        self.module = load("onefile_storage", "onefile")

    async def open_storage(self, where):
        return self.module.OneFile(str(where / "vault.db"))


@pytest.fixture
def run(install):
    return install("onefile_storage", "onefile")


@pytest.mark.slow
def test_a_vault_lives_in_it(run, tmp_path):
    url = f"onefile:{tmp_path}/vault.db"
    run("init", "--master", f"file:{tmp_path}/m.key", "--storage", url)
    assert "already" in run("init", "--master", f"file:{tmp_path}/m2.key", code=3)
    run("set", "openai", "--origin", "https://api.example.com", stdin=b"sk-made-up-1234")
    run("grant", "weather", "openai")
    assert run("get", "openai", "--reveal", "--force") == "sk-made-up-1234"
    run("rotate", "dek", "--service", "openai")
    run("rotate", "kek")
    run("rotate", "master")
    worked(run, tmp_path)
    run("doctor")
    run("audit", "verify")
    assert "weather" in run("grants")
    run("copy", "--to", str(tmp_path / "copied"))
    assert (tmp_path / "copied/credentials/api_keys.enc").exists()
    run("rm", "openai", "--yes")
    assert "openai" not in run("list")
    assert (tmp_path / "home/security/config.json").read_text().count("onefile:") == 1
    assert not list((tmp_path / "home/credentials").iterdir())


def worked(run, tmp_path):
    """The worker opens it, says that all is well, and ends when it is asked to."""
    health = tmp_path / "health.json"
    command = run.command("worker", "--health", str(health))
    with subprocess.Popen(command, env=run.env, stderr=subprocess.PIPE, text=True) as worker:
        while not health.exists():
            assert worker.poll() is None, worker.communicate()
        worker.terminate()
        _, said = worker.communicate()
        assert worker.returncode == 0, said


def test_without_the_package_the_errors_say_what_is_missing(run, tmp_path):
    run("init", "--master", f"file:{tmp_path}/m.key", "--storage", f"onefile:{tmp_path}/v.db")
    done = subprocess.run(
        [*PROGRAM, "--home", str(tmp_path / "home"), "list"], capture_output=True, text=True
    )
    assert done.returncode in (6, 7)
    assert "onefile" in done.stderr


@pytest.mark.anyio
async def test_a_vault_in_memory_works_and_leaves_its_log(tmp_path):
    async with await Vault.create(
        tmp_path / "home", master=f"file:{tmp_path}/m.key", storage=MemoryStorage()
    ) as vault:
        await vault.put("k", ApiKey("sk-made-up"))
        await vault.grant("p", "k", reveal=True)

        async def use(credentials):
            async with credentials["k"].reveal() as secret:
                return len(secret)

        manifest = parse_manifest(
            {"id": "p", "version": "1", "credentials": [{"name": "k", "access": "reveal"}]}
        )
        async with CredentialMiddleware(vault) as middleware:
            assert await middleware.invoke(manifest, use) == 10


@pytest.mark.anyio
async def test_what_a_package_names_wrongly_is_said(tmp_path, monkeypatch):
    from importlib import metadata

    points = {
        "broken": metadata.EntryPoint("broken", "no_such_module:x", "apex_creds.storages"),
        "other": metadata.EntryPoint("other", "builtins:str", "apex_creds.storages"),
        "fails": metadata.EntryPoint("fails", "builtins:int", "apex_creds.storages"),
    }
    monkeypatch.setattr(
        "apex_creds.extensions.entry_points",
        lambda *, group, name: [points[name]] if name in points else [],
    )
    for scheme, error in {
        "broken": NotInstalledError,
        "other": InvalidInputError,
        "fails": InvalidInputError,
        "nobody": InvalidInputError,
    }.items():
        with pytest.raises(error, match=scheme):
            await Vault.create(
                tmp_path / scheme, master=f"file:{tmp_path}/{scheme}.key", storage=f"{scheme}:x"
            )
        assert not (tmp_path / f"{scheme}.key").exists()
