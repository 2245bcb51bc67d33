"""Proofs that an event is in the log, or that the log continues an earlier one, as text.

Guarantee: an inclusion proof is a c2sp.org/tlog-proof with the event as its extra data, so
that it can be checked with the log's verifier key and nothing else; what ``check_inclusion``
returns is an event that the signed log holds.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from apex_creds.audit import line, tree
from apex_creds.audit.checkpoint import Checkpoint, CheckpointFile
from apex_creds.audit.events import AuditEvent
from apex_creds.audit.nodes import Subtrees
from apex_creds.audit.note import VerifierKey, base64_of, bytes_of
from apex_creds.audit.verify import entries
from apex_creds.errors import (
    ApexCredsError,
    AuditTamperedError,
    IntegrityError,
    InvalidInputError,
)

__all__ = ["Proved", "check_consistency", "check_inclusion", "consistency", "inclusion"]

_FIRST: Final = "c2sp.org/tlog-proof@v1"
_INDEX: Final = re.compile(r"index (0|[1-9][0-9]{0,18})")


class Proved(NamedTuple):
    """What an inclusion proof shows: the event's number, its entry, and the checkpoint."""

    seq: int
    entry: bytes
    checkpoint: Checkpoint

    @property
    def event(self) -> AuditEvent:
        """The event.

        Raises:
            IntegrityError: The entry is of a version that this program does not know.
        """
        try:
            fields = msgspec.json.decode(self.entry, type=dict[str, object])
            return msgspec.convert(
                {k: v for k, v in fields.items() if k not in _OWN}, AuditEvent
            )
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            raise IntegrityError(
                "The proved entry is no event known here.", hint="Upgrade."
            ) from None


_OWN: Final = ("v", "seq")


def inclusion(directory: Path, *, vault_id: str, seq: int) -> str:
    """Returns the proof that event ``seq`` is in the log that was signed last.

    Raises:
        InvalidInputError: No checkpoint covers that event.
        AuditTamperedError: The log does not verify so far.
    """
    newest = _newest(directory, vault_id)
    if not 1 <= seq <= newest.size:
        raise InvalidInputError(
            f"The newest checkpoint covers the events 1 to {newest.size}.",
            hint="Sign the later ones first: apex-creds audit checkpoint --sign.",
        )
    kept = Subtrees(directory, vault_id=vault_id)
    entry = line.entry_of(kept.line(seq))
    leaf = (seq - 1, seq)
    *hashes, proved = _roots(
        kept, directory, vault_id, newest, [*tree.inclusion_ranges(seq - 1, newest.size), leaf]
    )
    if tree.leaf_hash(entry) != proved:
        raise _unlike(newest)
    proof = "".join(f"{base64_of(each)}\n" for each in hashes)
    return f"{_FIRST}\nextra {base64_of(entry)}\nindex {seq - 1}\n{proof}\n{newest}"


def check_inclusion(text: str, *, keys: Sequence[VerifierKey]) -> Proved:
    """Returns what a proof shows where ``keys`` are trusted.

    Raises:
        InvalidInputError: There is no key to trust.
        IntegrityError: It is malformed, not signed by every one of them, or shows nothing.
    """
    if not keys:
        raise InvalidInputError(
            "A proof shows nothing without a key.", hint="Give the log's with --key."
        )
    head, _, rest = text.partition("\n\n")
    first, extra, index, *hashes = [*head.split("\n"), *[""] * max(0, 2 - head.count("\n"))]
    entry = bytes_of(extra.removeprefix("extra "))
    if first != _FIRST or not entry or _INDEX.fullmatch(index) is None:
        raise IntegrityError("That is not a proof of an event.", hint="Give the whole file.")
    number = int(index.removeprefix("index "))
    checkpoint = Checkpoint.parse(rest)
    for key in keys:
        checkpoint.note.check(key)
    tree.verify_inclusion(
        tree.leaf_hash(entry),
        index=number,
        size=checkpoint.size,
        proof=[bytes_of(each) for each in hashes],
        root=checkpoint.root,
    )
    return Proved(number + 1, entry, checkpoint)


def consistency(directory: Path, *, vault_id: str, old: int) -> tuple[list[bytes], Checkpoint]:
    """Returns the proof that the log's first ``old`` events begin the newest checkpoint's.

    Raises:
        InvalidInputError: It has fewer.
        AuditTamperedError: The log does not verify so far.
    """
    newest = _newest(directory, vault_id)
    ranges = tree.consistency_ranges(old, newest.size)
    # Together with the old tree, where it is a part by itself, they make up the new one.
    more = [] if any(start == 0 for start, _ in ranges) else [(0, old)]
    kept = Subtrees(directory, vault_id=vault_id)
    return _roots(kept, directory, vault_id, newest, [*ranges, *more])[: len(ranges)], newest


def _roots(
    kept: Subtrees,
    directory: Path,
    vault_id: str,
    newest: Checkpoint,
    ranges: Sequence[tuple[int, int]],
) -> list[bytes]:
    """The roots of ranges that make up a checkpoint's tree, and have its root."""
    with suppress(ApexCredsError):
        roots = [kept.root(*each) for each in ranges]
        if tree.join(dict(zip(ranges, roots, strict=True)), newest.size) == newest.root:
            kept.discard()
            return roots
    # What is kept beside the segments was wrong, or the log is: that needs all of it.
    texts = (text for _, text in entries(directory, vault_id=vault_id))
    try:
        roots = tree.hashes_of(ranges, map(line.leaf_of, texts))
    except InvalidInputError:
        raise _unlike(newest) from None
    if tree.join(dict(zip(ranges, roots, strict=True)), newest.size) != newest.root:
        raise _unlike(newest)
    kept.discard(used=True)
    return roots


def _unlike(newest: Checkpoint) -> AuditTamperedError:
    return AuditTamperedError(
        f"The log's first {newest.size} events are not those signed.",
        hint="Run: apex-creds audit verify. It says where.",
    )


def check_consistency(old: Checkpoint, new: Checkpoint, proof: Sequence[bytes]) -> None:
    """Returns if ``proof`` shows that ``old`` begins ``new``.

    Raises:
        IntegrityError: It does not, or they are of two logs.
    """
    if old.origin != new.origin:
        raise IntegrityError("The checkpoints are of two logs.", hint="Compare their origins.")
    if old.size:
        tree.verify_consistency(
            old=old.size, new=new.size, proof=proof, old_root=old.root, new_root=new.root
        )


def _newest(directory: Path, vault_id: str) -> Checkpoint:
    newest = CheckpointFile(directory, vault_id=vault_id).last()
    if newest is None:
        raise InvalidInputError(
            "The log has no checkpoint yet.", hint="apex-creds audit checkpoint --sign"
        )
    return newest
