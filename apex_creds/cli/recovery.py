"""``recovery``: the master key out of the keyring on purpose, and back into one.

Guarantee: what can restore the master key is shown on a terminal once, or printed by
``--force``, or sealed to a public key; it counts only after it was tried. Shares are typed
without echo or read from standard input.
"""

from __future__ import annotations

import base64
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, TypeVar

import anyio
import msgspec
import typer

from apex_creds.cli import access_commands as factors
from apex_creds.cli import automatic, options, output, session, shares, when
from apex_creds.cli.credential_commands import check_exit
from apex_creds.cli.options import HomeOption, JsonOption, MasterOption, Settings
from apex_creds.crypto import sealedbox
from apex_creds.crypto.memory import SecretBytes
from apex_creds.documents.document import Header
from apex_creds.documents.keystore import root_header
from apex_creds.errors import InvalidInputError, MasterKeyError
from apex_creds.keys import MasterKeyProvider
from apex_creds.keys.provider import encode_key, hold
from apex_creds.keys.shares import MAX_SHARES, combine, parse_share, split
from apex_creds.storage.storage_factory import storage_for
from apex_creds.vault import Vault
from apex_creds.vault import recovery as recovering
from apex_creds.vault.archive import put_file
from apex_creds.vault.factors import Factors
from apex_creds.vault.recovery import Recovery, RecoveryState

T = TypeVar("T")

recovery = typer.Typer(context_settings=options.HELP, invoke_without_command=True)
"""The group ``recovery``."""

SealedOption = Annotated[
    Path | None,
    typer.Option("--sealed", metavar="FILE", help="What export --to printed, not shares."),
]
PrivateOption = Annotated[
    Path | None,
    typer.Option("--private-key", metavar="FILE", help="Opens it; made by recovery keygen."),
]

_NEXT: Final = "Make one with: apex-creds recovery export"


@recovery.callback()
def root(ctx: typer.Context, home: HomeOption = None, master: MasterOption = None) -> None:
    """Keep the master key in shares, and bring it back when it is lost."""
    ctx.obj = options.settings(ctx, home, master)
    options.help_without_command(ctx)


# -- export ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Wanted:
    threshold: int
    count: int
    public: bytes | None
    private: Path | None
    qr: bool


@recovery.command("export")
def export(
    ctx: typer.Context,
    threshold: Annotated[
        int, typer.Option("--threshold", "-k", min=2, help="So many restore the key.")
    ] = 3,
    count: Annotated[
        int, typer.Option("--shares", "-n", max=MAX_SHARES, help="So many are made.")
    ] = 5,
    qr: Annotated[bool, typer.Option("--qr", help="A QR code beside the words.")] = False,
    to: Annotated[
        str,
        typer.Option("--to", metavar="PUBLIC", help="Seal it to this public key instead."),
    ] = "",
    private_key: PrivateOption = None,
    force: Annotated[
        bool, typer.Option("--force", help="Even if standard output is not a terminal.")
    ] = False,
    home: HomeOption = None,
    master: MasterOption = None,
) -> None:
    """Split the master key into shares of words, any K of N of which restore it.

    Each is shown once. K of them must then be typed in again: only that counts.
    """
    public = recovering.parse_public(to) if to else None
    if public is None:
        check_exit(sys.stdout, force=force)
    if threshold > count:
        raise InvalidInputError("More shares are needed than made.", hint="Like -k 3 -n 5.")
    wanted = _Wanted(threshold, count, public, private_key, qr)

    async def work(vault: Vault, _: MasterKeyProvider) -> Recovery:
        second = Factors(vault)
        if await second.enrolled():
            await factors.ask_for_one(second)
        with await recovering.take_key(vault) as key:
            made = await _made(vault, key, wanted)
        await recovering.record(vault, made)
        return made

    made = with_master(options.settings(ctx, home, master), work)
    if made.tested:
        output.note(f"Tried: {made.kind} restore master key v{made.master_version}.")
        output.note("Keep them apart from each other, and from the vault.")
    else:
        output.note(
            "Not tried yet: apex-creds recovery verify --sealed FILE --private-key FILE"
        )


