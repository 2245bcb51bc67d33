"""What a worker looks at besides doing what is due: for metrics, and for its health.

Guarantee: the log is read in threads and nothing is changed; what only metrics want is not
looked at while nobody exports them. A log that does not verify is an error of the worker,
and stays one in ``log_check`` until it verifies again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial

import anyio.to_thread

from apex_creds.audit.checkpoint import LogKey, read_keys
from apex_creds.audit.reader import EventCounts, What
from apex_creds.audit.verify import Report, check, judged
from apex_creds.errors import ApexCredsError, AuditTamperedError
from apex_creds.fs.home import audit_directory
from apex_creds.scheduler.engine import Engine
from apex_creds.scheduler.policy import Level
from apex_creds.scheduler.rotation import next_due
from apex_creds.telemetry.instruments import LogCheck, metering_on, watch_worker
from apex_creds.vault import Vault
from apex_creds.vault.anchor import open_signing_key


class Watch:
    """Looks at one vault when it is told to; metrics show what it found.

    Args:
        vault: Unsealed.
        engine: Knows when keys are due.
    """

    def __init__(self, vault: Vault, engine: Engine) -> None:
        self._vault = vault
        self._engine = engine
        self._directory = audit_directory(vault.home)
        self._counts = EventCounts(self._directory, vault_id=vault.audit.vault_id)
        self._checked: tuple[bool, float] | None = None
        self._unsigned: tuple[int, float] | None = None
        self._due: dict[Level, float] = {}
        self.wrong: Mapping[str, str] = {}
        watch_worker(self)

    # -- looking -----------------------------------------------------------------

    async def verify(self) -> None:
        """Checks the whole log against the vault's own key.

        Raises:
            AuditTamperedError: It does not verify; says where.
            AuditUnavailableError: It can't be read.
        """
        try:
            await self._verify()
        except ApexCredsError:
            self._checked = False, self._vault.clock.monotonic()
            raise
        self._checked = True, self._vault.clock.monotonic()

    async def _verify(self) -> None:
        with open_signing_key(self._vault.store.unsealed()) as signer:
            key = LogKey(self._vault.audit.vault_id, signer).verifier
        keys = (key, *read_keys(self._directory)[1:])
        vault_id = self._vault.audit.vault_id
        look = partial(check, self._directory, vault_id=vault_id, keys=keys)
        found = await anyio.to_thread.run_sync(look, abandon_on_cancel=True)
        waits = self._waits(found)
        report = judged(self._directory, found, vault_id=vault_id, waits=waits)
        if not report.ok:
            raise AuditTamperedError(
                report.wrong,
                hint="See: apex-creds audit verify. Keep a copy of the log.",
            )

    def _waits(self, found: Report) -> float:
        """Seconds since the first unsigned event was first seen, whatever its time says.

        Not by that time: the clock may have been set since, or the machine have slept.
        """
        if not found.unsigned:
            self._unsigned = None
            return 0.0
        if self._unsigned is None or self._unsigned[0] != found.signed:
            self._unsigned = found.signed, self._vault.clock.monotonic()
        return self._vault.clock.monotonic() - self._unsigned[1]

    async def count(self) -> None:
        """Counts the log's new events, where metrics are exported.

        Raises:
            AuditTamperedError: A line is not what was written.
            AuditUnavailableError: It can't be read.
        """
        if metering_on():
            await anyio.to_thread.run_sync(self._counts.look, abandon_on_cancel=True)

    async def due(self) -> None:
        """Finds out when keys are due next, where metrics are exported.

        Raises:
            IntegrityError: A document is not what this vault wrote.
        """
        if not metering_on():
            return
        view, state = await self._engine.view(), await self._engine.document.read()
        self._due = next_due(view, state.policies, next_fire=self._engine.next_fire)

    # -- for metrics -------------------------------------------------------------

    def log_check(self) -> LogCheck | None:
        """See ``WatchSource``."""
        if self._checked is None:
            return None
        intact, at = self._checked
        return LogCheck(intact, self._vault.clock.monotonic() - at)

    def log_events(self) -> Iterable[tuple[What, int]]:
        """See ``WatchSource``."""
        return self._counts.read().items()

    def rotations_due(self) -> Mapping[str, float]:
        """See ``WatchSource``."""
        now = self._vault.clock.time()
        return {level.value: at - now for level, at in self._due.items()}

    def problems(self) -> int:
        """See ``WatchSource``."""
        return len(self.wrong)
