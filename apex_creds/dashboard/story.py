"""One invocation's whole story: every event of it, and of those that it called.

Guarantee: each event is checked by itself before it is told. It blocks: call it in a thread.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from apex_creds.audit import line as lines
from apex_creds.audit.events import Recorded
from apex_creds.audit.verify import entries
from apex_creds.errors import InvalidInputError

MAX_EVENTS: Final = 1000
_ROUNDS: Final = 6
_ID: Final = re.compile(r"[0-9a-f]{32}")


def story(directory: Path, *, vault_id: str, invocation: str) -> tuple[list[Recorded], bool]:
    """The events of an invocation and its kin, oldest first; and whether that is all.

    Raises:
        InvalidInputError: That is no id, or the log has no such invocation.
        AuditTamperedError: A line of the log is not what was written.
        AuditUnavailableError: It can't be read.
    """
    if _ID.fullmatch(invocation) is None:
        raise InvalidInputError("That is not the id of an invocation or lease.")
    ids, size, found = {invocation}, 0, {}
    for _ in range(_ROUNDS):
        size = len(ids)
        found = _mentioning(directory, vault_id, ids)
        ids |= {i for event in found.values() for i in (event.invocation, event.lease) if i}
        if len(ids) == size or len(found) > MAX_EVENTS:
            break
    if not found:
        raise InvalidInputError("The audit log has no such invocation.")
    whole = len(found) <= MAX_EVENTS and len(ids) == size
    return [found[seq] for seq in sorted(found)][:MAX_EVENTS], whole


def _mentioning(directory: Path, vault_id: str, ids: set[str]) -> dict[int, Recorded]:
    wanted = re.compile(b"|".join(sorted(i.encode() for i in ids)))
    found: dict[int, Recorded] = {}
    for seq, text in entries(directory, vault_id=vault_id):
        if wanted.search(text) is None:
            continue
        event = lines.decode(text)
        if ids & {event.invocation, event.lease, event.parent}:
            found[seq] = event
        if len(found) > MAX_EVENTS:
            break
    return found


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
