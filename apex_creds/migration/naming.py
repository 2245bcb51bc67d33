"""Which credential an entry becomes, or became already.

Guarantee: pure, and the same for the same source and vault, so that a second run finds what
the first one made. Names are unique in a vault over all kinds, as they were not before: an
API key and a token of one service get two names.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from apex_creds.migration.entries import Entry, alternative_name
from apex_creds.migration.state import Written
from apex_creds.model import CredentialInfo


@dataclass(frozen=True, slots=True)
class Target:
    """An entry and its credential's name.

    Attributes:
        name: Empty where every name that it could have belongs to another kind.
        written: What an earlier run did with it.
        twin: An earlier entry of the source that has the same name and kind.
    """

    entry: Entry
    name: str
    written: Written | None = None
    twin: Entry | None = None


def assign(
    entries: Iterable[Entry],
    infos: Mapping[str, CredentialInfo],
    written: Iterable[Written] = (),
) -> list[Target]:
    """A target for each entry that has a secret.

    Args:
        entries: Of one source.
        infos: The vault's credentials by name.
        written: What earlier runs did with this source.
    """
    earlier = {item.key: item for item in written}
    taken: dict[str, Entry] = {}
    for entry in entries:
        if entry.secret is not None and entry.key in earlier:
            taken.setdefault(earlier[entry.key].name, entry)
    targets = []
    for entry in entries:
        if entry.secret is None:
            continue
        known = earlier.get(entry.key)
        name = known.name if known else _choose(entry, infos, taken)
        first = taken.setdefault(name, entry) if name else entry
        twin = first if first is not entry else None
        targets.append(Target(entry, name, written=known, twin=twin))
    return targets


def _choose(
    entry: Entry, infos: Mapping[str, CredentialInfo], taken: Mapping[str, Entry]
) -> str:
    candidates = (entry.name, alternative_name(entry.name, entry.kind))
    for name in candidates:
        if name in infos and infos[name].kind is entry.kind:
            return name
    for name in candidates:
        other = taken.get(name)
        if name not in infos and (other is None or other.kind is entry.kind):
            return name
    return ""
