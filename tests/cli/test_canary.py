"""A secret goes through every command; it shows up where it was asked for, nowhere else."""

from __future__ import annotations

import base64
import logging
import os
import secrets
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.support.commands import PROGRAM

CANARY = 'cAn/Ary+"' + secrets.token_urlsafe(24)


def spellings() -> set[bytes]:
    raw = CANARY.encode()
    plain = {raw, raw.hex().encode(), quote(CANARY, safe="").encode()}
    for cut in range(3):
        plain.add(base64.b64encode(raw[cut:])[:-4])
        plain.add(base64.urlsafe_b64encode(raw[cut:])[:-4])
    return plain


def hits(data: bytes) -> bool:
    return any(spelled in data for spelled in spellings())


def test_no_output_log_or_file_holds_it(cli, caplog, tmp_path):
    caplog.set_level(logging.DEBUG)
    line = CANARY.encode() + b"\n"
    dotenv = f"FROM_FILE='{CANARY}'\n".encode()
    cli("set", "openai", "--origin", "https://a.example", stdin=line)
    cli("set", "box", "--kind", "basic", stdin=b"user\n" + line)
    cli("set", "gh", "--kind", "oauth_token", stdin=line + line)
    cli("set", "raw", "--kind", "generic", stdin=line)
    cli("import", "-", stdin=dotenv)
    cli("import", "-", "--replace", "--json", stdin=dotenv)
    cli("set", "bad", "--kind", "basic", stdin=line)
    cli("set", "bad", CANARY, stdin=line)
    cli(CANARY)
    cli("set", "bad", "--value", CANARY)
    cli("set", "bad", "--delivery", "basic", f"--token={CANARY}")
    for read in ("list", "status", "grants", "doctor"):
        cli(read), cli(read, "--json")
    cli("show", "openai"), cli("audit", "tail"), cli("audit", "tail", "--json")
    cli("get", "openai"), cli("get", "openai", "--reveal")
    cli("rm", "raw", "--yes")
    assert len(cli.seen) > 40
    assert not [text for text in cli.seen if hits(text.encode())]
    assert not [r for r in caplog.records if hits(r.getMessage().encode())]
    files = [path for path in cli.home.rglob("*") if path.is_file()]
    assert len(files) >= 5
    assert not [path for path in files if hits(path.read_bytes())]
    assert cli("get", "openai", "--reveal", "--force").out == CANARY


def unread(pipe: int) -> int:
    """How many bytes of a pipe nobody has read yet."""
    import fcntl
    import termios

    return int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)), sys.byteorder)


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_neither_arguments_nor_environment_hold_it(cli):
    """The process is looked at while it has the value and waits for more of it."""
    command = [*PROGRAM, "--home", str(cli.home), "set", "openai"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        process.stdin.write(CANARY.encode())
        process.stdin.flush()
        while unread(process.stdin.fileno()):
            assert process.poll() is None
            os.sched_yield()
        seen = [read(process.pid, name) for name in ("cmdline", "environ")]
        process.stdin.close()
        assert process.wait(60) == 0
    assert "set" in seen[0]
    assert not any(hits(text.encode()) for text in seen)
    assert cli("get", "openai", "--reveal", "--force").out == CANARY


def read(pid: int, name: str) -> str:
    return Path(f"/proc/{pid}/{name}").read_text(errors="replace")
