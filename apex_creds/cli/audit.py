"""``audit verify``, ``tail``, ``show``, ``export``: the log, without any key."""

from __future__ import annotations

import csv
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Annotated, Final

import msgspec
import typer

from apex_creds.audit import Recorded, read
from apex_creds.audit.checkpoint import Checkpoint, CheckpointFile
from apex_creds.audit.events import AuditEvent, EventKind
from apex_creds.audit.note import VerifierKey
from apex_creds.audit.text import shown_label
from apex_creds.audit.verify import check_now, latest
from apex_creds.cli import audit_copies, options, output, session, when
from apex_creds.cli.options import HomeOption, JsonOption, MasterOption
from apex_creds.errors import AuditTamperedError, InvalidInputError, UnsafePathError
from apex_creds.fs.home import audit_directory
from apex_creds.fs.private_files import read_small
from apex_creds.keys.head_anchor import AnchorFile, state_folder
from apex_creds.vault import Vault
from apex_creds.vault.auditing import Pseudonyms, root_key
from apex_creds.vault.factors import Factors
from apex_creds.vault.node import node_of

_FIELDS: Final = ("seq", *AuditEvent.__struct_fields__, "hash")
_NUMBER: Final = re.compile(r"[0-9]{1,18}", re.ASCII)
_POLL: Final = 0.3
_LONGEST: Final = 1 << 20

SinceOption = Annotated[
    str, typer.Option("--since", metavar="WHEN", help="A date, or the number of an event.")
]
NamesOption = Annotated[
    bool, typer.Option("--names", help="Pseudonyms as names; needs the master key.")
]


def verify(
    ctx: typer.Context,
    incremental: Annotated[
        bool, typer.Option("--incremental", help="Only what is new since the last time.")
    ] = False,
    since: Annotated[
        Path | None,
        typer.Option("--since", metavar="FILE", help="A checkpoint that you kept."),
    ] = None,
    key: Annotated[
        list[str] | None,
        typer.Option("--key", metavar="VKEY", help="The log's verifier key, as you know it."),
    ] = None,
    every: Annotated[
        bool,
        typer.Option("--all", help="The copies of every home's log in the shared database."),
    ] = False,
    json: JsonOption = False,
    home: HomeOption = None,
    master: MasterOption = None,
) -> None:
    """Check every event and checkpoint of the audit log; says which one fails and how."""
    settings = options.settings(ctx, home, master)
    if every:
        audit_copies.verify_all(settings, json=json)
        return
    directory, vault_id = place(settings)
    keys = [VerifierKey.parse(text) for text in key or ()]
    known = None if since is None else _kept(since)
    if known is not None and keys:
        known.note.check(keys[0])
    if incremental and known is None:
        known = _last_verified(vault_id)
    with output.bars(transient=True) as bar:
        report = check_now(
            directory,
            vault_id=vault_id,
            keys=keys,
            since=known,
            progress=partial(bar, "audit log"),
        )
    if json:
        output.json_out({"ok": report.ok, **msgspec.to_builtins(report)})
    if not report.ok:
        raise AuditTamperedError(
            report.wrong,
            hint=f"The {report.count} events before it verify. Keep a copy of the log.",
        )
    if incremental:
        _remember(directory, vault_id)
    if not json:
        output.say(f"{report.count} events, unbroken.", style="green")
        output.say(f"{report.signed} signed, by {report.checkpoints} checkpoints")
        output.say(f"head {report.head}")


def tail(
    ctx: typer.Context,
    count: Annotated[
        int, typer.Option("--count", "-n", min=1, max=100_000, help="How many events.")
    ] = 20,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with what is written from now on.")
    ] = False,
    kind: Annotated[list[str] | None, typer.Option("--kind", help="Only these.")] = None,
    plugin: Annotated[str, typer.Option("--plugin", help="Only of this plugin.")] = "",
    credential: Annotated[
        str, typer.Option("--credential", help="Only of this credential.")
    ] = "",
    names: NamesOption = False,
    json: JsonOption = False,
    home: HomeOption = None,
    master: MasterOption = None,
) -> None:
    """Print the last events of the audit log, each checked."""
    settings = options.settings(ctx, home, master)
    directory, vault_id = place(settings)
    named = _namer(settings) if names else _same
    wanted = _filter(kind, plugin, credential)
    events = latest(directory, vault_id=vault_id)
    newest = list(islice(events, 1))
    last = list(islice(filter(wanted, map(named, chain(newest, events))), count))
    _print(reversed(last), json=json)
    if follow:
        after = newest[0].seq if newest else 0
        _follow(directory, vault_id, after, lambda each: wanted(named(each)), named, json=json)


def show(
    ctx: typer.Context,
    lease: Annotated[str, typer.Argument(metavar="LEASE", help="A lease, or its beginning.")],
    names: NamesOption = False,
    json: JsonOption = False,
    home: HomeOption = None,
    master: MasterOption = None,
) -> None:
    """Print the whole story of the invocation that a lease belongs to."""
    settings = options.settings(ctx, home, master)
    directory, vault_id = place(settings)
    named = _namer(settings) if names else _same
    events = [named(each) for each in read(directory, vault_id=vault_id)]
    story = _story(events, lease)
    if not story:
        raise InvalidInputError(
            "The audit log has no such lease.", hint="See: apex-creds audit tail --json"
        )
    _print(story, json=json)


