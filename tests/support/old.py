"""Files as the old programs wrote them.

``box_files`` alone: the first build, flat. ``wrapped``: the build that its tests are for.
``listed``: the present source. Their key stores, configurations, field names and the order in
which they look are those of ApexAgent's ``core/enhanced_api_key_manager``, all three builds.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Mapping
from pathlib import Path

from cryptography.fernet import Fernet
from nacl.secret import SecretBox

from apex_creds.vault import Vault

MASTER = bytes(range(32))
ENV = {"APEX_AGENT_MASTER_KEY": base64.urlsafe_b64encode(MASTER).decode()}
WRONG = {"APEX_AGENT_MASTER_KEY": base64.urlsafe_b64encode(bytes(32)).decode()}
VARIABLE = "APEX_AGENT_MASTER_KEY"
TOKEN = {
    "access_token": "at-1",
    "refresh_token": "rt-1",
    "expires_at": 1_900_000_000,
    "token_type": "Bearer",
    "scope": "repo user",
    "id_token": "idt-1",
}
CONTENT = {
    "api_keys": {"openai": "sk-1", "github": "gh-1"},
    "oauth_tokens": {"github": TOKEN, "google": {"access_token": "at-2"}},
}
NAMES = ["github", "github/oauth_token", "google", "openai"]


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def fernet_bytes(content: object = CONTENT, key: bytes = MASTER) -> bytes:
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    return Fernet(base64.urlsafe_b64encode(key)).encrypt(data)


def write(path: Path, data: bytes, mode: int = 0o600) -> Path:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.write_bytes(data)
    path.chmod(mode)
    return path


def fernet_file(where: Path, content: object = CONTENT, key: bytes = MASTER) -> Path:
    """``where`` is what holds the vault's directory."""
    return write(where / ".apex_agent_api_keys.enc", fernet_bytes(content, key))


def deks(prefix: str, numbers: tuple[int, ...] = (1,)) -> dict[str, bytes]:
    return {f"{prefix}_v{n}": bytes([n % 256, ord(prefix[4])]) * 16 for n in numbers}


def newest_by_string(named: Mapping[str, bytes]) -> bytes:
    """As that program chose it."""
    return named[max(named)]


def box(key: bytes, content: object) -> bytes:
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    return bytes(SecretBox(key).encrypt(data))


def wrapped(content: object, kind: str = "api_keys", **more: object) -> dict[str, object]:
    """The second build's: around everything, at each save."""
    about = {"encrypted_at": 1_700_000_000.5, "dek_id": "dek_api_v1", "credential_type": kind}
    return {"credentials": content, "metadata": {**about, **more}}


PROXY = {
    "id": "apexagent_proxy_key",
    "provider_type": "apexagent",
    "created_at": 1_700_000_000.5,
    "last_used": None,
    "metadata": {"name": "ApexAgent Proxy Service", "description": "Proxy service"},
}
"""What the present source adds to every file that it opens in its default mode."""


def listed(key: bytes, items: list[dict[str, object]]) -> dict[str, object]:
    """The present source's: each item's ``key`` is encrypted by itself."""
    made = []
    for number, item in enumerate(items):
        value = item.get("key")
        entry: dict[str, object] = {
            "id": f"id-{number}",
            "provider_type": item["provider"],
            "created_at": "2024-01-01T00:00:00",
            "last_used": None,
            "metadata": {"name": item.get("name", ""), "additional_config": {"n": number}},
        }
        if value is not None:
            text = value if isinstance(value, str) else json.dumps(value)
            entry["encrypted_key"] = b64(box(key, text.encode()))
        made.append(entry)
    return {"keys": made}


def box_files(
    api: object = None,
    tokens: object = None,
    *,
    api_deks: Mapping[str, bytes] | None = None,
    token_deks: Mapping[str, bytes] | None = None,
    api_key: bytes | None = None,
    config: object = None,
    master: bytes = MASTER,
) -> dict[str, bytes]:
    """File names and bytes of the SecretBox format."""
    api_deks = api_deks or deks("dek_api")
    token_deks = token_deks or deks("dek_oauth")
    keystore = {
        "key_encryption_keys": {"kek_v1": b64(os.urandom(32))},
        "data_encryption_keys": {
            "api_keys": {name: b64(key) for name, key in api_deks.items()},
            "oauth_tokens": {name: b64(key) for name, key in token_deks.items()},
        },
        "metadata": {"created": "2024-01-01"},
    }
    files = {"security/keystore.enc": box(master, keystore)}
    key = api_key or newest_by_string(api_deks)
    files["credentials/api_keys.enc"] = box(key, CONTENT["api_keys"] if api is None else api)
    files["credentials/oauth_tokens.enc"] = box(
        newest_by_string(token_deks), CONTENT["oauth_tokens"] if tokens is None else tokens
    )
    if config is not None:
        files["security/config.json"] = json.dumps(config).encode()
    return files


def install(home: Path, files: Mapping[str, bytes]) -> Path:
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name, data in files.items():
        write(home / name, data)
    return home


def install_by_default(home: Path, files: Mapping[str, bytes]) -> Path:
    """As that program did under the usual umask: it closes its folders and sealed files."""
    install(home, files)
    for path in (home, *(home / name for name in files if name.endswith("config.json"))):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return home


async def value(vault: Vault, name: str, part: str = "") -> str:
    async with vault.open(name) as opened:
        return bytes(opened.view(part)).decode()


async def secrets(vault: Vault) -> dict[str, str]:
    return {info.name: await value(vault, info.name) for info in await vault.list()}
