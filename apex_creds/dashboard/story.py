"""One invocation's whole story: every event of it, and of those that it called.

Guarantee: each event is checked by itself before it is told. It blocks: call it in a thread.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from apex_creds.audit import line as lines
from apex_creds.audit.archive import read_segment, segments
from apex_creds.audit.events import Recorded
from apex_creds.audit.verify import entries
from apex_creds.errors import AuditTamperedError, InvalidInputError

MAX_EVENTS: Final = 1000
_ROUNDS: Final = 6
_ID: Final = re.compile(r"[0-9a-f]{32}")
_NUMBER: Final = re.compile(rb'\{"v":\d{1,9},"seq":(\d{1,18}),')


def story(directory: Path, *, vault_id: str, invocation: str) -> tuple[list[Recorded], bool]:
    """The events of an invocation and its kin, oldest first; and whether that is all.

    Raises:
        InvalidInputError: That is no id, or the log has no such invocation.
        AuditTamperedError: One of these lines is not what was written.
        AuditUnavailableError: The log can't be read.
    """
    if _ID.fullmatch(invocation) is None:
        raise InvalidInputError("That is not the id of an invocation or lease.")
    ids, found, whole = {invocation}, dict[int, Recorded](), False
    for _ in range(_ROUNDS):
        found = _mentioning(directory, vault_id, ids)
        kin = {i for event in found.values() for i in (event.invocation, event.lease) if i}
        whole = kin <= ids and len(found) <= MAX_EVENTS
        if kin <= ids or len(found) > MAX_EVENTS:
            break
        ids |= kin
    if not found:
        raise InvalidInputError("The audit log has no such invocation.")
    return [found[seq] for seq in sorted(found)][:MAX_EVENTS], whole


def _mentioning(directory: Path, vault_id: str, ids: set[str]) -> dict[int, Recorded]:
    wanted = re.compile(b"|".join(sorted(i.encode() for i in ids)))
    found: dict[int, Recorded] = {}
    for number, path in segments(directory).items():
        data = _read(path)
        head = data[: data.find(b"\n") + 1]
        if lines.parse_header(head, segment=number, vault_id=vault_id) is None:
            raise _altered(path.name)
        for text in _lines_with(wanted, data, len(head)):
            event = _checked(text, path.name)
            if ids & {event.invocation, event.lease, event.parent}:
                found[event.seq] = event
        if len(found) > MAX_EVENTS:
            break
    return found


def _read(path: Path) -> bytes:
    try:
        return read_segment(path)
    except AuditTamperedError:
        packed = path.with_name(f"{path.name}.gz")
        if path.exists() or not packed.exists():
            raise
        return read_segment(packed)  # compressed since the folder was listed


def _lines_with(wanted: re.Pattern[bytes], data: bytes, start: int) -> Iterator[bytes]:
    """The lines in which something is found, each once; nothing else is looked at."""
    while match := wanted.search(data, start):
        begin = data.rfind(b"\n", 0, match.start()) + 1
        start = data.find(b"\n", match.end()) + 1
        if not start:
            return  # its end is being written
        yield data[begin:start]


def _checked(text: bytes, segment: str) -> Recorded:
    match = _NUMBER.match(text)
    if match is None or lines.fault(int(match[1]), text):
        raise _altered(segment)
    return lines.decode(text)


def _altered(segment: str) -> AuditTamperedError:
    return AuditTamperedError(
        f"A line of {segment} is not what was written.", hint="Run: apex-creds audit verify"
    )


def earlier(directory: Path, *, vault_id: str, before: int, count: int) -> list[Recorded]:
    """The events before a number, oldest first.

    Raises:
        AuditTamperedError: A line of the log is not what was written.
        AuditUnavailableError: It can't be read.
    """
    after = max(0, before - 1 - count)
    found = []
    for seq, text in entries(directory, vault_id=vault_id, after=after):
        if seq >= before:
            break
        found.append(lines.decode(text))
    return found
