"""Destinations as text: ``syslog:/dev/log?level=security&required=yes``.

Guarantee: what is not understood is an error that says what is; nothing is guessed.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Mapping
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
_LOCAL: Final = ("stderr", "syslog", "journald")
_PORTS: Final = {"syslog+udp": 514, "syslog+tcp": 601, "syslog+tls": 6514}
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
        if not set(options) <= _OPTIONS or url.fragment or url.username is not None:
            raise _refused(text)
        return Destination(
            name=options.get("name", url.scheme),
            sink=_sink(url),
            level=Level(options.get("level", "all")),
            required=_ANSWERS[options.get("required", "no")],
            capacity=int(options.get("capacity", "10000")),
        )
    except (ValueError, KeyError):
        raise _refused(text) from None


def _sink(url: SplitResult) -> Sink:
    """One of ours, or what an installed package makes of it; of our options it sees none."""
    if url.scheme in _LOCAL:
        absolute = url.path.startswith("/") and url.scheme != "stderr"
        if url.netloc or (url.path and not absolute):
            raise ValueError
        if url.scheme == "stderr":
            return StreamSink()
        journal = url.scheme == "journald"
        return JournalSink(url.path or JOURNAL) if journal else SyslogSink(url.path or DEV_LOG)
    if url.scheme in _PORTS:
        if not url.hostname or url.path not in ("", "/"):
            raise ValueError
        address = (url.hostname, url.port or _PORTS[url.scheme])
        return SyslogSink(address, transport=url.scheme.removeprefix("syslog+"))
    sink = extensions.make(extensions.SINKS, url._replace(query="").geturl())
    if sink is not None and not isinstance(sink, Sink):
        raise InvalidInputError(
            f"What an installed package makes of {url.scheme}: is not an audit sink.",
            hint="A sink has open(), deliver() and close().",
        )
    if sink is None:
        raise ValueError
    return sink


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
