"""What the vault's tests share: homes, clocks, and what a home looks like on disk."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec

from apex_creds.documents.document import KEK_VERSION, pack, parse, unpack
from apex_creds.documents.store import DocumentStore
from apex_creds.model import ApiKey, BasicAuth, GenericSecret, OAuthToken, Secret
from apex_creds.vault import Vault
from apex_creds.vault.unfinished import Begun, BegunNote

REPOSITORY = Path(__file__).parents[2]


class NoNote(Begun):
    """Of an init without a home, such as that of a storage in memory."""

    def __init__(self) -> None:
        super().__init__(Path(os.devnull))

    def read(self) -> None:
        return None

    def write(self, note: BegunNote) -> None:
        pass

    def clear(self) -> None:
        pass


def home_in(where: Path) -> Path:
    return where / "home"


def master_in(where: Path) -> str:
    return f"file:{where}/master.key"


async def create(where: Path, **options: object) -> Vault:
    """A new vault in ``where/home``, its master key in ``where/master.key``."""
    return await Vault.create(home_in(where), master=master_in(where), **options)


async def unseal(where: Path) -> Vault:
    return await Vault.unseal(home_in(where))


async def value_of(vault: Vault, name: str, part: str = "") -> bytes:
    async with vault.open(name) as opened:
        return bytes(opened.view(part))


async def values(vault: Vault) -> dict[str, bytes]:
    """Every credential's main part, through a release of each."""
    return {info.name: await value_of(vault, info.name) for info in await vault.list()}


def secret_for(kind: str, text: str) -> Secret:
    makers: dict[str, Callable[[str], Secret]] = {
        "api_key": ApiKey,
        "oauth_token": OAuthToken,
        "basic": lambda value: BasicAuth("user", value),
        "generic": lambda value: GenericSecret(value.encode()),
    }
    return makers[kind](text)


def copy_vault(kept: Path, place: Path) -> None:
    """Copies one of tests/vectors/vaults, with the modes that a checkout does not keep."""
    shutil.copytree(kept, place)
    for path in (place, *place.rglob("*")):
        path.chmod(0o700 if path.is_dir() else 0o600)


async def write_version_1(store: DocumentStore, *names: str) -> None:
    """Writes documents as the program of document version 1 did: under the primary KEK."""
    for name in names:
        stored = await store.storage.read(name)
        packed = parse(stored.data, section=name, vault_id=None)
        keystore = await store.keystore()
        body = unpack(packed, keystore.document_keys(packed.header))
        keks = keystore.root_header.keks
        header = msgspec.structs.replace(
            packed.header,
            version=KEK_VERSION,
            generation=packed.header.generation + 1,
            key_id=keks.id,
            key_version=keks.primary.version,
        )
        data = pack(header, bytes(body), keystore.document_keys(header))
        await store.storage.write(name, data, expected=stored.token)


def tree(home: Path) -> dict[str, tuple[int, bytes]]:
    """Mode and content of everything under a home, but for the audit log's content."""
    found = {}
    for path in sorted(home.rglob("*")):
        name, status = str(path.relative_to(home)), path.lstat()
        if "audit/" in name or path.name in (".lock", ".epoch", ".restore.lock"):
            continue
        data = b""
        if path.is_symlink():
            data = os.fsencode(os.readlink(path))
        elif path.is_file():
            data = path.read_bytes()
        found[name] = (status.st_mode, data)
    return found


def section_file(where: Path, section: str = "api_keys") -> Path:
    return home_in(where) / "credentials" / f"{section}.enc"


def keystore_file(where: Path) -> Path:
    return home_in(where) / "security" / "keystore.enc"


# -- other processes -----------------------------------------------------------------


def start(function: str, *args: object) -> subprocess.Popen[str]:
    """Runs a function of tests/support/workers.py in a process of its own."""
    code = "import json, sys; from tests.support import workers as w; w.main(*sys.argv[1:])"
    command = [sys.executable, "-B", "-W", "error", "-c", code, function, json.dumps(args)]
    return subprocess.Popen(
        command, cwd=REPOSITORY, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )


def finish(process: subprocess.Popen[str]) -> object:
    """What the function returned."""
    out, _ = process.communicate(timeout=480)
    assert process.returncode == 0
    return json.loads(out.splitlines()[-1])


async def together(*processes: subprocess.Popen[str]) -> list[object]:
    """Lets processes go at once, when each is ready; what they returned."""
    for process in processes:
        assert process.stdout is not None
        assert (await asyncio.to_thread(process.stdout.readline)).strip() == "ready"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    return [await asyncio.to_thread(finish, process) for process in processes]
