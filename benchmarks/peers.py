"""The things people use today instead, each started, measured and stopped the same way.

Guarantees: each peer reads one and the same kind of secret (40 characters) the quickest way
that it documents; servers listen on loopback only, live in folders of their own, and are
stopped by the process that started them. A peer that can't run here raises
`UnavailableError` with what to install.
"""

from __future__ import annotations

import importlib
import os
import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractContextManager, ExitStack, asynccontextmanager, contextmanager
from types import ModuleType
from typing import Final, TypeVar

import httpx

from benchmarks.harness import Operation, Subject, UnavailableError
from tests.support import realparts

T = TypeVar("T")

SECRET: Final = f"sk-{secrets.token_hex(20)[:37]}"
_BUS: Final = "DBUS_SESSION_BUS_ADDRESS"
_NEEDS_EXTRA: Final = "scripts/bootstrap.sh .venv-bench bench"


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

    def inject() -> object:
        nonlocal calls
        calls += 1
        if calls % 4096 == 0:  # its audit list grows for ever: it is not to pay for that
            vault.clear_audit()
        return injector.inject_headers(
            "did:agent:one",
            headers,
            action_class="openai:chat",
            target_service="api.openai.com",
            allowed_handles=("openai",),
        ).payload

    if inject() != {"Authorization": f"Bearer {SECRET}"}:
        raise RuntimeError("CredentialInjector did not inject the secret")
    yield inject


@asynccontextmanager
async def os_keyring() -> AsyncIterator[Operation]:
    """`keyring.get_password` from a real gnome-keyring on a D-Bus of its own."""
    backend = _need("keyring.backends.SecretService")
    _need("secretstorage")
    with _real_part(realparts.gnome_keyring()) as env, _this_bus(env[_BUS]):
        ring = backend.Keyring()
        ring.set_password("apex-creds-bench", "openai", SECRET)
        _must_be_the_secret("the keyring", ring.get_password("apex-creds-bench", "openai"))
        yield lambda: ring.get_password("apex-creds-bench", "openai")


@asynccontextmanager
async def openbao() -> AsyncIterator[Operation]:
    """`kv get` over loopback from `bao server -dev`, with one kept-alive client."""
    with _real_part(realparts.openbao()) as bao:
        async with httpx.AsyncClient(
            base_url=f"{bao.address}/v1/",
            headers={"X-Vault-Token": bao.token},
            trust_env=False,
        ) as client:
            stored = await client.post("secret/data/openai", json={"data": {"value": SECRET}})
            stored.raise_for_status()

            async def get() -> str:
                response = await client.get("secret/data/openai")
                value: str = response.json()["data"]["data"]["value"]
                return value

            _must_be_the_secret("OpenBao", await get())
            yield get


@contextmanager
def _real_part(part: AbstractContextManager[T]) -> Iterator[T]:
    """Starts and stops a server; says what to install where it is missing."""
    with ExitStack() as stack:
        try:
            started = stack.enter_context(part)
        except realparts.PartMissingError as error:
            raise UnavailableError(str(error)) from None
        yield started


@contextmanager
def _this_bus(address: str) -> Iterator[None]:
    """Points this process's D-Bus clients to ``address`` for a while."""
    before = os.environ.get(_BUS)
    os.environ[_BUS] = address
    try:
        yield
    finally:
        if before is None:
            del os.environ[_BUS]
        else:
            os.environ[_BUS] = before


def _must_be_the_secret(who: str, given: str | None) -> None:
    if given != SECRET:
        raise RuntimeError(f"{who} did not give the secret back")


PEERS: Final = (
    Subject("multifernet", "MultiFernet.decrypt, two keys", multifernet),
    Subject("tink", "Tink AEAD decrypt, XChaCha20-Poly1305", tink_aead),
    Subject("injector", "CredentialInjector.inject_headers, in memory", credential_injector),
    Subject("openbao", "OpenBao kv get over loopback, kept-alive client", openbao),
    Subject("keyring", "keyring.get_password, gnome-keyring", os_keyring),
)
