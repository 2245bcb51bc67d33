"""The example of a provider: it passes the suite, and a vault opens with what it keeps."""

from __future__ import annotations

import shutil

import pytest

from apex_creds.testing.providers import MasterKeyProviderContract


class TestStick(MasterKeyProviderContract):
    @pytest.fixture
    def reopen(self, load, tmp_path):
        return lambda: load("stick_provider", "stick").Stick(tmp_path)


def test_a_vault_opens_where_the_stick_is(install, tmp_path):
    run = install("stick_provider", "stick")
    stick, pocket = tmp_path / "stick", tmp_path / "pocket"
    run("init", "--master", f"stick:{stick}", code=4)
    assert not (tmp_path / "home/security/keystore.enc").exists()
    stick.mkdir()
    run("init", "--master", f"stick:{stick}")
    run("set", "openai", "--origin", "https://api.example.com", stdin=b"sk-made-up-1234")
    run("rotate", "master")
    assert {path.suffix for path in stick.iterdir()} == {".key"}
    stick.rename(pocket)
    assert "Plug in" in run("get", "openai", "--reveal", "--force", code=4)
    pocket.rename(stick)
    assert run("get", "openai", "--reveal", "--force") == "sk-made-up-1234"
    shutil.rmtree(stick)
    stick.mkdir()
    assert "sk-made-up" not in run("get", "openai", "--reveal", "--force", code=4)
