"""Writes of every kind, to show that the killer kills where it says."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from threading import Thread

from tests.support import killer


def writes(home: str) -> None:
    base = Path(home)
    (base / "before").write_text("not counted")
    killer.begin()
    fd = os.open(base / "low", os.O_WRONLY | os.O_CREAT, 0o600)
    os.write(fd, b"0123456789")
    os.fsync(fd)
    os.close(fd)
    killer.acknowledge("low")
    (base / "text").write_text("abcdefghij")
    with open(base / "binary", "wb", buffering=0) as file:
        file.write(b"ABCDEFGHIJ")
    os.replace(base / "low", base / "renamed")
    os.mkdir(base / "folder")
    os.chmod(base / "folder", 0o700)
    (base / "before").unlink()
    killer.acknowledge("all")
    killer.end()
    (base / "late").write_text("not counted")


def beside_a_thread(home: str, early: str = "") -> None:
    """Another thread writes, before or after what the scenario is about."""
    log = Thread(target=Path(home, "log").write_text, args=("from time to time",))
    killer.begin()
    if early:
        log.start()
        log.join()
    fd = os.open(Path(home, f".file.{secrets.token_hex(8)}.tmp"), os.O_WRONLY | os.O_CREAT)
    os.write(fd, b"0123456789")
    if not early:
        log.start()
        log.join()


def fails(home: str) -> None:
    killer.begin()
    raise RuntimeError("on purpose")


def forgets(home: str) -> None:
    Path(home, "file").write_text("x")
