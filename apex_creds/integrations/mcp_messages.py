"""Messages of JSON-RPC 2.0, as MCP sends them in lines. Pure, but for ``lines``."""

from __future__ import annotations

import asyncio
import json
import logging
import math
from collections.abc import AsyncIterator
from typing import Any, Final

LONGEST: Final = 16 * 1024 * 1024
"""Bytes of a message; a longer one ends the connection."""
_INTERNAL_ERROR: Final = -32603  # JSON-RPC 2.0, section 5.1
_log: Final = logging.getLogger(__name__)

Message = dict[str, Any]


def parsed(line: bytes) -> Message | None:
    """A message; None for what is none, which is left out."""
    if not line.strip():
        return None
    try:
        found = json.loads(line, parse_float=_number, parse_constant=_number)
    except (ValueError, RecursionError):
        found = None
    # Both at once would be a request to one reader and an answer to another.
    if not isinstance(found, dict) or ("method" in found and {"result", "error"} & {*found}):
        _log.warning("A line that is no message of JSON-RPC was left out.")
        return None
    return found


def _number(text: str) -> float:
    """A number of JSON: no infinity, nor what is written as none of its constants."""
    found = float(text)
    if not math.isfinite(found):
        raise ValueError(text)
    return found


def line_of(message: Message) -> bytes:
    """A message as it is sent."""
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


def cancelled(message: Message) -> str:
    """The key of the request that a notification cancels."""
    params = message.get("params")
    return json.dumps(params.get("requestId")) if isinstance(params, dict) else ""


def key_of(message: Message) -> str:
    """What tells its request from others: 1 is not "1"."""
    return json.dumps(message.get("id"))


def action_of(message: Message) -> str:
    """The tool's name, or the method's."""
    params = message.get("params")
    name = params.get("name") if isinstance(params, dict) else None
    is_tool = message.get("method") == "tools/call" and isinstance(name, str)
    return str(name if is_tool else message.get("method", ""))


def refused(message: Message, words: str) -> Message:
    """The answer that a tool's call is refused with; an error to other requests."""
    result = {"content": [{"type": "text", "text": words}], "isError": True}
    if message.get("method") != "tools/call":
        return failed(message, words)
    return {"jsonrpc": "2.0", "id": message.get("id"), "result": result}


def failed(message: Message, words: str) -> Message:
    """The answer that is an error."""
    error = {"code": _INTERNAL_ERROR, "message": words}
    return {"jsonrpc": "2.0", "id": message.get("id"), "error": error}


def unanswered(message: Message, error: Exception) -> Message:
    """The answer where there is none."""
    return failed(message, f"The server gave no answer: {type(error).__name__}.")


async def lines(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """The lines that arrive, until the end or one that is too long."""
    while True:
        try:
            line = await reader.readline()
        except ValueError:
            _log.error("A message of more than %d bytes ends the connection.", LONGEST)
            return
        if not line:
            return
        yield line
