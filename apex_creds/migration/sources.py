"""What there is to import, by format: old files, .env files, other vaults, keyring entries.

Guarantee: what is found without being named is found beside this vault and nowhere else; a
format is known by its content. Finding and reading change nothing. Nothing is taken from the
environment: a value of a .env file that refers to another variable is reported, and left
where it is; so is a comment that has what could be a secret in it. Another vault is read
through its public API, so that each opening is in its log.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import anyio.to_thread

from apex_creds.errors import (
    CorruptDocumentError,
    InvalidInputError,
    StorageError,
    UnsupportedFormatError,
    VaultNotFoundError,
)
from apex_creds.fs.home import CREDENTIALS, SECURITY
from apex_creds.fs.private_files import translated
from apex_creds.keys import MasterKeyProvider
from apex_creds.migration import legacy_readers
from apex_creds.migration.entries import Entry, Format, Problem, Reading, api_key_entry
from apex_creds.migration.legacy_files import (
    FERNET_NAME,
    KEYSTORE_FILE,
    SourceFile,
    detect,
    present,
    read_file,
)
from apex_creds.migration.legacy_readers import BoxFiles, read_fernet, read_secretbox
from apex_creds.model import CredentialKind, OAuthToken, Secret
from apex_creds.vault import Vault

# -- sources --------------------------------------------------------------------------------


CONFIG_FILE: Final = "config.json"
KEYRING_SCHEME: Final = "keyring:"


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Something to migrate from.

    Attributes:
        path: Names it: a path, or ``keyring:SERVICE[/USER]``.
        files: Its files, as they were read; none for a vault or a keyring entry.
    """

    format: Format
    path: str
    files: tuple[SourceFile, ...] = ()

    @property
    def digest(self) -> str:
        """Changes with its content; empty where that is not known."""
        if not self.files:
            return ""
        digests = "".join(file.digest for file in self.files)
        return hashlib.sha256(digests.encode()).hexdigest()

    @property
    def exposed(self) -> tuple[Path, ...]:
        """Those of its files that other users can read; a configuration has no secrets."""
        return tuple(f.path for f in self.files if f.exposed and f.path.name != CONFIG_FILE)


def find(path: Path | str, *, credentials: Path | None = None) -> Source:
    """The source at a path, or in the keyring.

    Args:
        path: A file, a directory, or ``keyring:SERVICE[/USER]``.
        credentials: Where a SecretBox format's files of credentials are, if not beside it.

    Raises:
        StorageError: It can't be read safely.
        VaultNotFoundError: There is nothing there.
        UnsupportedFormatError: It is nothing that can be migrated.
    """
    text = str(path)
    if text.startswith(KEYRING_SCHEME):
        return Source(format=Format.KEYRING, path=text)
    place = Path(text).absolute()
    if not present(place):
        raise VaultNotFoundError(f"There is no {place}.", hint="Check the path.")
    if place.is_dir():
        names = (Path(SECURITY, KEYSTORE_FILE), Path(KEYSTORE_FILE), Path(FERNET_NAME))
        within = next((place / name for name in names if present(place / name)), None)
        if within is None:
            raise VaultNotFoundError(
                f"There is no key store in {place}.",
                hint="Name a file, or a vault's directory.",
            )
        place = within
    file = read_file(place)
    kind = detect(file.data)
    if kind in (Format.SECRETBOX, Format.VAULT) and place.name == KEYSTORE_FILE:
        found = _around(file, kind)
    elif kind in (Format.SECRETBOX, Format.VAULT, None):
        raise UnsupportedFormatError(
            f"{place} is nothing that can be migrated by itself.",
            hint="Name the directory that it belongs to, or check that it is whole.",
        )
    else:
        found = Source(format=kind, path=str(place), files=(file,))
    if credentials is None or found.format is not Format.SECRETBOX:
        return found
    kept = [f for f in found.files if f.path.name in (KEYSTORE_FILE, CONFIG_FILE)]
    files = (*kept, *map(read_file, section_paths(credentials)))
    return Source(format=found.format, path=found.path, files=files)


async def read(source: Source, keys: Iterable[bytes]) -> Reading:
    """All that a source holds; a vault is another module's business.

    Raises:
        IntegrityError: It does not open, or is malformed.
    """
    if source.format is not Format.KEYRING:
        return await anyio.to_thread.run_sync(_read_files, source, tuple(keys))
    text = source.path.removeprefix(KEYRING_SCHEME)
    service, _, user = text.partition("/")
    if not service:
        raise InvalidInputError(
            "Which entry of the keyring?", hint="Write keyring:SERVICE or keyring:SERVICE/USER."
        )
    value = await legacy_readers.keyring_text(service, user or None)
    if value is None:
        raise VaultNotFoundError(
            f"The keyring has no entry {text!r}, or does not answer.",
            hint="Write keyring:SERVICE or keyring:SERVICE/USER; unlock the keyring.",
        )
    # ApexAgent keeps one entry per service under its own name.
    own = service == legacy_readers.KEYRING_SERVICE and user
    return Reading(entries=(api_key_entry(user if own else service, value),))


def _read_files(source: Source, keys: tuple[bytes, ...]) -> Reading:
    if source.format is Format.FERNET:
        return read_fernet(source.files[0].data, keys)
    if source.format is Format.DOTENV:
        return read_dotenv(source.files[0].data)
    if source.format is Format.SECRETBOX:
        named: dict[str, bytes] = {}
        for file in source.files:  # of two files of one name the first is the section's
            name = file.path.name
            named[str(file.path) if name in named else name] = file.data
        keystore, config = named.pop(KEYSTORE_FILE), named.pop(CONFIG_FILE, b"")
        files = BoxFiles(keystore=keystore, sections=named, config=config)
        return read_secretbox(files, keys)
    return Reading()


