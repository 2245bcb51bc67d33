"""``audit prove``, ``checkpoint``, ``cosign``, ``accept-rollback``: what is signed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Final

import anyio
import typer

from apex_creds.audit import note as notes
from apex_creds.audit import proofs
from apex_creds.audit.checkpoint import (
    COSIGNED,
    Checkpoint,
    CheckpointFile,
    check_signatures,
    ensure_keys,
    read_keys,
)
from apex_creds.audit.note import VerifierKey, base64_of, bytes_of
from apex_creds.cli import options, output, prompts, session
from apex_creds.cli.audit import place
from apex_creds.cli.options import HomeOption, MasterOption, ReasonOption
from apex_creds.crypto.memory import SecretBytes
from apex_creds.crypto.signing import SigningKey
from apex_creds.errors import InvalidInputError
from apex_creds.fs.oserrors import translated
from apex_creds.fs.private_files import read_small
from apex_creds.fs.replacing import create_exclusive, replace_file
from apex_creds.keys.provider import decode_key, encode_key, wipe
from apex_creds.model import SystemClock
from apex_creds.vault import Vault

_LONGEST: Final = 16 << 20

FileArgument = Annotated[
    Path, typer.Argument(metavar="FILE", help="A file; - is standard input.")
]


def prove(
    ctx: typer.Context,
    seq: Annotated[int, typer.Argument(metavar="SEQ", help="The number of an event.")] = 0,
    since: Annotated[
        int, typer.Option("--from", metavar="SIZE", help="Prove that these begin the log.")
    ] = 0,
    check: Annotated[
        Path | None, typer.Option("--check", metavar="FILE", help="Check a proof instead.")
    ] = None,
    key: Annotated[
        list[str] | None,
        typer.Option("--key", metavar="VKEY", help="Trusted keys to check with."),
    ] = None,
    home: HomeOption = None,
    master: MasterOption = None,
) -> None:
    """Print a proof that an event is in the signed log, or check one."""
    if check is not None:
        _check(check, [VerifierKey.parse(text) for text in key or ()])
        return
    directory, vault_id = place(options.settings(ctx, home, master))
    if since:
        hashes, _ = proofs.consistency(directory, vault_id=vault_id, old=since)
        sys.stdout.write("".join(f"{base64_of(each)}\n" for each in hashes))
        return
    sys.stdout.write(proofs.inclusion(directory, vault_id=vault_id, seq=seq))


def _check(file: Path, keys: list[VerifierKey]) -> None:
    proved = proofs.check_inclusion(_text(file), keys=keys)
    output.say(f"Event {proved.seq} is in the log of {proved.checkpoint.size} events:")
    output.say(proved.entry.decode(errors="backslashreplace"))


def checkpoint(
    ctx: typer.Context,
    sign: Annotated[
        bool, typer.Option("--sign", help="Unseal, and sign all events there are now.")
    ] = False,
    key: Annotated[
        bool, typer.Option("--key", help="Print the verifier keys instead.")
    ] = False,
    home: HomeOption = None,
    master: MasterOption = None,
) -> None:
    """Print the newest checkpoint of the audit log, for a witness or to keep."""
    settings = options.settings(ctx, home, master)
    if sign:
        session.with_vault(settings, _nothing)  # closing signs
    directory, vault_id = place(settings)
    if key:
        sys.stdout.write("".join(f"{each}\n" for each in read_keys(directory)))
        return
    newest = CheckpointFile(directory, vault_id=vault_id).last()
    if newest is None:
        raise InvalidInputError("There is no checkpoint yet.", hint="Use --sign.")
    sys.stdout.write(str(newest))


async def _nothing(_: Vault) -> None:
    return


def cosign(
    ctx: typer.Context,
    file: FileArgument,
    add: Annotated[
        bool, typer.Option("--add", help="Add a witness's signatures to this log.")
    ] = False,
    witness: Annotated[
        str, typer.Option("--witness", metavar="VKEY", help="With --add: the witness's key.")
    ] = "",
    name: Annotated[
        str, typer.Option("--name", help="As a witness: your name, like example.com/w1.")
    ] = "",
    key_file: Annotated[
        Path | None,
        typer.Option("--key-file", help="As a witness: your key; made when absent."),
    ] = None,
    log: Annotated[
        str, typer.Option("--log", metavar="VKEY", help="As a witness: the log's key.")
    ] = "",
    seen: Annotated[
        Path | None,
        typer.Option("--seen", help="As a witness: the last checkpoint you signed; kept here."),
    ] = None,
    proof: Annotated[
        Path | None,
        typer.Option("--proof", help="As a witness: from `audit prove --from SIZE`."),
    ] = None,
    home: HomeOption = None,
    master: MasterOption = None,
) -> None:
    """Sign a checkpoint as a witness, or add what a witness signed to the log."""
    offered = Checkpoint.parse(_text(file))
    if add:
        _add(options.settings(ctx, home, master), offered, witness)
        return
    if not (name and key_file and log and seen):
        raise InvalidInputError(
            "A witness needs --name, --key-file, --log and --seen.",
            hint="Or use --add and --witness, to add its signature to the log.",
        )
    offered.note.check(VerifierKey.parse(log))
    _refuse_inconsistent(offered, seen, proof)
    with _key(key_file) as key:
        at = int(SystemClock().time())
        made = notes.cosign(offered.note, name=name, key=key, time=at)
        vkey = VerifierKey(name, key.public, notes.Algorithm.COSIGNATURE)
    with translated(seen, writing=True):
        replace_file(seen, [str(offered).encode()])
    output.note(f"Your verifier key: {vkey}")
    sys.stdout.write(str(offered.note.with_signatures([made])))


def _refuse_inconsistent(offered: Checkpoint, seen: Path, proof: Path | None) -> None:
    if not seen.exists():
        return
    old = Checkpoint.parse(_bytes(seen), origin=offered.origin)
    lines = _text(proof).splitlines() if proof is not None else []
    proofs.check_consistency(old, offered, [bytes_of(each) for each in lines])


def _add(settings: options.Settings, offered: Checkpoint, witness: str) -> None:
    directory, vault_id = place(settings)
    own, *others = read_keys(directory)
    key = VerifierKey.parse(witness)
    known = CheckpointFile(directory, vault_id=vault_id).all()
    if offered.size not in {each.size for each in known if each.root == offered.root}:
        raise InvalidInputError("That is no checkpoint of this log.", hint="Check --home.")
    check_signatures(offered, (own, *others))
    offered.note.check(key)
    ensure_keys(directory, own, key)
    CheckpointFile(directory, vault_id=vault_id, name=COSIGNED).add(offered)
    output.say(f"Added the signature of {key.name} for {offered.size} events.")


def accept_rollback(
    ctx: typer.Context,
    reason: ReasonOption = "",
    home: HomeOption = None,
    master: MasterOption = None,
) -> None:
    """After a restore on purpose: accept that the vault is older than its anchor says."""
    reason = prompts.read_reason(reason)
    settings = options.settings(ctx, home, master)
    provider = session.find_provider(settings)

    async def accept() -> int:
        async with await Vault.unseal(
            settings.home, master=provider, accept_rollback=reason
        ) as vault:
            return vault.audit.seq

    count = anyio.run(accept)
    output.say(f"Accepted and recorded. The log has {count} events.")


def _key(file: Path) -> SigningKey:
    if not file.exists():
        with SecretBytes.random(32) as seed:
            text = encode_key(seed)
            with translated(file, writing=True):
                create_exclusive(file, [text, b"\n"])
            wipe(text)
    found = decode_key(_bytes(file).strip())
    if found is None:
        raise InvalidInputError("The key file holds no key.", hint="Name one to be made.")
    with found:
        return SigningKey.from_seed(found)


def _text(file: Path) -> str:
    try:
        return sys.stdin.read() if str(file) == "-" else _bytes(file).decode()
    except UnicodeDecodeError:
        raise InvalidInputError("The file can't be read.", hint="Check its name.") from None


def _bytes(file: Path) -> bytes:
    with translated(file):
        return read_small(file, limit=_LONGEST, follow=True)
