"""A plugin's credentials that only an old file has yet: leases fall back to it."""

from __future__ import annotations

from pathlib import Path

import pytest

from apex_creds.middleware import CredentialMiddleware
from apex_creds.policy.manifest import Access, Manifest, Need
from apex_creds.vault import Vault
from tests.support import old

pytestmark = pytest.mark.anyio
MANIFEST = Manifest(
    plugin="p",
    needs=(
        Need(name="openai", access=Access.REVEAL),
        Need(name="absent", required=False),
    ),
)


@pytest.fixture(autouse=True)
def key(fresh_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(old.VARIABLE, old.ENV[old.VARIABLE])
    monkeypatch.setenv("PYTHON_KEYRING_BACKEND", "keyring.backends.fail.Keyring")


async def reads(credentials: object) -> str:
    async with credentials["openai"].reveal() as secret:  # type: ignore[index]
        return secret.expose_str()


async def made(tmp_path: Path) -> Vault:
    user = tmp_path / "user"
    user.mkdir(mode=0o700)
    old.fernet_file(user)
    vault = await Vault.create(user / ".apex_agent", master=f"file:{tmp_path}/master.key")
    await vault.grant("p", "openai", reveal=True)
    return vault


async def test_entering_the_middleware_migrates(tmp_path: Path) -> None:
    async with await made(tmp_path) as vault, CredentialMiddleware(vault) as middleware:
        assert middleware._legacy is None
        assert sorted(info.name for info in await vault.list()) == old.NAMES


@pytest.mark.parametrize("how", ["async", "sync"])
async def test_a_lease_falls_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setenv("APEX_CREDS_AUTO_MIGRATE", "off")
    async with await made(tmp_path) as vault:
        async with CredentialMiddleware(vault) as middleware:
            assert await vault.list() == []
            if how == "async":
                call = middleware.invoke_action(MANIFEST, "a", reads)
            else:
                call = middleware.invoke_sync(MANIFEST, "a", reads)  # type: ignore[assignment]
            assert await call == "[redacted:openai]"
        assert [info.name for info in await vault.list()] == ["openai"]
        await vault.close()
    log = (vault.home / "security/audit").glob("*.jsonl")
    text = b"".join(path.read_bytes() for path in log)
    assert text.count(b"legacy fallback") == 1
    assert b"sk-1" not in text


async def test_what_no_old_file_has_is_not_looked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from apex_creds.migration import Fallback

    async with await made(tmp_path) as vault:
        fallback = Fallback(vault)
        assert await fallback.adopt(["absent"]) is False
        monkeypatch.setattr(Fallback, "entries", None)
        assert await fallback.adopt(["absent"]) is False
