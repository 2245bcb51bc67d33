"""``audit``: the log read, checked, exported and proved; most of it without any key.

Guarantee: every event that is shown was checked before. A copy of this home's log, in the
database that several share, is bad if it is not the beginning of that log itself.
"""

from __future__ import annotations

import csv
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Annotated, Final, TypeAlias

import anyio.lowlevel
import msgspec
import typer

from apex_creds.audit import Recorded, proofs, read
from apex_creds.audit import Report as LogReport
from apex_creds.audit import note as notes
from apex_creds.audit.checkpoint import (
    COSIGNED,
    Checkpoint,
    CheckpointFile,
    check_signatures,
    ensure_keys,
    read_keys,
)
from apex_creds.audit.events import AuditEvent, EventKind
from apex_creds.audit.line import shown_label
from apex_creds.audit.note import VerifierKey, base64_of, bytes_of
from apex_creds.audit.verify import check_now, latest
from apex_creds.auth.enrolment import Factors
from apex_creds.cli import console
from apex_creds.cli.command import (
    JsonOption,
    ReasonOption,
    Settings,
    command,
    find_provider,
    group,
    master_uri,
    name_of,
    read_header,
    with_vault,
)
from apex_creds.cli.console import Cell, Json, Line, Part, Report, Text, done
from apex_creds.cli.program import argument, flag, option
from apex_creds.crypto.memory import SecretBytes
from apex_creds.crypto.public_key import SigningKey
from apex_creds.errors import (
    AuditTamperedError,
    InvalidInputError,
    NotFoundError,
    UnsafePathError,
)
from apex_creds.fs.home import audit_directory
from apex_creds.fs.private_files import create_exclusive, read_small, replace_file, translated
from apex_creds.keys.head_anchor import AnchorFile, state_folder
from apex_creds.keys.provider import decode_key, encode_key, wipe
from apex_creds.model import SystemClock
from apex_creds.policy.display import parse_past_time, show_time
from apex_creds.vault import Vault
from apex_creds.vault.audit_setup import Pseudonyms, root_key
from apex_creds.vault.config import node_of
from apex_creds.vault.log_replication import copies, verify_copy

_FIELDS: Final = ("seq", *AuditEvent.__struct_fields__, "hash")
_COLUMNS: Final = ("#", "time", "event", "plugin", "credential", "what", "result")
_NUMBER: Final = re.compile(r"[0-9]{1,18}", re.ASCII)
_POLL: Final = 0.3
_LONGEST_CHECKPOINT: Final = 1 << 20
_LONGEST_PROOF: Final = 16 << 20

Naming: TypeAlias = Callable[[Recorded], Recorded]
"""Gives events the names that their pseudonyms stand for, or leaves them as they are."""

NamesOption = Annotated[bool, flag("Pseudonyms as names; needs the master key.", "--names")]

audit = group("Read, check and prove the audit log.")


def _log_of(chosen: Settings) -> tuple[Path, str]:
    """The log's directory, and the id that is in it."""
    home = chosen.folder
    return audit_directory(home), node_of(home) or read_header(chosen).vault_id


# -- verify --------------------------------------------------------------------------------


