"""A real Redis server on the loopback: a port of its own, nothing on disk."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.support.realparts import PartMissingError, _free_port

_PROGRAM = "redis-check-rdb"  # the same file as redis-server, which goes by its name
_READY_SECONDS = 120.0
ONCE = Retry(NoBackoff(), 0)
"""For a client of a test: a password that is refused is not tried again for seconds."""


@dataclass
class RedisServer:
    """A running server.

    Attributes:
        tls_port: 0: it does not speak TLS.
    """

    port: int
    tls_port: int
    admin: redis.Redis


@contextlib.contextmanager
def redis_server(*lines: str, tls: tuple[Path, Path] | None = None) -> Iterator[RedisServer]:
    """A server with lines of configuration, such as ``user NAME on >PASSWORD ~* +@all``.

    Raises:
        PartMissingError: Redis is not installed.
    """
    program = shutil.which(_PROGRAM)
    if program is None:
        raise PartMissingError("apt-get install redis-tools")
    port, tls_port = _free_port(), _free_port() if tls else 0
    with tempfile.TemporaryDirectory(prefix="apex-redis-") as name:
        folder = Path(name)
        settings = ["bind 127.0.0.1", f"port {port}", 'save ""', f"dir {folder}", *lines]
        settings.append(f"unixsocket {folder}/admin.sock")
        if tls:
            settings += [f"tls-port {tls_port}", f"tls-cert-file {tls[0]}"]
            settings += [f"tls-key-file {tls[1]}", "tls-auth-clients no"]
        (folder / "redis.conf").write_text("\n".join(settings) + "\n")
        process = subprocess.Popen(
            ["redis-server", str(folder / "redis.conf")],
            executable=program,
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr,
        )
        admin = redis.Redis(
            unix_socket_path=f"{folder}/admin.sock", username="admin", password="admin"
        )
        try:
            _wait(process, admin)
            yield RedisServer(port, tls_port, admin)
        finally:
            admin.close()
            process.terminate()
            process.wait(30)


def _wait(process: subprocess.Popen[bytes], admin: redis.Redis) -> None:
    deadline = time.monotonic() + _READY_SECONDS
    while True:
        try:
            admin.ping()
            return
        except redis.ConnectionError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise
            time.sleep(0.02)
