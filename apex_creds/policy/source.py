"""The policy in force: ``security/policy.toml``, read again when it changes.

Guarantee: what is in force is always a whole, valid policy. A new file that is not valid,
or not safe to read, leaves the old policy in force and is reported; so is every change. A
look at the file is one system call, at most every ``PERIOD`` seconds, none in between.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

from apex_creds.errors import ApexCredsError
from apex_creds.fs.oserrors import translated
from apex_creds.fs.private_files import Folder
from apex_creds.policy.policyfile import MAX_BYTES, POLICY_NAME, parse_policy
from apex_creds.policy.rules import NO_POLICY, Policy
from apex_creds.storage.layout import SECURITY

PERIOD: Final = 0.1
INLINE_BYTES: Final = 16 << 10
"""A larger file is compiled in a thread of its own, off the event loop."""

_log = logging.getLogger(__name__)

_Stamp = tuple[int, ...]
_ABSENT: Final[_Stamp] = ()


class Change(NamedTuple):
    """A change of the file, or an attempt at one.

    Attributes:
        ok: Whether the new file is in force.
        detail: What happened, in words; of an invalid file, which line and why.
    """

    ok: bool
    detail: str


def load_policy(home: Path) -> Policy:
    """The policy of a vault's directory; ``NO_POLICY`` where there is no file.

    Raises:
        InvalidPolicyError: It is not valid.
        StorageError: It can't be read safely.
    """
    data = _read(home)
    return NO_POLICY if data is None else parse_policy(data, where=_where(home))


class PolicySource:
    """The policy of one vault, as it is now.

    Args:
        home: The vault's directory.
        changed: Told of every change; may be called from another thread.

    Raises:
        InvalidPolicyError: There is a file and it is not valid: nothing is decided by it.
        StorageError: It can't be read safely.
    """

    __slots__ = (
        "_changed",
        "_home",
        "_lock",
        "_path",
        "_seen",
        "due",
        "policy",
    )

    def __init__(self, home: Path, *, changed: Callable[[Change], None] | None = None) -> None:
        self._home = home
        self._path = str(home / SECURITY / POLICY_NAME)
        self._changed = changed
        self._lock = threading.Lock()
        self._seen = self._stamp()
        self.policy = load_policy(home)
        self.due = 0.0

    def look(self, now: float) -> Policy:
        """The policy in force at ``now``, on a monotonic clock in seconds.

        Callers may compare ``now`` with ``due`` themselves and take ``policy``.
        """
        if now >= self.due:
            self.due = now + PERIOD
            self._look()
        return self.policy

    def reload(self) -> Policy:
        """Looks at the file now, whatever the time, and waits until it is compiled."""
        with self._lock:
            stamp = self._stamp()
            if stamp != self._seen:
                self._load(stamp)
        return self.policy

    def _look(self) -> None:
        stamp = self._stamp()
        if stamp == self._seen or not self._lock.acquire(blocking=False):
            return
        # An absent file has to stay so for a while: editors move it away and back.
        if stamp == _ABSENT and self._seen != (0,):
            self._seen = (0,)
            self._lock.release()
        elif stamp != _ABSENT and stamp[-1] > INLINE_BYTES:
            threading.Thread(
                target=self._load_and_release,
                args=(stamp,),
                name="apex-creds-policy",
                daemon=True,
            ).start()
        else:
            self._load_and_release(stamp)

    def _load_and_release(self, stamp: _Stamp) -> None:
        try:
            self._load(stamp)
        finally:
            self._lock.release()

    def _load(self, stamp: _Stamp) -> None:
        """Puts the file in force if it is valid; says so either way."""
        self._seen = stamp
        try:
            found = load_policy(self._home)
        except ApexCredsError as error:
            change = Change(False, f"{error.message} The policy as it was stays in force.")
            _log.error("%s %s", change.detail, error.hint)
        else:
            gone = "There is no policy file any more." if found is NO_POLICY else ""
            change = Change(True, gone or f"A new policy of {len(found.rules)} rules.")
            self.policy = found
            _log.warning("%s", change.detail)
        if self._changed is not None:
            self._changed(change)

    def _stamp(self) -> _Stamp:
        """What changes when the file does."""
        try:
            found = os.lstat(self._path)
        except OSError:
            return _ABSENT
        mode, owner = found.st_mode, found.st_uid
        return (found.st_ino, found.st_mtime_ns, found.st_ctime_ns, mode, owner, found.st_size)


def _where(home: Path) -> str:
    return str(home / SECURITY / POLICY_NAME)


def _read(home: Path) -> bytes | None:
    path = home / SECURITY / POLICY_NAME
    with translated(path, writing=False):
        try:
            with (
                Folder(home, outer=True) as root,
                Folder(home / SECURITY, within=root) as security,
            ):
                fd = security.open(POLICY_NAME)
        except FileNotFoundError:
            return None
        with os.fdopen(fd, "rb") as file:
            return file.read(MAX_BYTES + 1)