@audit.command("verify")
@command()
def verify(
    chosen: Settings,
    incremental: Annotated[
        bool, flag("Only what is new since the last time.", "--incremental")
    ] = False,
    since: Annotated[
        Path | None,
        option("FILE", "A checkpoint that you kept.", "--since"),
    ] = None,
    key: Annotated[
        list[VerifierKey] | None,
        option(
            "VKEY", "The log's verifier key, as you know it.", "--key", parser=VerifierKey.parse
        ),
    ] = None,
    every: Annotated[
        bool,
        flag("The copies of every home's log in the shared database.", "--all"),
    ] = False,
) -> Report:
    """Check every event and checkpoint of the audit log; says which one fails and how."""
    if every:
        return _verify_copies(chosen)
    directory, vault_id = _log_of(chosen)
    last_verified = AnchorFile(state_folder() / "verified" / vault_id)
    known = None if since is None else _kept_checkpoint(since)
    if known is not None and key:
        known.note.check(key[0])
    if incremental and known is None:
        text = last_verified.read()
        known = None if text is None else Checkpoint.parse(text)
    with console.bars(transient=True) as update:
        report = check_now(
            directory,
            vault_id=vault_id,
            keys=key or (),
            since=known,
            progress=partial(update, "audit log"),
        )
    data = {"ok": report.ok, **msgspec.to_builtins(report)}
    if not report.ok:
        hint = f"The {report.count} events before it verify. Keep a copy of the log."
        return Report(data, error=AuditTamperedError(report.wrong, hint=hint))
    if incremental:
        newest = CheckpointFile(directory, vault_id=vault_id).last()
        if newest is not None:
            last_verified.write_or_refuse(str(newest))
    return Report(
        data,
        Line(f"{report.count} events, unbroken.", "green"),
        f"{report.signed} signed, by {report.checkpoints} checkpoints",
        f"head {report.head}",
    )


def _kept_checkpoint(path: Path) -> Checkpoint:
    try:
        return Checkpoint.parse(read_small(path, limit=_LONGEST_CHECKPOINT, follow=True))
    except OSError as error:
        reason = error.strerror
    except UnsafePathError as error:
        reason = error.message
    raise InvalidInputError(
        f"{path} can't be read ({reason}).", hint="Name the file of a checkpoint you kept."
    )


def _verify_copies(chosen: Settings) -> Report:
    """Checks the copy of each home's log in the shared database, as far as it has come."""
    home = chosen.folder
    own, log = node_of(home), audit_directory(home)

    async def work(vault: Vault) -> dict[str, LogReport]:
        several = vault.store.shared
        if several is None:
            raise InvalidInputError(
                "This vault is in the files of one home.", hint="Leave out --all."
            )
        keystore = vault.store.unsealed()
        return {
            node: await verify_copy(several, keystore, node, log=log if node == own else None)
            for node in await copies(several)
        }

    reports = with_vault(chosen, work)
    bad = [node for node, report in reports.items() if not report.ok]
    parts: list[Part] = []
    for node, report in reports.items():
        mine = " (this home)" if node == own else ""
        state = f"{report.count} events, {report.signed} signed" if report.ok else "bad"
        parts.append(Line(f"{node}{mine}: {state}", "green" if report.ok else "red"))
    error = None
    if bad:
        found = reports[bad[0]]
        error = AuditTamperedError(
            f"Event {found.bad_line} in the copy of the log of home {bad[0]} {found.how}.",
            hint="Keep a copy of the database, and compare with that home's own log.",
        )
    homes = {node: msgspec.to_builtins(report) for node, report in reports.items()}
    return Report({"ok": not bad, "homes": homes}, *parts, error=error)


# -- events --------------------------------------------------------------------------------


@audit.command("tail")
@command()
def tail(
    chosen: Settings,
    count: Annotated[
        int, typer.Option("--count", "-n", min=1, max=100_000, help="How many events.")
    ] = 20,
    follow: Annotated[
        bool, flag("Go on with what is written from now on.", "--follow", "-f")
    ] = False,
    kind: Annotated[list[str] | None, typer.Option("--kind", help="Only these.")] = None,
    plugin: Annotated[str, typer.Option("--plugin", help="Only of this plugin.")] = "",
    credential: Annotated[
        str, typer.Option("--credential", help="Only of this credential.")
    ] = "",
    whose: Annotated[
        str | None,
        option(
            "WHO",
            "Only what was done for this principal, or to a credential of theirs.",
            "--for",
            parser=name_of("principal"),
        ),
    ] = None,
    names: NamesOption = False,
    json: JsonOption = False,
) -> None:
    """Print the last events of the audit log, each checked."""
    directory, vault_id = _log_of(chosen)
    named = _naming(chosen, names)

    def wanted(event: Recorded) -> bool:
        return (
            (not kind or event.kind in kind)
            and (not plugin or event.plugin == plugin)
            and (not credential or event.credential == credential)
            and whose in (None, event.principal)
        )

    events = latest(directory, vault_id=vault_id)
    newest = list(islice(events, 1))
    found = filter(wanted, map(named, chain(newest, events)))
    if json:
        console.json_out([_as_json(each) for each in reversed(list(islice(found, count)))])
    else:
        openings = _Openings()
        shown = found if kind else openings.without(found)
        _print(list(reversed(list(islice(shown, count)))), json=False)
        if said := openings.said():
            console.note(said)
    after = newest[0].seq if newest else 0
    while follow:
        for event in read(directory, vault_id=vault_id, after=after):
            after = event.seq
            if not wanted(named(event)):
                continue
            if json:
                console.json_line(_as_json(named(event)))
                sys.stdout.flush()
            else:
                _print([named(event)], json=False)
        time.sleep(_POLL)


