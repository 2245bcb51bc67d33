"""The program and the demo with a real gnome-keyring."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.support.commands import PROGRAM
from tests.support.realparts import gnome_keyring, gnome_keyring_missing

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(bool(gnome_keyring_missing()), reason=gnome_keyring_missing() or "-"),
]


def test_the_whole_way_with_the_default_master(tmp_path: Path) -> None:
    home = str(tmp_path / "vault")

    def program(*arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        command = [*PROGRAM, "--home", home, *arguments]
        return subprocess.run(command, input=stdin, env=env, capture_output=True, timeout=480)

    with gnome_keyring() as env:
        assert program("init").returncode == 0
        assert program("set", "openai", stdin=b"sk-value").returncode == 0
        assert program("get", "openai", "--reveal", "--force").stdout == b"sk-value"
        checks = json.loads(program("doctor", "--json").stdout)
        assert ("keyring", "ok") in {(one["name"], one["state"]) for one in checks}

        demo = [*PROGRAM, "demo", "--calls", "30", "--json", "--master", "keyring:"]
        done = subprocess.run(demo, env=env, capture_output=True, timeout=480)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["master"] == "keyring:"
        left = entries(env)
        assert len(left) == 3, "the demo's master key, anchor or pin is still in the keyring"
        assert sum(":anchor'" in label for label in left) == 1
        assert sum("'home:" in label for label in left) == 1


def entries(env: dict[str, str]) -> list[str]:
    code = (
        "import secretstorage\n"
        "bus = secretstorage.dbus_init()\n"
        "found = secretstorage.get_default_collection(bus).search_items("
        "{'service': 'apex-creds'})\n"
        "print('\\n'.join(item.get_label() for item in found))\n"
        "bus.close()\n"
    )
    command = [PROGRAM[0], "-c", code]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=480)
    assert done.returncode == 0, done.stderr
    return done.stdout.split("\n")[:-1]
