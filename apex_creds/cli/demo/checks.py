"""What the demo found, and whether all of it is as it must be.

Guarantee: pure; ``rows`` is the table and the JSON alike, so they can't differ.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Row:
    """One line: what was checked, what was found, and what had to be found."""

    name: str
    found: str
    wanted: str
    ok: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """Counts of one run; ``…_wanted`` is what the plan of calls demands.

    Attributes:
        found: Texts and files that held a secret, in clear or encoded.
        overhead: Microseconds that a call with a handle takes over a bare one; not judged.
        samples: What the leaking plugin got out, and how it reads.
    """

    calls: int
    as_expected: int
    wrong: tuple[str, ...]
    right_wanted: int
    right: int
    refused_by_service: int
    denials_wanted: int
    denials: int
    denials_logged: int
    leaks_wanted: int
    leaking_calls: int
    leaks: int
    found: int
    searched: int
    leases: int
    events: int
    chain_ok: bool
    overhead: float
    samples: tuple[tuple[str, str], ...]

    @property
    def ok(self) -> bool:
        """Whether everything is as it must be."""
        return all(row.ok for row in self.rows())

    def rows(self) -> list[Row]:
        """The table."""
        return [
            _exactly("calls that ended as they must", self.as_expected, self.calls),
            _exactly(
                "calls served with the right secret",
                self.right,
                self.right_wanted,
                but=(self.refused_by_service, "with a wrong one"),
            ),
            _exactly(
                "denials",
                self.denials,
                self.denials_wanted,
                but=(self.denials - self.denials_logged, "not in the log"),
            ),
            Row(
                "leaks redacted",
                f"{self.leaks} in {self.leaking_calls} calls",
                f"in {self.leaks_wanted} calls",
                self.leaking_calls == self.leaks_wanted,
            ),
            _exactly("secrets in results, logs, errors, files", self.found, 0),
            _exactly("leases open", self.leases, 0),
            Row(
                "audit events",
                f"{self.events}, chain {'unbroken' if self.chain_ok else 'BROKEN'}",
                "chain unbroken",
                self.chain_ok and self.events > 0,
            ),
        ]


def _exactly(name: str, found: int, wanted: int, *, but: tuple[int, str] = (0, "")) -> Row:
    text = f"{found}, {but[0]} {but[1]}" if but[0] else str(found)
    return Row(name, text, str(wanted), found == wanted and not but[0])