@audit.command("show")
@command()
def show(
    chosen: Settings,
    lease: Annotated[str, argument("LEASE", "A lease, or its beginning.")],
    names: NamesOption = False,
    json: JsonOption = False,
) -> None:
    """Print the whole story of the invocation that a lease belongs to."""
    directory, vault_id = _log_of(chosen)
    named = _naming(chosen, names)
    events = [named(each) for each in read(directory, vault_id=vault_id)]
    ids = {e.lease for e in events if lease and e.lease.startswith(lease)}
    if len(ids) > 1:
        raise InvalidInputError("Several leases begin so.", hint="Give more of it.")
    size = -1
    while size != len(ids):  # until no event adds a lease or an invocation
        size = len(ids)
        for event in events:
            own = {event.lease, event.invocation} - {""}
            if own & ids:
                ids |= own
    story = [e for e in events if ({e.lease, e.invocation, e.parent} - {""}) & ids]
    if not story:
        raise NotFoundError(
            "The audit log has no such lease.", hint="See: apex-creds audit tail --json"
        )
    _print(story, json=json)


class _Openings:
    """Leaves out events that say no more than that the vault was opened; counts them.

    Every command opens it: they would be half of what a day's log shows.
    """

    def __init__(self) -> None:
        self.count = 0
        self.newest = self.oldest = 0.0

    def without(self, events: Iterable[Recorded]) -> Iterator[Recorded]:
        """Those that say more; ``events`` are from the newest on."""
        for event in events:
            if event.kind != EventKind.UNSEAL or event.detail:
                yield event
                continue
            self.count += 1
            self.newest = self.newest or event.time
            self.oldest = event.time

    def said(self) -> str:
        """How many there were, and when."""
        if not self.count:
            return ""
        first, last = show_time(self.oldest), show_time(self.newest)
        when = f"at {last}" if self.count == 1 else f"{self.count} times, {first} to {last}"
        return f"Not shown: the vault was opened {when}. See: --kind unseal"


def _print(events: Sequence[Recorded], *, json: bool) -> None:
    if json:
        console.json_out([_as_json(event) for event in events])
        return
    rows: list[tuple[object, ...]] = []
    for event in events:
        what = " ".join(filter(None, (event.action, event.method, event.origin + event.path)))
        outcome = (event.decision, event.rule, event.reason, event.outcome)
        result = " ".join(filter(None, outcome)) or event.detail
        red = event.decision == "deny" or event.kind in ("leak", "denial")
        kind = Cell(event.kind, "red" if red else "")
        about = event.principal and (event.plugin or event.credential)
        whom = f" (for {event.principal})" if about else ""
        names = (event.plugin or "-", f"{event.credential or '-'}{whom}")
        rows.append((event.seq, show_time(event.time), kind, *names, what, result))
    console.table(_COLUMNS, rows)


def _as_json(event: Recorded) -> dict[str, Json]:
    """An event as the log has it, with its time as all commands print times."""
    fields: dict[str, Json] = msgspec.to_builtins(event)
    return fields | {"time": show_time(event.time, finely=True)}


