"""The units are valid and closed, and what they run works within what they allow.

No systemd runs here as process 1. So `systemd-analyze` judges the units, the credential is
sealed and opened by `systemd-creds`, and the worker runs as its unit starts it, traced, and
without memory that is writable and executable.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from apex_creds.errors import UnsafePermissionsError
from apex_creds.keys.key_file import read_keys
from tests.deploy.files import BIN, DEPLOY, healthcheck, run

pytestmark = pytest.mark.e2e

UNITS = DEPLOY / "systemd"
SERVICES = ("apex-creds-worker", "apex-creds-init", "apex-creds-verify")
PROGRAM = "/opt/apex-creds/bin/apex-creds"
EXPOSURE = {"apex-creds-worker": 1.0, "apex-creds-init": 0.3, "apex-creds-verify": 0.3}
"""At most, as `systemd-analyze security` counts it: 0 is best, 10 is worst."""
COMMON = {"read", "write", "close", "openat", "newfstatat", "lseek", "mmap", "munmap", "futex"}
COMMON |= {"fstat", "stat", "brk", "readlink", "getdents64", "pread64", "madvise", "mprotect"}


def _settings(name: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in (UNITS / f"{name}.service").read_text().splitlines():
        key, separator, value = line.partition("=")
        if separator and not line.startswith("#"):
            found.setdefault(key, []).append(value)
    return found


def _tool(name: str) -> str:
    found = shutil.which(name)
    assert found is not None, f"apt-get install {name.partition('-')[0]}"
    return found


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The units with the program where it is here."""
    folder = tmp_path_factory.mktemp("units")
    for path in (*UNITS.glob("*.service"), *UNITS.glob("*.timer")):
        text = path.read_text().replace(PROGRAM, str(BIN / "apex-creds"))
        (folder / path.name).write_text(text)
    return folder


def test_systemd_finds_nothing_wrong(installed: Path) -> None:
    units = [str(path) for path in sorted(installed.iterdir())]
    assert len(units) == 4
    done = run(_tool("systemd-analyze"), "verify", "--man=no", "--recursive-errors=no", *units)
    assert done.stderr == ""


@pytest.mark.parametrize("name", SERVICES)
def test_the_exposure_is_as_low_as_it_was(installed: Path, name: str) -> None:
    unit = str(installed / f"{name}.service")
    most = EXPOSURE[name]
    command = [_tool("systemd-analyze"), "security", "--offline=yes", "--no-pager"]
    done = run(*command, f"--threshold={round(most * 10)}", unit)
    (found,) = re.findall(r"Overall exposure level for .*: ([0-9.]+)", done.stdout)
    assert float(found) <= most


@pytest.mark.parametrize("name", SERVICES)
def test_no_unit_has_a_secret_or_the_key_as_a_plain_file(name: str) -> None:
    text = (UNITS / f"{name}.service").read_text()
    settings = _settings(name)
    sealed = settings.get("LoadCredentialEncrypted", [])
    assert "LoadCredential" not in settings
    assert "SetCredential" not in text
    assert bool(sealed) is (name != "apex-creds-verify")
    for credential in sealed:
        assert credential.startswith("master.key:/etc/credstore.encrypted/")
        assert "--master file:%d/master.key" in settings["ExecStart"][0]


def test_the_credential_is_sealed_and_opened_again(tmp_path: Path) -> None:
    """With systemd's own program, and a host key that is not this machine's."""
    env = {"SYSTEMD_CREDENTIAL_SECRET": str(tmp_path / "host.secret")}
    creds, sealed = _tool("systemd-creds"), tmp_path / "sealed"
    key = base64.b64encode(os.urandom(32))
    (tmp_path / "plain").write_bytes(key)
    plain = str(tmp_path / "plain")
    run(creds, "encrypt", "--with-key=host", "--name=master.key", plain, str(sealed), **env)
    assert key not in sealed.read_bytes()
    opened = tmp_path / "master.key"
    run(creds, "decrypt", "--name=master.key", str(sealed), str(opened), **env)
    assert opened.read_bytes() == key
    opened.chmod(0o400)
    assert set(read_keys(opened)) == {1}


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a file to root")
def test_a_credential_that_an_access_list_opens_is_taken_from_its_place_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Newer systemd gives the service access that way; the mask shows as the group's bit."""
    path = tmp_path / "master.key"
    path.write_bytes(base64.b64encode(os.urandom(32)))
    os.chown(path, 0, 0)
    path.chmod(0o440)
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    with pytest.raises(UnsafePermissionsError):
        read_keys(path)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert set(read_keys(path)) == {1}
    for mode, group in ((0o444, 0), (0o460, 0), (0o440, 12345)):
        os.chown(path, 0, group)
        path.chmod(mode)
        with pytest.raises(UnsafePermissionsError):
            read_keys(path)


