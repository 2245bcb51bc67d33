"""``sdk.smtp``: smtplib logs in with a password that it never has, to a real server."""

from __future__ import annotations

import asyncio
import contextlib
import smtplib
import ssl
import traceback
from base64 import b64encode
from collections.abc import Iterator
from email.message import EmailMessage
from pathlib import Path

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult, LoginPassword

from apex_creds.errors import InvalidInputError
from apex_creds.model import BasicAuth
from apex_creds.sdk import smtp as sdk
from tests.support.canaries import holders
from tests.support.certificates import certificate
from tests.support.realparts import _free_port
from tests.support.worlds import World

pytestmark = pytest.mark.filterwarnings("ignore:Requiring AUTH while not requiring TLS")
PASSWORD = "smtp-canary-9c2e/Zq+7"


class Mailbox:
    """What came."""

    def __init__(self) -> None:
        self.letters: list[bytes] = []

    async def handle_DATA(self, server, session, envelope) -> str:
        self.letters.append(envelope.content)
        return "250 OK"


def _authenticated(server, session, envelope, mechanism, data) -> AuthResult:
    good = LoginPassword(b"alice", PASSWORD.encode())
    return AuthResult(success=data == good, handled=False)


@contextlib.contextmanager
def mail_server(
    *, tls: ssl.SSLContext | None, **options: object
) -> Iterator[tuple[int, Mailbox]]:
    box = Mailbox()
    controller = Controller(
        box,
        hostname="127.0.0.1",
        port=_free_port(),
        tls_context=tls,
        require_starttls=tls is not None,
        auth_required=True,
        auth_require_tls=tls is not None,
        authenticator=_authenticated,
        **options,
    )
    controller.start()
    try:
        yield controller.port, box
    finally:
        controller.stop()


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    return certificate(tmp_path)


@pytest.fixture
def tls(files: tuple[Path, Path]) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*files)
    return context


async def allow(world: World, origin: str, password: str = PASSWORD) -> None:
    await world.vault.put("mail", BasicAuth("alice", password), origins=[origin])
    for plugin in ("demo", "inner"):
        await world.vault.grant(plugin, "mail")


NEED = ({"name": "mail"},)


def letter() -> EmailMessage:
    made = EmailMessage()
    made["From"], made["To"], made["Subject"] = "a@example.com", "b@example.com", "hello"
    made.set_content("hello")
    return made


@pytest.mark.parametrize("exclude", [(), ("PLAIN",)])
async def test_a_letter_by_starttls_without_a_trace_of_the_password(
    world: World,
    files: tuple[Path, Path],
    tls: ssl.SSLContext,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    exclude: tuple[str, ...],
) -> None:
    monkeypatch.setattr(smtplib.SMTP, "debuglevel", 2)
    with mail_server(tls=tls, auth_exclude_mechanism=exclude) as (port, box):
        await allow(world, f"smtp://127.0.0.1:{port}")

        def work() -> None:
            with sdk.connect("mail") as client:
                client.send_message(letter())
                assert holders(PASSWORD, client) == []

        async def plugin() -> None:
            await asyncio.to_thread(work)

        async def untrusted() -> None:
            with pytest.raises(ssl.SSLError):
                await asyncio.to_thread(work)

        await world.call(untrusted, needs=NEED)
        monkeypatch.setenv("SSL_CERT_FILE", str(files[0]))
        for name in ("demo", "inner"):
            await world.call(plugin, needs=NEED, plugin=name)
    assert len(box.letters) == 2
    assert len(world.events("redeem")) == 2
    shown = capfd.readouterr()
    assert "STARTTLS" in shown.err
    for form in (PASSWORD, "c210cC1jYW5hcnk"):
        assert form not in shown.err + shown.out


async def test_here_it_may_be_in_the_clear_and_elsewhere_not(world: World) -> None:
    with mail_server(tls=None) as (port, box):
        await allow(world, f"smtp://127.0.0.1:{port}")

        async def plugin() -> None:
            with await asyncio.to_thread(sdk.connect, "mail") as client:
                await asyncio.to_thread(client.send_message, letter())

        await world.call(plugin, needs=NEED)
        assert len(box.letters) == 1


async def test_it_is_of_one_invocation_and_ends_with_its_lease(world: World) -> None:
    with mail_server(tls=None) as (port, _):
        await allow(world, f"smtp://127.0.0.1:{port}")
        kept: list[smtplib.SMTP] = []
        go, end = asyncio.Event(), asyncio.Event()

        async def first() -> None:
            kept.extend([await asyncio.to_thread(sdk.connect, "mail") for _ in range(2)])
            go.set()
            await end.wait()

        async def second() -> None:
            await go.wait()
            with pytest.raises(smtplib.SMTPServerDisconnected, match="another invocation"):
                kept[0].noop()
            end.set()

        await asyncio.gather(
            world.call(first, needs=NEED), world.call(second, needs=NEED, plugin="inner")
        )
        with pytest.raises(smtplib.SMTPServerDisconnected):
            kept[1].noop()


async def test_a_refusal_is_the_client_s_own_error(world: World) -> None:
    with mail_server(tls=None) as (port, _):
        with pytest.raises(smtplib.SMTPAuthenticationError, match="outside of any invocation"):
            sdk.connect("mail")
        await allow(world, f"smtp://127.0.0.1:{port}", password="not-it")

        async def plugin() -> None:
            with pytest.raises(smtplib.SMTPAuthenticationError, match="invalid") as caught:
                await asyncio.to_thread(sdk.connect, "mail")
            refused = traceback.TracebackException.from_exception(
                caught.value, capture_locals=True
            )
            sent = b64encode(b"\0alice\0not-it").decode()
            assert sent not in "".join(refused.format())
            with pytest.raises(smtplib.SMTPAuthenticationError, match="may not be sent to"):
                sdk.connect("mail", origin="smtp://127.0.0.1:1")

        await world.call(plugin, needs=NEED)
    assert world.reasons() == [("mail", "request_not_allowed")]
    with pytest.raises(InvalidInputError):
        sdk.connect("mail", origin="https://mail.example.com")
