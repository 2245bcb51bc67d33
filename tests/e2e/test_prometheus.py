"""Metrics scraped by a real Prometheus, and read back through its API."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.e2e.observed_plugin import CANARY
from tests.support.realparts import _free_port, prometheus, prometheus_binary

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(prometheus_binary() is None, reason="apt-get install prometheus"),
]


@contextmanager
def _program(home: Path) -> Iterator[str]:
    """The program, having done its work, with its metrics at the address."""
    port = _free_port()
    env = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    env |= {
        "OTEL_METRICS_EXPORTER": "prometheus",
        "OTEL_EXPORTER_PROMETHEUS_HOST": "127.0.0.1",
        "OTEL_EXPORTER_PROMETHEUS_PORT": str(port),
    }
    command = [
        sys.executable,
        "-W",
        "error",
        "-m",
        "tests.e2e.observed_plugin",
        str(home),
        "wait",
    ]
    process = subprocess.Popen(
        command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield f"127.0.0.1:{port}"
        process.communicate("", timeout=480)
        assert process.returncode == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


def _query(api: str, text: str) -> list[tuple[dict[str, str], float]]:
    """What comes in the end: after a scrape that took too long nothing is there for a while."""
    deadline = time.monotonic() + 480
    while True:
        said = httpx.get(f"{api}/api/v1/query", params={"query": text}, trust_env=False).json()
        assert said["status"] == "success"
        if found := [(m["metric"], float(m["value"][1])) for m in said["data"]["result"]]:
            return found
        assert time.monotonic() < deadline, f"{text} never came"
        time.sleep(0.05)


def test_prometheus_has_them_all(tmp_path: Path) -> None:
    with _program(tmp_path) as target, prometheus(target) as api:
        found = _query(api, 'apex_creds_redeems_total{apex_creds_plugin="weather"}')
        assert [value for _, value in found] == [3]
        ((labels, denials),) = _query(api, "apex_creds_denials_total > 0")
        assert (denials, bool(labels["apex_creds_reason"])) == (1, True)
        ((_, count),) = _query(api, "apex_creds_redeem_duration_seconds_count")
        assert count == 3
        ((_, quick),) = _query(
            api, "histogram_quantile(0.5, apex_creds_redeem_duration_seconds_bucket)"
        )
        assert 0 < quick < 1
        ages = _query(api, "apex_creds_key_age_seconds")
        assert {metric["apex_creds_key_level"] for metric, _ in ages} == {
            "dek",
            "kek",
            "master",
        }
        for name in ("leases", "lease_age_seconds", "records_left", "audit_queue"):
            assert _query(api, f"apex_creds_{name}"), name
        ((_, leaks),) = _query(api, "sum(apex_creds_leaks_total)")
        assert leaks == 3
        text = httpx.get(f"http://{target}/metrics", trust_env=False).text
        assert CANARY not in text
        assert "apex_creds_invoke_duration_seconds_bucket" in text