# -- what the worker's unit runs ---------------------------------------------------------


def _command(name: str, where: Path) -> list[str]:
    line = _settings(name)["ExecStart"][0]
    for old, new in (
        (PROGRAM, ""),
        ("%d", str(where / "credentials")),
        ("/var/lib/apex-creds", str(where / "lib")),
        ("/run/apex-creds", str(where / "run")),
    ):
        line = line.replace(old, new)
    return shlex.split(line)


def _prepared(where: Path) -> dict[str, str]:
    """What systemd prepares: directories, the credential, the environment."""
    for folder in ("credentials", "lib", "run"):
        (where / folder).mkdir(mode=0o700)
    key = where / "credentials" / "master.key"
    key.write_bytes(base64.b64encode(os.urandom(32)))
    key.chmod(0o400)
    env = {n: v for n, v in os.environ.items() if not n.startswith(("OTEL_", "APEX_"))}
    return env | {
        "CREDENTIALS_DIRECTORY": str(where / "credentials"),
        "NOTIFY_SOCKET": str(where / "notify"),
        "XDG_STATE_HOME": str(where / "lib" / "state"),
        # Nobody listens there; what matters is that sending is tried.
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9",
        "OTEL_EXPORTER_OTLP_TIMEOUT": "1",
        "OTEL_METRIC_EXPORT_INTERVAL": "500",
        "PYTHONPATH": str(DEPLOY.parent),
    }


# PR_SET_MDWE of Linux 6.3 is what MemoryDenyWriteExecute= does where the kernel has it.
_CLOSED = """
import ctypes, sys
if ctypes.CDLL(None).prctl(65, 1, 0, 0, 0) != 0:
    sys.stderr.write("this kernel has no PR_SET_MDWE\\n")
from apex_creds.cli import main
main()
"""


def _allowed() -> set[str]:
    """The system calls that the unit's filters leave."""
    found: set[str] = set()
    for line in _settings("apex-creds-worker")["SystemCallFilter"]:
        names: set[str] = set()
        for word in line.removeprefix("~").split():
            names |= _expanded(word) if word.startswith("@") else {word}
        found = found - names if line.startswith("~") else found | names
    return found


def _expanded(group: str) -> set[str]:
    lines = run(_tool("systemd-analyze"), "syscall-filter", group).stdout.splitlines()[1:]
    words = [
        line.strip() for line in lines if line.strip() and not line.strip().startswith("#")
    ]
    nested = [_expanded(word) for word in words if word.startswith("@")]
    return {word for word in words if not word.startswith("@")}.union(*nested)


def _used(trace: Path) -> set[str]:
    return set(re.findall(r"^\d+ +([a-z_0-9]+)\(", trace.read_text(), re.MULTILINE))


def test_the_worker_works_within_its_unit(tmp_path: Path) -> None:
    env = _prepared(tmp_path)
    python = [sys.executable, "-c", _CLOSED]
    run(*python, *_command("apex-creds-init", tmp_path), **env)
    trace = tmp_path / "trace"
    told = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    told.bind(str(tmp_path / "notify"))
    told.settimeout(60)
    # What every program does all the time runs at full speed, untraced.
    common = f"!{','.join(COMMON)}"
    command = [_tool("strace"), "-f", "-qq", "--seccomp-bpf", "-e", common, "-o", str(trace)]
    command += [*python, *_command("apex-creds-worker", tmp_path)]
    process = subprocess.Popen(command, env=env)
    try:
        messages: set[str] = set()
        while not {"READY=1", "WATCHDOG=1"} <= messages:
            messages |= set(told.recv(4096).decode().splitlines())
        judge, health = healthcheck().judge, str(tmp_path / "run" / "health.json")
        deadline = time.monotonic() + 480
        while (wrong := judge(health, 60.0)) or len(_last(health)) < 7:
            assert time.monotonic() < deadline, wrong
            time.sleep(0.1)
        (child,) = _children(process.pid)
        os.kill(child, signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        told.close()
        if process.poll() is None:
            process.kill()
            process.wait()
    used = _used(trace)
    assert len(used) > 30
    assert (used | COMMON) - _allowed() == set()
    report = json.loads(Path(health).read_text())
    assert report["ok"]
    assert {"verify", "count", "due", "rotate dek"} <= report["last"].keys()
    run(*python, *_command("apex-creds-verify", tmp_path), **env)


def _last(health: str) -> dict[str, float]:
    return json.loads(Path(health).read_text())["last"]


def _children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(word) for word in text.split()]
