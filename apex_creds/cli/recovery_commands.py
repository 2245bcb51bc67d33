"""``recovery``: the master key out of the keyring on purpose, and back into one.

Guarantee: what can restore the master key is shown on a terminal once, one share at a time
and cleared from it, or printed by ``--force``, or sealed to a public key; it counts only
after it was tried. Shares are typed without echo or read from standard input; never from
arguments or the environment. Nothing here writes them to a file.
"""

from __future__ import annotations

import base64
import getpass
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Final

import anyio
import typer
from msgspec.structs import replace

from apex_creds.admin import master_recovery as recovering
from apex_creds.admin.archive import put_file
from apex_creds.admin.master_recovery import Recovery
from apex_creds.auth.enrolment import Factors
from apex_creds.cli import console
from apex_creds.cli.access_commands import ask_for_one
from apex_creds.cli.command import (
    ForceOption,
    Settings,
    command,
    find_provider,
    group,
    master_uri,
    read_root,
    with_master_key,
)
from apex_creds.cli.console import Json, Note, Report, Rows, Text, done
from apex_creds.cli.credential_commands import check_exit
from apex_creds.cli.program import argument, flag, option
from apex_creds.crypto import public_key
from apex_creds.crypto.memory import SecretBytes
from apex_creds.documents.document import Header
from apex_creds.documents.keystore import root_header
from apex_creds.errors import InvalidInputError, MasterKeyError, StorageError
from apex_creds.fs.private_files import check, open_small, read_small, translated
from apex_creds.keys import MasterKeyProvider
from apex_creds.keys.provider import decode_key, encode_key, hold
from apex_creds.keys.shares import MAX_SHARES, WORDS, Share, combine, parse_share, split
from apex_creds.policy.display import show_time
from apex_creds.storage.storage_factory import storage_for
from apex_creds.vault import Vault

_NEXT: Final = "Make one with: apex-creds recovery export"
_CLEAR: Final = "\x1b[2J\x1b[3J\x1b[H"
_COLUMNS: Final = 3
_LIMIT: Final = 64 * 1024
_ARMOUR: Final = "apex-creds-recovery-v1:"

SealedOption = Annotated[
    Path | None,
    option("FILE", "What export --to printed, not shares.", "--sealed"),
]
PrivateOption = Annotated[
    Path | None,
    option("FILE", "Opens it; made by recovery keygen.", "--private-key"),
]

recovery = group("Keep the master key in shares, and bring it back when it is lost.")


# -- out -----------------------------------------------------------------------------------


@recovery.command("export")
@command()
def export(
    chosen: Settings,
    threshold: Annotated[
        int, typer.Option("--threshold", "-k", min=2, help="So many restore the key.")
    ] = 3,
    count: Annotated[
        int, typer.Option("--shares", "-n", max=MAX_SHARES, help="So many are made.")
    ] = 5,
    qr: Annotated[bool, flag("A QR code beside the words.", "--qr")] = False,
    to: Annotated[
        str,
        option("PUBLIC", "Seal it to this public key instead.", "--to"),
    ] = "",
    private_key: PrivateOption = None,
    force: ForceOption = False,
) -> Text:
    """Split the master key into shares of words, any K of N of which restore it.

    Each is shown once. K of them must then be typed in again: only that counts.
    """
    public = recovering.parse_public(to) if to else None
    if public is None:
        check_exit(sys.stdout, force=force)
    if threshold > count:
        raise InvalidInputError("More shares are needed than made.", hint="Like -k 3 -n 5.")

    async def work(vault: Vault, _: MasterKeyProvider) -> Recovery:
        factors = Factors(vault)
        if await factors.enrolled():
            await ask_for_one(factors)
        with await recovering.take_key(vault) as key:
            header = (await vault.store.keystore()).header
            at, by = recovering.by_now(vault)
            made = Recovery(at=at, by=by, master_version=root_header(header).master.version)
            if public is None:
                _show_shares(key, header, threshold=threshold, count=count, qr=qr)
                now = vault.clock.time()
                made = replace(made, threshold=threshold, shares=count, tested=now)
            else:
                sealed = recovering.seal_package(key, header=header, public=public)
                if private_key is not None:
                    with _read_private(private_key) as opens:
                        _expect(key, recovering.open_package(opens, sealed, header=header))
                sys.stdout.write(f"{_ARMOUR}{base64.b64encode(sealed).decode()}\n")
                sealed_to = base64.b64encode(public).decode()
                made = replace(made, sealed_to=sealed_to, tested=at if private_key else 0)
        await recovering.record(vault, made)
        return made

    made = with_master_key(chosen, work)
    if made.tested:
        return Text(
            Note(f"Tried: {made.kind} restore master key v{made.master_version}."),
            Note("Keep them apart from each other, and from the vault."),
        )
    advice = "apex-creds recovery verify --sealed FILE --private-key FILE"
    return Text(Note(f"Not tried yet: {advice}"))


