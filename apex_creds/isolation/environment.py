"""The variables of what runs behind the wall: placeholders, and where to send requests.

Guarantee: no secret. A credential's variables are those that its vendor's SDKs read, known by
the host that it is for or by its name, ``NAME`` itself where that is a variable's, and those
that the manifest names: its placeholder, and the gateway as the base URL. Proxy and trust
variables are for all else.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple
from urllib.parse import quote

import msgspec

from apex_creds.isolation.invocations import Held
from apex_creds.isolation.placeholders import Placeholders
from apex_creds.model import PLACEHOLDER, DeliveryStyle, Origin

CERTIFICATES: Final = "/run/apex-creds-ca.pem"
"""Where the certificates are that it trusts."""
_VARIABLE: Final = re.compile(r"[A-Z][A-Z0-9_]*")
_NOT_IN_NAMES: Final = re.compile(r"[^A-Za-z0-9]+")
_KIND: Final = re.compile(r"_(?:API_KEY|SECRET_KEY|ACCESS_TOKEN|API_TOKEN|KEY|TOKEN|SECRET)$")
_TRUST: Final = (
    *("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "AWS_CA_BUNDLE", "PIP_CERT"),
    *("NODE_EXTRA_CA_CERTS", "GIT_SSL_CAINFO", "DENO_CERT", "CARGO_HTTP_CAINFO"),
    *("GRPC_DEFAULT_SSL_ROOTS_FILE_PATH", "NIX_SSL_CERT_FILE"),
)
_PROXY: Final = ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy")
_DIRECT: Final = ("NO_PROXY", "no_proxy")


class Vendor(NamedTuple):
    """What a vendor's SDKs read.

    Attributes:
        hosts: Of its API.
        keys: Variables that have the key.
        prefix: What keys begin with.
        base: The variable that has the base URL; empty: there is none.
        path: Of that URL.
    """

    hosts: tuple[str, ...]
    keys: tuple[str, ...]
    prefix: str = ""
    base: str = ""
    path: str = ""


VENDORS: Final = (
    Vendor(("api.openai.com",), ("OPENAI_API_KEY",), "sk-proj-", "OPENAI_BASE_URL", "/v1"),
    Vendor(
        ("api.anthropic.com",), ("ANTHROPIC_API_KEY",), "sk-ant-api03-", "ANTHROPIC_BASE_URL"
    ),
    Vendor(
        ("generativelanguage.googleapis.com",),
        ("GEMINI_API_KEY", "GOOGLE_API_KEY"),
        "AIza",
        "GOOGLE_GEMINI_BASE_URL",
    ),
    Vendor(("api.stripe.com",), ("STRIPE_API_KEY", "STRIPE_SECRET_KEY"), "sk_live_"),
    Vendor(("slack.com",), ("SLACK_BOT_TOKEN",), "xoxb-"),
    Vendor(("api.github.com",), ("GITHUB_TOKEN", "GH_TOKEN"), "ghp_", "GITHUB_API_URL"),
    Vendor(("github.com",), ("GIT_TOKEN",), "ghp_"),
    Vendor(("gitlab.com",), ("GITLAB_TOKEN",), "glpat-"),
    Vendor(("api.mistral.ai",), ("MISTRAL_API_KEY",)),
    Vendor(("api.cohere.com", "api.cohere.ai"), ("CO_API_KEY",), "", "CO_API_URL"),
    Vendor(("api.groq.com",), ("GROQ_API_KEY",), "gsk_", "GROQ_BASE_URL"),
    Vendor(("huggingface.co",), ("HF_TOKEN",), "hf_", "HF_ENDPOINT"),
    Vendor(("api.replicate.com",), ("REPLICATE_API_TOKEN",), "r8_"),
    Vendor(("openrouter.ai",), ("OPENROUTER_API_KEY",), "sk-or-v1-"),
    Vendor(("registry.npmjs.org",), ("NPM_TOKEN",), "npm_"),
    Vendor(("api.telegram.org",), ("TELEGRAM_BOT_TOKEN",), "1234567890:"),
)
_ACCESS_KEY: Final = "AKIA"
_GATEWAY: Final = "{gateway}"
_POSTGRES_PORT: Final = 5432
_SOCKETS: Final = "/run"
_USER: Final = "apex-creds"
"""What a driver logs in as; the server is sent the role."""


class Login(NamedTuple):
    """A Unix socket behind the wall on which a database is logged in to already.

    Attributes:
        name: The credential's.
        database: The one that it leads to; empty: the role's own.
    """

    path: str
    name: str
    database: str


class Surroundings(msgspec.Struct, frozen=True, eq=False):
    """What a process behind the wall finds there.

    Attributes:
        variables: Its environment.
        files: Their texts, by path.
        logins: The sockets that there are to be.
    """

    variables: Mapping[str, str]
    files: Mapping[str, str]
    placeholders: Placeholders
    logins: tuple[Login, ...] = ()


def surroundings(held: list[Held], authority: str, *, certificates: str = "") -> Surroundings:
    """What is set for the credentials of an invocation.

    Args:
        held: The credentials.
        authority: What the gateway is called behind the wall: ``127.0.0.1:PORT``.
        certificates: Those to trust, PEM; empty: the gateway is no proxy.
    """
    vendors = {each.info.name: _vendor(each) for each in held}
    placeholders = Placeholders({name: vendor.prefix for name, vendor in vendors.items()})
    declared: dict[str, str] = {}
    usual: dict[str, str] = {}
    logins: list[Login] = []
    for each in held:
        name = each.info.name
        if each.database is not None:
            port = _POSTGRES_PORT + len(logins)
            login = Login(f"{_SOCKETS}/.s.PGSQL.{port}", name, each.database)
            logins.append(login)
            pairs = dict(_database_variables(login, port))
            key = pairs["DATABASE_URL"]
        else:
            key = placeholders.of(name)
            pairs = dict(_variables(each, vendors[name], key))
        for variable, value in pairs.items():
            usual.setdefault(variable, value.replace(_GATEWAY, f"http://{authority}"))
        declared |= dict.fromkeys(each.variables, key)
    variables = {**usual, **declared}
    if not certificates:
        return Surroundings(variables, {}, placeholders, tuple(logins))
    variables |= dict.fromkeys(_PROXY, f"http://{authority}")
    variables |= dict.fromkeys(_DIRECT, f"{authority},127.0.0.1")
    variables |= dict.fromkeys(_TRUST, CERTIFICATES)
    variables |= {"NODE_USE_ENV_PROXY": "1"}
    files = {CERTIFICATES: certificates}
    return Surroundings(variables, files, placeholders, tuple(logins))


def _variables(held: Held, vendor: Vendor, key: str) -> Iterator[tuple[str, str]]:
    info = held.info
    stem = _stem(info.name)
    if info.delivery.style is DeliveryStyle.AWS4:
        yield from (("AWS_ACCESS_KEY_ID", key), ("AWS_SECRET_ACCESS_KEY", PLACEHOLDER))
        region, _, _ = info.delivery.field.partition("/")
        if region:
            yield from (("AWS_REGION", region), ("AWS_DEFAULT_REGION", region))
        if len(held.origins) == 1:
            yield "AWS_ENDPOINT_URL", _behind(held.origins[0])
        return
    if info.delivery.style is DeliveryStyle.BASIC:
        yield from ((f"{stem}_USERNAME", _USER), (f"{stem}_PASSWORD", key))
    for variable in vendor.keys:
        yield variable, key
    yield (info.name if _VARIABLE.fullmatch(info.name) else f"{stem}_API_KEY"), key
    if held.origins:
        yield vendor.base or f"{stem}_BASE_URL", _behind(held.origins[0]) + vendor.path


def _database_variables(login: Login, port: int) -> Iterator[tuple[str, str]]:
    database = login.database or _USER
    url = f"postgresql://{_USER}@/{quote(database, safe='')}?host={_SOCKETS}&port={port}"
    yield from (("PGHOST", _SOCKETS), ("PGPORT", str(port)), ("PGUSER", _USER))
    yield from (("PGDATABASE", database), ("DATABASE_URL", url))
    stem = _stem(login.name)
    yield (login.name if _VARIABLE.fullmatch(login.name) else f"{stem}_URL"), url


def _behind(origin: Origin) -> str:
    return f"{_GATEWAY}/" + str(origin).replace("://", "/")


def _vendor(held: Held) -> Vendor:
    if held.info.delivery.style is DeliveryStyle.AWS4:
        return Vendor((), (), _ACCESS_KEY)
    hosts = {origin.host for origin in held.origins}
    variable = f"{_stem(held.info.name)}_API_KEY"
    for vendor in VENDORS:
        if not hosts.isdisjoint(vendor.hosts):
            return vendor
    for vendor in VENDORS:
        if held.info.name in vendor.keys or variable in vendor.keys:
            return vendor
    return Vendor((), ())


def _stem(name: str) -> str:
    """What its variables begin with: ``OPENAI`` for ``openai`` and ``OPENAI_API_KEY``."""
    stem = _NOT_IN_NAMES.sub("_", name).strip("_").upper() or "CREDENTIAL"
    stem = f"C{stem}" if stem[0].isdigit() else stem
    return _KIND.sub("", stem) or stem
