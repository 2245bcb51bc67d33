"""rotate, rotation and events: keys renewed, looked at and declared lost, by command."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time

import pytest

from apex_creds.clocks import SystemClock
from apex_creds.scheduler.engine import Engine, Outcome
from tests.support import old
from tests.support.commands import PROGRAM

SERVICE = "api_keys/mail"


@pytest.fixture
def vault(cli):
    """Two services with a credential each; every rotation must leave both readable."""
    for name in ("mail", "maps"):
        assert cli("set", name, stdin=f"sk-{name}".encode()).code == 0
    yield cli
    for name in ("mail", "maps"):
        assert cli("get", name, "--reveal", "--force").out == f"sk-{name}"
    assert cli("audit", "verify").code == 0


def states(cli, level: str, key: str | None = None) -> list[str]:
    """Of every version of a level (of one key), the oldest first; destroyed ones, too."""
    found = cli("rotation", "history", "--json").json()["versions"]
    lines = [line for line in found if line["level"] == level and key in (None, line["key"])]
    return [line["state"] for line in sorted(lines, key=lambda line: line["version"])]


def labels(cli) -> list[str]:
    found = cli("rotation", "status", "--json").json()["versions"]
    return sorted({line["key"] for line in found if line["level"] == "dek"})


# -- rotate ------------------------------------------------------------------------------


@pytest.mark.parametrize("level", ["dek", "kek", "master"])
def test_each_level_is_renewed_and_the_old_version_kept_for_a_while(vault, level):
    done = vault("rotate", level, "--wait")
    assert (done.code, done.err) == (0, "")
    assert f"The {level} rotation is done." in done.out
    if level == "dek":
        assert states(vault, "dek", SERVICE) == ["retired", "primary"]
    else:
        assert states(vault, level) == ["retired", "primary"]


def test_one_service_alone(vault):
    assert vault("rotate", "dek", "--service", "mail").code == 0
    assert states(vault, "dek", SERVICE) == ["retired", "primary"]
    assert states(vault, "dek", "api_keys/maps") == ["primary"]


@pytest.mark.parametrize("level", ["dek", "kek", "master"])
def test_a_compromised_key_is_destroyed_at_once_with_all_below_it(vault, level):
    assert vault("rotate", level, "--compromised", "--wait").code == 0
    order = ["master", "kek", "dek"]
    for one in order[order.index(level) :]:
        key = SERVICE if one == "dek" else None
        assert states(vault, one, key) == ["destroyed", "primary"]
    assert vault.key.read_text().startswith("v2 ") is (level == "master")
    for one in order[: order.index(level)]:
        assert states(vault, one) == ["primary"]


@pytest.fixture
def ahead(cli, monkeypatch):
    """A vault whose keys were all made while the clock was a day ahead; it is right again."""
    with monkeypatch.context() as wrong:
        wrong.setattr(SystemClock, "time", staticmethod(lambda: time.time() + 86_400))
        assert cli("set", "mail", stdin=b"sk-mail").code == 0
        for level in ("dek", "kek", "master"):
            assert cli("rotate", level).code == 0
    return cli


@pytest.mark.parametrize("level", ["dek", "kek", "master"])
@pytest.mark.parametrize("how", [(), ("--compromised",)])
def test_keys_from_a_wrong_clock_are_renewed(ahead, level, how):
    before = states(ahead, level, SERVICE if level == "dek" else None)
    assert ahead("rotate", level, *how).code == 0
    after = states(ahead, level, SERVICE if level == "dek" else None)
    assert len(after) == len(before) + 1
    assert set(after[:-1]) == ({"destroyed"} if how else {"retired"})
    assert ahead("get", "mail", "--reveal", "--force").out == "sk-mail"


def test_an_event_about_keys_from_a_wrong_clock(ahead):
    assert ahead("events", "emit", "compromise_suspected", "service=mail").code == 0
    assert states(ahead, "dek", SERVICE)[:-1] == ["destroyed"] * 2


def test_while_another_process_rotates_the_command_waits_or_fails(vault, tmp_path):
    lock = vault.home / "security" / ".rotation.lock"
    holder = (
        f"import fcntl, sys; f = open({str(lock)!r}, 'w'); fcntl.flock(f, fcntl.LOCK_EX);"
        "print('held', flush=True); sys.stdin.read()"
    )
    lock.touch(0o600)
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", holder], stdin=pipe, stdout=pipe) as other:
        assert other.stdout.readline() == b"held\n"
        done = vault("rotate", "dek", "--no-wait")
        assert (done.code, done.out) == (6, "")
        assert "not done yet: dek api_keys/mail" in done.err
        assert states(vault, "dek", SERVICE) == ["primary"]
        command = [*PROGRAM, "--home", str(vault.home), "rotate", "dek"]
        with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as waiting:
            assert "waiting until it is done" in waiting.stderr.readline()
            other.kill()
            assert "rotation is done" in waiting.communicate()[0]
        assert waiting.returncode == 0
    assert states(vault, "dek", SERVICE) == ["retired", "primary"]


def test_a_rotation_that_changed_nothing_is_not_called_done(vault, monkeypatch):
    async def nothing(*_, **__):
        return Outcome()

    monkeypatch.setattr(Engine, "run", nothing)
    for arguments in (
        ("rotate", "kek"),
        ("rotate", "dek", "--compromised"),
        ("events", "emit", "operator_request"),
        ("events", "emit", "compromise_suspected", "--yes"),
    ):
        done = vault(*arguments)
        assert (done.code, done.out) == (6, ""), arguments


def test_an_event_about_a_service_that_is_not_there(vault, error):
    error(8, "events", "emit", "compromise_suspected", "service=nobody")
    assert vault("rotation", "history", "--json").json()["events"] == []


def test_an_older_version_is_declared_compromised(vault):
    vault("rotate", "dek", "--service", "mail")
    done = vault(
        "rotate", "dek", "--service", "mail", "--compromised", "--version", "1", "--wait"
    )
    assert done.code == 0, done
    assert states(vault, "dek", SERVICE)[0] == "destroyed"
    lost = [
        line["version"]
        for line in vault("rotation", "history", "--json").json()["versions"]
        if line["compromised"]
    ]
    assert 1 in lost


def test_what_is_not_understood_changes_nothing(vault, error):
    error(7, "rotate", "dek", "--version", "1")
    error(7, "rotate", "kek", "--service", "mail")
    error(8, "rotate", "dek", "--service", "nobody")
    error(2, "rotate", "everything")
    error(2, "rotate", "dek", "--version", "0", "--compromised")
    assert states(vault, "dek", SERVICE) == ["primary"]


# -- rotation ----------------------------------------------------------------------------


def test_status_says_what_each_version_protects_and_what_is_next(vault):
    found = vault("rotation", "status", "--json").json()
    assert set(found) == {
        "versions",
        "next_due",
        "due_now",
        "waiting_events",
        "by_hand",
        "credentials",
        "logins",
    }
    assert (found["due_now"], found["waiting_events"], found["by_hand"]) == ([], [], [])
    assert set(found["next_due"]) == {"master", "kek", "dek"}
    mail = next(line for line in found["versions"] if line["key"] == SERVICE)
    assert (mail["version"], mail["state"], mail["protects"]) == (1, "primary", 1)
    assert mail["compromised"] is False
    vault("rotate", "dek", "--wait")
    again = vault("rotation", "status", "--json").json()["versions"]
    protects = {line["version"]: line["protects"] for line in again if line["key"] == SERVICE}
    assert protects == {1: 0, 2: 1}
    shown = vault("rotation", "status").out
    assert SERVICE in shown
    assert "next due" in shown


def test_history_keeps_what_is_gone(vault):
    vault("rotate", "dek", "--service", "mail", "--compromised")
    found = vault("rotation", "history", "--json").json()
    lines = [line for line in found["versions"] if line["key"] == SERVICE]
    assert [(line["version"], line["state"], line["compromised"]) for line in lines] == [
        (1, "destroyed", True),
        (2, "primary", False),
    ]
    assert "destroyed" in vault("rotation", "history").out
    assert sorted(labels(vault)) == [SERVICE, "api_keys/maps", "documents"]


def test_a_policy_is_printed_and_changed(vault, error):
    before = vault("rotation", "policy", "dek", "--json").json()
    assert before["interval"] == 90 * 86_400
    arguments = ("--interval", "30d", "--grace", "0", "--max-encryptions", "1000")
    assert vault("rotation", "policy", "dek", *arguments).code == 0
    after = vault("rotation", "policy", "dek", "--json").json()
    assert (after["interval"], after["grace"], after["max_encryptions"]) == (
        30 * 86_400,
        0,
        1000,
    )
    assert vault("rotation", "policy", "kek", "--json").json()["interval"] == 180 * 86_400
    error(7, "rotation", "policy", "kek", "--cron", "whenever")
    error(7, "rotation", "policy", "kek", "--max-encryptions", "5")
    error(7, "rotation", "policy", "dek", "--max-encryptions", str(10**30))


# -- events ------------------------------------------------------------------------------


def test_an_event_is_acted_on_once(vault):
    emit = ("events", "emit", "compromise_suspected", "level=dek", "service=mail")
    done = vault(*emit)
    assert done.code == 0, done
    assert "acted on" in done.out
    assert states(vault, "dek", SERVICE) == ["destroyed", "primary"]
    assert states(vault, "dek", "api_keys/maps") == ["primary"]
    assert "a moment ago" in vault(*emit).out
    assert states(vault, "dek", SERVICE) == ["destroyed", "primary"]
    past = vault("rotation", "history", "--json").json()["events"]
    assert [(event["event"], event["source"]) for event in past] == [
        ("compromise_suspected", "operator")
    ]


def test_the_plugins_that_are_gone_lose_their_services_keys(vault):
    vault("grant", "demo.gone", "maps", "--ahead")
    assert vault("events", "emit", "plugin_removed", "plugin=demo.gone").code == 0
    assert states(vault, "dek", "api_keys/maps") == ["retired", "primary"]
    assert states(vault, "dek", SERVICE) == ["primary"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("no_such_event",),
        ("plugin_removed",),
        ("plugin_removed", "plugin"),
        ("plugin_removed", "plugin=a\n"),
        ("plugin_removed", "plugin=a", "source=b"),
        ("leak_detected", "colour=red"),
    ],
)
def test_what_is_no_event(vault, error, arguments):
    error(7, "events", "emit", *arguments)
    assert vault("rotation", "history", "--json").json()["events"] == []


# -- what older programs left ---------------------------------------------------------------


def test_these_commands_migrate_first_too(cli, monkeypatch):
    monkeypatch.setenv(old.VARIABLE, old.ENV[old.VARIABLE])
    old.fernet_file(cli.home.parent)
    done = cli("rotation", "status", "--json")
    assert "4 migrated" in done.err
    assert {line["key"] for line in done.json()["versions"] if line["level"] == "dek"}


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGTERM")
def test_the_worker_migrates_before_it_starts(cli):
    path = old.fernet_file(cli.home.parent)
    env = {**os.environ, "PYTHONUNBUFFERED": "1", old.VARIABLE: old.ENV[old.VARIABLE]}
    command = [*PROGRAM, "--home", str(cli.home), "worker"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=env, stdout=pipe, stderr=pipe, text=True) as process:
        assert "runs" in process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        assert "4 migrated" in process.communicate(timeout=480)[1]
    assert process.returncode == 0
    assert not path.exists()


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGTERM")
def test_a_worker_that_can_not_get_on_ends_when_it_is_told_twice(vault):
    """Its rotation waits for the lock of writers, which another process keeps."""
    assert vault("rotation", "policy", "dek", "--interval", "1s").code == 0
    command = [*PROGRAM, "--home", str(vault.home), "worker", "--every", "0.1"]
    with (vault.home / "security" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        pipe = subprocess.PIPE
        with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as process:
            assert "runs" in process.stdout.readline()
            while process.poll() is None:
                process.send_signal(signal.SIGTERM)
                time.sleep(0.05)
            process.communicate()
        assert process.returncode in (0, -signal.SIGTERM)