def _show_shares(
    key: SecretBytes, header: Header, *, threshold: int, count: int, qr: bool
) -> None:
    """Shows shares that were tried, and has them typed in again on a terminal."""
    made = split(key, threshold=threshold, shares=count)
    for start in range(count):  # each share is in one of these
        some = [made[(start + i) % count] for i in range(threshold)]
        _expect(key, combine([parse_share(text) for text in some]))
    version = root_header(header).master.version
    about = (
        f"(any {threshold} restore it), master key v{version} of vault {header.vault_id[:8]}"
    )
    for number, words in enumerate(made, start=1):
        title = f"Share {number} of {len(made)} {about}"
        if not sys.stdout.isatty():
            sys.stdout.write(f"# {title}\n{words}\n")
            continue
        console.say(title, style="bold")
        numbered = [f"{i:2} {word:10}" for i, word in enumerate(words.split(), start=1)]
        rows = -(-len(numbered) // _COLUMNS)
        for row in range(rows):
            console.say("  " + "  ".join(numbered[row::rows]))
        if qr:
            console.draw_qr(words, sys.stdout)
        if sys.stdin.isatty():
            getpass.getpass("Write it down, then press Enter; it is not shown again: ")
            sys.stdout.write(_CLEAR)
            sys.stdout.flush()
    if sys.stdout.isatty() and sys.stdin.isatty():
        console.say(f"Now type in any {threshold} of them, from what you wrote down.")
        _expect(key, _ask_for_shares())


def _expect(key: SecretBytes, back: SecretBytes) -> None:
    with back:
        if not back.equals(key):
            raise MasterKeyError("That is not the master key.", hint="Export it again.")


# -- tried, listed -------------------------------------------------------------------------


@recovery.command("verify")
@command()
def verify(
    chosen: Settings, sealed: SealedOption = None, private_key: PrivateOption = None
) -> Report:
    """Try shares (or what was sealed): whether they restore this vault's master key."""

    async def work(vault: Vault, _: MasterKeyProvider) -> int:
        header = (await vault.store.keystore()).header
        with read_key(header, sealed, private_key) as key:
            recovering.check_key(key, header)
        at, by = recovering.by_now(vault)
        version = root_header(header).master.version
        state = await recovering.recovery_document(vault.store).read()
        known = [
            one
            for one in state.made
            if one.master_version == version and bool(one.sealed_to) == (sealed is not None)
        ]
        newest = known[-1] if known else Recovery(at=at, by=by, master_version=version)
        await recovering.record(vault, replace(newest, tested=at))
        return version

    version = with_master_key(chosen, work)
    return done({"master_version": version}, f"They restore master key v{version}.")


@recovery.command("list")
@command()
async def list_made(vault: Vault) -> Report:
    """List when the master key was exported, and whether that was tried. No shares."""
    state = await recovering.recovery_document(vault.store).read()
    found: list[dict[str, Json]] = [
        {
            "made": show_time(one.at),
            "by": one.by,
            "master_version": one.master_version,
            "kind": one.kind,
            "tried": show_time(one.tested) if one.tested else None,
        }
        for one in state.made
    ]
    columns = ("made", "by", "master version", "kind", "tried")
    rows = [(*list(item.values())[:-1], item["tried"] or "never") for item in found]
    return Report(found, Rows(columns, rows, empty=f"There is no recovery. {_NEXT}"))


@recovery.command("keygen")
@command()
def keygen(
    file: Annotated[Path, argument("FILE", "Where the private key goes.")],
) -> Report:
    """Make a key pair for export --to: the private key in FILE, the public one printed."""
    with SecretBytes.random(public_key.KEY_BYTES) as private:
        put_file(file, [bytes(encode_key(private)), b"\n"])
        public = base64.b64encode(public_key.public_key(private)).decode()
    return Report({"public": public}, public, notes=[Note(f"Keep {file} away from the vault.")])


async def recovery_state(vault: Vault) -> str:
    """What ``status`` says of the recovery: ``ok``, or what is wrong with it."""
    version = (await vault.store.keystore()).root_header.master.version
    state = await recovering.recovery_document(vault.store).read()
    return state.lacks(version) or "ok"


def reminder(state: str) -> list[Note]:
    """What to do about a recovery that is not ``ok``."""
    text = f"Without the master key all is lost, and its recovery: {state}. {_NEXT}"
    return [] if state == "ok" else [Note(text)]


# -- back ----------------------------------------------------------------------------------


@recovery.command("restore")
@command()
def restore(
    chosen: Settings, sealed: SealedOption = None, private_key: PrivateOption = None
) -> Report:
    """Give a keyring (or a file) the master key again, from shares."""
    header, data = anyio.run(read_root, storage_for(chosen.folder))
    provider = find_provider(master_uri(chosen, header))
    version = root_header(header).master.version

    async def work(key: SecretBytes) -> None:
        await recovering.restore_key(key, data, provider)
        held = hold(provider, version=version, key=key)
        async with await Vault.unseal(chosen.folder, master=held) as vault:
            await recovering.note_provider(vault, provider)

    with read_key(header, sealed, private_key) as key:
        anyio.run(work, key)
    return done(
        {"master_version": version, "master": provider.uri},
        f"Master key v{version} is in {provider.uri} again, and opens the vault.",
    )


@recovery.command("reset-master")
@command()
def reset_master(
    chosen: Settings, sealed: SealedOption = None, private_key: PrivateOption = None
) -> Report:
    """After the keyring lost the master key: make a new one, with the shares of the old."""
    header, data = anyio.run(read_root, storage_for(chosen.folder))
    lost = root_header(header).master
    provider = find_provider(master_uri(chosen, header), new=True)
    if anyio.run(recovering.has_key, provider, header):
        return Report(
            {"reset": False, "master_version": lost.version},
            f"{provider.uri} has master key v{lost.version}: there is nothing to reset.",
            "To replace a key that you have: apex-creds rotate master",
        )

    async def work(key: SecretBytes) -> recovering.Reset:
        recovering.opens(key, data).hierarchy.close()
        held = hold(provider, version=lost.version, key=key)
        async with await Vault.unseal(chosen.folder, master=held) as vault:
            return await recovering.reset_master(vault, lost=lost)

    with read_key(header, sealed, private_key) as key:
        made = anyio.run(work, key)
    return done(
        {"reset": True, "master_version": made.after, "before": made.before},
        f"Master key v{made.after} is in {provider.uri}, and opens the vault.",
        notes=reminder(f"the shares are of v{made.before}"),
    )


# -- read ----------------------------------------------------------------------------------


def read_key(header: Header, sealed: Path | None, private_key: Path | None) -> SecretBytes:
    """The master key out of shares, or of what was sealed; the caller closes it.

    Raises:
        InvalidInputError: It is not in them.
    """
    if (sealed is None) != (private_key is None):
        raise InvalidInputError("--sealed and --private-key go together.")
    if sealed is None or private_key is None:
        return _ask_for_shares()
    with _read_private(private_key) as private:
        package = None
        with suppress(OSError, ValueError, StorageError):
            text = read_small(sealed, limit=_LIMIT, follow=True).decode("ascii").strip()
            if text.startswith(_ARMOUR):
                package = base64.b64decode(text.removeprefix(_ARMOUR), validate=True)
        if package is None:
            raise InvalidInputError(
                f"{sealed} is nothing that recovery export --to wrote.", hint="Check its name."
            )
        return recovering.open_package(private, package, header=header)


def _ask_for_shares() -> SecretBytes:
    """Reads shares, on a terminal until there are enough of one set; combines them."""
    if not sys.stdin.isatty():
        text = console.read_input(_LIMIT).decode("utf-8", errors="replace")
        lines = [line for line in text.splitlines() if line.strip() and line[0] != "#"]
        if not 1 <= len(lines) <= MAX_SHARES:
            raise InvalidInputError(
                "Standard input has no shares.", hint="One share a line; # begins a comment."
            )
        return combine([parse_share(line) for line in lines])
    found: dict[int, Share] = {}
    while not found or len(found) < next(iter(found.values())).threshold:
        number = len(found) + 1
        typed = getpass.getpass(f"Share {number}, {WORDS} words (not shown): ")
        try:
            share = parse_share(typed)
        except InvalidInputError as error:
            console.note(f"{error.message} {error.hint}")
            continue
        if found and share.set_id != next(iter(found.values())).set_id:
            console.note("That share is of another set than the first.")
            continue
        found[share.index] = share
        console.note(f"{len(found)} of {share.threshold} shares")
    return combine(list(found.values()))


def _read_private(file: Path) -> SecretBytes:
    """Reads a private key, from a file that nobody else can; the caller closes it."""
    with (
        translated(file),
        open(open_small(file, limit=_LIMIT, follow=True), "rb", 0) as raw,
    ):
        check(file, os.fstat(raw.fileno()))
        key = decode_key((raw.read(_LIMIT) or b"").rstrip(b"\n"))
    if key is None:
        raise InvalidInputError(f"{file} holds no private key.", hint="Check its name.")
    return key
