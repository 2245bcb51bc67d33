"""The first program behind the wall: opens its sockets, sets limits, then runs the command.

Guarantee: it has the standard library only, and nothing of it is left when the command runs but
what was asked for. It listens in its own network namespace and hands the listening descriptors
out, so that the host answers there without its own port or relay.

Run as ``python -I -S launcher.py CONTROL``: the number of the inherited socket on which the
host says, as JSON, what to do.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from typing import Any

READY = b"ready"
FAILED = b"failed: "
_IN_A_MESSAGE = 256
"""Descriptors, at most."""


def main() -> None:
    """Does what the host asked for, and becomes the command."""
    import resource  # where there is no such module this is imported, but never run

    control = socket.socket(fileno=int(sys.argv[1]))
    try:
        with control.makefile("rb") as said:
            asked: dict[str, Any] = json.load(said)
        for path, text in asked["files"].items():
            with open(path, "w", encoding="utf-8") as file:
                file.write(text)
        listeners = [_listening(where) for where in asked["listen"]]
        for name, most in asked["limits"].items():
            which = getattr(resource, name)
            hard = resource.getrlimit(which)[1]  # never above what it is limited to already
            least = most if hard == resource.RLIM_INFINITY else min(most, hard)
            if name == "RLIMIT_NOFILE":
                # Descriptors on their way through sockets are counted for all that a user runs:
                # with as many on their way as the host may have, it could not send any.
                files = resource.getrlimit(which)[0]
                least = min(
                    least, files - _IN_A_MESSAGE if files > 2 * _IN_A_MESSAGE else files
                )
            resource.setrlimit(which, (least, least))
        socket.send_fds(control, [READY], [each.fileno() for each in listeners])
        for each in listeners:
            each.close()
        control.close()
        command = asked["command"]
        os.execvp(command[0], command)  # noqa: S606
    except OSError as error:
        # Before READY the host reads it; after, the command could not be run.
        text = f"{error.strerror or error}: {error.filename or ''}".encode()
        try:
            control.sendall(FAILED + text)
        except OSError:
            sys.stderr.write(f"{text.decode()}\n")
        sys.exit(127)


def _listening(where: str) -> socket.socket:
    """A listening socket: a path, or a port of loopback."""
    if where.startswith("/"):
        unix = socket.socket(socket.AF_UNIX)
        unix.bind(where)
        unix.listen(128)
        return unix
    tcp = socket.socket(socket.AF_INET)
    tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    tcp.bind(("127.0.0.1", int(where)))
    tcp.listen(128)
    return tcp


if __name__ == "__main__":
    main()
