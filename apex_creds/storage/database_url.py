"""Which database a URL means, and how it is reached.

Guarantee: a URL with a password in it is refused and never repeated in a message; a server
on another host is reached by TLS with its certificate verified, unless the URL itself says
otherwise, also where libpq's environment or a service names the host; an option that is not
known is an error.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlencode

from apex_creds.errors import InvalidInputError
from apex_creds.fs.private_files import check, expanded, translated

if TYPE_CHECKING:
    from collections.abc import Mapping

Kind = Literal["sqlite", "postgresql"]

_SCHEMES: Final[Mapping[str, Kind]] = {
    "sqlite": "sqlite",
    "sqlite+aiosqlite": "sqlite",
    "postgres": "postgresql",
    "postgresql": "postgresql",
    "postgresql+psycopg": "postgresql",
}
_TLS: Final = {"verify-full": "verify-full", "verify-ca": "verify-ca", "off": "disable"}
_OPTIONS: Final = frozenset(
    {
        *("host", "passfile", "service", "keyring", "application_name", "space", "pool"),
        *("tls", "tls_ca", "tls_cert", "tls_key", "connect_timeout", "statement_timeout"),
    }
)
# RFC 3986, appendix B. Not `urlsplit`: with several hosts, some versions of Python refuse
# the brackets of IPv6.
_URL: Final = re.compile(
    r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*):(?://(?P<netloc>[^/?#]*))?"
    r"(?P<path>[^?#\x00-\x1f]*)(?:\?(?P<query>[^#]*))?"
)
_PLACE: Final = re.compile(r"(?P<host>\[[^\[\]]+\]|[^:\[\]]*)(?::(?P<port>[0-9]{1,5}))?")
_SPACE: Final = re.compile(r"[0-9a-f]{8,64}|new", re.ASCII)
_ELSEWHERE: Final = ("PGHOST", "PGHOSTADDR", "PGSERVICE")
_STRONGER: Final = frozenset({"require", "verify-ca", "verify-full"})
_LOCAL: Final = frozenset({"", "localhost", "127.0.0.1", "::1"})
NEW_SPACE: Final = "new"
"""As ``?space=new``: another vault in a database that has one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A database, and the part of it that one vault has.

    Attributes:
        kind: Of database.
        text: The URL without its space, to be shown and stored.
        space: Which of the vaults in the database; None: the only one.
        path: The file of an SQLite database.
        connect: The parameters for libpq; never a password.
        keyring: The service and user name under which the OS keyring has the password.
        pool: Connections at most, beside the few that are kept for one purpose.
    """

    kind: Kind
    text: str
    space: str | None = None
    path: Path | None = None
    connect: Mapping[str, str] = field(default_factory=dict)
    keyring: tuple[str, str] | None = None
    pool: int = 8


def parse_target(url: str) -> Target:
    """Reads a storage URL; see docs/SQL.md for all that it may say.

    Raises:
        InvalidInputError: It is malformed, of another database, or holds a password.
        UnsafePathError, UnsafePermissionsError: The password file is not only ours.
    """
    found = _URL.fullmatch(url)
    if found is None:
        raise _bad("is malformed")
    scheme, netloc, path, text = (part or "" for part in found.groups())
    parts = SplitResult(scheme, netloc, path, text, "")
    try:
        query = parse_qsl(text, keep_blank_values=True, strict_parsing=bool(text))
    except ValueError:
        raise _bad("is malformed") from None
    kind = _SCHEMES.get(parts.scheme.lower())
    if kind is None:
        raise _bad(f"is of no database that is known here ({parts.scheme or 'no scheme'})")
    options = _checked(query)
    if not is_storage_url(url):
        raise _bad("lacks its slashes")
    if kind == "sqlite":
        return _sqlite(parts, options)
    return _postgresql(parts, query, options)


def is_storage_url(text: str) -> bool:
    """Whether a text means a database rather than a directory."""
    return "://" in text


def _checked(query: list[tuple[str, str]]) -> dict[str, str]:
    options = dict(query)
    if "password" in options:
        raise _password()
    if unknown := sorted(set(options) - _OPTIONS):
        raise _bad(f"has an option that is not known: {unknown[0]}")
    if not _SPACE.fullmatch(options.get("space", "new")):
        raise _bad("has a space that is not hexadecimal")
    return options


def _sqlite(parts: SplitResult, options: dict[str, str]) -> Target:
    path = unquote(parts.path)[1:]
    if parts.netloc or not path or path.startswith(":"):
        raise _bad("names no file; write sqlite:////absolute/path/of/vault.db")
    if other := sorted(set(options) - {"space"}):
        raise _bad(f"has an option that SQLite has not: {other[0]}")
    full = expanded(path)
    return Target(
        kind="sqlite",
        text=f"sqlite:///{quote(str(full))}",
        space=options.get("space"),
        path=full,
    )


def _postgresql(
    parts: SplitResult, query: list[tuple[str, str]], options: dict[str, str]
) -> Target:
    user, _, places = parts.netloc.rpartition("@")
    if ":" in user:
        raise _password()
    hosts = [_host(place) for place in places.split(",")] if places else []
    hosts += [_host(value) for name, value in query if name == "host"]
    elsewhere = not hosts and any(os.environ.get(name) for name in _ELSEWHERE)
    named = "service" not in options and not elsewhere  # by the URL alone
    local = named and all(is_local(host) for host, _ in hosts)
    connect = {
        **_where(user, hosts, unquote(parts.path)[1:], options, named=named),
        **_tls(options, local=local),
        **_limits(options, local=local),
    }
    service, _, login = options.get("keyring", "").partition("/")
    if "keyring" in options and not (service and login):
        raise _bad("says keyring= with something else than SERVICE/USER")
    rest = urlencode([pair for pair in query if pair[0] != "space"], safe="/:@,")
    return Target(
        kind="postgresql",
        text=f"postgresql+psycopg://{parts.netloc}{parts.path}{'?' if rest else ''}{rest}",
        space=options.get("space"),
        connect=connect,
        keyring=(service, login) if service else None,
        pool=_number(options.get("pool", "8"), "pool", most=100),
    )


def _where(
    user: str,
    hosts: list[tuple[str, str]],
    database: str,
    options: dict[str, str],
    *,
    named: bool,
) -> dict[str, str]:
    found = {"target_session_attrs": "read-write"}  # with several hosts: the primary
    if user:
        found["user"] = unquote(user)
    if hosts:
        found["host"] = ",".join(host for host, _ in hosts)
        found["port"] = ",".join(port for _, port in hosts)
    if named:
        found.setdefault("host", "")  # libpq's own socket directory
        found["hostaddr"] = ""  # PGHOSTADDR has no say over what the URL names
    if database:
        found["dbname"] = database
    if "service" in options:
        found["service"] = options["service"]
    if "passfile" in options:
        file = expanded(options["passfile"])
        with translated(file):
            check(file, os.stat(file))
        found["passfile"] = str(file)
    found["application_name"] = options.get("application_name", "apex-creds")
    return found


def _host(place: str) -> tuple[str, str]:
    found = _PLACE.fullmatch(unquote(place))
    if found is None:
        raise _bad("has a host or a port that is none")
    return found["host"].strip("[]"), found["port"] or "5432"


def is_local(host: str) -> bool:
    """A Unix socket or the loopback interface: nobody in between can read along."""
    return host in _LOCAL or host.startswith(("/", "@"))


def _tls(options: dict[str, str], *, local: bool) -> dict[str, str]:
    wanted = options.get("tls")
    if wanted is not None and wanted not in _TLS:
        raise _bad("says tls= with something else than verify-full, verify-ca or off")
    if wanted is not None:
        mode = _TLS[wanted]
    elif not local:
        mode = "verify-full"
    elif (mode := os.environ.get("PGSSLMODE", "")) not in _STRONGER:
        return {"sslmode": "prefer"}
    found = {"sslmode": mode}
    for option, name in (("tls_ca", "rootcert"), ("tls_cert", "cert"), ("tls_key", "key")):
        if option in options:
            found[f"ssl{name}"] = str(expanded(options[option]))
    if mode == "disable" and not local:
        found["require_auth"] = "!password,!md5"  # nothing that can be read on the way
    if mode == "verify-full" and not (
        options.keys() & {"tls_ca", "service"}
        or any(map(os.environ.get, ("PGSSLROOTCERT", "PGSERVICE")))
        or ("HOME" in os.environ and expanded("~/.postgresql/root.crt").exists())
    ):
        found["sslrootcert"] = "system"
    return found


def _limits(options: dict[str, str], *, local: bool) -> dict[str, str]:
    statement = _number(options.get("statement_timeout", "10000"), "statement_timeout")
    connect = _number(options.get("connect_timeout", "3"), "connect_timeout", most=600)
    settings = {
        "statement_timeout": str(statement),
        "lock_timeout": str(max(1, statement // 2)),
        # Compare-and-set statements re-check rows that they waited for; that is so here only.
        "default_transaction_isolation": r"read\ committed",
    }
    found = {"connect_timeout": str(max(2, connect))}
    if not local:
        found |= {"keepalives_idle": "10", "keepalives_interval": "3", "keepalives_count": "3"}
        found["tcp_user_timeout"] = "15000"
        settings |= {"tcp_keepalives_idle": "10", "tcp_keepalives_interval": "5"}
    found["options"] = " ".join(f"-c {name}={value}" for name, value in settings.items())
    return found


def _number(text: str, name: str, *, most: int = 3_600_000) -> int:
    if not re.fullmatch(r"[0-9]{1,7}", text) or not 1 <= int(text) <= most:
        raise _bad(f"says {name}= with something else than 1 to {most}")
    return int(text)


def _bad(what: str) -> InvalidInputError:
    return InvalidInputError(
        f"The storage URL {what}.",
        hint="Write sqlite:////path/of/vault.db or postgresql+psycopg://user@host/database.",
    )


def _password() -> InvalidInputError:
    return InvalidInputError(
        "The storage URL has a password in it, which others can read in the process list.",
        hint="Use ?passfile=PATH, ?service=NAME or ?keyring=SERVICE/USER instead.",
    )