@audit.command("export")
@command()
def export(
    chosen: Settings,
    since: Annotated[
        str,
        option("WHEN", "A date, or the number of an event.", "--since"),
    ] = "",
    form: Annotated[str, option("jsonl|csv", "What to write.", "--format")] = "jsonl",
    names: NamesOption = False,
) -> None:
    """Write events to standard output, each checked."""
    if form not in ("jsonl", "csv"):
        raise InvalidInputError("There is no such format.", hint="Use jsonl or csv.")
    directory, vault_id = _log_of(chosen)
    named = _naming(chosen, names)
    numbered = _NUMBER.fullmatch(since) is not None
    after = max(int(since) - 1, 0) if numbered else 0
    start = parse_past_time(since, now=time.time()) if since and not numbered else 0.0
    wanted = map(named, read(directory, vault_id=vault_id, after=after, since=start))
    if form == "jsonl":
        for event in wanted:
            console.json_line(_as_json(event))
        return

    def cell(value: object) -> object:
        if not isinstance(value, str):
            return value
        # A spreadsheet takes text that begins like this for a formula.
        risky = value[:1] in ("=", "+", "-", "@", "\t", "\r")
        return f"'{console.safe(value)}" if risky else console.safe(value)

    writer = csv.writer(sys.stdout)
    writer.writerow(_FIELDS)
    for event in wanted:
        values = msgspec.structs.asdict(event) | {"time": show_time(event.time, finely=True)}
        writer.writerow(cell(values[name]) for name in _FIELDS)


def _naming(chosen: Settings, names: bool) -> Naming:
    """What gives events the names behind their pseudonyms, as far as the vault has them."""
    if not names:
        return lambda event: event

    async def work(vault: Vault) -> dict[str, str]:
        infos = await vault.list()
        names = {info.name for info in infos} | {info.service for info in infos}
        names |= {info.principal for info in infos if info.principal}
        names |= {grant.credential for grant in await vault.grants()}
        names |= {factor.principal for factor in await Factors(vault).listed()}
        pseudonym = Pseudonyms(root_key(vault.store.unsealed()))
        try:
            return {pseudonym(name): name for name in sorted(names)}
        finally:
            pseudonym.close()

    known = with_vault(chosen, work)

    def named(event: Recorded) -> Recorded:
        changes = {
            field: known[value]
            for field in ("credential", "principal")
            if (value := getattr(event, field)) in known
        }
        if event.kind is EventKind.ROTATION:
            changes["detail"] = shown_label(event.detail, lambda name: known.get(name, name))
        return msgspec.structs.replace(event, **changes) if changes else event

    return named


# -- what is signed ------------------------------------------------------------------------


@audit.command("prove")
@command()
def prove(
    chosen: Settings,
    seq: Annotated[int, argument("SEQ", "The number of an event.")] = 0,
    since: Annotated[int, option("SIZE", "Prove that these begin the log.", "--from")] = 0,
    check: Annotated[Path | None, option("FILE", "Check a proof instead.", "--check")] = None,
    key: Annotated[
        list[VerifierKey] | None,
        option("VKEY", "Trusted keys to check with.", "--key", parser=VerifierKey.parse),
    ] = None,
) -> Text | None:
    """Print a proof that an event is in the signed log, or check one."""
    if check is not None:
        proved = proofs.check_inclusion(_text(check), keys=key or ())
        return Text(
            f"Event {proved.seq} is in the log of {proved.checkpoint.size} events:",
            proved.entry.decode(errors="backslashreplace"),
        )
    directory, vault_id = _log_of(chosen)
    if since:
        hashes, _ = proofs.consistency(directory, vault_id=vault_id, old=since)
        sys.stdout.write("".join(f"{base64_of(each)}\n" for each in hashes))
    else:
        sys.stdout.write(proofs.inclusion(directory, vault_id=vault_id, seq=seq))
    return None


