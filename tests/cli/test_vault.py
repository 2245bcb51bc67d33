"""init, status, doctor, audit; exit codes; options before and after."""

from __future__ import annotations

import fcntl
import json
import os
import runpy
import subprocess
import time
from pathlib import Path

import anyio
import pytest

from apex_creds.cli import app, command
from apex_creds.cli.command import Settings
from apex_creds.clocks import SystemClock
from apex_creds.documents import key_versions
from apex_creds.documents.cached import Document
from apex_creds.vault import Vault
from tests.support.commands import PROGRAM


def states(done):
    return {(one["name"], one["state"]) for one in json.loads(done.out)}


def test_init_once(cli, error):
    assert cli.key.exists()
    assert "already" in error(3, "init", "--master", f"file:{cli.key}")


def test_hashed_names(bare):
    assert bare("init", "--hashed-names", "--master", f"file:{bare.key}").code == 0
    bare("set", "openai", stdin=b"value")
    names = os.listdir(bare.home / "credentials")
    assert names
    assert not any("api" in name for name in names)
    assert bare("get", "openai", "--reveal", "--force").out == "value"


def test_options_go_before_and_after_and_the_nearer_wins(cli, tmp_path):
    there = str(cli.home)
    for arguments in (
        ["--home", there, "list"],
        ["list", "--home", there],
        ["--home", str(tmp_path / "no"), "list", "--home", there],
        ["audit", "--home", there, "verify"],
        ["--home", there, "audit", "verify"],
        ["list", "--home", there, "--master", f"file:{cli.key}"],
        ["--master", f"file:{cli.key}", "--home", there, "status"],
    ):
        assert cli(*arguments, home=False).code == 0, arguments
    assert cli("--home", there, "list", "--home", str(tmp_path / "no"), home=False).code == 3


def test_help_and_version_everywhere(cli):
    groups = ["init", "set", "list", "show", "get", "rm", "grant", "grants", "revoke"]
    for name in [*groups, "status", "doctor", "import", "demo", "audit"]:
        assert "Usage" in cli(name, "-h").out, name
    assert "Usage" in cli("audit", "tail", "-h").out
    assert "Usage" in cli(home=False).out
    assert "apex-creds 0." in cli("--version").out


def test_status(cli):
    cli("set", "a", stdin=b"v1")
    cli("set", "b", "--kind", "generic", "--expires", "3d", stdin=b"v2")
    cli("grant", "p", "a")
    facts = cli("status", "--json").json()
    assert facts["credentials"] == 2
    assert facts["kinds"] == {"api_key": 1, "generic": 1}
    assert facts["grants"] == 1
    assert facts["master"] == f"file:{cli.key}"
    assert facts["audit_chain"] == "ok"
    assert facts["next_expiry"]
    assert "1 api_key, 1 generic" in cli("status").out


def test_doctor_on_a_healthy_vault(cli):
    cli("set", "a", stdin=b"v1")
    done = cli("doctor", "--json")
    assert done.code == 0
    assert ("vault", "ok") in states(done)
    assert ("permissions", "ok") in states(done)
    assert ("audit chain", "ok") in states(done)
    assert ("deletions", "ok") in states(done)
    assert "failure" not in {state for _, state in states(done)}


def test_doctor_names_the_file_and_the_fix(cli):
    cli("set", "a", stdin=b"v1")
    (cli.home / "credentials/api_keys.enc").chmod(0o644)
    done = cli("doctor")
    assert done.code == 1
    assert "chmod 600" in done.out
    assert "api_keys.enc" in done.out


def test_doctor_without_a_vault(bare):
    done = bare("doctor", "--json")
    assert done.code == 1
    assert ("vault", "failure") in states(done)
    assert {name for name, _ in states(done)} >= {
        *("keyring", "memory locking", "isolation", "cryptography", "clock")
    }


def test_doctor_says_that_there_is_no_wall_and_what_to_do(bare, monkeypatch):
    from apex_creds.isolation import control_groups, sandbox

    sandbox.bubblewrap.cache_clear()
    monkeypatch.setattr(control_groups, "parent", lambda: Path("/"))
    assert ("isolation", "ok") in states(bare("doctor", "--json"))
    monkeypatch.setattr(control_groups, "is_needed", lambda: True)
    monkeypatch.setattr(control_groups, "parent", lambda: None)
    done = bare("doctor", "--json")
    assert ("isolation", "warning") in states(done)
    assert "control group" in done.out
    sandbox.bubblewrap.cache_clear()
    monkeypatch.setattr(sandbox.shutil, "which", lambda *_, **__: None)
    done = bare("doctor", "--json")
    assert ("isolation", "warning") in states(done)
    assert "apt-get install bubblewrap" in done.out