def export(
    ctx: typer.Context,
    since: SinceOption = "",
    form: Annotated[
        str, typer.Option("--format", metavar="jsonl|csv", help="What to write.")
    ] = "jsonl",
    names: NamesOption = False,
    home: HomeOption = None,
    master: MasterOption = None,
) -> None:
    """Write events to standard output, each checked."""
    if form not in ("jsonl", "csv"):
        raise InvalidInputError("There is no such format.", hint="Use jsonl or csv.")
    settings = options.settings(ctx, home, master)
    directory, vault_id = place(settings)
    named = _namer(settings) if names else _same
    numbered = _NUMBER.fullmatch(since) is not None
    after = int(since) - 1 if numbered else 0
    start = when.parse_past(since, now=time.time()) if since and not numbered else 0.0
    events = (named(e) for e in read(directory, vault_id=vault_id, after=max(after, 0)))
    chosen = (event for event in events if event.time >= start)
    if form == "jsonl":
        for event in chosen:
            output.json_line(msgspec.to_builtins(event))
        return
    writer = csv.writer(sys.stdout)
    writer.writerow(_FIELDS)
    writer.writerows([_cell(getattr(event, name)) for name in _FIELDS] for event in chosen)


def place(chosen: options.Settings) -> tuple[Path, str]:
    """The log's directory, and whose it is."""
    home = session.home_of(chosen)
    whose = node_of(home) or session.read_header(chosen).vault_id
    return audit_directory(home), whose


def _kept(path: Path) -> Checkpoint:
    try:
        return Checkpoint.parse(read_small(path, limit=_LONGEST, follow=True))
    except OSError as error:
        reason = error.strerror
    except UnsafePathError as error:
        reason = error.message
    raise InvalidInputError(
        f"{path} can't be read ({reason}).", hint="Name the file of a checkpoint you kept."
    )


def _cell(value: object) -> object:
    if not isinstance(value, str):
        return value
    # A spreadsheet takes text that begins like this for a formula.
    risky = value[:1] in ("=", "+", "-", "@", "\t", "\r")
    return f"'{output.safe(value)}" if risky else output.safe(value)


def _verified_file(vault_id: str) -> AnchorFile:
    return AnchorFile(state_folder() / "verified" / vault_id)


def _last_verified(vault_id: str) -> Checkpoint | None:
    text = _verified_file(vault_id).read()
    return None if text is None else Checkpoint.parse(text)


def _remember(directory: Path, vault_id: str) -> None:
    newest = CheckpointFile(directory, vault_id=vault_id).last()
    if newest is not None:
        _verified_file(vault_id).write_or_refuse(str(newest))


def _filter(
    kinds: Sequence[str] | None, plugin: str, credential: str
) -> Callable[[Recorded], bool]:
    def wanted(event: Recorded) -> bool:
        return (
            (not kinds or event.kind in kinds)
            and (not plugin or event.plugin == plugin)
            and (not credential or event.credential == credential)
        )

    return wanted


def _follow(
    directory: Path,
    vault_id: str,
    after: int,
    wanted: Callable[[Recorded], bool],
    named: Callable[[Recorded], Recorded],
    *,
    json: bool,
) -> None:
    while True:
        for event in read(directory, vault_id=vault_id, after=after):
            after = event.seq
            if wanted(event):
                _print([named(event)], json=json, lines=True)
        time.sleep(_POLL)


def _story(events: Sequence[Recorded], lease: str) -> list[Recorded]:
    """Every event of the invocations that the lease and its kin belong to."""
    ids = {e.lease for e in events if lease and e.lease.startswith(lease)}
    if len(ids) > 1:
        raise InvalidInputError("Several leases begin so.", hint="Give more of it.")
    size = -1
    while size != len(ids):
        size = len(ids)
        for event in events:
            own = {event.lease, event.invocation} - {""}
            if own & ids:
                ids |= own
    return [e for e in events if ({e.lease, e.invocation, e.parent} - {""}) & ids]


def _print(events: Iterable[Recorded], *, json: bool, lines: bool = False) -> None:
    if json and lines:
        for event in events:
            output.json_line(msgspec.to_builtins(event))
        sys.stdout.flush()
    elif json:
        output.json_out([msgspec.to_builtins(event) for event in events])
    else:
        columns = ("#", "time", "event", "plugin", "credential", "what", "result")
        output.table(columns, map(_row, events))


def _row(event: Recorded) -> tuple[object, ...]:
    what = " ".join(filter(None, (event.action, event.method, event.origin)))
    said = (event.decision, event.rule, event.reason, event.outcome)
    result = " ".join(filter(None, said)) or event.detail
    style = "red" if event.decision == "deny" or event.kind in ("leak", "denial") else ""
    kind = output.cell(event.kind, style=style)
    at = when.show(event.time)
    return event.seq, at, kind, event.plugin or "-", event.credential or "-", what, result


# -- names -------------------------------------------------------------------------------


def _same(event: Recorded) -> Recorded:
    return event


def _namer(settings: options.Settings) -> Callable[[Recorded], Recorded]:
    """Gives events the names that their pseudonyms stand for, as far as they are known."""
    known = dict(session.with_vault(settings, _pseudonyms))

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


async def _pseudonyms(vault: Vault) -> Iterator[tuple[str, str]]:
    """Pairs of pseudonym and name for every name that the vault still has."""
    infos = await vault.list()
    names = {info.name for info in infos} | {info.service for info in infos}
    names |= {grant.credential for grant in await vault.grants()}
    names |= {factor.principal for factor in await Factors(vault).listed()}
    pseudonym = Pseudonyms(root_key(vault.store.unsealed()))
    try:
        return iter([(pseudonym(name), name) for name in sorted(names)])
    finally:
        pseudonym.close()


__all__ = ["export", "place", "show", "tail", "verify"]