@audit.command("checkpoint")
@command()
def checkpoint(
    chosen: Settings,
    sign: Annotated[bool, flag("Unseal, and sign all events there are now.", "--sign")] = False,
    key: Annotated[bool, flag("Print the verifier keys instead.", "--key")] = False,
) -> None:
    """Print the newest checkpoint of the audit log, for a witness or to keep."""
    if sign:
        with_vault(chosen, lambda _: anyio.lowlevel.checkpoint())  # closing signs
    directory, vault_id = _log_of(chosen)
    if key:
        sys.stdout.write("".join(f"{each}\n" for each in read_keys(directory)))
        return
    newest = CheckpointFile(directory, vault_id=vault_id).last()
    if newest is None:
        raise InvalidInputError("There is no checkpoint yet.", hint="Use --sign.")
    sys.stdout.write(str(newest))


@audit.command("cosign")
@command()
def cosign(
    chosen: Settings,
    file: Annotated[Path, argument("FILE", "A file; - is standard input.")],
    add: Annotated[bool, flag("Add a witness's signatures to this log.", "--add")] = False,
    witness: Annotated[str, option("VKEY", "With --add: the witness's key.", "--witness")] = "",
    name: Annotated[
        str, typer.Option("--name", help="As a witness: your name, like example.com/w1.")
    ] = "",
    key_file: Annotated[
        Path | None,
        typer.Option("--key-file", help="As a witness: your key; made when absent."),
    ] = None,
    log: Annotated[str, option("VKEY", "As a witness: the log's key.", "--log")] = "",
    seen: Annotated[
        Path | None,
        typer.Option("--seen", help="As a witness: the last checkpoint you signed; kept here."),
    ] = None,
    proof: Annotated[
        Path | None,
        typer.Option("--proof", help="As a witness: from `audit prove --from SIZE`."),
    ] = None,
) -> Text | None:
    """Sign a checkpoint as a witness, or add what a witness signed to the log."""
    offered = Checkpoint.parse(_text(file))
    if add:
        return _add_signature(chosen, offered, witness)
    if not (name and key_file and log and seen):
        raise InvalidInputError(
            "A witness needs --name, --key-file, --log and --seen.",
            hint="Or use --add and --witness, to add its signature to the log.",
        )
    offered.note.check(VerifierKey.parse(log))
    if seen.exists():
        old = Checkpoint.parse(_bytes(seen), origin=offered.origin)
        lines = _text(proof).splitlines() if proof is not None else []
        proofs.check_consistency(old, offered, [bytes_of(each) for each in lines])
    with _witness_key(key_file) as key:
        at = int(SystemClock().time())
        made = notes.cosign(offered.note, name=name, key=key, time=at)
        vkey = VerifierKey(name, key.public, notes.Algorithm.COSIGNATURE)
    with translated(seen, writing=True):
        replace_file(seen, [str(offered).encode()])
    console.note(f"Your verifier key: {vkey}")
    sys.stdout.write(str(offered.note.with_signatures([made])))
    return None


def _add_signature(chosen: Settings, offered: Checkpoint, witness: str) -> Text:
    directory, vault_id = _log_of(chosen)
    own, *others = read_keys(directory)
    key = VerifierKey.parse(witness)
    known = CheckpointFile(directory, vault_id=vault_id).all()
    if offered.size not in {each.size for each in known if each.root == offered.root}:
        raise InvalidInputError("That is no checkpoint of this log.", hint="Check --home.")
    check_signatures(offered, (own, *others))
    offered.note.check(key)
    ensure_keys(directory, own, key)
    CheckpointFile(directory, vault_id=vault_id, name=COSIGNED).add(offered)
    return Text(f"Added the signature of {key.name} for {offered.size} events.")


def _witness_key(file: Path) -> SigningKey:
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
        return read_small(file, limit=_LONGEST_PROOF, follow=True)


@audit.command("accept-rollback")
@command()
def accept_rollback(chosen: Settings, reason: ReasonOption = "") -> Report:
    """After a restore on purpose: accept that the vault is older than its anchor says."""
    reason = console.read_reason(reason)
    provider = find_provider(master_uri(chosen, read_header(chosen)))

    async def accept() -> int:
        opened = await Vault.unseal(chosen.home, master=provider, accept_rollback=reason)
        async with opened as vault:
            return vault.audit.seq

    count = anyio.run(accept)
    return done({"events": count}, f"Accepted and recorded. The log has {count} events.")