def test_doctor_finds_a_wrong_key(cli, tmp_path):
    cli("init", "--home", str(tmp_path / "v2"), "--master", f"file:{tmp_path / 'k2'}")
    done = cli("doctor", "--master", f"file:{tmp_path / 'k2'}", "--json")
    assert done.code == 1
    assert ("vault", "failure") in states(done)


def test_doctor_finds_a_clock_that_went_back(cli, monkeypatch):
    monkeypatch.setattr("apex_creds.cli.doctor_command.time.time", lambda: 1_735_700_000.0)
    assert ("clock", "failure") in states(cli("doctor", "--json"))


def test_doctor_finds_an_interrupted_deletion(cli, monkeypatch):
    cli("set", "a", "--service", "svc", stdin=b"v1")
    cli("set", "b", "--service", "svc", stdin=b"v2")

    async def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(key_versions, "destroy_unused", interrupted)
        assert cli("rm", "a", "--yes").code == 130
    done = cli("doctor", "--json")
    assert done.code == 0
    assert ("deletions", "warning") in states(done)
    assert "svc" in done.out
    # The fix that it names mends it.
    cli("set", "c", "--service", "svc", stdin=b"v3")
    cli("rm", "c", "--yes")
    assert ("deletions", "ok") in states(cli("doctor", "--json"))


def test_doctor_calls_no_rotation_an_interrupted_deletion(cli):
    cli("set", "a", stdin=b"v1")
    for level in ("dek", "kek", "master"):
        assert cli("rotate", level).code == 0
    assert {("deletions", "ok"), ("rotation", "ok")} <= set(states(cli("doctor", "--json")))


async def made(home: Path, name: str) -> bool:
    """Makes a state document, if it is not there."""
    async with await Vault.unseal(home) as vault:
        document = Document(vault.store, name=name, empty=b"")
        return bool(await document.read() or await document.change(lambda _: bytes(300)))


@pytest.mark.parametrize("document", ["rotation", "access", "recovery", "limits"])
def test_doctor_finds_a_state_document_that_is_cut(cli, document):
    assert cli("rotate", "dek").code == 0
    assert anyio.run(made, cli.home, document)
    path = cli.home / "security" / f"{document}.enc"
    path.write_bytes(path.read_bytes()[:300])
    done = cli("doctor", "--json")
    assert done.code == 1
    assert ("vault", "failure") in states(done)
    assert document in done.out


@pytest.fixture
def overdue(cli, monkeypatch):
    cli("set", "a", stdin=b"v1")
    monkeypatch.setattr(SystemClock, "time", staticmethod(lambda: time.time() + 91 * 86_400))
    return cli


def test_a_key_that_is_due_is_told_where_no_worker_runs(overdue):
    done = overdue("doctor", "--json")
    (found,) = [one for one in done.json() if one["name"] == "rotation"]
    assert found["state"] == "warning"
    assert found["detail"] == "keys are due: dek, and no worker runs"
    assert "apex-creds worker" in found["fix"]
    assert "apex-creds rotate dek" in found["fix"]
    facts = overdue("status", "--json").json()
    assert (facts["rotation_due"], facts["worker"]) == (["dek"], False)
    shown = overdue("status").out
    assert "keys are due: dek, and no worker runs" in " ".join(shown.split())
    assert overdue("rotate", "dek").code == 0
    assert ("rotation", "ok") in states(overdue("doctor", "--json"))
    assert overdue("status", "--json").json()["rotation"] == "nothing is due"


def test_a_key_that_is_due_is_well_where_a_worker_runs(overdue):
    lock = overdue.home / "security" / ".worker.lock"
    lock.touch(0o600)
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert ("rotation", "ok") in states(overdue("doctor", "--json"))
        assert overdue("status", "--json").json()["worker"] is True


def test_doctor_finds_keys_that_were_made_while_the_clock_was_ahead(cli, monkeypatch):
    with monkeypatch.context() as wrong:
        wrong.setattr(SystemClock, "time", staticmethod(lambda: time.time() + 86_400))
        cli("set", "a", stdin=b"v1")
    (found,) = [one for one in cli("doctor", "--json").json() if one["name"] == "rotation"]
    assert (found["state"], found["detail"]) == (
        "warning",
        "keys were made while the clock was ahead: dek",
    )