def _around(keystore: SourceFile, found: Format) -> Source:
    """The source of which this is the key store."""
    folder = keystore.path.parent
    if found is Format.VAULT:
        if folder.name != SECURITY:
            raise StorageError(
                f"{keystore.path} is a vault's key store in a strange place.",
                hint="Put it into the folder security of its vault's directory.",
            )
        return Source(format=Format.VAULT, path=str(folder.parent))
    places = [folder.parent / CREDENTIALS] if folder.name == SECURITY else []
    sections = [path for place in (*places, folder) for path in section_paths(place)]
    paths = [*sections, *filter(present, [folder / CONFIG_FILE])]
    files = (keystore, *map(read_file, paths))
    return Source(format=Format.SECRETBOX, path=str(keystore.path), files=files)


def section_paths(folder: Path) -> list[Path]:
    """The files of credentials in a folder, those of sections that are not known included.

    Raises:
        StorageError: There is something of that name that can't be listed.
    """
    with translated(folder):
        names = os.listdir(folder) if present(folder) else []
    return [folder / n for n in sorted(names) if n.endswith(".enc") and n != KEYSTORE_FILE]


# -- .env files -----------------------------------------------------------------------------


_REFERENCE: Final = re.compile(r"\$\{[^}]*\}")
_WORD: Final = re.compile(r"(?=\S*[0-9])(?=\S*[A-Za-z])[^\s=:,;'\"`<>()]{12,}")


class Setting(NamedTuple):
    """A line of a .env file.

    Attributes:
        line: Its number.
        name: None where it sets nothing.
        value: None where it has none.
        comment: What follows the value.
        wrong: Why its value is not taken; empty: it may be.
    """

    line: int
    name: str | None
    value: str | None
    comment: str
    wrong: str


def settings(data: bytes) -> list[Setting] | None:
    """The lines of a .env file, in python-dotenv's grammar; None: it is not UTF-8 text."""
    from dotenv.parser import parse_stream

    text, found = data.decode("utf-8-sig", errors="replace"), list[Setting]()
    if text.encode() != data.removeprefix(b"\xef\xbb\xbf"):
        return None
    for binding in parse_stream(io.StringIO(text)):
        line, value, wrong = binding.original, binding.value, ""
        if binding.error:
            wrong = "not understood"
        elif value and _REFERENCE.search(value):
            wrong = "refers to another variable: set it yourself"
        comment = line.string.rpartition(value or "#")[2]
        name = None if binding.error else binding.key
        found.append(Setting(line.line, name, value, comment, wrong))
    return found


def read_dotenv(data: bytes) -> Reading:
    """Everything in the file, each as an API key of its name.

    Raises:
        CorruptDocumentError: It is not UTF-8 text.
    """
    found = settings(data)
    if found is None:
        raise CorruptDocumentError(
            "The file is not UTF-8 text.", hint="Convert it, and try again."
        )
    entries: dict[str, Entry] = {}
    for number, name, value, comment, wrong in found:
        if name is not None:
            made = _skipped(name, wrong) if wrong else api_key_entry(name, value)
            earlier = entries.pop(name, made)
            parts = None if made.secret is None else made.secret.parts
            if earlier.secret is not None and earlier.secret.parts != parts:
                line = f"(before line {number})"
                entries[line] = _skipped(line, f"{name} had another value")
            entries[name] = made
        elif wrong:
            line = f"(line {number})"
            entries[line] = _skipped(line, f"is {wrong}")
        # A word that no language has, and that is no plain URL.
        if any(not word.startswith("//") or "@" in word for word in _WORD.findall(comment)):
            line = f"(in line {number})"
            entries[line] = _skipped(line, "is a comment that may have a secret in it")
    return Reading(entries=tuple(entries.values()))


def _skipped(name: str, detail: str) -> Entry:
    return Entry(
        service=name, kind=CredentialKind.API_KEY, problem=Problem.SKIPPED, detail=detail
    )


# -- other vaults ---------------------------------------------------------------------------


async def read_vault(
    path: str, *, into: Vault, master: str | MasterKeyProvider | None = None
) -> Reading:
    """Every credential of the vault at ``path``.

    Args:
        path: Its directory.
        into: The vault that takes them.
        master: Where its master key is; as it says itself, by default.

    Raises:
        InvalidInputError: It is the very same vault.
        ApexCredsError: It can't be unsealed.
    """
    async with await Vault.unseal(path, master=master) as vault:
        if vault.vault_id == into.vault_id:
            raise InvalidInputError(
                "That is this vault itself.", hint="Name another one with --from."
            )
        entries = []
        every = await vault.list()
        for info in [info for info in every if not info.principal]:
            async with vault.open(info.name, action="migrate") as opened:
                parts = {name: bytes(opened.view(name)) for name in opened.names}
                secret = Secret(info.kind, parts)
                if info.kind is CredentialKind.OAUTH_TOKEN:
                    secret = OAuthToken(
                        "-",
                        expires_at=info.expires,
                        token_type=info.token_type,
                        scope=info.scope,
                    )
                    secret.parts = parts
                entries.append(
                    Entry(
                        service=info.service,
                        kind=info.kind,
                        secret=secret,
                        label=info.name,
                        like=info,
                    )
                )
        granted = len(await vault.grants())
    notes = []
    if granted:
        notes.append(f"Its {granted} grants are not taken: grant again what you want.")
    if left := len(every) - len(entries):
        notes.append(f"{left} credentials that belong to a principal are not taken.")
    return Reading(entries=tuple(entries), notes=tuple(notes))
