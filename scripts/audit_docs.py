"""Writes docs/AUDIT.md from the schema; ``--check`` only says whether it is current."""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path

import msgspec

from apex_creds.audit.events import SCHEMA_VERSION, AuditEvent, EventKind, Recorded
from apex_creds.audit.maintenance import DEFAULT_CADENCE
from apex_creds.vault.config import AuditConfig

PAGE = Path(__file__).resolve().parents[1] / "docs" / "AUDIT.md"

INTRO = f"""\
# The audit log

<!-- Made by scripts/audit_docs.py from the schema; don't edit. -->

Every event is in the log before what it is about happens: before a secret is released,
before a credential changes. The log can be checked by someone who does not trust who
runs the vault: it is a Merkle tree (RFC 9162, section 2.1), whose size and root the vault
signs, as any transparency-log tool can verify.

## Commands

`apex-creds audit …`; each has `-h`.

| to | command |
|---|---|
| check all of it; as an auditor | `verify`; `verify --key VKEY --since CHECKPOINT` |
| read the newest events; go on reading | `tail -n 50`; `tail --follow`, `--plugin`, `--kind` |
| read the story of one invocation | `show LEASE` |
| take it elsewhere | `export --format csv` |
| keep what was signed; and the keys | `checkpoint > CHECKPOINT`; `checkpoint --key` |
| prove an event; check the proof | `prove SEQ > PROOF`; `prove --check PROOF --key VKEY` |
| have a witness sign, too | `cosign` |

With `--json` a time is ISO 8601 in UTC with milliseconds; `export` has the log's own lines, in
which it is Unix seconds.

## Files

All are in `security/audit/`, 0600, and lie there for ever.

| file | what it is |
|---|---|
| `000001.jsonl`, … | the open segment: JSON Lines, appended to |
| `000001.jsonl.gz`, … | sealed segments, read-only, gzip (`zcat` reads them) |
| `000001.nodes`, … | of sealed segments: hashes of the tree, not trusted; a signed summary |
| `open.nodes` | hashes of the tree of the open segment, as of a checkpoint; not trusted |
| `checkpoints` | what the vault signed, oldest first: c2sp.org/tlog-checkpoint |
| `cosigned` | some of them again, with witnesses' signatures |
| `vkeys` | verifier keys: the log's, then its witnesses' |
| `torn-….bin` | the end of a line that a crash cut, kept; the log has an event about it |
| `rolled-back-…` | checkpoints that an accepted rollback set aside |

A segment is sealed at {DEFAULT_CADENCE.segment_bytes >> 20} MiB. A checkpoint is signed
every {DEFAULT_CADENCE.events} events, {DEFAULT_CADENCE.seconds:.0f} seconds after an event
at the latest, and when the vault is closed.

The first line of a segment is `{{"v":1,"segment":N,"vault":…,"first":SEQ,"edge":[…]}}`, where
`edge` has the roots of the perfect subtrees before it, largest first; the last line of a
sealed one is `{{"v":1,"sealed":N,"last":SEQ}}`. Each line between is an event that ends in
`,"hash":"H"}}`. Its *entry* in the tree is the line without that, that is with `}}` alone at
its end, and `H` is the hexadecimal SHA-256 of a zero byte and the entry.

## What is found, and what is not

`apex-creds audit verify` finds any change of any byte of a segment or checkpoint, and lines
that were removed, added, repeated or moved, and says which event. Where someone altered a
line and its hash with it, the place is known up to the two checkpoints around it. Give it
`--key` with the log's verifier key as you got it from the vault's owner: the `vkeys` file is
only as trustworthy as the directory.

- Unsealing (`list`, `set`, a runtime's start) looks at the newest checkpoint alone: that it is
  signed, and no older than the anchored one. An earlier one that was altered is for `audit
  verify`, and the worker's.
- A log cut at its end together with its checkpoints, or an older copy of the whole
  directory, verifies by itself: a copy is not wrong, it is old. The vault knows: the newest
  checkpoint and each document's generation are anchored beside the master key, and
  unsealing refuses with what is behind, and by how much. An auditor knows if they kept a
  checkpoint (`audit checkpoint`, then `audit verify --since FILE`), as does a witness.
- Events after the newest checkpoint are not signed yet: at most the {DEFAULT_CADENCE.events}
  events or {DEFAULT_CADENCE.seconds:.0f} seconds above. Anybody who can write the file could
  change or add such events. While nobody has the log open, `verify` fails on them; the next
  unsealing records how many there were.
- The holder of the master key can sign another history. A witness that cosigned, or a
  checkpoint kept elsewhere, shows it.
- What is anchored when: what takes something away, before it is acknowledged (`revoke`, a
  denial, `lockdown` and `unlock`, a code or challenge that was used and each failure, a key
  declared compromised, an alarm, a key or credential destroyed, a credential that may be sent
  to fewer places or otherwise, takes more to be used, or ends sooner); every other commit with
  the next checkpoint, at most {DEFAULT_CADENCE.seconds:.0f} seconds later, and on closing.
  **The window**: a process that is killed within it leaves ordinary writes (a put, a new
  grant, a policy) that an older copy can undo unnoticed, until any process has read the
  document and signed a checkpoint. `checkpoint_seconds` makes it shorter. Where the anchor
  can't be written (a locked keyring, a full disk), the change is in force, a warning is
  logged once, and it is tried again with each checkpoint; until then the window is open.
- Only what was authenticated is anchored: a document that fails its MAC changes nothing.
- The anchor is as strong as its place. `keyring:` keeps it in the keyring. `file:PATH` keeps
  it beside the key, and `passphrase:` in the user's state directory: an attacker who can put
  back an older anchor file with an older copy of the vault is not noticed. A removed anchor is
  recorded at the next unsealing.

After a restore on purpose: `apex-creds audit accept-rollback --reason "…"`. The log records
the reason and what was behind; the anchor begins anew with what is there and authentic. That
also gets out of an anchor that an older program wrote for a forged document. End the vault's
processes before: what one of them has seen is not anchored any more.

## Crashes and full disks

An event that was acknowledged survives a crash of the process. It is on the disk
{AuditConfig().durable_ms} ms later (`durable_ms`; 0 makes each event wait for the disk). A
torn last line is set aside and recorded. While the log can't be written, nothing is released:
`AuditUnavailableError`. The first unsealing after a writer was killed records that it was.

## Proofs and witnesses

`audit prove SEQ` prints a c2sp.org/tlog-proof with the event in it. It reads some lines around
it (of a sealed segment, all) and some hashes from `.nodes` files, however long the log is
(without them it reads more), and prints only what leads to the newest checkpoint's root.
`audit export --since DATE`, and the worker's counts, read no segment of which the vault signed
that nothing in it is for them; believed is the key in `vkeys` alone, for the tree there.
`audit prove --check FILE --key VKEY` checks one with nothing but the key. A witness runs
`audit cosign FILE --name example.com/w1 --key-file KEY --log VKEY --seen FILE --proof FILE`
on what `audit checkpoint` and `audit prove --from SIZE` print: it signs only what goes on
from what it signed before. `audit cosign --add FILE --witness VKEY` adds that to the log.

Lines of unknown keys in a checkpoint are passed over, as c2sp.org/signed-note asks; the log's
own signature must be right, and in `cosigned` one of a known witness, too. A proof without
a key shows nothing and is refused, and so is a number that is not in its one decimal form.
Checkpoints with extension lines are not this log's. `audit tail` leaves out events that say
only that the vault was opened, as every command does, and says how many there were;
`--kind unseal` and `--json` show each. `audit export` writes JSON as ASCII; in
CSV, characters that can't be seen are escapes.

## Configuration

`security/config.json`, for example `{{"audit":{{"pseudonyms":true}}}}`. It holds no secret and
is not authenticated.
"""

