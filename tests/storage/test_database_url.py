"""What a storage URL says, and what it must not say."""

from __future__ import annotations

from pathlib import Path

import pytest

from apex_creds.errors import (
    ApexCredsError,
    InvalidInputError,
    UnsafePathError,
    UnsafePermissionsError,
)
from apex_creds.storage.database_url import is_storage_url, parse_target
from apex_creds.storage.sql_storage import SqlStorage


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://user:canary-pw@host/db",
        "postgresql+psycopg://user:canary-pw@h1,h2/db",
        "postgresql://user@host/db?password=canary-pw",
        "postgresql://:canary-pw@host/db",
        "postgresql://user:canary%2Dpw@/db?host=/run/postgresql",
    ],
)
def test_a_password_in_a_url_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        SqlStorage(url)
    assert "password" in str(caught.value)
    assert "canary" not in repr(caught.value) + str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "nothing",
        "mysql://host/db",
        "postgresql+asyncpg://host/db",
        "postgresql://host/db?sslmode=disable",
        "postgresql://host/db?tls=prefer",
        "postgresql://host/db?options=-c%20x%3Dy",
        "postgresql://host:port/db",
        "postgresql://host/db?pool=0",
        "postgresql://host/db?pool=x",
        "postgresql://host/db?keyring=service",
        "postgresql://host/db?space=UPPER",
        "postgresql://[::1/db",
        "postgresql://h1,[::1],h2]/db",
        "postgresql://h1,x[::1]/db",
        "postgresql://host:123456/db",
        "postgresql:\n//host/db",
        "postgresql://host/db\n",
        "sqlite:////x#y.db",
        "sqlite:/srv/vault.db",
        "sqlite:vault.db",
        "postgresql:/db",
        "sqlite://",
        "sqlite:///",
        "sqlite:///:memory:",
        "sqlite://host/file.db",
        "sqlite:////x.db?pool=3",
    ],
)
def test_what_is_not_understood_is_refused(url: str) -> None:
    with pytest.raises(InvalidInputError):
        parse_target(url)


@pytest.mark.parametrize(
    ("url", "mode"),
    [
        ("postgresql://db.example.org/x", "verify-full"),
        ("postgresql://localhost,db.example.org/x", "verify-full"),
        ("postgresql:///x?service=vault", "verify-full"),
        ("postgresql://10.0.0.1/x?tls=verify-ca", "verify-ca"),
        ("postgresql://10.0.0.1/x?tls=off", "disable"),
        ("postgresql://localhost/x", "prefer"),
        ("postgresql://[::1]/x", "prefer"),
        ("postgresql:///x?host=/run/postgresql", "prefer"),
        ("postgresql:///x", "prefer"),
        ("postgresql://127.0.0.1/x?tls=verify-full", "verify-full"),
    ],
)
def test_tls_is_verified_unless_nobody_is_in_between(url: str, mode: str) -> None:
    assert parse_target(url).connect["sslmode"] == mode


@pytest.mark.parametrize("name", ["PGHOST", "PGHOSTADDR", "PGSERVICE"])
def test_a_host_that_the_environment_names_is_not_taken_for_local(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "10.0.0.1")
    assert parse_target("postgresql:///x").connect["sslmode"] == "verify-full"
    assert parse_target("postgresql:///x?tls=off").connect["sslmode"] == "disable"
    named = parse_target("postgresql://localhost/x").connect
    assert (named["sslmode"], named["host"], named["hostaddr"]) == ("prefer", "localhost", "")
    monkeypatch.delenv(name)
    plain = parse_target("postgresql:///x").connect
    assert (plain["sslmode"], plain["host"], plain["hostaddr"]) == ("prefer", "", "")


def test_a_stronger_mode_of_the_environment_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGSSLMODE", "verify-full")
    assert parse_target("postgresql://localhost/x").connect["sslmode"] == "verify-full"
    monkeypatch.setenv("PGSSLMODE", "disable")
    assert parse_target("postgresql://localhost/x").connect["sslmode"] == "prefer"
    assert parse_target("postgresql://h/x").connect["sslmode"] == "verify-full"


def test_the_systems_authorities_are_trusted_where_none_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("PGSSLROOTCERT", raising=False)
    assert parse_target("postgresql://h/x").connect["sslrootcert"] == "system"
    named = parse_target("postgresql://h/x?tls_ca=/etc/ca.pem").connect
    assert named["sslrootcert"] == "/etc/ca.pem"


def test_several_hosts_are_tried_for_one_that_can_be_written() -> None:
    said = parse_target("postgresql://app@h1:5433,[::1],h3/vault?host=/run/pg:6000").connect
    assert said["host"] == "h1,::1,h3,/run/pg"
    assert said["port"] == "5433,5432,5432,6000"
    assert said["target_session_attrs"] == "read-write"
    assert (said["user"], said["dbname"]) == ("app", "vault")


def test_brackets_among_several_hosts_are_read_by_every_python() -> None:
    """``urlsplit`` of 3.11.2 refuses them, and that of 3.13 after other hosts."""
    said = parse_target("postgresql://[fe80::1%25eth0]:1,h2,[::1]:3/vault").connect
    assert (said["host"], said["port"]) == ("fe80::1%eth0,h2,::1", "1,5432,3")


@pytest.mark.parametrize(
    "url", ["postgresql:///x", "postgresql:///x?service=a", "sqlite:////x"]
)
def test_what_is_told_is_a_url_that_means_the_same(url: str) -> None:
    said = parse_target(url)
    assert is_storage_url(said.text)
    assert parse_target(said.text) == said


def test_a_url_is_told_without_its_space() -> None:
    target = parse_target("postgres://app@h1:5433,h2/vault?space=ab12ab12&tls=verify-ca")
    assert target.text == "postgresql+psycopg://app@h1:5433,h2/vault?tls=verify-ca"
    assert target.space == "ab12ab12"
    assert parse_target(target.text).connect == target.connect
    plain = parse_target("sqlite:////var/lib/a%20b.db?space=ab12ab12")
    assert (plain.path, plain.space) == (Path("/var/lib/a b.db"), "ab12ab12")
    assert parse_target(plain.text).path == plain.path


def test_a_password_file_is_only_ours(tmp_path: Path) -> None:
    file = tmp_path / "pgpass"
    file.write_text("*:*:*:*:canary\n")
    file.chmod(0o640)
    url = f"postgresql://h/x?passfile={file}"
    with pytest.raises(UnsafePermissionsError):
        parse_target(url)
    file.chmod(0o600)
    assert parse_target(url).connect["passfile"] == str(file)
    with pytest.raises(UnsafePathError):
        parse_target(f"postgresql://h/x?passfile={tmp_path}")
    with pytest.raises(ApexCredsError):
        parse_target(f"postgresql://h/x?passfile={tmp_path}/none")
