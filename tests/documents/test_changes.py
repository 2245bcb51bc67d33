"""Changes of a section's records come to the same in one document and in many."""

from __future__ import annotations

from collections.abc import Mapping

from hypothesis import given
from hypothesis import strategies as st

from apex_creds.documents.keystore import shard_names
from apex_creds.documents.records import Record, Shard, narrows
from apex_creds.documents.sections import Section, Together, changed_shards
from apex_creds.model import CredentialInfo, CredentialKind, Delivery, Sensitivity

NAMES = [f"c{number}" for number in range(8)]
SHARDS = shard_names("api_keys", 3)


def record(name: str, text: str, level: Sensitivity = Sensitivity.NORMAL) -> Record:
    info = CredentialInfo(
        id="00" * 16, name=name, kind=CredentialKind.API_KEY, service="s", version=1,
        delivery=Delivery.parse("bearer"), origins=(), sensitivity=level,
        created=0.0, updated=0.0,
    )  # fmt: skip
    return Record(info, text.encode())


def place(name: str) -> str:
    return SHARDS[int(name[1:]) % 3]


def section(records: Mapping[str, Record]) -> Section:
    parts = {each: {n: r for n, r in records.items() if place(n) == each} for each in SHARDS}
    shards = {
        each: Shard(name=each, token=None, header=None, mac="", records=part)
        for each, part in parts.items()
    }
    return Section(name="api_keys", shards=shards)


TABLES = st.dictionaries(st.sampled_from(NAMES), st.sampled_from("ab"))
CHANGES = st.dictionaries(st.sampled_from(NAMES), st.sampled_from(["a", "c", None, "same"]))


@given(TABLES, CHANGES)
def test_only_shards_with_a_change_are_others_and_all_changes_are_in_them(
    table: dict[str, str], chosen: dict[str, str | None]
) -> None:
    records = {name: record(name, text) for name, text in table.items()}
    before = section(records)
    changes = {
        name: records.get(name) if text == "same" else text and record(name, text)
        for name, text in chosen.items()
    }
    changed = changed_shards(before, changes, place)
    wanted = {n: r for n, r in (records | changes).items() if r is not None}
    after = {
        n: r
        for each in SHARDS
        for n, r in changed.get(each, before.shards[each].records).items()
    }
    assert after == wanted
    moved = {n for n in NAMES if records.get(n) is not wanted.get(n)}
    assert changed.keys() == {place(name) for name in moved}


@given(TABLES)
def test_the_records_of_all_shards_are_one_mapping(table: dict[str, str]) -> None:
    records = {name: record(name, text) for name, text in table.items()}
    found = section(records).records
    assert isinstance(found, Together)
    assert (dict(found), dict(found.items()), len(found)) == (records, records, len(records))
    assert set(found) == set(records)
    assert sorted(r.info.name for r in found.values()) == sorted(records)
    assert all(found.get(name) is records.get(name) for name in NAMES)


def test_less_is_allowed_of_one_among_many() -> None:
    records = {name: record(name, "a") for name in NAMES}
    shards = section(records).shards.values()
    assert not narrows(shards, {name: record(name, "b") for name in NAMES} | {"c1": None})
    assert narrows(shards, {"c0": None, "c5": record("c5", "a", Sensitivity.CRITICAL)})
    assert not narrows(shards, {"new": record("new", "a", Sensitivity.CRITICAL)})
