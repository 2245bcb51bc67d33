"""The program itself: where it listens, what it refuses to do, how it ends."""

from __future__ import annotations

import socket
import ssl
import struct
import subprocess
import sys
from contextlib import ExitStack, suppress
from pathlib import Path

import anyio
import httpx
import pytest

from apex_creds import Vault
from apex_creds.dashboard.server import MAX_STRANGERS, Settings, serve
from apex_creds.errors import InvalidInputError
from tests.dashboard.running import running
from tests.support.certificates import certificate
from tests.support.loops import WITHIN

pytestmark = pytest.mark.e2e


@pytest.fixture
def home(tmp_path: Path, fresh_home: Path) -> Path:
    async def make() -> None:
        master = f"file:{tmp_path}/master.key"
        async with await Vault.create(tmp_path / "vault", master=master):
            pass

    anyio.run(make)
    return tmp_path / "vault"


def refused(home: Path, **options: object) -> str:
    """What it says when it does not start."""
    said: list[str] = []

    async def start() -> None:
        async with await Vault.unseal(home) as vault:
            with anyio.fail_after(WITHIN):
                await serve(vault, Settings(**options), say=said.append)

    with pytest.raises(InvalidInputError) as caught:
        anyio.run(start)
    assert said == []
    return str(caught.value)


def test_a_client_that_hangs_up_prints_nothing(home: Path) -> None:
    """In its request's head, in its body, and while it is answered."""
    with running(home) as made:
        host = made.origin.removeprefix("http://")
        address, _, port = host.partition(":")
        head = (
            f"POST /login HTTP/1.1\r\nHost: {host}\r\nOrigin: {made.origin}\r\n"
            "Content-Type: application/json\r\nContent-Length: 100\r\n\r\n"
        )
        page = f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n"
        for sent in ("", head[:40], head, head + '{"token":', page * 20):
            with socket.create_connection((address, int(port))) as client:
                client.sendall(sent.encode())
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        with made.client() as client:
            made.log_in(client)
        code, said = made.stop()
    assert (code, "Traceback" in said, "Exception" in said) == (0, False, False), said


def test_many_open_connections_shut_nobody_out(home: Path) -> None:
    """Of anybody: that say nothing, half a request, or never send or read its rest."""
    with running(home) as made:
        host = made.origin.removeprefix("http://")
        address, _, port = host.partition(":")
        head = f"POST /login HTTP/1.1\r\nHost: {host}\r\nOrigin: {made.origin}\r\n"
        body = "Content-Type: application/json\r\nContent-Length: 100\r\n\r\n"
        page = f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n"

        def crowd(sent: str, open_ones: ExitStack) -> None:
            for _ in range(MAX_STRANGERS + 14):
                client = open_ones.enter_context(socket.socket())
                client.connect((address, int(port)))
                with suppress(ConnectionError):  # cut off for a newer one
                    client.sendall(sent.encode())

        with made.client() as client:
            made.log_in(client)
            with client.stream("GET", "/api/stream", headers=made.headers) as stream:
                frames = stream.iter_raw()
                assert b"hello" in next(frames)
                for sent in ("", head, head + body, page * 20):
                    with ExitStack() as open_ones, made.client() as other:
                        crowd(sent, open_ones)
                        assert other.get("/").status_code == 200, sent
                # Nor is what somebody looks at cut off: a login of another is told there.
                answer = made.post(client, "/login", {"token": "none"})
                assert answer.status_code == 403
                while b"bad_link" not in next(frames):
                    pass
        code, said = made.stop()
    assert (code, "Traceback" in said) == (0, False), said


def test_it_is_reached_on_loopback_alone_and_ends_while_somebody_listens(home: Path) -> None:
    with running(home) as made:
        assert made.origin.startswith("http://127.0.0.1:")
        port = int(made.origin.rpartition(":")[2])
        with socket.socket() as other:
            assert other.connect_ex((_own_address(), port)) != 0
        with made.client() as client:
            made.log_in(client)
            again = made.post(client, "/login", {"token": made.token})
            assert again.status_code == 403
            assert "server" not in again.headers
            with client.stream("GET", "/api/stream", headers=made.headers) as stream:
                lines = stream.iter_lines()
                assert next(lines) == "event: hello"
                assert '"decisions":false' in next(lines)
                code, printed = made.stop()
        assert (code, printed) == (0, "")


