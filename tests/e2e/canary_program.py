"""Leads a secret along every path that there is, while everything that can talk is talking.

Reads the secrets from standard input; writes what it was told, what it logged and traced,
and every error with the variables of its frames, into the folder that it is given.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import io
import json
import logging
import sys
import traceback
import warnings
from pathlib import Path

import rich.console
import rich.traceback
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from apex_creds import (
    ApexCredsError,
    ApiKey,
    BasicAuth,
    CredentialMiddleware,
    GenericSecret,
    OAuthToken,
    Vault,
    current_credentials,
    parse_manifest,
)
from tests.support.loopback import ok, server

logger = logging.getLogger("plugin")


class Talkative(logging.Formatter):
    """Shows tracebacks with the variables of their frames, and all fields of a record."""

    def formatException(self, ei):
        error = traceback.TracebackException.from_exception(ei[1], capture_locals=True)
        return "".join(error.format())

    def format(self, record):
        return super().format(record) + " " + repr(vars(record))


def with_variables(error: BaseException) -> str:
    plain = traceback.TracebackException.from_exception(error, capture_locals=True)
    out = io.StringIO()
    shown = rich.traceback.Traceback.from_exception(
        type(error), error, error.__traceback__, show_locals=True, extra_lines=1
    )
    rich.console.Console(file=out, width=200).print(shown)
    return "".join(plain.format()) + out.getvalue()


class Run:
    """The paths."""

    def __init__(self, where: Path, secret: str, password: str) -> None:
        self.where = where
        self._given = (secret, password)
        self.errors: list[str] = []
        self.results: list[str] = []

    def secrets(self) -> dict[str, object]:
        secret, password = self._given
        self._given = ("", "")
        return {
            "api": ApiKey(secret),
            "oauth": OAuthToken(secret, refresh_token=password, scope="mail"),
            "login": BasicAuth("user", password),
            "raw": GenericSecret(secret.encode()),
        }

    @contextlib.contextmanager
    def noted(self):
        try:
            yield
        except BaseException as error:
            self.errors.append(with_variables(error))
            logger.exception("noted")

    async def all(self) -> None:
        async with server() as web, server() as other:
            await self.store(web.origin)
            async with await Vault.unseal(self.where / "home") as vault:
                await self.operate(vault)
                async with CredentialMiddleware(vault) as middleware:
                    await self.invoke(middleware, web, other)
                await vault.delete("api")
                with self.noted():
                    async with vault.open("api"):
                        pass
                web.requests.clear()

    async def store(self, origin: str) -> None:
        secrets = self.secrets()
        self.results += [repr(secrets), str(secrets)]
        async with await Vault.create(
            self.where / "home", master=f"file:{self.where}/master.key"
        ) as vault:
            for name, secret in secrets.items():
                self.results.append(repr(await vault.put(name, secret, origins=[origin])))
                await vault.grant("demo", name, scopes=["a"], reveal=True)
            for bad in ("ftp://x", "https://x/path"):
                with self.noted():
                    await vault.put("api", secrets["api"], origins=[bad])
            with self.noted():
                await vault.put("api", secrets["login"])
            with self.noted():
                await vault.put("\n", secrets["api"])
            with self.noted():
                json.dumps(secrets)

    async def operate(self, vault: Vault) -> None:
        for info in await vault.list():
            async with vault.open(info.name) as opened:
                self.results += [repr(opened), repr([opened.part(n) for n in opened.names])]
        with self.noted():
            async with vault.open("api") as opened:
                raise ValueError(repr(opened.part()))
        with self.noted():
            async with vault.open("api") as opened:
                opened.part("no-such")

    async def invoke(self, middleware, web, other) -> None:
        needs = [
            {"name": name, "access": "reveal", "scopes": ["a"]}
            for name in ("api", "oauth", "login", "raw")
        ]
        manifest = parse_manifest({"id": "demo", "version": "1", "credentials": needs})
        for plugin in (
            reveals,
            returns,
            logs,
            raises,
            asks_for_more,
            narrows,
            sends,
            in_thread,
        ):
            with self.noted():
                result = await middleware.invoke(manifest, plugin, web, other)
                self.results.append(f"{result!r} {result!s}")
        for stream in (streams, streams_here):
            with self.noted():
                found = await middleware.invoke(manifest, stream)
                if hasattr(found, "__anext__"):
                    self.results += [repr(chunk) async for chunk in found]
                else:
                    self.results += [repr(chunk) for chunk in found]
        with self.noted():
            async with asyncio.timeout(0.3):
                web.hang = asyncio.Event()
                await middleware.invoke(manifest, sends, web, other)
        web.hang = None


async def exposed(credentials, name: str = "api") -> str:
    async with credentials[name].reveal() as secret:
        logger.debug("revealed %s %r", secret, secret)
        return secret.expose_str()


async def reveals(web, other, credentials):
    for name in credentials:
        async with credentials[name].reveal() as secret:
            logger.info("%s %r %s", secret, credentials[name], f"{secret}")
            assert len(secret) > 8
    return credentials


async def returns(web, other, credentials):
    texts = [await exposed(credentials, name) for name in credentials]
    return {"texts": texts, "hex": [text.encode().hex() for text in texts], texts[0]: texts}


async def logs(web, other, credentials):
    text = await exposed(credentials)
    logger.info("kwargs: %s", {"credentials": credentials, "header": f"Bearer {text}"})
    logger.warning("extra", extra={"token": text}, stack_info=True)
    logger.error("%d", text)
    try:
        raise KeyError(text)
    except KeyError:
        logger.exception("with %s", text)


async def raises(web, other, credentials):
    text = await exposed(credentials, "login")
    try:
        raise OSError(5, "io", f"/tmp/{text}")
    except OSError as error:
        failure = ValueError("it was", {"value": text})
        failure.add_note(text)
        failure.response = [text]
        raise failure from error


async def asks_for_more(web, other, credentials):
    await exposed(credentials)
    with contextlib.suppress(ApexCredsError):
        credentials["undeclared"]
    with contextlib.suppress(ApexCredsError):
        async with credentials["api"].reveal(scope="more"):
            pass
    async with credentials["api"].client() as http:
        await http.get(f"{other.origin}/")


async def narrows(web, other, credentials):
    narrow = credentials["api"].attenuate(max_uses=1)
    async with narrow.reveal() as secret:
        secret.expose_bytes()
    await exposed({"api": narrow})


async def sends(web, other, credentials):
    answers = [ok(b"", "302 Found", location=f"{other.origin}/"), ok(b"hello")]
    web.answer = lambda head: answers.pop() if answers else ok(head.encode())
    found = []
    for name in ("api", "oauth", "login", "raw"):
        async with credentials[name].client(timeout=5) as http:
            response = await http.get(f"{web.origin}/?x=1")
            found += [response, response.request.headers, response.text]
            if not answers:
                with contextlib.suppress(ApexCredsError):
                    await http.get(f"{web.origin}/", follow_redirects=True)
    web.last_words = b"nonsense\r\n\r\n"
    try:
        async with credentials["api"].client() as http:
            await http.get(f"{web.origin}/")
    finally:
        web.last_words = None
    return found


def in_thread(web, other, credentials):
    with current_credentials()["oauth"].reveal(part="refresh") as secret:
        text = secret.expose_str()
    with credentials["api"].sync_client() as http:
        found = http.get(f"{web.origin}/").text
    logger.info("%s %s", text, found)
    raise RuntimeError([text, found])


async def streams(credentials):
    text = await exposed(credentials)
    for at in range(0, len(text), 3):
        yield text[at : at + 3]
    yield text.encode()
    raise ValueError(text)


def streams_here(credentials):
    with credentials["api"].reveal() as secret:
        text = secret.expose_str()
    yield {"chunk": text}
    yield text[:9]
    yield text[9:]


def main() -> None:
    where, secret, password = Path(sys.argv[1]), *json.load(sys.stdin)
    handler = logging.FileHandler(where / "debug.log")
    handler.setFormatter(Talkative("%(name)s %(levelname)s %(message)s"))
    logging.basicConfig(level=logging.DEBUG, handlers=[handler, logging.StreamHandler()])
    logging.captureWarnings(True)
    warnings.simplefilter("default")
    faulthandler.enable()
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    run = Run(where, secret, password)
    del secret, password
    asyncio.run(run.all(), debug=True)
    spans = [span.to_json() for span in exporter.get_finished_spans()]
    (where / "spans.json").write_text("\n".join(spans))
    (where / "errors.txt").write_text("\n\n".join(run.errors))
    (where / "results.txt").write_text("\n".join(run.results))
    print("spans", len(spans), "errors", len(run.errors), "results", len(run.results))


if __name__ == "__main__":
    main()
