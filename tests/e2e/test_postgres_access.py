"""TLS and passwords between the SQL storage and a real PostgreSQL server."""

from __future__ import annotations

import datetime
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from apex_creds.errors import StorageError, StorageUnreachableError
from apex_creds.storage.sql_storage import SqlStorage
from tests.support.postgres import Postgres, as_server_user, postgres
from tests.support.realparts import gnome_keyring

pytestmark = [pytest.mark.anyio, pytest.mark.e2e]

PASSWORD = "canary-password-of-the-role"
HBA = """local all apex trust
hostssl all all 127.0.0.1/32 scram-sha-256
"""


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    """On 127.0.0.1 too, by TLS and with a password only."""
    with postgres() as running:
        running.stop()
        _certificates(running.folder)
        (running.data / "pg_hba.conf").write_text(HBA)
        running.settings = {
            "listen_addresses": "127.0.0.1",
            "ssl": "on",
            "ssl_cert_file": str(running.folder / "server.crt"),
            "ssl_key_file": str(running.folder / "server.key"),
        }
        running.start()
        running.sql(f"CREATE ROLE app LOGIN PASSWORD '{PASSWORD}'")
        running.sql("CREATE DATABASE vault OWNER app")
        yield running


def _certificates(folder: Path) -> None:
    """ca.crt, and server.crt for ``localhost``; other.crt is an authority of nobody."""
    ca_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    ca = _certificate("a test's authority", ca_key, "a test's authority", ca_key, host=None)
    made = _certificate("localhost", key, "a test's authority", ca_key, host="localhost")
    other = _certificate("another", key, "another", key, host=None)
    for name, certificate in (("ca", ca), ("server", made), ("other", other)):
        pem = certificate.public_bytes(serialization.Encoding.PEM)
        (folder / f"{name}.crt").write_bytes(pem)
    file = folder / "server.key"
    file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    file.chmod(0o600)
    as_server_user(file)


def _certificate(
    name: str,
    key: ec.EllipticCurvePrivateKey,
    by: str,
    by_key: ec.EllipticCurvePrivateKey,
    *,
    host: str | None,
) -> x509.Certificate:
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, by)]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=host is None, path_length=None), critical=True)
    )
    if host is not None:
        names = x509.SubjectAlternativeName([x509.DNSName(host)])
        builder = builder.add_extension(names, critical=False)
    return builder.sign(by_key, hashes.SHA256())


@pytest.fixture
def passfile(tmp_path: Path) -> Path:
    return written(tmp_path, PASSWORD)


def written(where: Path, password: str) -> Path:
    file = where / f"pass-{len(password)}"
    file.write_text(f"*:*:vault:app:{password}\n")
    file.chmod(0o600)
    return file


def url(server: Postgres, host: str, **options: object) -> str:
    query = "&".join(f"{name}={value}" for name, value in options.items())
    return f"postgresql+psycopg://app@{host}:{server.port}/vault?{query}"


async def attempt(address: str) -> str | None:
    """Opens the storage; which version of TLS its session has."""
    storage = SqlStorage(address, patience=0.2)
    try:
        await storage.prepare()
        [(version,)] = await storage._dialect._rows(  # type: ignore[attr-defined]
            "SELECT version FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
        )
        return version
    finally:
        await storage.close()


async def test_a_server_that_verifies_is_spoken_to(server: Postgres, passfile: Path) -> None:
    said = {"tls": "verify-full", "tls_ca": server.folder / "ca.crt", "passfile": passfile}
    assert await attempt(url(server, "localhost", **said)) == "TLSv1.3"


async def test_another_authority_is_not_believed(server: Postgres, passfile: Path) -> None:
    for ca in (f"&tls_ca={server.folder}/other.crt", ""):
        address = url(server, "localhost", tls="verify-full", passfile=passfile) + ca
        with pytest.raises(StorageUnreachableError, match="certificate"):
            await attempt(address)


async def test_another_host_is_not_believed(server: Postgres, passfile: Path) -> None:
    said = {"tls_ca": server.folder / "ca.crt", "passfile": passfile}
    with pytest.raises(StorageUnreachableError, match="certificate"):
        await attempt(url(server, "127.0.0.1", tls="verify-full", **said))
    assert await attempt(url(server, "127.0.0.1", tls="verify-ca", **said)) == "TLSv1.3"


async def test_without_tls_this_server_refuses(server: Postgres, passfile: Path) -> None:
    with pytest.raises(StorageError, match="login"):
        await attempt(url(server, "localhost", tls="off", passfile=passfile))


async def test_a_wrong_password_is_refused_and_not_told(
    server: Postgres, tmp_path: Path
) -> None:
    file = written(tmp_path, "canary-that-is-wrong")
    with pytest.raises(StorageError, match="login") as caught:
        await attempt(url(server, "localhost", tls_ca=server.folder / "ca.crt", passfile=file))
    error: BaseException | None = caught.value
    while error is not None:
        assert "canary" not in str(error)
        error = error.__cause__


async def test_a_service_file_says_all(
    server: Postgres, passfile: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "services.conf"
    file.write_text(
        f"[vault]\nhost=localhost\nport={server.port}\nuser=app\ndbname=vault\n"
        f"passfile={passfile}\nsslrootcert={server.folder}/ca.crt\n"
    )
    monkeypatch.setenv("PGSERVICEFILE", str(file))
    assert await attempt("postgresql+psycopg:///?service=vault") == "TLSv1.3"


_PROGRAM = """
import asyncio, sys, keyring
from apex_creds.storage.sql_storage import SqlStorage
async def main():
    storage = SqlStorage(sys.argv[1], patience=0.2)
    try:
        await storage.prepare()
    finally:
        await storage.close()
keyring.set_password("apex-creds-database", "app", sys.stdin.readline().strip())
asyncio.run(main())
"""


def test_a_password_in_the_real_keyring(server: Postgres) -> None:
    said = {"tls_ca": server.folder / "ca.crt", "keyring": "apex-creds-database/app"}
    address = url(server, "localhost", **said)
    with gnome_keyring() as env:
        for password, code in ((PASSWORD, 0), ("wrong", 1)):
            done = subprocess.run(
                [sys.executable, "-c", _PROGRAM, address],
                input=password,
                env={**env, "PATH": os.environ["PATH"]},
                capture_output=True,
                text=True,
                timeout=480,
                check=False,
            )
            assert done.returncode == code, done.stderr
            assert (code == 0) or ("refused the login" in done.stderr)
