"""The layouts of three builds, alone and mixed; what is not understood outlives everything."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from apex_creds.migration import (
    OnConflict,
    Options,
    finish,
    migrate,
    migration_document,
    set_aside,
)
from apex_creds.migration.cleanup import record, withheld
from apex_creds.migration.entries import Entry, Problem
from apex_creds.migration.legacy_readers import BoxFiles, read_fernet, read_secretbox
from apex_creds.migration.progress import Phase, SourceReport
from apex_creds.model import OAuthToken
from apex_creds.vault import Vault
from tests.support import old

MARK = "marked-"
DEK = old.deks("dek_api")["dek_api_v1"]
quick = settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))


def read(
    api: object, tokens: object | None = None, **options: object
) -> dict[tuple[str, str], Entry]:
    """The entries by name and kind."""
    files = old.box_files(api, {} if tokens is None else tokens, **options)
    return {(e.name, e.kind.value): e for e in entries(files)}


def entries(files: Mapping[str, bytes]) -> tuple[Entry, ...]:
    sections = {
        name.partition("/")[2]: data
        for name, data in files.items()
        if name.startswith("credentials/")
    }
    boxes = BoxFiles(keystore=files["security/keystore.enc"], sections=sections)
    return read_secretbox(boxes, [old.MASTER]).entries


def values(found: Mapping[tuple[str, str], Entry]) -> dict[str, str]:
    """What was read; a token by its access token."""
    return {
        name: next(iter(entry.secret.parts.values())).decode()
        for (name, _), entry in found.items()
        if entry.secret is not None
    }


def problems(found: Mapping[tuple[str, str], Entry]) -> dict[str, str]:
    return {name: e.problem.value for (name, _), e in found.items() if e.problem is not None}


def test_wrapped_sections_are_read() -> None:
    found = read(
        old.wrapped(old.CONTENT["api_keys"]),
        old.wrapped(old.CONTENT["oauth_tokens"], "oauth_tokens"),
    )
    assert sorted(found) == [
        ("github", "api_key"), ("github", "oauth_token"),
        ("google", "oauth_token"), ("openai", "api_key"),
    ]  # fmt: skip
    assert not problems(found)


def test_a_wrapped_file_that_the_present_source_opened_once() -> None:
    """It keeps what it does not know, and adds its list."""
    own = old.listed(DEK, [{"provider": "openai", "key": "sk-in-use"}])["keys"]
    document = {**old.wrapped({"openai": "sk-older", "slack": "xo"}), "keys": [old.PROXY, *own]}
    found = read(document)
    assert values(found) == {"openai": "sk-in-use", "openai/2": "sk-older", "slack": "xo"}
    assert problems(found) == {"apexagent": "placeholder"}


def test_a_flat_file_beside_a_list() -> None:
    own = old.listed(DEK, [{"provider": "a", "key": "1"}])
    assert values(read({"b": "2", **own})) == {"a": "1", "b": "2"}


def test_services_that_have_the_names_of_wrappers() -> None:
    found = read(
        {"credentials": "sk-1", "metadata": "sk-2", "keys": "sk-3", "api_keys": "sk-4"},
        {name: {"access_token": name} for name in ("credentials", "metadata", "keys")},
    )
    assert len(found) == 7
    assert all(entry.secret for entry in found.values())
    wrapped = {"credentials": "sk-1", "metadata": "sk-2"}
    assert values(read(old.wrapped(wrapped))) == wrapped
    tokens = old.wrapped({"access_token": "at-of-a-service"}, "oauth_tokens")
    assert values(read({}, tokens)) == {"access_token": "at-of-a-service"}


def test_a_whole_old_file_that_was_taken_for_a_section() -> None:
    """The second build reads a section that is a Fernet token, and wraps what was in it."""
    files = old.box_files({}, {})
    files["credentials/api_keys.enc"] = old.fernet_bytes(old.CONTENT)
    files["credentials/oauth_tokens.enc"] = old.box(
        old.deks("dek_oauth")["dek_oauth_v1"], old.wrapped(old.wrapped(old.CONTENT))
    )
    found = entries(files)
    assert not [entry for entry in found if entry.problem]
    names = [(entry.name, entry.kind.value) for entry in found]
    assert sorted(names) == sorted(
        [("openai", "api_key"), ("github", "api_key"), ("github", "oauth_token"),
         ("google", "oauth_token"), ("openai/2", "api_key"), ("github/2", "api_key"),
         ("github/2", "oauth_token"), ("google/2", "oauth_token")]
    )  # fmt: skip


def test_the_first_that_opened_is_the_one_that_has_the_service_s_name() -> None:
    deks = old.deks("dek_api", (1, 9, 10))
    items = []
    for version, key in ((9, "no json"), (10, "newest by number"), (9, "used"), (9, "spare")):
        items += old.listed(deks[f"dek_api_v{version}"], [{"provider": "p", "key": key}])[
            "keys"
        ]
    for number, item in enumerate(items):
        item["id"] = f"k{number}"
    items[0]["encrypted_key"] = old.b64(b"\0" * 60)
    found = read({"keys": items}, api_deks=deks)
    assert values(found) == {"p": "used", "p/k1": "newest by number", "p/k3": "spare"}
    assert problems(found) == {"p/k0": "unreadable"}
    # That program opened none of these: the first that does open.
    found = read({"keys": items[1:2] + items[1:2]}, api_deks=deks)
    assert values(found) == {"p": "newest by number", "p/k1": "newest by number"}


@pytest.mark.parametrize(
    ("document", "what"),
    [
        (old.wrapped({}, note="sk-x"), "(metadata.note)"),
        (old.wrapped({"a": {"value": "sk-x"}}), "a"),
        ({"metadata": {"x": "sk-x"}}, "metadata"),
        ({"credentials": ["sk-x"]}, "credentials"),
        ({"keys": [{**old.PROXY, "secret": "sk-x"}]}, "apexagent"),
        ({"keys": [{**old.PROXY, "metadata": {"additional_config": ["sk-x"]}}]}, "apexagent"),
        ({"keys": ["sk-x"]}, "(entry 1)"),
    ],
)
def test_what_is_not_understood_is_named(document: object, what: str) -> None:
    assert problems(read(document)) == {what: "invalid"}


def test_nothing_to_lose() -> None:
    for document in ({}, {"keys": []}, {"keys": [old.PROXY]}, old.wrapped({}, version=2)):
        found = read(document)
        assert set(problems(found).values()) <= {Problem.PLACEHOLDER.value}
        assert not values(found)


def test_sections_and_parts_that_are_not_known() -> None:
    files = old.box_files()
    keystore = {
        "data_encryption_keys": {"certificates": {"v1": old.b64(bytes(32))}, "api_keys": {}},
        "vault": {"inner": "sk-x"},
    }
    files["security/keystore.enc"] = old.box(old.MASTER, keystore)
    files = {n: d for n, d in files.items() if "credentials/" not in n}
    assert [e.service for e in entries(files)] == ["(certificates)", "(keystore.enc: vault)"]
    files["credentials/certificates.enc"] = old.box(bytes(32), {"a": "b"})
    assert [e.service for e in entries(files)] == [
        "(certificates.enc)", "(keystore.enc: vault)",
    ]  # fmt: skip
    fernet = old.fernet_bytes({"openai": "sk-x", "api_keys": old.wrapped({"a": "1"}), "v": 1})
    assert [e.service for e in read_fernet(fernet, [old.MASTER]).entries] == ["(openai)", "a"]


marked = st.integers(0, 10_000).map(lambda n: f"{MARK}{n}")
names = st.sampled_from(
    ["credentials", "metadata", "keys", "api_keys", "oauth_tokens", "openai", "dek_id",
     "access_token", "encrypted_at", "id", "provider_type", "encrypted_key", "name"]
)  # fmt: skip
documents = st.dictionaries(
    names,
    st.recursive(
        marked | st.none() | st.integers(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=4),
        max_leaves=12,
    ),
    max_size=5,
)


@quick
@given(documents, documents)
def test_no_text_of_a_section_is_passed_over(api: object, tokens: object) -> None:
    """Each either became a secret, or something is told that blocks the erasure."""
    found = entries(old.box_files(api, tokens))
    assert len({entry.key for entry in found}) == len(found)
    blocked = [e for e in found if e.problem in (Problem.INVALID, Problem.UNREADABLE)]
    kept = b"\n".join(part for e in found if e.secret for part in e.secret.parts.values())
    plain = ("dek_id", "encrypted_at", "id", "provider_type", "name")
    for text in texts(api, plain) | texts(tokens, plain):
        assert blocked or text.encode() in kept


def texts(value: object, but: tuple[str, ...]) -> set[str]:
    if isinstance(value, dict):
        return {t for n, v in value.items() if n not in but for t in texts(v, but)}
    if isinstance(value, list):
        return {t for v in value for t in texts(v, but)}
    return {value} if isinstance(value, str) else set()


# -- into a vault, to the end --------------------------------------------------------


async def moved(home: Path, master: str, files: Mapping[str, bytes]) -> Vault:
    old.install(home, files)
    assert await set_aside(home, environ=old.ENV)
    return await Vault.create(home, master=master)


async def run(vault: Vault, **options: object) -> SourceReport:
    report = await migrate(vault, options=Options(**options), environ=old.ENV)
    return report.sources[0]


BAD: dict[str, dict[str, bytes]] = {
    "an entry": old.box_files({"a": "1", "b": ["sk-x"]}),
    "an item": old.box_files({"keys": [{"id": "x", "encrypted_key": "AAAA"}]}),
    "a section": old.box_files() | {"credentials/oauth_tokens.enc": b"\1" * 90},
    "another section": old.box_files() | {"credentials/certificates.enc": b"\1" * 90},
    "a section that is a list": old.box_files(["sk-x"]),
    "metadata": old.box_files(old.wrapped({"a": "1"}, more="sk-x")),
}


@pytest.mark.anyio
@pytest.mark.parametrize("what", BAD)
async def test_what_nobody_has_read_is_never_erased(
    place: Path, master: str, what: str
) -> None:
    files = BAD[what]
    async with await moved(place / ".apex_agent", master, files) as vault:
        report = await run(vault, accept_partial=True, erase_after=0.0)
        assert (report.phase, report.unread) == (Phase.BACKED_UP, 1)
        assert not await finish(vault)
        assert not await finish(vault)
        state = await migration_document(vault.store).read()
        assert [source.unread for source in withheld(state)] == [1]
    left = {path.read_bytes() for path in (place / ".apex_agent/legacy").iterdir()}
    assert left == set(files.values())


def keystore_alone(home: Path) -> Path:
    old.install(home, old.box_files({"a": "1"}))
    (home / "credentials").rename(home / "moved")
    return home


def not_a_folder(home: Path) -> Path:
    keystore_alone(home)
    (home / "credentials").write_bytes(b"")
    return home


def two_of_one_name(home: Path) -> Path:
    old.install(home, old.box_files({"a": "1"}))
    old.write(home / "security/api_keys.enc", old.box(DEK, {"a": "2"}))
    return home


def a_name_twice(home: Path) -> Path:
    document = b'{"api_keys": {"a": "1", "a": "2", "a": ["3"], "b": "4", "b": "4"}}'
    return old.write(home / "old.enc", old.fernet_bytes(document))


@pytest.mark.anyio
@pytest.mark.parametrize("made", [keystore_alone, not_a_folder, two_of_one_name, a_name_twice])
async def test_a_key_store_outlives_files_that_were_not_seen(
    vault: Vault, tmp_path: Path, made: Callable[[Path], Path]
) -> None:
    source = made(tmp_path / "older")
    report = await migrate(
        vault, [source], options=Options(accept_partial=True), environ=old.ENV
    )
    assert not report.complete
    assert not await finish(vault)


@pytest.mark.anyio
async def test_the_section_is_the_file_in_its_folder(vault: Vault, tmp_path: Path) -> None:
    await migrate(vault, [two_of_one_name(tmp_path / "older")], environ=old.ENV)
    assert await old.value(vault, "a") == "1"


@pytest.mark.anyio
async def test_everything_in_the_old_folders_is_set_aside(place: Path, master: str) -> None:
    files = old.box_files() | {"security/certificates.enc": old.box(DEK, {"c": "1"})}
    async with await moved(place / ".apex_agent", master, files) as vault:
        assert [e.service for e in (await run(vault)).entries][-1] == "(certificates.enc)"


def test_no_name_of_a_document_hides_another() -> None:
    document = b'{"api_keys": {"a": "1", "a": "2", "a": "2"}, "api_keys": {"a": "3"}}'
    found = read_fernet(old.fernet_bytes(document), [old.MASTER]).entries
    assert {(e.service, e.problem) for e in found} == {
        ("a", None),
        ("(api_keys (hidden 1))", Problem.INVALID),
    }


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("field", "fate"), [("id_token", "conflict"), ("scope", "present"), ("n", "present")]
)
async def test_fields_beside_a_secret_are_compared_too(
    vault: Vault, place: Path, field: str, fate: str
) -> None:
    await vault.put("github", OAuthToken("at", refresh_token="rt"))
    more: object = 7 if field == "n" else "sk-more"
    token = {"access_token": "at", "refresh_token": "rt", field: more}
    old.fernet_file(place, {"oauth_tokens": {"github": token}})
    assert [entry.fate for entry in (await run(vault)).entries] == [fate]
    if fate == "conflict":
        await run(vault, on_conflict=OnConflict.REPLACE)
        assert "sk-more" in await old.value(vault, "github", "fields")


@pytest.mark.anyio
async def test_an_item_with_an_empty_key_keeps_what_else_it_has(
    vault: Vault, tmp_path: Path
) -> None:
    item = {"id": "x", "provider_type": "a", "encrypted_key": old.b64(old.box(DEK, b""))}
    files = old.box_files({"keys": [item, item | {"id": "y", "token": "sk-x"}]})
    found = [(e.label, e.problem) for e in entries(files) if e.service == "a"]
    assert found == [("", Problem.EMPTY), ("y", Problem.INVALID)]


@pytest.mark.anyio
async def test_titles_and_paths_that_are_no_utf8(vault: Vault, tmp_path: Path) -> None:
    """They came from JSON, and from a file system that takes any bytes."""
    files = old.box_files(old.listed(DEK, [{"provider": "a", "key": "1", "name": "\udcff"}]))
    report = await migrate(vault, [old.install(tmp_path / "o", files)], environ=old.ENV)
    assert report.complete
    odd = old.install(tmp_path / "o\udcff", files)
    report = await migrate(vault, [odd], environ=old.ENV)
    assert "not UTF-8" in report.sources[0].problem


@pytest.mark.anyio
async def test_what_was_given_up_after_it_was_read_is_erased(vault: Vault, place: Path) -> None:
    old.fernet_file(place, {"api_keys": {"a": "1"}})
    await run(vault, keep_source=True)
    old.fernet_file(place, {"api_keys": {"a": "2"}})
    report = await run(vault, accept_partial=True)
    assert (report.missing, report.unread) == (1, 0)
    assert await finish(vault)


@pytest.mark.anyio
async def test_what_an_older_version_read_is_read_again_before_it_is_erased(
    vault: Vault, place: Path
) -> None:
    """It took a source for complete of which it had overlooked a part."""
    path = old.fernet_file(place, {"api_keys": old.wrapped({"openai": "sk-1"})})
    await run(vault)
    document = migration_document(vault.store)
    (state,) = (await document.read()).sources
    await record(vault, old_state(state))
    assert not await finish(vault)
    backup = Path(state.backups[0].backup)
    assert backup.exists()
    backup.rename(path)
    assert (await run(vault)).complete
    assert [item.path for item in await finish(vault)] == [str(backup)]


def old_state(state: object) -> object:
    from msgspec.structs import replace

    return replace(state, reader=0)  # type: ignore[type-var]


@pytest.mark.anyio
async def test_a_partial_source_is_tried_again_by_newer_readers(
    vault: Vault, place: Path
) -> None:
    from apex_creds.migration import on_unseal

    old.fernet_file(place, {"api_keys": {"a": "1", "bad": 7}})
    assert (await on_unseal(vault, environ=old.ENV)).sources
    assert not (await on_unseal(vault, environ=old.ENV)).sources
    (state,) = (await migration_document(vault.store).read()).sources
    await record(vault, old_state(state))
    assert (await on_unseal(vault, environ=old.ENV)).sources


def test_states_of_older_versions_are_read_as_that() -> None:
    from msgspec import json as msgjson

    from apex_creds.migration.progress import MigrationState

    data = {"format": "secretbox", "path": "/x", "digest": "", "phase": "backed up",
            "began": 0.0, "changed": 0.0, "missing": 2}  # fmt: skip
    state = msgjson.decode(json.dumps({"sources": [data]}), type=MigrationState)
    assert [source.erasable for source in state.sources] == [False]