async def _made(vault: Vault, key: SecretBytes, wanted: _Wanted) -> Recovery:
    header = (await vault.store.keystore()).header
    at, by = recovering.by_now(vault)
    version = root_header(header).master.version
    if wanted.public is not None:
        sealed_to = base64.b64encode(wanted.public).decode()
        tried = _sealed(key, header, wanted)
        return Recovery(
            at=at, by=by, master_version=version, sealed_to=sealed_to, tested=at if tried else 0
        )
    _shared(key, header, wanted)
    return Recovery(
        at=at,
        by=by,
        master_version=version,
        threshold=wanted.threshold,
        shares=wanted.count,
        tested=vault.clock.time(),
    )


def _sealed(key: SecretBytes, header: Header, wanted: _Wanted) -> bool:
    """Prints the sealed key; whether it could be opened again."""
    assert wanted.public is not None
    sealed = recovering.seal_package(key, header=header, public=wanted.public)
    if wanted.private is not None:
        with shares.read_private(wanted.private) as private:
            _expect(key, recovering.open_package(private, sealed, header=header))
    sys.stdout.write(shares.armour(sealed) + "\n")
    return wanted.private is not None


def _shared(key: SecretBytes, header: Header, wanted: _Wanted) -> None:
    """Shows shares that were tried, and has them typed in again on a terminal."""
    made = split(key, threshold=wanted.threshold, shares=wanted.count)
    for start in range(wanted.count):  # each share is in one of these
        chosen = [made[(start + i) % wanted.count] for i in range(wanted.threshold)]
        _expect(key, combine([parse_share(text) for text in chosen]))
    heading = (
        f"(any {wanted.threshold} restore it), master key "
        f"v{root_header(header).master.version} of vault {header.vault_id[:8]}"
    )
    shares.show(made, heading=heading, with_qr=wanted.qr)
    if sys.stdout.isatty() and sys.stdin.isatty():
        output.say(f"Now type in any {wanted.threshold} of them, from what you wrote down.")
        _expect(key, shares.ask())


def _expect(key: SecretBytes, back: SecretBytes) -> None:
    with back:
        if not back.equals(key):
            raise MasterKeyError("That is not the master key.", hint="Export it again.")


# -- trying, listing ---------------------------------------------------------------------


@recovery.command("verify")
def verify(
    ctx: typer.Context,
    sealed: SealedOption = None,
    private_key: PrivateOption = None,
    home: HomeOption = None,
    master: MasterOption = None,
) -> None:
    """Try shares (or what was sealed): whether they restore this vault's master key."""

    async def work(vault: Vault, _: MasterKeyProvider) -> Recovery:
        header = (await vault.store.keystore()).header
        with _read_key(header, sealed, private_key) as key:
            recovering.check_key(key, header)
        tried = await _tried(vault, header, sealed=sealed is not None)
        await recovering.record(vault, tried)
        return tried

    tried = with_master(options.settings(ctx, home, master), work)
    output.say(f"They restore master key v{tried.master_version}.", style="green")


async def _tried(vault: Vault, header: Header, *, sealed: bool) -> Recovery:
    """The newest record of that kind, as tried now."""
    at, by = recovering.by_now(vault)
    version = root_header(header).master.version
    state = await recovering.recovery_document(vault.store).read()
    known = [
        one
        for one in state.made
        if one.master_version == version and bool(one.sealed_to) == sealed
    ]
    found = known[-1] if known else Recovery(at=at, by=by, master_version=version)
    return msgspec.structs.replace(found, tested=at)


@recovery.command("list")
def list_made(
    ctx: typer.Context,
    json: JsonOption = False,
    home: HomeOption = None,
    master: MasterOption = None,
) -> None:
    """List when the master key was exported, and whether that was tried. No shares."""
    found = session.with_vault(options.settings(ctx, home, master), _state)
    rows: list[dict[str, output.Json]] = [
        {
            "made": when.show(one.at),
            "by": one.by,
            "master_version": one.master_version,
            "kind": one.kind,
            "tried": when.show(one.tested) if one.tested else "never",
        }
        for one in found.made
    ]
    if json:
        output.json_out(rows)
    elif rows:
        output.table(tuple(name.replace("_", " ") for name in rows[0]), map(_cells, rows))
    else:
        output.say(f"There is no recovery. {_NEXT}")


def _cells(row: dict[str, output.Json]) -> tuple[object, ...]:
    return tuple(row.values())


async def _state(vault: Vault) -> RecoveryState:
    return await recovering.recovery_document(vault.store).read()


