"""An ApexAgent installation moves, with its master key and ours in a real gnome-keyring."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import old
from tests.support.realparts import gnome_keyring, gnome_keyring_missing

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(bool(gnome_keyring_missing()), reason=gnome_keyring_missing() or "-"),
]

PROGRAM = [sys.executable, "-W", "error", "-m", "apex_creds.cli"]
_STORE = "import keyring, sys; keyring.set_password(*sys.argv[1:])"
_COMPAT = (
    "from apex_creds.compat import EnhancedApiKeyManager\n"
    "with EnhancedApiKeyManager() as m:\n"
    "    print(m.get_api_key('openai'), m.get_oauth_token('github')['id_token'],"
    " m.get_api_key_secure('p', 'openai'), m.get_api_key_secure('p', 'github'))\n"
)


def test_by_hand_then_the_old_manager(tmp_path: Path) -> None:
    with gnome_keyring() as env:
        run = runner(env)
        home = installation(Path(env["HOME"]))
        dry = run("migrate", "--dry-run", "--json", code=1)
        assert json.loads(dry)["sources"][0]["problem"]
        store(env, "ApexAgent", "master_key", old.b64(old.MASTER))
        assert json.loads(run("migrate", "--dry-run", "--json"))["complete"]
        assert not (home / "legacy").exists()
        found = json.loads(run("migrate", "--json"))
        assert found["complete"], found
        assert sorted(item["name"] for item in json.loads(run("list", "--json"))) == old.NAMES
        assert compat(env) == "sk-1 idt-1 sk-1 None"
        run("migrate", "finish")
        assert not list(home.rglob("*.bak"))
        assert compat(env) == "sk-1 idt-1 sk-1 None"


def test_the_old_manager_moves_it_without_anybody_noticing() -> None:
    with gnome_keyring() as env:
        store(env, "ApexAgent", "master_key", old.b64(old.MASTER))
        home = installation(Path(env["HOME"]))
        assert compat(env) == "sk-1 idt-1 sk-1 None"
        assert (home / "legacy/keystore.enc.bak").exists()


def test_entries_of_the_keyring_itself() -> None:
    with gnome_keyring() as env:
        run = runner(env)
        store(env, "openai", "api_key", "sk-of-openai")
        store(env, "ApexAgent", "github", "gh-of-agent")
        sources = ["--from", "keyring:openai/api_key", "--from", "keyring:ApexAgent/github"]
        found = json.loads(run("migrate", *sources, "--json"))
        assert found["complete"], found
        assert run("get", "openai", "--reveal", "--force") == "sk-of-openai"
        assert run("get", "github", "--reveal", "--force") == "gh-of-agent"
        found = json.loads(run("migrate", "--from", "keyring:openai", "--json"))
        assert found["sources"][0]["counts"] == {"present": 1}


def installation(user: Path) -> Path:
    config = {"plugin_permissions": {"p": ["openai"]}}
    user.chmod(0o700)
    return old.install(user / ".apex_agent", old.box_files(config=config))


def store(env: dict[str, str], *entry: str) -> None:
    subprocess.run([sys.executable, "-c", _STORE, *entry], env=env, check=True, timeout=480)


def compat(env: dict[str, str]) -> str:
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", _COMPAT]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=480)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def runner(env: dict[str, str]):
    def run(*arguments: str, code: int = 0) -> str:
        done = subprocess.run(
            [*PROGRAM, *arguments], env=env, capture_output=True, text=True, timeout=480
        )
        assert done.returncode == code, (done.stdout, done.stderr)
        assert old.b64(old.MASTER) not in done.stdout + done.stderr
        return done.stdout

    return run
