"""Reads a vault in files, from docs/FORMAT.md and without apex_creds.

Only the standard library, PyNaCl's public bindings and a MessagePack decoder are used, so that
the vaults of tests/vectors check the format's page instead of repeating the implementation.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import struct
from pathlib import Path
from typing import Any

import msgspec
from nacl import bindings


def derived(
    key: bytes, purpose: str, context: bytes = b"", *, salt: bytes = bytes(32)
) -> bytes:
    """FORMAT.md, "KDF"."""
    info = b"apex-creds/v1/" + purpose.encode() + (b"\0" + context if context else b"")
    extracted = hmac.digest(salt, key, "sha256")
    return hmac.digest(extracted, info + b"\x01", "sha256")


class Vault:
    """The documents of a vault, with the master key's lines of its key file."""

    def __init__(self, home: Path, key_file: Path) -> None:
        self._home = home
        self._masters = dict(line.split()[:2] for line in key_file.read_text().splitlines())
        self._keys: dict[tuple[str, int], bytes] = {}
        document = json.loads((home / "security/keystore.enc").read_bytes())
        self.vault_id = bytes.fromhex(document["vault_id"])
        self._derive_keks(document["root"])
        body = self.body("keystore", home / "security/keystore.enc")
        for keyset in (body["root"], *body.get("deks", ())):
            for version in keyset["versions"]:
                if version["state"] != "destroyed":
                    self._keys[keyset["id"], version["version"]] = self._unwrap(keyset, version)
        self.labels = {
            keyset["label"]: keyset for keyset in (body["root"], *body.get("deks", ()))
        }
        primary = [v for v in body["root"]["versions"] if v["state"] == "primary"]
        self._root = body["root"]["id"], primary[0]["version"]
        self.shards = body.get("shards", {})
        self.grants = [*body.get("grants", ()), *self._grants()]

    def _grants(self) -> list[dict[str, Any]]:
        """FORMAT.md, "Grants"."""
        folder = self._home / "security"
        if not (folder / "grants.enc").exists():
            return []
        first = self.body("grants", folder / "grants.enc")
        plugins = list(first.get("plugins", ()))
        for number, generation in enumerate(first.get("shards", ())):
            path = folder / f"grants_{number:03x}.enc"
            assert path.exists() == bool(generation)
            if generation:
                assert json.loads(path.read_bytes())["generation"] == generation
                plugins += self.body(path.stem, path)
        return [grant for plugin in plugins for grant in plugin.get("grants", ())]

    def _derive_keks(self, root: dict[str, Any]) -> None:
        master = base64.b64decode(self._masters[f"v{root['master']['version']}"])
        check = derived(master, "master-check", self.vault_id)[:16]
        assert check == base64.b64decode(root["master"]["check"])
        self._kek_id = root["keks"]["id"]
        for version in root["keks"]["versions"]:
            salt = base64.b64decode(version["material"])
            if len(salt) == 32:
                context = self.vault_id + struct.pack(">I", version["version"])
                kek = derived(master, "kek", context, salt=salt)
                self._keys[self._kek_id, version["version"]] = kek

    def _unwrap(self, keyset: dict[str, Any], version: dict[str, Any]) -> bytes:
        wrapping = derived(self._keys[self._kek_id, version["parent"]], "kek-wrap")
        place = ("keystore", bytes.fromhex(keyset["id"]), version["version"])
        return self.opened(version["material"], wrapping, *place)

    def body(self, name: str, path: Path) -> Any:
        """FORMAT.md, "Document v2" and "Version 1"."""
        data = path.read_bytes()
        document = json.loads(data)
        names = (
            ("kek_id", "kek_version") if document["version"] == 1 else ("key_id", "key_version")
        )
        fields = ("format", "version", "vault_id", "section", "generation", *names, "written")
        assert tuple(document) == (*fields, "keys_used", "root", "body", "mac")
        key = self._keys[document[names[0]], document[names[1]]]
        signed = data[: data.index(b',"mac":"')]
        mac = hmac.digest(derived(key, "file-mac", name.encode()), signed, "sha256").hex()
        assert data[len(signed) :] == b',"mac":"' + mac.encode() + b'"}'
        sealed = base64.b64decode(document["body"])
        assert sealed[6:26] == bytes.fromhex(document[names[0]]) + struct.pack(
            ">I", document[names[1]]
        )
        key = derived(key, "file-body", name.encode())
        return msgspec.msgpack.decode(
            self.opened(sealed, key, name, bytes(16), document["generation"])
        )

    def opened(
        self, envelope: bytes, key: bytes, section: str, record: bytes, version: int
    ) -> bytes:
        """FORMAT.md, "Envelope v1" and "AAD"."""
        assert envelope[:6] == b"APXC\x01\x01"
        nonce, commitment, sealed = envelope[26:50], envelope[50:82], envelope[82:]
        fields = (
            b"apex-creds/v1/envelope/suite-1", self.vault_id, section.encode(), record,
            struct.pack(">Q", version), envelope[6:22], envelope[22:26], b"\x01",
        )  # fmt: skip
        data = b"".join(struct.pack(">I", len(field)) + field for field in fields)
        pair = hashlib.blake2b(nonce, key=key, digest_size=64, person=b"apex-creds aead1")
        assert pair.digest()[32:] == commitment
        decrypt = bindings.crypto_aead_xchacha20poly1305_ietf_decrypt
        return decrypt(sealed, data, nonce, pair.digest()[:32])

    def credentials(self, document: str) -> dict[str, dict[str, bytes]]:
        """The parts of each credential of a section, or a shard; FORMAT.md, "Shards"."""
        found, section = {}, document
        whole, _, number = document.rpartition("_")
        if whole in self.shards:
            section = whole
        body = self.body(document, self._home / f"credentials/{document}.enc")
        for info, sealed in body["records"]:
            if whole in self.shards:
                assert self._shard_of(info["name"], len(self.shards[whole])) == int(number, 16)
            key = self._keys[sealed[6:22].hex(), struct.unpack(">I", sealed[22:26])[0]]
            plain = self.opened(
                sealed, key, section, bytes.fromhex(info["id"]), info["version"]
            )
            found[info["name"]] = parts(plain)
        return found

    def _shard_of(self, credential: str, count: int) -> int:
        root = self._keys[self._root]
        key = derived(root, "name-index")
        tag = hmac.digest(key, b"\0shard\0" + credential.encode(), "sha256")
        return int.from_bytes(tag[:8], "big") % count


def parts(data: bytes) -> dict[str, bytes]:
    """FORMAT.md, "Credential parts"."""
    at, sizes = 1, []
    for _ in range(data[0]):
        end = at + 1 + data[at]
        sizes.append((data[at + 1 : end].decode(), struct.unpack_from(">I", data, end)[0]))
        at = end + 4
    found = {}
    for name, size in sizes:
        found[name], at = data[at : at + size], at + size
    assert at == len(data)
    return found