async def status_of(vault: Vault) -> str:
    """What ``status`` says of the recovery: ``ok``, or what is wrong with it."""
    version = (await vault.store.keystore()).root_header.master.version
    return (await _state(vault)).lacks(version) or "ok"


def remind(state: str) -> None:
    """Says on standard error what to do about a recovery that is not ``ok``."""
    if state != "ok":
        output.note(f"Without the master key all is lost, and its recovery: {state}. {_NEXT}")


@recovery.command("keygen")
def keygen(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where the private key goes.")],
) -> None:
    """Make a key pair for export --to: the private key in FILE, the public one printed."""
    with SecretBytes.random(sealedbox.KEY_BYTES) as private:
        put_file(file, [bytes(encode_key(private)), b"\n"])
        sys.stdout.write(base64.b64encode(sealedbox.public_key(private)).decode() + "\n")
    output.note(f"Keep {file} away from the vault.")


# -- back --------------------------------------------------------------------------------


@recovery.command("restore")
def restore(
    ctx: typer.Context,
    sealed: SealedOption = None,
    private_key: PrivateOption = None,
    home: HomeOption = None,
    master: MasterOption = None,
) -> None:
    """Give a keyring (or a file) the master key again, from shares."""
    settings = options.settings(ctx, home, master)
    header, data = anyio.run(_root, settings)
    uri = session.master_uri(settings, header)
    provider = session.provider(uri, new=False)

    async def work(key: SecretBytes) -> None:
        await recovering.restore_key(key, data, provider)
        held = hold(provider, version=root_header(header).master.version, key=key)
        async with await Vault.unseal(session.home_of(settings), master=held) as vault:
            await recovering.note_provider(vault, provider)

    with _read_key(header, sealed, private_key) as key:
        anyio.run(work, key)
    version = root_header(header).master.version
    output.say(f"Master key v{version} is in {provider.uri} again, and opens the vault.")


@recovery.command("reset-master")
def reset_master(
    ctx: typer.Context,
    sealed: SealedOption = None,
    private_key: PrivateOption = None,
    home: HomeOption = None,
    master: MasterOption = None,
) -> None:
    """After the keyring lost the master key: make a new one, with the shares of the old."""
    settings = options.settings(ctx, home, master)
    header, data = anyio.run(_root, settings)
    lost = root_header(header).master
    provider = session.provider(session.master_uri(settings, header), new=True)
    if anyio.run(recovering.has_key, provider, header):
        output.say(f"{provider.uri} has master key v{lost.version}: there is nothing to reset.")
        output.say("To replace a key that you have: apex-creds rotate master")
        return

    async def work(key: SecretBytes) -> recovering.Reset:
        recovering.opens(key, data).hierarchy.close()
        held = hold(provider, version=lost.version, key=key)
        async with await Vault.unseal(session.home_of(settings), master=held) as vault:
            return await recovering.reset_master(vault, lost=lost)

    with _read_key(header, sealed, private_key) as key:
        made = anyio.run(work, key)
    output.say(f"Master key v{made.after} is in {provider.uri}, and opens the vault.")
    remind(f"the shares are of v{made.before}")


async def _root(settings: Settings) -> tuple[Header, bytes]:
    storage = storage_for(session.home_of(settings))
    try:
        return await recovering.read_root(storage)
    finally:
        await storage.close()


def _read_key(header: Header, sealed: Path | None, private_key: Path | None) -> SecretBytes:
    if (sealed is None) != (private_key is None):
        raise InvalidInputError("--sealed and --private-key go together.")
    if sealed is None or private_key is None:
        return shares.ask()
    with shares.read_private(private_key) as private:
        return recovering.open_package(private, shares.read_sealed(sealed), header=header)


def with_master(
    settings: Settings, work: Callable[[Vault, MasterKeyProvider], Awaitable[T]]
) -> T:
    """As ``session.with_vault``, with a provider that has the master key at hand.

    Where it comes from (a passphrase, a keyring's prompt) is asked once.
    """
    header, _ = anyio.run(_root, settings)
    provider = session.find_provider(settings)
    current = root_header(header).master

    async def body() -> T:
        with await provider.load(
            vault_id=header.vault_id, version=current.version, params=current.params
        ) as key:
            held = hold(provider, version=current.version, key=key)
            async with await Vault.unseal(session.home_of(settings), master=held) as vault:
                await automatic.look(vault)
                return await work(vault, held)

    return anyio.run(body)


read_key = _read_key