def test_the_log_is_checked_without_a_key(cli, error):
    cli("set", "a", stdin=b"v1")
    cli.key.unlink()
    report = cli("audit", "verify", "--json").json()
    assert report["ok"] is True
    assert report["count"] == 3
    assert len(cli("audit", "tail", "-n", "2", "--json").json()) == 2
    assert "put" in cli("audit", "tail").out
    log = cli.home / "security/audit/000001.jsonl"
    log.write_bytes(log.read_bytes().replace(b'"put"', b'"get"'))
    assert "Event 3" in error(10, "audit", "verify")
    assert cli("audit", "verify", "--json").code == 10
    error(10, "audit", "tail")


def test_exit_codes_of_what_can_go_wrong(cli, error, tmp_path):
    error(3, "list", "--home", str(tmp_path / "none"))
    error(4, "list", "--master", f"file:{tmp_path / 'none'}")
    error(7, "list", "--master", "post-it:")
    error(2, "list", "--frobnicate")
    error(2, "frobnicate")
    (cli.home / "security/keystore.enc").write_bytes(b"{}")
    error(5, "list")
    (cli.home / "security/keystore.enc").chmod(0o640)
    error(6, "list")


def test_every_error_class_has_a_documented_exit_code():
    from apex_creds import errors

    for name in errors.__all__:
        assert getattr(errors, name).exit_code in app.EXIT_CODES


def test_an_unexpected_error_says_where_and_nothing_else(cli, monkeypatch):
    def broken(*args, **options):
        raise ValueError("sk-secret-in-an-exception")

    monkeypatch.setattr(command, "with_vault", broken)
    done = cli("list")
    assert done.code == 70
    assert "sk-secret" not in done.err
    assert "Unexpected ValueError at " in done.err


def test_keyrings_that_do_not_encrypt_are_refused(bare, monkeypatch):
    monkeypatch.setenv("PYTHON_KEYRING_BACKEND", "keyring.backends.null.Keyring")
    done = bare.process("init")
    assert done.code == 4
    assert "file:PATH" in done.err
    assert not (bare.home / "security/keystore.enc").exists()


def test_the_page_is_current():
    script = Path(__file__).resolve().parents[2] / "scripts/cli_docs.py"
    made = runpy.run_path(str(script))
    assert made["PAGE"].read_text(encoding="utf-8") == made["page"](), "run scripts/cli_docs.py"


def test_reading_a_header_needs_no_key(cli):
    cli.key.unlink()
    assert command.read_header(Settings(home=cli.home)).section == "keystore"


@pytest.mark.parametrize("command", ["list", "status", "grants", "doctor"])
def test_json_parses(cli, command):
    assert cli(command, "--json").json() is not None


def test_the_process_is_hardened(cli):
    assert ("core dumps", "ok") in states(cli.process("doctor", "--json"))


def test_a_reader_that_goes_away_is_no_traceback(cli):
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as closed:
        command = [*PROGRAM, "--home", str(cli.home), "list", "--json"]
        done = subprocess.run(command, stdout=closed, stderr=subprocess.PIPE, timeout=480)
    assert done.returncode == 141
    assert b"Traceback" not in done.stderr
    assert b"BrokenPipe" not in done.stderr


@pytest.mark.slow
def test_the_passphrase_comes_before_what_is_imported(bare):
    words = b"correct horse battery\n"
    fd = ["--master", "passphrase:fd=0"]
    assert bare.process("init", *fd, stdin=words).code == 0
    done = bare.process("import", "-", *fd, "--json", stdin=words + b"A=value\n")
    assert done.json()["imported"] == ["A"]
    assert bare.process("list", *fd, stdin=b"wrong\n").code == 4


def test_a_key_in_the_vaults_own_directory_is_named_each_time(bare):
    bare.home.mkdir(mode=0o700)
    key = f"file:{bare.home}/k"
    assert bare("init", "--master", key).code == 0
    for words in (("list",), ("rotate", "dek"), ("doctor",), ("worker",)):
        done = bare(*words)
        assert done.code != 0
        assert "own directory" in done.out + done.err
    assert bare("--master", key, "list").code == 0
