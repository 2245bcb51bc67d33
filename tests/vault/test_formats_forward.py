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
from apex_creds.documents.document import VERSION
from apex_creds.model import ApiKey
from apex_creds.storage.file_storage import FileStorage
from apex_creds.vault import Vault
from tests.support.vaults import copy_vault, tree
from tests.vectors import read_vault
from tests.vectors.make_vault import VAULTS, expected

pytestmark = pytest.mark.anyio
KEPT = sorted(VAULTS.iterdir())


def test_there_is_one_for_each_version() -> None:
    assert [place.name for place in KEPT] == [f"v{n}" for n in range(1, VERSION + 1)]


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
    assert "credentials/api_keys.enc" in written
    for name in written:
        assert msgspec.json.decode(after[name])["version"] == VERSION
    async with await opened(place) as vault:
        found = await expected(vault)
    wanted = json.loads((place / "expected.json").read_text())
    assert set(found["credentials"]) == {*wanted["credentials"], "new"}


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
    assert [[g["plugin"], g["credential"]] for g in vault.grants] == [
        grant[:2] for grant in wanted["grants"]
    ]


async def opened(place: Path) -> Vault:
    return await Vault.unseal(place / "home", master=f"file:{place}/master.key")


def documents(place: Path) -> dict[str, bytes]:
    found = tree(place / "home").items()
    return {name: data for name, (_, data) in found if name.endswith(".enc")}
