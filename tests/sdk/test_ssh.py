"""``sdk.ssh``: OpenSSH's own programs sign with a key that they never have."""

from __future__ import annotations

import asyncio
import os
import struct
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from apex_creds.errors import AccessDeniedError
from apex_creds.model import GenericSecret
from apex_creds.sdk import ssh as sdk
from tests.support.worlds import World, world_in

ACCESS = "sign"
KINDS = {"ed": ("ed25519",), "ec": ("ecdsa", "-b", "384"), "rsa": ("rsa", "-b", "2048")}


def run(*command: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=60, **options)


@pytest.fixture
async def world(tmp_path: Path, anyio_backend: str) -> AsyncIterator[World]:
    async with world_in(tmp_path) as made:
        for name, kind in KINDS.items():
            run("ssh-keygen", "-q", "-N", "", "-C", "", "-t", *kind, "-f", str(tmp_path / name))
            await made.vault.put(
                name, GenericSecret((tmp_path / name).read_bytes()), origins=[]
            )
            await made.vault.grant("demo", name, **{ACCESS: True})
            (tmp_path / name).unlink()
        yield made


NEEDS = tuple({"name": name, "access": ACCESS} for name in KINDS)


async def test_openssh_lists_and_signs(world: World, tmp_path: Path) -> None:
    (tmp_path / "note").write_text("hello")
    keys = {name: (tmp_path / f"{name}.pub").read_text().split()[:2] for name in KINDS}

    def work(path: str) -> None:
        env = {**os.environ, "SSH_AUTH_SOCK": path}
        listed = run("ssh-add", "-L", env=env).stdout.splitlines()
        assert [line.split() for line in listed] == [[*keys[name], name] for name in KINDS]
        for name in KINDS:
            public = str(tmp_path / f"{name}.pub")
            note, signature = str(tmp_path / "note"), tmp_path / "note.sig"
            made = run("ssh-keygen", "-Y", "sign", "-f", public, "-n", "file", note, env=env)
            assert made.returncode == 0, made.stderr
            (tmp_path / "allowed").write_text(f"me {' '.join(keys[name])}\n")
            checked = run(
                "ssh-keygen", "-Y", "verify", "-f", str(tmp_path / "allowed"), "-I", "me",
                "-n", "file", "-s", str(signature), input="hello",
            )  # fmt: skip
            assert "Good" in checked.stdout, checked.stderr
            signature.unlink()

    async def plugin() -> None:
        with sdk.agent(*KINDS) as path:
            assert Path(path).parent.stat().st_mode & 0o777 == 0o700
            await asyncio.to_thread(work, path)
            assert run("ssh-add", "-D", env={**os.environ, "SSH_AUTH_SOCK": path}).returncode
        assert not Path(path).exists()

    await world.call(plugin, needs=NEEDS)
    assert {event.method for event in world.events("redeem")} == {"SIGN"}


async def test_other_bytes_than_a_login_or_a_file_are_not_signed(world: World) -> None:
    async def plugin() -> None:
        with sdk.agent("ed") as path:
            reader, writer = await asyncio.open_unix_connection(path)

            async def ask(message: bytes) -> bytes:
                writer.write(struct.pack("!I", len(message)) + message)
                length = int.from_bytes(await reader.readexactly(4), "big")
                return await reader.readexactly(length)

            def string(data: bytes) -> bytes:
                return struct.pack("!I", len(data)) + data

            listed = await ask(b"\x0b")
            size = int.from_bytes(listed[5:9], "big")
            blob = string(listed[9 : 9 + size])
            login = string(b"session") + b"\x32" + string(b"git") + string(b"ssh-connection")
            login += string(b"publickey") + b"\x01"
            token = b"eyJhbGciOiJFZERTQSJ9.e30"
            for data, kind in [(login, 14), (token, 5), (b"", 5), (login[:20], 5)]:
                answer = await ask(b"\x0d" + blob + string(data) + struct.pack("!I", 0))
                assert answer[0] == kind
            for odd in (b"\x11", b"\x1b" + string(b"session-bind@openssh.com"), b"\x0d\0\0"):
                assert await ask(odd) == b"\x05"
            writer.close()

    await world.call(plugin, needs=NEEDS)


async def test_it_ends_with_its_lease_and_is_of_an_invocation(world: World) -> None:
    kept: list[object] = []

    async def plugin() -> None:
        holder = sdk.agent("ed")
        path = holder.__enter__()
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(b"\0\0\0\1\x0b")  # answered: asyncio leaves one open that it is accepting
        await reader.readexactly(int.from_bytes(await reader.readexactly(4), "big"))
        kept.extend((holder, path, reader, writer))

    await world.call(plugin, needs=NEEDS)
    holder, path, reader, writer = kept
    assert await reader.read() == b""
    writer.close()
    with pytest.raises(OSError):  # noqa: PT011 - refused, or (3.13) the socket is gone
        await asyncio.open_unix_connection(path)
    holder.__exit__(None, None, None)
    with pytest.raises(AccessDeniedError, match="outside of any invocation"), sdk.agent("ed"):
        pass
