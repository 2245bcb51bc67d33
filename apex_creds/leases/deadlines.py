"""Ends leases at their deadlines, in a thread of its own.

Guarantee: a lease that is watched is ended at its deadline, whatever becomes of the event
loop that it was made in; one that ends in time costs no timer of its own. The thread is
there until ``close``, and looks at the clock again after a suspend.
"""

from __future__ import annotations

import math
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from apex_creds.errors import HandleExpiredError
from apex_creds.model import Clock

if TYPE_CHECKING:
    from apex_creds.leases.lease import Lease

LONGEST_SLEEP: Final = 5.0
"""A thread's wait stands still while the machine sleeps: look again after it."""


class Deadlines:
    """The leases under which something is revealed now."""

    __slots__ = ("_at", "_changed", "_clock", "_closed", "_thread", "_watched")

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._watched: dict[Lease, None] = {}
        self._changed = threading.Condition()
        self._at = math.inf
        self._closed = False
        self._thread = self._started()

    def watch(self, lease: Lease) -> None:
        """Has the lease ended at its deadline; from any thread."""
        self._watched[lease] = None
        if lease.expires < self._at:  # looked at after it was added
            self._wake()

    def forget(self, lease: Lease) -> None:
        """Nothing is revealed under it any more."""
        self._watched.pop(lease, None)

    def close(self) -> None:
        """Ends the thread; nothing is watched any more."""
        with self._changed:
            self._closed = True
            self._watched.clear()
            self._changed.notify()

    def _wake(self) -> None:
        with self._changed:
            if not (self._thread.is_alive() or self._closed):  # after a fork
                self._thread = self._started()
            self._changed.notify()

    def _started(self) -> threading.Thread:
        thread = threading.Thread(target=self._run, name="apex-creds-deadlines", daemon=True)
        with suppress(RuntimeError):  # the interpreter is ending; each use checks the time
            thread.start()
        return thread

    def _run(self) -> None:
        while self._wait():
            now = self._clock.monotonic()
            for lease in list(self._watched):
                if now >= lease.expires:
                    self.forget(lease)
                    with suppress(RuntimeError):  # of a loop with something open, just closed
                        lease.end(HandleExpiredError)

    def _wait(self) -> bool:
        """Returns at a deadline; False when this was closed."""
        with self._changed:
            while not self._closed:
                self._at = math.inf  # whoever adds one from here on wakes this thread
                at = min((lease.expires for lease in list(self._watched)), default=math.inf)
                self._at = at
                left = at - self._clock.monotonic()
                if left <= 0:
                    return True
                self._changed.wait(None if left == math.inf else min(left, LONGEST_SLEEP))
            return False