def _own_address() -> str:
    """An address of this machine that is not 127.0.0.1."""
    return (
        "127.0.0.2" if sys.platform == "linux" else socket.gethostbyname(socket.gethostname())
    )


def test_another_address_takes_a_certificate(home: Path) -> None:
    said = refused(home, address="127.0.0.2")
    assert "TLS" in said
    assert "ssh -L" in said


@pytest.mark.skipif(sys.platform != "linux", reason="127.0.0.2 is Linux's")
def test_with_a_certificate_it_serves_tls_and_a_secure_cookie(home: Path) -> None:
    trusted, key = certificate(home.parent, host="127.0.0.2")
    trust = ssl.create_default_context(cafile=str(trusted))
    options = ("--tls-certificate", str(trusted), "--tls-key", str(key))
    with running(home, "--expose-to-network", "127.0.0.2", *options) as made:
        assert made.origin.startswith("https://127.0.0.2:")
        with made.client(verify=trust) as client:
            answer = made.post(client, "/login", {"token": made.token})
            assert answer.status_code == 200
            assert "secure" in answer.headers["set-cookie"].lower()
            plain = httpx.Client(trust_env=False)
            with plain, pytest.raises(httpx.HTTPError):
                plain.get(made.origin.replace("https:", "http:"))


@pytest.mark.skipif(sys.platform != "linux", reason="127.0.0.2 is Linux's")
def test_handshakes_that_nobody_ends_shut_nobody_out(home: Path) -> None:
    trusted, key = certificate(home.parent, host="127.0.0.2")
    trust = ssl.create_default_context(cafile=str(trusted))
    options = ("--tls-certificate", str(trusted), "--tls-key", str(key))
    with running(home, "--expose-to-network", "127.0.0.2", *options) as made:
        where = ("127.0.0.2", int(made.origin.rpartition(":")[2]))
        for sent in (b"", b"\x16\x03\x01\x02\x00"):  # half of a first record
            with ExitStack() as crowd, made.client(verify=trust) as client:
                for _ in range(2 * MAX_STRANGERS):
                    one = crowd.enter_context(socket.create_connection(where, timeout=480))
                    with suppress(ConnectionError):  # cut off for a newer one
                        one.sendall(sent)
                assert client.get("/").status_code == 200
                held = len(list(Path(f"/proc/{made.process.pid}/fd").iterdir()))
                assert held < 1.5 * MAX_STRANGERS
        code, said = made.stop()
    assert (code, "Traceback" in said) == (0, False), said


def test_an_address_of_all_takes_a_name(home: Path) -> None:
    files = certificate(home.parent, host="127.0.0.2")
    assert "--host-name" in refused(home, address="0.0.0.0", certificate=files)


def test_files_that_are_no_certificate_are_an_error(home: Path) -> None:
    missing = (home / "a.pem", home / "b.pem")
    assert "PEM" in refused(home, certificate=missing)
    for path in missing:
        path.write_text("nonsense")
    assert "PEM" in refused(home, certificate=missing)


def test_a_port_that_is_taken_is_an_error(home: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert "--port" in refused(home, port=taken.getsockname()[1])


def test_nobody_decides_on_pseudonyms(home: Path) -> None:
    config = home / "security" / "config.json"
    config.write_text('{"audit":{"pseudonyms":true}}')
    config.chmod(0o600)
    assert "--names" in refused(home, decisions=True, port=0)


def test_without_the_extra_it_says_what_to_install(home: Path) -> None:
    program = (
        "import sys; sys.modules['starlette'] = sys.modules['uvicorn'] = None\n"
        "from apex_creds.cli.app import run; sys.exit(run(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, "--home", str(home), "dashboard"],
        capture_output=True,
        text=True,
        timeout=480,
        check=False,
    )
    assert "apex-creds[dashboard]" in done.stderr
    assert done.returncode not in (0, 70)
