"""A real PostgreSQL server, and a standby of it, for tests and benchmarks.

Guarantee: a cluster of its own in a temporary folder, run by an unprivileged user, that
listens on a Unix socket there (and on 127.0.0.1 only where that is asked for), and is
stopped by the pid that was started here, also when a test fails.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import psycopg

from tests.support.realparts import PartMissingError, _free_port

USER = "apex"
_BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
_READY_SECONDS = 240.0
_SETTINGS = {
    "listen_addresses": "",
    "shared_buffers": "16MB",
    "max_connections": "60",
    "max_wal_senders": "3",
    "wal_level": "replica",
    "logging_collector": "off",
    "fsync": "off",  # the machine does not crash in a test
    "autovacuum_naptime": "5s",
}


def binary(name: str) -> str:
    """The path of a PostgreSQL program.

    Raises:
        PartMissingError: It is not installed.
    """
    found = next((str(where / name) for where in _BINARIES if (where / name).exists()), None)
    if found is None:
        raise PartMissingError("apt-get install postgresql")
    return found


@dataclass
class Postgres:
    """A server, running or not."""

    folder: Path
    port: int
    settings: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None
    database: str = "postgres"

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def place(self) -> str:
        """The socket, as a ``host=`` value."""
        return f"{self.folder}:{self.port}"

    def url(self, *, user: str = USER, database: str | None = None, **options: str) -> str:
        """A storage URL over the Unix socket."""
        query = {"host": self.place, **options}
        text = "&".join(f"{name}={quote(value, safe='/:')}" for name, value in query.items())
        return f"postgresql+psycopg://{user}@/{database or self.database}?{text}"

    def start(self, **settings: str) -> None:
        """Starts it, and waits until it answers; ``settings`` are for this run."""
        chosen = {**_SETTINGS, **self.settings, **settings, "port": str(self.port)}
        chosen["unix_socket_directories"] = str(self.folder)
        options = [part for name, value in chosen.items() for part in ("-c", f"{name}={value}")]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [binary("postgres"), "-D", str(self.data), *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                **_as_postgres(),  # type: ignore[call-overload]
            )
        self._wait()

    def _wait(self) -> None:
        deadline = time.monotonic() + _READY_SECONDS
        while self._run("pg_isready", "-q", check=False).returncode != 0:
            assert self.process is not None
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError((self.folder / "log").read_text()[-2000:])
            time.sleep(0.02)

    def stop(self, *, crash: bool = False) -> None:
        """Ends it: sessions are closed in good order, or (``crash``) just gone."""
        process, self.process = self.process, None
        if process is None or process.poll() is not None:
            return
        process.send_signal(signal.SIGQUIT if crash else signal.SIGINT)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGQUIT)
            process.wait(30)

    def restart(self, *, crash: bool = False, **settings: str) -> None:
        self.stop(crash=crash)
        self.start(**settings)

    def sql(self, statement: str, *, user: str = USER, database: str | None = None) -> str:
        """Executes statements as the owner of the cluster; a line for each row of the answers.

        Raises:
            RuntimeError: The server refused.
        """
        where = f"host={self.folder} port={self.port} user={user}"
        lines = []
        try:
            with psycopg.connect(
                where, dbname=database or self.database, autocommit=True
            ) as connection:
                cursor = connection.execute(statement.encode())
                more: bool | None = True
                while more:
                    answer = cursor.pgresult
                    assert answer is not None
                    for row in range(answer.ntuples):
                        values = (answer.get_value(row, at) for at in range(answer.nfields))
                        lines.append(b"|".join(value or b"" for value in values).decode())
                    more = cursor.nextset()
        except psycopg.Error as error:
            raise RuntimeError(str(error)) from None
        return "\n".join(lines)

    def dump(self, database: str | None = None) -> bytes:
        """What pg_dump writes of a database."""
        return self._run("pg_dump", "-U", USER, database or self.database).stdout

    def dump_all(self) -> bytes:
        """What pg_dumpall writes."""
        return self._run("pg_dumpall", "-U", USER).stdout

    def standby(self) -> Postgres:
        """A running streaming standby; the caller stops it."""
        folder = _folder()
        other = Postgres(folder, _free_port(), settings=dict(self.settings))
        _run_as_postgres(
            binary("pg_basebackup"),
            *("-h", str(self.folder), "-p", str(self.port), "-U", USER),
            *("-D", str(other.data), "-R", "-X", "stream", "-c", "fast", "--no-sync"),
        )
        other.start()
        return other

    def promote(self) -> None:
        """Makes a standby a primary, and waits until it is."""
        self.sql("SELECT pg_promote(true)")

    def remove(self) -> None:
        """Stops it and removes its folder."""
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _run(
        self, program: str, *arguments: str, check: bool = True
    ) -> subprocess.CompletedProcess[bytes]:
        where = ("-h", str(self.folder), "-p", str(self.port))
        return _run_as_postgres(binary(program), *where, *arguments, check=check)


@contextlib.contextmanager
def postgres(**settings: str) -> Iterator[Postgres]:
    """A running server with an empty database ``postgres``, owned by ``USER``.

    Raises:
        PartMissingError: PostgreSQL is not installed.
    """
    server = Postgres(_folder(), _free_port(), settings=settings)
    try:
        _run_as_postgres(
            binary("initdb"),
            *("-D", str(server.data), "-U", USER, "--auth=trust", "--no-sync"),
            *("--encoding=UTF8", "--locale=C"),
        )
        server.start()
        yield server
    finally:
        server.remove()


def _folder() -> Path:
    """A folder that the server's user can use: every folder above it lets it through."""
    folder = Path(tempfile.mkdtemp(prefix="apex-pg-", dir="/tmp"))
    as_server_user(folder)
    folder.chmod(0o755)
    return folder


def as_server_user(path: Path) -> None:
    """Gives a file to the user that the server runs as."""
    if os.geteuid() == 0:
        owner = pwd.getpwnam("postgres")
        os.chown(path, owner.pw_uid, owner.pw_gid)


def _as_postgres() -> dict[str, object]:
    """The server refuses to run as root."""
    env = {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "HOME": "/tmp"}
    if os.geteuid() != 0:
        return {"env": env, "cwd": "/tmp"}
    return {
        "user": "postgres",
        "group": "postgres",
        "extra_groups": [],
        "env": env,
        "cwd": "/tmp",
    }


def _run_as_postgres(*command: str, check: bool = True) -> subprocess.CompletedProcess[bytes]:
    done = subprocess.run(
        command,
        capture_output=True,
        timeout=480,
        check=False,
        **_as_postgres(),  # type: ignore[call-overload]
    )
    if check and done.returncode != 0:
        raise RuntimeError(f"{command[0]}: {done.stderr.decode()}")
    return done
