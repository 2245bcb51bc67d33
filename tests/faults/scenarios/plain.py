"""Writes of every kind, to show that the killer kills where it says."""

from __future__ import annotations

import os
from pathlib import Path

from tests.faults import killer


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


def fails(home: str) -> None:
    killer.begin()
    raise RuntimeError("on purpose")


def forgets(home: str) -> None:
    Path(home, "file").write_text("x")