PSEUDONYMS = """
With `pseudonyms`, credentials, services and principals are `~` and 32 hexadecimal digits of
HMAC-SHA256 under a key of the vault. `audit tail --names` (and `show`, `export`) map them
back, with the master key, for every name that the vault or a grant still has.
"""


LEAKS = (
    "\nThe `detail` of a `leak` is where the secret was: in a plugin's `result`, `chunk`, "
    "`exception`, `log`, `span` or `name`; or in a `response`, which a service sent and the "
    "plugin got without it. The `detail` of an `unsearched` is the class of an object in a "
    "plugin's output that can't be searched for secrets; its `outcome` is `passed` or "
    "`withheld` (`on_opaque` of the middleware)."
)


def page() -> str:
    """The whole page."""
    return "\n".join(
        (
            INTRO,
            _table("setting", AuditConfig, _defaults(AuditConfig)),
            PSEUDONYMS,
            f"## Events, version {SCHEMA_VERSION}\n",
            "A field that is empty or 0 is left out. There are no other fields.\n",
            _table("field", Recorded, _types(Recorded), only=("v", "seq")),
            _table("", AuditEvent, _types(AuditEvent), head=False),
            _table("", Recorded, _types(Recorded), only=("hash",), head=False),
            LEAKS,
            "\nKinds: " + ", ".join(f"`{kind.value}`" for kind in EventKind) + ".",
            "",
        )
    )


def _table(
    name: str,
    struct: type[msgspec.Struct],
    middle: dict[str, str],
    *,
    only: tuple[str, ...] = (),
    head: bool = True,
) -> str:
    said = _attributes(struct)
    fields = only or tuple(field for field in struct.__struct_fields__ if field in said)
    rows = [f"| `{field}` | {middle[field]} | {said[field]} |" for field in fields]
    return "\n".join(([f"| {name} | | |", "|---|---|---|"] if head else []) + rows)


def _attributes(struct: type[msgspec.Struct]) -> dict[str, str]:
    """What a class says of its attributes."""
    text = inspect.cleandoc(struct.__doc__ or "").partition("Attributes:\n")[2]
    found = re.findall(r"^ {4}(\w+): ((?:.+\n?)(?: {8}.+\n?)*)", text, re.MULTILINE)
    return {name: " ".join(what.replace("``", "`").split()) for name, what in found}


def _types(struct: type[msgspec.Struct]) -> dict[str, str]:
    names = {float: "number", int: "integer", str: "text", EventKind: "kind"}
    hints = {field.name: field.type for field in msgspec.structs.fields(struct)}
    return {name: names.get(hint, "text") for name, hint in hints.items()}


def _defaults(struct: type[msgspec.Struct]) -> dict[str, str]:
    fields = msgspec.structs.fields(struct)
    return {each.name: f"`{msgspec.json.encode(each.default).decode()}`" for each in fields}


def main() -> int:
    """Writes or checks; returns the exit code."""
    if "--check" not in sys.argv:
        PAGE.write_text(page(), encoding="utf-8")
        return 0
    return 0 if PAGE.read_text(encoding="utf-8") == page() else 1


if __name__ == "__main__":
    sys.exit(main())
