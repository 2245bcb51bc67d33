"""Telling systemd how a worker is, and writing the same into a health file.

Guarantee: a worker that systemd did not start is not disturbed; the health file is
replaced whole, 0600, and holds no secret. See sd_notify(3).
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
from collections.abc import Mapping
from pathlib import Path


def notify(**fields: str) -> bool:
    """Sends ``READY=1``, ``STATUS=…`` and the like; whether there was anybody to tell."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")) or not hasattr(socket, "AF_UNIX"):
        return False
    if address.startswith("@"):
        address = "\0" + address[1:]
    message = "\n".join(f"{name}={value.splitlines()[0]}" for name, value in fields.items())
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
        out.connect(address)
        out.sendall(message.encode())
        return True
    return False


def write_health(path: Path, report: Mapping[str, object]) -> None:
    """Replaces the health file.

    Raises:
        OSError: It can't be written.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(fd, "w") as file:
            json.dump(report, file)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
