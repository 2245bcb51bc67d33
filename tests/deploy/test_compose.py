"""docker-compose.yml is valid for Docker Compose itself, closed, and its steps work.

There is no Docker engine here. So the file goes through a real `docker compose config`, and
the commands in it are run against a real PostgreSQL, with paths of this machine in place of
the containers'.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.files import DEPLOY, compose, healthcheck, load, run
from tests.support.postgres import USER, Postgres, binary, postgres

pytestmark = pytest.mark.e2e

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="gives files to other users")

SERVICES = {"postgres", "upgrade", "init", "worker", "otel-collector", "prometheus", "grafana"}


def _services() -> dict[str, dict[str, Any]]:
    return compose()["services"]


def test_docker_compose_understands_it() -> None:
    assert set(_services()) == SERVICES


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_every_service_is_closed(name: str) -> None:
    service = _services()[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert not service.get("cap_add")
    assert not service.get("privileged")
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service.get("user", "nobody") not in ("root", "0", "0:0")
    assert int(service["mem_limit"]) > 0
    image, _, tag = service["image"].rpartition(":")
    assert image
    assert tag not in ("", "latest")
    for mount in service.get("volumes", ()):
        assert mount["type"] == "volume" or mount["read_only"], mount
        assert "docker.sock" not in mount["source"]


def test_only_grafana_is_reachable_and_only_from_this_machine() -> None:
    ports = {n: s["ports"] for n, s in _services().items() if s.get("ports")}
    assert list(ports) == ["grafana"]
    assert [port["host_ip"] for port in ports["grafana"]] == ["127.0.0.1"]
    assert compose()["networks"]["telemetry"]["internal"] is True
    outside = {n for n, s in _services().items() if "outside" in (s.get("networks") or {})}
    assert outside == {"grafana"}
    for name in ("postgres", "upgrade", "init"):
        assert _services()[name]["network_mode"] == "none"


def test_secrets_are_files_and_each_goes_where_it_is_needed() -> None:
    assert all(set(each) <= {"name", "file"} for each in compose()["secrets"].values())
    given = {
        n: {s["source"] for s in each.get("secrets", ())} for n, each in _services().items()
    }
    assert given["worker"] == {"master.key", "app.pgpass"}
    assert [n for n, secrets in given.items() if "master.key" in secrets] == ["init", "worker"]
    assert given["otel-collector"] == given["prometheus"] == set()
    for name, service in _services().items():
        for variable, value in (service.get("environment") or {}).items():
            secret = any(word in variable for word in ("PASSWORD", "SECRET", "KEY"))
            assert not secret or value.startswith("/run/secrets/"), (name, variable)


def test_every_file_that_is_mounted_is_there() -> None:
    for service in _services().values():
        for mount in service.get("volumes", ()):
            assert mount["type"] == "volume" or Path(mount["source"]).exists(), mount


def test_addresses_and_names_fit_together() -> None:
    worker, prometheus = _services()["worker"], _services()["prometheus"]
    collector = load(DEPLOY / "otel" / "collector.yml")
    otlp = collector["receivers"]["otlp"]["protocols"]["http"]["endpoint"].rpartition(":")[2]
    assert worker["environment"]["OTEL_EXPORTER_OTLP_ENDPOINT"].endswith(f"collector:{otlp}")
    scrape = load(DEPLOY / "prometheus" / "prometheus.yml")["scrape_configs"]
    (target,) = scrape[0]["static_configs"][0]["targets"]
    port = collector["exporters"]["prometheus"]["endpoint"].rpartition(":")[2]
    assert target == f"otel-collector:{port}"
    assert scrape[0]["honor_labels"] is True
    source = load(DEPLOY / "grafana/provisioning/datasources/prometheus.yml")["datasources"][0]
    assert source["url"] == "http://prometheus:9090"
    assert {"telemetry"} <= set(prometheus["networks"])
    provider = load(DEPLOY / "grafana/provisioning/dashboards/apex-creds.yml")["providers"][0]
    mounts = {m["target"]: m["source"] for m in _services()["grafana"]["volumes"]}
    assert mounts[provider["options"]["path"]] == str(DEPLOY / "grafana" / "dashboards")


# -- the steps, on a real PostgreSQL ---------------------------------------------------


class Steps:
    """Runs what the services run, with this machine's paths."""

    def __init__(self, server: Postgres, where: Path) -> None:
        self.server = server
        self.secrets = where / "secrets"
        self.health = where / "health.json"
        self.env = {
            **{n: v for n, v in os.environ.items() if not n.startswith(("OTEL_", "PG"))},
            "APEX_CREDS_HOME": str(where / "home"),
            "XDG_STATE_HOME": str(where / "state"),
            "HOME": str(where),
        }

    def command(self, service: str) -> list[str]:
        places = {
            "/var/run/postgresql": self.server.place,
            "/run/secrets": str(self.secrets),
            "/run/apex-creds/health.json": str(self.health),
        }
        words = list(_services()[service]["command"])
        for old, new in places.items():
            words = [word.replace(old, new) for word in words]
        return [sys.executable, "-m", "apex_creds.cli", *words]

    def run(self, service: str, *instead: str) -> str:
        """What ``docker compose run`` does; ``instead`` of the service's own command."""
        program = [sys.executable, "-m", "apex_creds.cli"]
        done = subprocess.run(
            [*program, *instead] if instead else self.command(service),
            env=self.env,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    def psql(self, script: Path, folder: Path) -> None:
        """As the server's entry point does with the scripts that are mounted."""
        there = self.server.folder / script.name
        shutil.copy(script, there)
        there.chmod(0o644)
        user = {"user": "postgres"} if os.geteuid() == 0 else {}
        command = [binary("psql"), "-X", "-q", "-v", "ON_ERROR_STOP=1", "-U", USER]
        command += ["-h", str(self.server.folder), "-p", str(self.server.port)]
        done = subprocess.run(
            [*command, "-d", "apex_creds", "-f", str(there)],
            env={"PATH": os.environ["PATH"], "APEX_CREDS_SECRET_FILES": str(folder)},
            capture_output=True,
            text=True,
            check=False,
            cwd="/tmp",
            **user,
        )
        assert done.returncode == 0, done.stderr


@contextmanager
def _worker(steps: Steps) -> Iterator[None]:
    process = subprocess.Popen(steps.command("worker"), env=steps.env, text=True)
    try:
        yield
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def _taken_over(folder: Path) -> None:
    """Gives the secrets to who runs this test, as the image's user has them there."""
    for path in folder.iterdir():
        os.chown(path, os.geteuid(), os.getegid())


@as_root
def test_the_secrets_are_made_once_and_for_one_user_each(tmp_path: Path) -> None:
    script = str(DEPLOY / "compose" / "secrets.sh")
    folder = tmp_path / "secrets"
    run(script, str(folder))
    made = {path.name: path for path in folder.iterdir()}
    assert set(made) == set(compose()["secrets"])
    owners = {name: path.stat().st_uid for name, path in made.items()}
    users = {"master.key": 10001, "app.pgpass": 10001, "postgres_password": 999}
    assert {name: owners[name] for name in users} == users
    assert {path.stat().st_mode & 0o777 for path in made.values()} == {0o400}
    before = {name: path.read_bytes() for name, path in made.items()}
    assert "is there already" in run(script, str(folder)).stderr
    assert {name: path.read_bytes() for name, path in made.items()} == before
    assert len(set(before.values())) == len(before)


@as_root
def test_the_steps_make_a_vault_and_a_healthy_worker(tmp_path: Path) -> None:
    run(str(DEPLOY / "compose" / "secrets.sh"), str(tmp_path / "secrets"))
    _taken_over(tmp_path / "secrets")
    with postgres() as server:
        steps = Steps(server, tmp_path)
        server.sql("CREATE DATABASE apex_creds")
        readable = server.folder / "passwords"
        shutil.copytree(tmp_path / "secrets", readable)
        for path in (readable, *readable.iterdir()):
            path.chmod(0o755)
        steps.psql(DEPLOY / "postgres" / "roles.sql", readable)
        steps.psql(DEPLOY / "compose" / "passwords.sql", readable)
        rules = f"local all {USER} trust\nlocal all all scram-sha-256\n"
        (server.data / "pg_hba.conf").write_text(rules)
        server.sql("SELECT pg_reload_conf()")
        steps.run("upgrade")
        steps.psql(DEPLOY / "postgres" / "roles.sql", readable)
        assert "Made vault" in steps.run("init")
        steps.run("worker", "rotation", "policy", "master", "--interval", "never")
        judge = healthcheck().judge
        with _worker(steps):
            deadline = time.monotonic() + 480
            while wrong := judge(str(steps.health), 60.0):
                assert time.monotonic() < deadline, wrong
                time.sleep(0.1)
        assert (
            server.sql("SELECT count(*) > 0 FROM apex_documents", database="apex_creds") == "t"
        )
        log = (server.folder / "log").read_text()
        for path in (tmp_path / "secrets").glob("*_password"):
            assert path.read_text() not in log
