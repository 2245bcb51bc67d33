"""The forms in which a program may write a secret: encodings, escapes, quotings."""

from __future__ import annotations

import base64
import json
import urllib.parse
from collections.abc import Callable

SPELLINGS: dict[str, Callable[[str], str]] = {
    "raw": str,
    "hex": lambda s: s.encode().hex(),
    "HEX": lambda s: s.encode().hex().upper(),
    "base64": lambda s: base64.b64encode(s.encode()).decode(),
    "base64url": lambda s: base64.urlsafe_b64encode(s.encode()).decode(),
    "base64 of more": lambda s: base64.b64encode(b"user:" + s.encode() + b"!").decode(),
    "base64 of yet more": lambda s: base64.b64encode(b"u:" + s.encode() + b"!!").decode(),
    "quote": urllib.parse.quote,
    "quote, all": lambda s: urllib.parse.quote(s, safe=""),
    "quote_plus": urllib.parse.quote_plus,
    "quoted in lower case": lambda s: lower_quotes(urllib.parse.quote(s, safe="")),
    "JSON": lambda s: json.dumps(s)[1:-1],
    "JSON, Unicode": lambda s: json.dumps(s, ensure_ascii=False)[1:-1],
    "repr": lambda s: repr(s)[1:-1],
    "repr of bytes": lambda s: repr(s.encode())[2:-1],
}


def lower_quotes(text: str) -> str:
    first, *rest = text.split("%")
    return "%".join([first, *(each[:2].lower() + each[2:] for each in rest)])
