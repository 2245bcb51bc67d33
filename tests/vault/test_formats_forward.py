"""Every document version that ever landed stays readable.

``tests/vectors/vaults/vN`` is a whole vault of document version N, with its master key. An
upgrade rewrites a document on the next write, never on a read.
"""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from apex_creds.admin.transfer import transfer
from apex_creds.audit import check
from apex_creds.compat import vault_session
from apex_creds.documents.document import VERSION
from apex_creds.model import ApiKey
from apex_creds.scheduler.schedule import Level
from apex_creds.storage.file_storage import FileStorage
from apex_creds.vault import Vault
from tests.support.vaults import copy_vault, tree
from tests.vectors import read_vault
from tests.vectors.make_vault import MADE, VAULTS, expected

pytestmark = pytest.mark.anyio
KEPT = sorted(VAULTS.iterdir())


def test_there_is_one_for_each_version() -> None:
    assert {place.name.partition("-")[0] for place in KEPT} == {
        f"v{n}" for n in range(1, VERSION + 1)
    }
    assert {*MADE} <= {place.name for place in KEPT}


@pytest.fixture(params=KEPT, ids=lambda place: place.name)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    copied = tmp_path / "copy"
    copy_vault(request.param, copied)
    return copied


async def test_it_opens_and_reading_rewrites_nothing(place: Path) -> None:
    before = documents(place)
    async with await opened(place) as vault:
        found = json.loads(json.dumps(await expected(vault)))
        assert found == json.loads((place / "expected.json").read_text())
        vault_id = vault.vault_id
    assert documents(place) == before
    assert check(place / "home/security/audit", vault_id=vault_id).ok


async def test_a_write_makes_it_the_present_version(place: Path) -> None:
    before = documents(place)
    async with await opened(place) as vault:
        await vault.put("new", ApiKey("new value"))
    after = documents(place)
    written = {name for name in after if after[name] != before.get(name)}
    assert [name for name in written if name.startswith("credentials/api_keys")]
    for name in written:
        assert msgspec.json.decode(after[name])["version"] == VERSION
    async with await opened(place) as vault:
        found = await expected(vault)
    wanted = json.loads((place / "expected.json").read_text())
    assert set(found["credentials"]) == {*wanted["credentials"], "new"}


async def test_a_grant_and_a_rotation_keep_what_it_has(place: Path) -> None:
    """The grants of an older one leave the key store with the next; shards stay shards."""
    wanted = json.loads((place / "expected.json").read_text())
    async with await opened(place) as vault:
        counts = (await vault.store.keystore()).body.shards
        await vault.grant("another", "key")
        body = (await vault.store.keystore()).body
        assert (body.grants, body.shards) == ((), counts)
        await vault_session.rotate_levels(vault, (Level.DEK,))
        await vault_session.rotate_levels(vault, (Level.KEK,))
    async with await opened(place) as vault:
        found = json.loads(json.dumps(await expected(vault)))
    assert found["credentials"] == wanted["credentials"]
    assert found["grants"] == sorted([*wanted["grants"], ["another", "key", [], False]])


async def test_a_copy_of_it_is_the_present_version(place: Path) -> None:
    home, master = place / "copied", f"file:{place}/master.key"
    async with await opened(place) as vault:
        target = FileStorage(home)
        await transfer(vault, target)
        await target.close()
    wanted = json.loads((place / "expected.json").read_text())
    async with await Vault.unseal(home, master=master, accept_rollback="moved") as copy:
        assert json.loads(json.dumps(await expected(copy))) == wanted
        assert (await copy.store.keystore()).header.version == VERSION


def test_a_reader_made_from_the_page_alone_reads_it(place: Path) -> None:
    vault = read_vault.Vault(place / "home", place / "master.key")
    found: dict[str, dict[str, bytes]] = {}
    for path in (place / "home/credentials").iterdir():
        found |= vault.credentials(path.stem)
    wanted = json.loads((place / "expected.json").read_text())
    assert {
        name: {part: value.hex() for part, value in parts.items()}
        for name, parts in found.items()
    } == {name: each["parts"] for name, each in wanted["credentials"].items()}
    assert sorted([g["plugin"], g["credential"]] for g in vault.grants) == [
        grant[:2] for grant in wanted["grants"]
    ]


async def opened(place: Path) -> Vault:
    return await Vault.unseal(place / "home", master=f"file:{place}/master.key")


def documents(place: Path) -> dict[str, bytes]:
    found = tree(place / "home").items()
    return {name: data for name, (_, data) in found if name.endswith(".enc")}
