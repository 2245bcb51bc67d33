"""The key of documents goes through the states of a DEK; KEK and master pass it by."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

from apex_creds.documents import key_versions
from apex_creds.documents.keystore import DOCUMENTS_LABEL
from apex_creds.keys.keyset import Keyset, KeyState
from apex_creds.model import ApiKey, GenericSecret
from apex_creds.scheduler import kek_rotation
from apex_creds.scheduler.compromise import declare
from apex_creds.scheduler.engine import Engine
from apex_creds.scheduler.rotation_plan import Action
from apex_creds.scheduler.rotation_state import (
    DOCUMENT,
    labels_of,
    newest,
    order,
    rotation_document,
)
from apex_creds.scheduler.schedule import Level, LevelPolicy, Policies
from apex_creds.scheduler.status import rotation_status
from apex_creds.vault import Vault
from tests.support.clocks import FakeClock
from tests.support.vaults import create, tree, unseal, values, write_version_1

pytestmark = pytest.mark.anyio
DAY = 86_400.0
STORED = {"one": b"first", "two": b"second"}


@pytest.fixture
async def vault(tmp_path: Path):
    async with await create(tmp_path, clock=FakeClock()) as made:
        await made.put("one", ApiKey("first"))
        await made.put("two", GenericSecret(b"second"))
        await rotation_document(made.store).change(lambda s: replace(s, debounce=2.0))
        yield made


def engine_of(vault: Vault) -> Engine:
    document = rotation_document(vault.store)
    return Engine(vault.store, document, next_fire=lambda *_: None)


async def ran(vault: Vault) -> list[Action]:
    outcome = await engine_of(vault).run(lease=False)
    assert not outcome.failed
    return [step.action for step in outcome.done if step.label == DOCUMENTS_LABEL]


async def keyset_of(vault: Vault) -> Keyset:
    return (await vault.store.keystore()).by_label[DOCUMENTS_LABEL]


async def states(vault: Vault) -> list[KeyState]:
    return [version.state for version in (await keyset_of(vault)).versions]


async def versions(vault: Vault) -> dict[str, int]:
    """The key version of each document."""
    found = await kek_rotation.scan(vault.store)
    keyset = await keyset_of(vault)
    assert {key for key, _ in found.documents.values()} == {keyset.id}
    return {name: version for name, (_, version) in found.documents.items()}


def documents(vault: Vault) -> dict[str, object]:
    return {name: found for name, found in tree(vault.home).items() if name.endswith(".enc")}


@pytest.mark.parametrize("level", [Level.KEK, Level.MASTER])
async def test_a_rotation_leaves_every_other_document_as_it_is(
    vault: Vault, level: Level
) -> None:
    engine = engine_of(vault)
    keystore = await vault.store.keystore()
    await order(engine.document, newest(keystore, level))
    before = documents(vault)
    assert not (await engine.run(lease=False)).failed
    changed = {name for name, found in documents(vault).items() if found != before[name]}
    assert changed == {"security/keystore.enc", f"security/{DOCUMENT}.enc"}  # its order is done
    assert set((await versions(vault)).values()) == {1}
    keks = (await vault.store.keystore()).root_header.keks
    assert keks.primary.version == 2
    assert keks.versions[0].state is KeyState.RETIRED


@pytest.mark.parametrize("level", [Level.KEK, Level.MASTER])
async def test_a_compromise_above_renews_it(vault: Vault, tmp_path: Path, level: Level) -> None:
    async with await unseal(tmp_path) as other:
        assert await values(other) == STORED
        await declare(vault.store, rotation_document(vault.store), level=level)
        await ran(vault)
        assert await states(vault) == [KeyState.DESTROYED, KeyState.PRIMARY]
        assert set((await versions(vault)).values()) == {2}
        assert await values(other) == STORED
        await other.put("three", ApiKey("third"))
    assert await ran(vault) == []
    async with await unseal(tmp_path) as later:
        assert await values(later) == {**STORED, "three": b"third"}


async def test_it_is_renewed_by_time_as_deks_are(vault: Vault, tmp_path: Path) -> None:
    vault.clock.now += 91 * DAY
    assert set(await ran(vault)) >= {Action.ROTATE, Action.RETIRE}
    assert await states(vault) == [KeyState.RETIRED, KeyState.PRIMARY]
    assert set((await versions(vault)).values()) == {2}
    vault.clock.now += 8 * DAY
    assert await ran(vault) == [Action.DESTROY]
    async with await unseal(tmp_path) as other:
        assert await values(other) == STORED


async def test_it_is_renewed_by_number_of_messages_as_deks_are(vault: Vault) -> None:
    """Each write of a document is one; those of its own renewal do not count for the next."""
    policies = Policies(dek=LevelPolicy(interval=None, max_encryptions=40, grace=0.0))
    await rotation_document(vault.store).change(lambda s: replace(s, policies=policies))
    assert await ran(vault) == []
    assert 0 < await counted(vault) < 40
    for number in range(40):
        await vault.put(f"more {number}", ApiKey("x"), service=f"service {number}")
    assert await ran(vault) == [Action.ROTATE, Action.MOVE, Action.RETIRE, Action.DESTROY]
    assert await ran(vault) == []
    assert await counted(vault) < 5
    await vault.put("one", ApiKey("again"))
    before = await counted(vault)
    await vault.put("one", ApiKey("again"))
    assert await counted(vault) == before + 1
    assert await values(vault) == {
        **STORED, "one": b"again", **{f"more {n}": b"x" for n in range(40)}
    }  # fmt: skip


async def counted(vault: Vault) -> int:
    [view] = [k for k in (await engine_of(vault).view()).keys if k.label == DOCUMENTS_LABEL]
    return view.encryptions[view.keyset.primary.version]


async def test_deks_that_are_renewed_together_write_each_section_once(vault: Vault) -> None:
    """What was just written under the new key is not sealed again."""
    keystore = await vault.store.keystore()
    await order(
        rotation_document(vault.store), newest(keystore, Level.DEK, labels_of(keystore))
    )
    before = (await vault.store.sections.read("generic")).generation
    await ran(vault)
    assert (await vault.store.sections.read("generic")).generation == before + 1
    assert set((await versions(vault)).values()) == {2}


async def interrupted_before_promotion(vault: Vault) -> None:
    def added(keystore):
        return key_versions.map_deks(
            keystore.body,
            {DOCUMENTS_LABEL},
            lambda keyset: key_versions._add(keystore, keyset, vault.clock.now),
        )

    await vault.store.commit_rekeyed(added)


async def interrupted_before_the_move(vault: Vault) -> None:
    await key_versions.renew(vault.store, DOCUMENTS_LABEL, now=vault.clock.now)


async def interrupted_in_the_move(vault: Vault) -> None:
    await interrupted_before_the_move(vault)
    await vault.put("one", ApiKey("first"))


@pytest.mark.parametrize(
    "stop",
    [interrupted_before_promotion, interrupted_before_the_move, interrupted_in_the_move],
)
async def test_a_renewal_is_taken_up_from_what_is_stored(
    vault: Vault, tmp_path: Path, stop: Callable
) -> None:
    await stop(vault)
    async with await unseal(tmp_path) as other:
        assert await values(other) == STORED
    await ran(vault)
    assert await states(vault) == [KeyState.RETIRED, KeyState.PRIMARY]
    assert set((await versions(vault)).values()) == {2}
    assert await ran(vault) == []


async def test_what_an_older_program_wrote_is_moved_once(vault: Vault, tmp_path: Path) -> None:
    await write_version_1(vault.store, "api_keys", DOCUMENT)
    engine = engine_of(vault)
    for number in (1, 2):
        keystore = await vault.store.keystore()
        await order(engine.document, newest(keystore, Level.KEK))
        before = documents(vault)
        assert not (await engine.run(lease=False)).failed
        after = documents(vault)
        changed = {name for name, found in after.items() if found != before[name]}
        assert ("credentials/api_keys.enc" in changed) is (number == 1)
    async with await unseal(tmp_path) as other:
        assert await values(other) == STORED
    keks = (await vault.store.keystore()).root_header.keks
    assert [v.state for v in keks.versions[:2]] == [KeyState.RETIRED] * 2


async def test_status_says_how_many_documents_a_version_has(vault: Vault) -> None:
    await key_versions.renew(vault.store, DOCUMENTS_LABEL, now=vault.clock.now)
    await vault.put("one", ApiKey("first"))
    found = await rotation_status(engine_of(vault))
    lines = {
        line.version: (line.level, line.state, line.protects)
        for line in found.lines
        if line.label == DOCUMENTS_LABEL
    }
    there = len(await versions(vault))
    assert lines == {1: (Level.DEK, "active", there - 1), 2: (Level.DEK, "primary", 1)}
    [kek] = [line for line in found.lines if line.level is Level.KEK]
    deks = (await vault.store.keystore()).body.deks
    assert kek.protects == 1 + sum(len(keyset.versions) for keyset in deks)
