"""How fast the audit log is written and verified, beside what else one could use.

Run: ``python -m benchmarks.audit [--events N] [--json]``. All in one run on one machine:
ratios are what count. Every writer makes each event survive a crash of the process before
it returns (one write or one transaction per event), and none waits for the disk.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import shutil
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from apex_creds.audit import AuditEvent, AuditLog, EventKind, check
from apex_creds.audit.checkpoint import LogKey
from apex_creds.crypto.memory import SecretBytes
from apex_creds.crypto.public_key import SigningKey
from apex_creds.model import SystemClock

VAULT = "ab" * 16
ROUNDS = 7
BUDGET_APPEND_US = 8.0
BUDGET_VERIFY = 200_000

Append = Callable[[], object]


def event() -> AuditEvent:
    """One as a redeem writes it."""
    return AuditEvent(
        1_700_000_000.25,
        EventKind.REDEEM,
        plugin="weather",
        plugin_version="1.2.0",
        action="forecast",
        invocation="0" * 32,
        lease="1" * 32,
        credential="openweather",
        decision="allow",
        reason="granted",
        key_id="2" * 32,
        key_version=1,
        origin="https://api.example.com",
        method="GET",
    )


def text() -> str:
    """The same as JSON."""
    import msgspec

    return msgspec.json.encode(event()).decode()


@contextmanager
def own(directory: Path) -> Iterator[Append]:
    """The log itself: Merkle tree, checkpoints, rotation, all on."""
    with SecretBytes.from_bytes(bytes(range(32))) as seed:
        key = LogKey(VAULT, SigningKey.from_seed(seed))
    log = AuditLog(directory / "audit", vault_id=VAULT, clock=SystemClock(), key=key)
    body = log.encode(event())
    yield lambda: log.append_encoded(body)
    log.close()


@contextmanager
def plain_logging(directory: Path) -> Iterator[Append]:
    """``logging`` to a file."""
    logger = logging.getLogger("apex_creds_benchmark_plain")
    handler = logging.FileHandler(directory / "plain.log")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    line = text()
    yield lambda: logger.info("%s", line)
    handler.close()


@contextmanager
def hash_chain(directory: Path) -> Iterator[Append]:
    """JSON Lines, each with the hash of the one before; flushed one by one."""
    line, seq, prev = json.loads(text()), 0, "0" * 64
    with (directory / "chain.jsonl").open("ab", buffering=0) as file:

        def append() -> None:
            nonlocal seq, prev
            seq += 1
            data = json.dumps({"seq": seq, "prev": prev, **line}).encode()
            file.write(data + b"\n")
            prev = hashlib.sha256(data).hexdigest()

        yield append


@contextmanager
def sqlite_wal(directory: Path) -> Iterator[Append]:
    """SQLite in WAL mode, one transaction an event, synchronous=NORMAL."""
    database = sqlite3.connect(directory / "log.db", isolation_level=None)
    database.execute("pragma journal_mode=wal")
    database.execute("pragma synchronous=normal")
    database.execute("create table log (seq integer primary key, event text)")
    line = text()
    yield lambda: database.execute("insert into log (event) values (?)", (line,))
    database.close()


WRITERS = {
    "apex-creds": own,
    "logging to a file": plain_logging,
    "hash-chained JSONL": hash_chain,
    "SQLite WAL": sqlite_wal,
}


def verify_own(directory: Path) -> int:
    """Everything: hashes, tree, schema, checkpoints, signatures."""
    report = check(directory / "audit", vault_id=VAULT)
    assert report.ok
    return report.count


def verify_chain(directory: Path) -> int:
    """The chain, and that each line is JSON."""
    prev, count = "0" * 64, 0
    with (directory / "chain.jsonl").open("rb") as file:
        for line in file:
            assert json.loads(line)["prev"] == prev
            prev = hashlib.sha256(line[:-1]).hexdigest()
            count += 1
    return count


VERIFIERS = {"apex-creds": verify_own, "hash-chained JSONL": verify_chain}


def append_us(append: Append, events: int) -> float:
    """Microseconds an event."""
    start = time.perf_counter()
    for _ in range(events):
        append()
    return (time.perf_counter() - start) / events * 1e6


def measure(directory: Path, events: int) -> dict[str, dict[str, float]]:
    """Medians of interleaved rounds, by writer."""
    found: dict[str, list[float]] = {name: [] for name in WRITERS}
    with _all_open(directory) as appends:
        for _ in range(ROUNDS):
            for name, append in appends.items():
                found[name].append(append_us(append, events // ROUNDS))
    result = {
        name: {"append_us": statistics.median(v), "append_best_us": min(v)}
        for name, v in found.items()
    }
    for name, verify in VERIFIERS.items():
        rates = []
        for _ in range(3):
            start = time.perf_counter()
            count = verify(directory)
            rates.append(count / (time.perf_counter() - start))
        result[name] |= {"verify_per_s": statistics.median(rates), "verify_best": max(rates)}
    return result


@contextmanager
def _all_open(directory: Path) -> Iterator[dict[str, Append]]:
    from contextlib import ExitStack

    with ExitStack() as stack:
        yield {name: stack.enter_context(make(directory)) for name, make in WRITERS.items()}


def main() -> int:
    """Prints a table; fails where a budget is missed by its best round."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=70_000)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="apex-audit-"))
    try:
        result = measure(directory, given.events)
    finally:
        shutil.rmtree(directory)
    if given.json:
        print(json.dumps(result, indent=2))
    else:
        _table(result)
    mine = result["apex-creds"]
    held = mine["append_best_us"] <= BUDGET_APPEND_US and mine["verify_best"] >= BUDGET_VERIFY
    return 0 if held else 1


def _table(result: dict[str, dict[str, float]]) -> None:
    base = result["apex-creds"]["append_us"]
    print(f"{'':22}{'append':>10}{'best':>9}{'ratio':>8}{'verify':>14}{'best':>12}")
    for name, row in result.items():
        line = f"{name:22}{row['append_us']:8.1f}us{row['append_best_us']:7.1f}us"
        line += f"{row['append_us'] / base:8.2f}"
        if "verify_per_s" in row:
            line += f"{row['verify_per_s']:12,.0f}/s{row['verify_best']:10,.0f}/s"
        print(line)
    print(f"budgets: append <= {BUDGET_APPEND_US} us, verify >= {BUDGET_VERIFY:,}/s")


if __name__ == "__main__":
    sys.exit(main())
