"""The program ``apex-creds dashboard`` as a process, stopped by its pid."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import ssl
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx

PROGRAM = [sys.executable, "-W", "error", "-m", "apex_creds.cli"]
LINK = re.compile(r"(https?://[^/\s]+)/#login=(\S+)")


@dataclass
class Running:
    """A dashboard that runs.

    Attributes:
        origin: Where.
        token: Of the link that was printed.
    """

    process: subprocess.Popen[str]
    origin: str
    token: str
    headers: dict[str, str]

    @property
    def link(self) -> str:
        return f"{self.origin}/#login={self.token}"

    def client(self, verify: ssl.SSLContext | bool = True) -> httpx.Client:
        return httpx.Client(base_url=self.origin, verify=verify, trust_env=False, timeout=20)

    def post(self, client: httpx.Client, path: str, body: object) -> httpx.Response:
        return client.post(path, json=body, headers={"origin": self.origin, **self.headers})

    def log_in(self, client: httpx.Client) -> None:
        answer = self.post(client, "/login", {"token": self.token})
        assert answer.status_code == 200, answer.text
        self.headers["x-apex-creds-key"] = answer.json()["key"]

    def stop(self, number: int = signal.SIGINT) -> tuple[int, str]:
        """Ends it; what it ended with, and all that it printed since."""
        self.process.send_signal(number)
        out, _ = self.process.communicate(timeout=20)
        return self.process.returncode, out


@contextlib.contextmanager
def running(home: Path, *options: str) -> Iterator[Running]:
    """Starts it on a free port and waits for its link."""
    command = [*PROGRAM, "--home", str(home), "dashboard", "--port", "0", *options]
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "NO_COLOR": "1"},
    )
    try:
        yield Running(process, *_link(process), {})
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        process.stdout.close()


def _link(process: subprocess.Popen[str]) -> tuple[str, str]:
    printed = []
    for line in process.stdout:
        printed.append(line)
        found = LINK.search(line)
        if found:
            return found[1], found[2]
    raise AssertionError("".join(printed))
