"""The hash chain over log lines: pure, no files, no clock.

Guarantee: every byte of a line but its newline is covered by that line's own hash, and
every hash by the next one; so the first line that differs from what was written is the
one that ``fault`` names. What a chain alone can't show is that lines are missing at the
end, or that someone who could write the file wrote all of it anew.

A line is ``{"seq":N,`` … ``,"hash":"H"}`` with ``H`` the hexadecimal SHA-256 (FIPS 180-4)
of the 64 ASCII characters of the hash before it, then the line up to ``,"hash"``.
"""

from __future__ import annotations

from hashlib import sha256
from typing import Final

import msgspec

from apex_creds.audit.events import AuditEvent, Recorded
from apex_creds.errors import InvalidInputError

__all__ = ["MAX_LINE", "decode", "encode", "fault", "genesis", "head_of", "link"]

MAX_LINE: Final = 64 * 1024
"""Longest line, with its newline; a longer one is not ours."""

_MAX_BODY: Final = 32 * 1024
_MAX_TEXT: Final = 200
_DOMAIN: Final = b"apex-creds audit v1"
_MARK: Final = b',"hash":"'
_END: Final = b'"}\n'
_HASH: Final = 64
_TAIL: Final = len(_MARK) + _HASH + len(_END)

_encode = msgspec.json.Encoder().encode
_check = msgspec.json.Decoder(AuditEvent).decode
_decode = msgspec.json.Decoder(Recorded).decode


def genesis(vault_id: str) -> bytes:
    """Returns the hash before the first line: 64 hexadecimal characters."""
    return sha256(_DOMAIN + vault_id.encode()).hexdigest().encode()


def encode(event: AuditEvent) -> bytes:
    """Returns ``event`` as a JSON object that will decode, at most 32 KiB long.

    Text that is too long is cut and text that is not Unicode is escaped, because a
    hostile name must be logged, not be a way to keep something out of the log.

    Raises:
        InvalidInputError: A field has a value of the wrong type.
    """
    try:
        body = _encode(event)
        if len(body) <= _MAX_BODY:
            _check(body)
            return body
    except UnicodeEncodeError:
        pass
    except (msgspec.MsgspecError, TypeError, ValueError, OverflowError):
        raise _bad_event() from None
    return _encode_trimmed(event)


def _encode_trimmed(event: AuditEvent) -> bytes:
    try:
        values = {name: _plain(getattr(event, name)) for name in event.__struct_fields__}
        body = _encode(msgspec.structs.replace(event, **values))
        _check(body)
    except (msgspec.MsgspecError, TypeError, ValueError, OverflowError):
        raise _bad_event() from None
    return body


def _plain(value: object) -> object:
    if not isinstance(value, str):
        return value
    text = str(value).encode(errors="backslashreplace").decode()
    return text if len(text) <= _MAX_TEXT else text[:_MAX_TEXT] + "…"


def _bad_event() -> InvalidInputError:
    return InvalidInputError(
        "An audit event has a field of the wrong type.", hint="See AuditEvent for the types."
    )


def link(prev: bytes, seq: int, body: bytes) -> tuple[bytes, bytes]:
    """Returns the line of ``body`` (with newline), and its hash (64 bytes)."""
    core = b'{"seq":%d,' % seq + body[1:-1]
    head = sha256(prev + core).hexdigest().encode()
    return b"".join((core, _MARK, head, _END)), head


def head_of(line: bytes) -> bytes:
    """Returns the hash (64 bytes) that a line says it has."""
    return line[-_HASH - len(_END) : -len(_END)]


def fault(prev: bytes, seq: int, line: bytes) -> str:
    """Returns what is wrong with ``line`` as number ``seq``, or ""; newline included."""
    head = sha256(prev + line[:-_TAIL]).hexdigest().encode()
    if not line.endswith(_MARK + head + _END) or not line.startswith(b'{"seq":%d,' % seq):
        return _explain(seq, line)
    try:
        return "" if _decode(line).seq == seq else "has two numbers"
    except (msgspec.MsgspecError, ValueError):
        return "is not an event of this log's format"


def _explain(seq: int, line: bytes) -> str:
    if not line.endswith(b"\n"):
        return "has no end: torn by a crash (the next unseal sets it aside), or altered"
    if not line.startswith(b'{"seq":%d,' % seq):
        return "is not the event of that number: lines were changed, added, removed or moved"
    return "does not have the hash that its content and the line before it give"


def decode(line: bytes) -> Recorded:
    """Returns the event of a line.

    Raises:
        msgspec.MsgspecError: It is not one; call ``fault`` first.
    """
    return _decode(line)
