"""Every direct use of a clock in the package, each of a kind that docs/CLOCKS.md lists."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

from tests.support.vaults import REPOSITORY

PACKAGE = REPOSITORY / "apex_creds"
CLOCKS = {
    "time": {
        "time",
        "time_ns",
        "monotonic",
        "monotonic_ns",
        "perf_counter",
        "perf_counter_ns",
        "process_time",
        "clock_gettime",
        "gmtime",
        "localtime",
    },
    "datetime": {"now", "utcnow", "today"},
    "date": {"today"},
}
ALLOWED = {
    # The one place that knows what there is.
    "clocks.py": {"time.monotonic", "time.time", "time.clock_gettime"},
    # Waits for others on this machine; looks again; idle connections.
    "concurrency.py": {"time.monotonic"},
    "fs/lock.py": {"time.monotonic"},
    "audit/log_files.py": {"time.monotonic"},
    "audit/crash_recovery.py": {"time.monotonic"},
    "audit/segment.py": {"time.monotonic"},
    "audit/maintenance.py": {"time.monotonic"},
    "dashboard/watcher.py": {"time.monotonic", "time.perf_counter"},
    "leases/connection_pool.py": {"time.monotonic"},
    "storage/file_storage.py": {"time.monotonic", "time.time_ns"},
    # Durations, to be shown.
    "telemetry/tracing.py": {"time.perf_counter"},
    "telemetry/instruments.py": {"time.perf_counter"},
    "dashboard/log_status.py": {"time.perf_counter", "time.time"},
    "cli/demo/scenario.py": {"time.perf_counter_ns"},
    # For people: what a command shows, or reads as a time that a person gave. Any command may.
    "audit/verify.py": {"time.time"},
    "integrations/apexagent_events.py": {"datetime.now"},
    "admin/restore.py": {"time.gmtime"},
}


def uses(path: Path) -> set[str]:
    """What a module asks, by the names of the standard library."""
    tree = ast.parse(path.read_text())
    names = {
        alias.asname or alias.name: alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
        if alias.name in CLOCKS
    }
    return {
        f"{names[node.value.id]}.{node.attr}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.attr in CLOCKS.get(names.get(node.value.id, ""), ())
    }


def test_clocks_are_asked_where_the_list_says() -> None:
    found = defaultdict(set)
    for path in PACKAGE.rglob("*.py"):
        asked = uses(path)
        if PACKAGE / "cli" in path.parents:
            asked -= {"time.time"}
        if asked:
            found[path.relative_to(PACKAGE).as_posix()] = asked
    assert dict(found) == ALLOWED, "docs/CLOCKS.md says which clock is for what; see it first"


def test_nobody_takes_a_clock_out_of_its_module() -> None:
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module == "time":
                raise AssertionError(f"{path}: from time import …")


def test_the_worker_s_pace_and_health_go_by_the_boot_time_clock() -> None:
    """No wall clock, and no timer of a scheduler that goes by it."""
    text = (PACKAGE / "scheduler" / "worker.py").read_text()
    assert text.count("boot_time") >= 3, "its import, its pace and its health"
    assert "apscheduler.schedulers" not in text
