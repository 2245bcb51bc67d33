"""The command exports where OTEL_* says so, and says what it can't do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def _run(
    tmp_path: Path, *arguments: str, typed: str = "", **variables: str
) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    env |= {"APEX_CREDS_HOME": str(tmp_path / "vault"), **variables}
    command = [sys.executable, "-m", "apex_creds.cli", *arguments]
    return subprocess.run(
        command, env=env, input=typed, capture_output=True, text=True, timeout=480, check=False
    )


def test_console_exporters_show_a_span_of_each_unsealing(tmp_path: Path) -> None:
    master = f"file:{tmp_path / 'key'}"
    done = _run(tmp_path, "init", "--master", master, OTEL_TRACES_EXPORTER="console")
    assert done.returncode == 0
    assert '"apex_creds.unseal"' in done.stderr
    assert '"service.name": "apex-creds"' in done.stderr
    plain = _run(tmp_path, "list")
    assert (plain.returncode, plain.stderr) == (0, "")


def test_what_can_not_be_done_is_one_line(tmp_path: Path) -> None:
    done = _run(tmp_path, "list", OTEL_TRACES_EXPORTER="jaeger")
    assert done.returncode == 7
    assert "OTEL_TRACES_EXPORTER has no exporter 'jaeger'" in done.stderr
    assert "Traceback" not in done.stderr


def test_events_on_standard_error(tmp_path: Path) -> None:
    master = f"file:{tmp_path / 'key'}"
    to = "stderr:?level=security"
    done = _run(tmp_path, "init", "--master", master, APEX_CREDS_AUDIT_TO=to)
    assert done.returncode == 0
    assert '"kind":"init"' in done.stderr
    secret = "sk-canary-5150"
    done = _run(tmp_path, "set", "openai", typed=secret, APEX_CREDS_AUDIT_TO="stderr:")
    assert '"kind":"unseal"' in done.stderr
    assert secret not in done.stderr + done.stdout
