"""Destinations as text: ``syslog:/dev/log?level=security&required=yes``.

Guarantee: what is not understood is an error that says what is; nothing is guessed.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Final
from urllib.parse import SplitResult, parse_qsl, urlsplit

import anyio.to_thread

from apex_creds import extensions
from apex_creds.audit.sinks.base import Destination, Level, Sink, StreamSink
from apex_creds.audit.sinks.fan_out import Destinations
from apex_creds.audit.sinks.system_logs import DEV_LOG, JOURNAL, JournalSink, SyslogSink
from apex_creds.errors import InvalidInputError
from apex_creds.model import Clock

__all__ = [
    "VARIABLE",
    "from_environment",
    "open_destinations",
    "parse",
]

VARIABLE: Final = "APEX_CREDS_AUDIT_TO"
"""Destinations for the command line and the worker, separated by white space."""

_HINT: Final = (
    "Write stderr:, syslog:PATH, syslog+udp://HOST:PORT, syslog+tcp://…, syslog+tls://… or "
    "journald:PATH, and ?level=…&required=yes|no&capacity=N&name=…"
)
_PORTS: Final = {"udp": 514, "tcp": 601, "tls": 6514}
_OPTIONS: Final = {"level", "required", "capacity", "name"}
_ANSWERS: Final = {"yes": True, "no": False}


def from_environment(environment: Mapping[str, str]) -> tuple[Destination, ...]:
    """What ``APEX_CREDS_AUDIT_TO`` lists.

    Raises:
        InvalidInputError: See ``parse``.
    """
    return tuple(parse(text) for text in environment.get(VARIABLE, "").split())


def parse(text: str) -> Destination:
    """Reads one destination.

    Raises:
        InvalidInputError: It is not understood.
    """
    try:
        url = urlsplit(text)
        options = dict(
            parse_qsl(url.query, keep_blank_values=True, strict_parsing=bool(url.query))
        )
        make = _MAKERS.get(url.scheme, _of_a_package)
        if not set(options) <= _OPTIONS or url.fragment or url.username is not None:
            raise _refused(text)
        return Destination(
            name=options.get("name", url.scheme),
            sink=make(url),
            level=Level(options.get("level", "all")),
            required=_ANSWERS[options.get("required", "no")],
            capacity=int(options.get("capacity", "10000")),
        )
    except (ValueError, KeyError):
        raise _refused(text) from None


def _stderr(url: SplitResult) -> Sink:
    if url.netloc or url.path:
        raise ValueError
    return StreamSink()


def _local_syslog(url: SplitResult) -> Sink:
    return SyslogSink(_path(url) or DEV_LOG)


def _journal(url: SplitResult) -> Sink:
    return JournalSink(_path(url) or JOURNAL)


def _remote_syslog(url: SplitResult) -> Sink:
    transport = url.scheme.removeprefix("syslog+")
    if not url.hostname or url.path not in ("", "/"):
        raise ValueError
    return SyslogSink((url.hostname, url.port or _PORTS[transport]), transport=transport)


def _of_a_package(url: SplitResult) -> Sink:
    """What an installed package makes of it; of our own options it sees none."""
    sink = extensions.make(extensions.SINKS, url._replace(query="").geturl())
    if sink is not None and not isinstance(sink, Sink):
        raise InvalidInputError(
            f"What an installed package makes of {url.scheme}: is not an audit sink.",
            hint="A sink has open(), deliver() and close().",
        )
    if sink is None:
        raise ValueError
    return sink


def _path(url: SplitResult) -> str:
    if url.netloc or (url.path and not url.path.startswith("/")):
        raise ValueError
    return url.path


_MAKERS: Final[dict[str, Callable[[SplitResult], Sink]]] = {
    "stderr": _stderr,
    "syslog": _local_syslog,
    "journald": _journal,
    **dict.fromkeys((f"syslog+{transport}" for transport in _PORTS), _remote_syslog),
}


def _refused(text: str) -> InvalidInputError:
    return InvalidInputError(f"{text[:200]!r} is not an audit destination.", hint=_HINT)


async def open_destinations(
    given: Iterable[Destination], configured: Iterable[str], *, clock: Clock
) -> Destinations | None:
    """Connects and starts them; for the log's ``observer``.

    Args:
        given: By the program.
        configured: As text, see ``parse``.
        clock: Dates the records of drops.

    Raises:
        AuditUnavailableError: A required one can't be reached.
        InvalidInputError: One is not understood, or two have one name.
    """
    wanted = [*given, *map(parse, configured), *from_environment(os.environ)]
    if not wanted:
        return None
    make = functools.partial(Destinations, wanted, clock=clock)
    # Connecting may take as long as a network's timeout.
    return await anyio.to_thread.run_sync(make)
