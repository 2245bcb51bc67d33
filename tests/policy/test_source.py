"""The policy in force: read again when the file changes, and never a broken one."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from apex_creds.errors import InvalidPolicyError, UnsafePathError, UnsafePermissionsError
from apex_creds.policy import policy_file as module
from apex_creds.policy.policy_file import Change, PolicySource, load_policy
from apex_creds.policy.rules import NO_POLICY, Policy
from tests.support.loops import WITHIN

DENY = 'version = 1\n[[rules]]\nid = "{}"\ndecision = "deny"\n'


@pytest.fixture
def home(tmp_path: Path) -> Path:
    made = tmp_path / "home"
    (made / "security").mkdir(parents=True, mode=0o700)
    made.chmod(0o700)
    return made


def write(home: Path, text: str, mode: int = 0o600) -> Path:
    """Puts a file in place as careful editors do."""
    path = home / "security" / "policy.toml"
    new = path.with_name("new")
    new.write_text(text, encoding="utf-8")
    new.chmod(mode)
    os.replace(new, path)
    return path


def ids(policy: Policy) -> list[str]:
    return [rule.id for rule in policy.rules]


def test_no_file_is_no_policy(home: Path) -> None:
    assert PolicySource(home).policy is NO_POLICY
    assert load_policy(home) is NO_POLICY


def test_a_change_is_seen_when_it_is_due_and_not_before(home: Path) -> None:
    write(home, DENY.format("one"))
    changes: list[Change] = []
    source = PolicySource(home, changed=changes.append)
    assert ids(source.current(10.0)) == ["one"]
    write(home, DENY.format("two"))
    assert ids(source.current(10.05)) == ["one"]
    assert ids(source.current(10.11)) == ["two"]
    assert [change.ok for change in changes] == [True]


def test_a_look_that_is_not_due_makes_no_system_call(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = PolicySource(home)
    source.current(10.0)
    with monkeypatch.context() as patched:  # not while pytest removes the folder
        patched.setattr(module.os, "lstat", lambda path: pytest.fail("a system call"))
        for step in range(99):
            source.current(10.0 + step / 1000)


def test_an_invalid_file_leaves_the_old_policy_and_says_so(
    home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(home, DENY.format("one"))
    changes: list[Change] = []
    source = PolicySource(home, changed=changes.append)
    old = source.policy
    path = write(home, 'version = 1\n[[rules]]\ndecision = "deny"\nplugin = "a*b"\n')
    assert source.current(1.0) is old
    assert source.current(2.0) is old
    assert [change.ok for change in changes] == [False], "told once"
    assert f"{path}, line 4" in changes[0].detail
    assert "line 4" in caplog.text
    assert caplog.records[0].levelname == "ERROR"
    write(home, DENY.format("two"))
    assert ids(source.current(3.0)) == ["two"]


def test_unsafe_files_leave_the_old_policy(home: Path) -> None:
    write(home, DENY.format("one"))
    changes: list[Change] = []
    source = PolicySource(home, changed=changes.append)
    path = write(home, DENY.format("two"), mode=0o644)
    assert ids(source.current(1.0)) == ["one"]
    assert "chmod" not in changes[0].detail
    assert "mode 0644" in changes[0].detail
    path.chmod(0o600)
    assert ids(source.current(2.0)) == ["two"]
    other = home / "other"
    other.write_text(DENY.format("three"))
    other.chmod(0o600)
    path.unlink()
    path.symlink_to(other)
    assert ids(source.current(3.0)) == ["two"]
    assert len(changes) == 3


def test_it_does_not_begin_with_a_file_that_it_can_not_use(home: Path) -> None:
    path = write(home, "version = 3")
    with pytest.raises(InvalidPolicyError):
        PolicySource(home)
    path.chmod(0o640)
    with pytest.raises(UnsafePermissionsError):
        PolicySource(home)
    path.unlink()
    path.mkdir()
    with pytest.raises(UnsafePathError):
        PolicySource(home)


def test_a_file_that_is_away_for_a_moment_stays_in_force(home: Path) -> None:
    path = write(home, DENY.format("one"))
    changes: list[Change] = []
    source = PolicySource(home, changed=changes.append)
    path.unlink()
    assert ids(source.current(1.0)) == ["one"]
    write(home, DENY.format("two"))
    assert ids(source.current(2.0)) == ["two"]
    path.unlink()
    assert ids(source.current(3.0)) == ["two"]
    assert source.current(4.0) is NO_POLICY
    assert "no policy file any more" in changes[-1].detail


def test_a_large_file_is_compiled_off_the_calling_thread(home: Path) -> None:
    done = threading.Event()
    where: list[str] = []

    def changed(change: Change) -> None:
        where.append(threading.current_thread().name)
        done.set()

    source = PolicySource(home, changed=changed)
    rules = "".join(f'[[rules]]\nid = "{n}"\ndecision = "deny"\n' for n in range(1000))
    write(home, f"version = 1\n{rules}")
    source.current(1.0)
    assert done.wait(WITHIN)
    assert where == ["apex-creds-policy"]
    assert len(source.current(2.0).rules) == 1000


def test_reload_looks_now(home: Path) -> None:
    source = PolicySource(home)
    source.current(5.0)
    write(home, DENY.format("one"))
    assert ids(source.reload()) == ["one"]
