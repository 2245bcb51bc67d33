"""The page's own files, read once; nothing else is ever served from the disk."""

from __future__ import annotations

from importlib.resources import files
from typing import Final

TYPES: Final = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


def page_files() -> dict[str, tuple[bytes, str]]:
    """Bytes and media type of each file by its name."""
    found = {}
    for item in files("apex_creds.dashboard").joinpath("static").iterdir():
        kind = TYPES.get(item.name[item.name.rfind(".") :])
        if kind is not None and item.is_file():
            found[item.name] = (item.read_bytes(), kind)
    return found
