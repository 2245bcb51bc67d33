"""What is anchored, and when: what takes something away before it is acknowledged, all else
with the next checkpoint; what was not authenticated never."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from apex_creds.audit.checkpoint import Checkpoint, LogKey
from apex_creds.auth.challenge_client import ClientKey
from apex_creds.auth.challenge_issuer import Challenger
from apex_creds.auth.enrolment import Factors
from apex_creds.auth.second_factor import Subject
from apex_creds.auth.totp import code_at
from apex_creds.crypto.memory import SecretBytes
from apex_creds.crypto.public_key import SigningKey
from apex_creds.documents import key_versions
from apex_creds.documents.cached import recommit
from apex_creds.documents.grant_set import MANY, SHARDS
from apex_creds.documents.keystore import DOCUMENTS_LABEL
from apex_creds.errors import (
    CorruptDocumentError,
    IntegrityError,
    MasterKeyUnavailableError,
    RollbackDetectedError,
    SecondFactorError,
)
from apex_creds.keys.key_file import FileProvider
from apex_creds.model import ApiKey
from apex_creds.policy.grants import GrantDecision
from apex_creds.scheduler import compromise, kek_rotation
from apex_creds.scheduler.rotation_state import CompromiseSuspected, rotation_document
from apex_creds.scheduler.schedule import Level
from apex_creds.scheduler.worker import RotationWorker
from apex_creds.storage.base import GRANTS
from apex_creds.storage.file_storage import FileStorage
from apex_creds.vault import Vault
from apex_creds.vault.anchor import Anchor
from apex_creds.vault.config import AuditConfig, Config, write_config
from tests.support.vaults import create, home_in, keystore_file, section_file, unseal
from tests.vectors import flat, make_anchor

pytestmark = pytest.mark.anyio

DAY = AuditConfig(checkpoint_events=10**6, checkpoint_seconds=300.0)


def anchored(where: Path) -> dict[str, int]:
    """The numbers in the anchor beside the master key."""
    (path,) = where.glob("*.anchor")
    text = path.read_text().partition("\n\n")[0]
    pairs = (line.split(" ") for line in text.splitlines()[3:])
    return {name: int(at) for name, at in pairs}


def stored(where: Path, name: str) -> int:
    folder = "credentials" if name == "api_keys" else "security"
    path = home_in(where) / folder / f"{name}.enc"
    return int(json.loads(path.read_bytes())["generation"])


@pytest.fixture
async def where(tmp_path: Path) -> Path:
    """A vault that signs no checkpoint by itself while a test runs."""
    async with await create(tmp_path) as vault:
        await vault.put("one", ApiKey("1"), origins=["https://a.example", "https://b.example"])
        await vault.put("two", ApiKey("2"))
        await vault.grant("p", "one", scopes=["read"])
        factors = Factors(vault)
        with factors.begin("phone") as new:
            now = vault.clock.time()
            await factors.confirm(new, code_at(new.seed, settings=new.settings, now=now))
        (tmp_path / "code").write_text((await factors.new_recovery_codes())[0])
        with ClientKey.generate(tmp_path / "client.key") as key:
            await Challenger(vault).enrol("worker", key.public, credentials=["one"])
        await write_config(FileStorage(home_in(tmp_path)), Config(DAY))
    return tmp_path


Step = Callable[[Vault, Path], Awaitable[object]]


async def revoke(vault: Vault, _: Path) -> None:
    await vault.revoke(plugin="p")


async def revoke_nothing_stored(vault: Vault, _: Path) -> None:
    await vault.revoke(plugin="allowed for a session only")


async def deny(vault: Vault, _: Path) -> None:
    await vault.grant("q", "one", decision=GrantDecision.DENY)


async def narrow(vault: Vault, _: Path) -> None:
    await vault.grant("p", "one", until=vault.clock.time() + 1)


async def raise_the_level(vault: Vault, _: Path) -> None:
    await vault.edit("one", sensitivity="critical")


async def ask_for_a_challenge(vault: Vault, _: Path) -> None:
    await vault.edit("one", challenge=True)


async def take_an_origin(vault: Vault, _: Path) -> None:
    await vault.edit("one", origins=["https://b.example"])


async def send_otherwise(vault: Vault, _: Path) -> None:
    await vault.edit("one", delivery="header:x-key")


async def put_with_an_end(vault: Vault, _: Path) -> None:
    await vault.put("one", ApiKey("3"), expires=vault.clock.time() + 60)


async def lockdown(vault: Vault, _: Path) -> None:
    await vault.lockdown(reason="stolen")


async def unlock(vault: Vault, where: Path) -> None:
    await vault.lockdown(keep_grants=True)
    assert await vault.unlock((where / "code").read_text())


async def use_code(vault: Vault, where: Path) -> None:
    await Factors(vault).verify((where / "code").read_text())


async def fail(vault: Vault, _: Path) -> None:
    with pytest.raises(SecondFactorError):
        await Factors(vault).verify("000000")


async def remove_factor(vault: Vault, _: Path) -> None:
    (factor,) = await Factors(vault).listed()
    await Factors(vault).remove(factor.id)


async def answer(vault: Vault, where: Path) -> None:
    challenger, subject = Challenger(vault), Subject(plugin="p", credential="one")
    with ClientKey.load(where / "client.key") as key:
        message = await challenger.issue("worker", subject)
        signed = key.answer(message, vault_id=vault.vault_id, allow=lambda _: True)
    await challenger.redeem(signed, subject)


async def revoke_client(vault: Vault, _: Path) -> None:
    await Challenger(vault).revoke("worker")


async def delete(vault: Vault, _: Path) -> None:
    await vault.delete("one")


async def distrust_a_dek(vault: Vault, _: Path) -> None:
    await compromise.mark_deks_compromised(
        vault.store, {"api_keys/one": [1]}, now=vault.clock.time()
    )


async def distrust(vault: Vault, level: Level) -> None:
    document = rotation_document(vault.store)
    await compromise.declare(vault.store, document, level=level)


async def distrust_the_kek(vault: Vault, _: Path) -> None:
    await distrust(vault, Level.KEK)


async def distrust_the_master_key(vault: Vault, _: Path) -> None:
    await distrust(vault, Level.MASTER)


async def destroy_a_kek(vault: Vault, _: Path) -> None:
    store, now = vault.store, vault.clock.time()
    await kek_rotation.rotate_kek(store, replaces=1, now=now)
    assert await kek_rotation.retire_keks(store, now=now)
    assert await kek_rotation.destroy_keks(store, before=now, now=now)


async def destroy_a_document_key(vault: Vault, _: Path) -> None:
    store, now = vault.store, vault.clock.time()
    await key_versions.renew(store, DOCUMENTS_LABEL, now=now)
    await recommit(store, *(await kek_rotation.scan(store)).stale)
    await kek_rotation.step_unused(store, partial(key_versions.destroy_now, now=now))


@pytest.mark.parametrize(
    ("step", "names"),
    [
        (revoke, "keystore grants"),
        (revoke_nothing_stored, "keystore"),
        (deny, "grants"),
        (narrow, "grants"),
        (raise_the_level, "api_keys"),
        (ask_for_a_challenge, "api_keys"),
        (take_an_origin, "api_keys"),
        (send_otherwise, "api_keys"),
        (put_with_an_end, "api_keys"),
        (lockdown, "keystore"),
        (unlock, "keystore access"),
        (use_code, "access"),
        (fail, "access"),
        (remove_factor, "access"),
        (answer, "access"),
        (revoke_client, "access"),
        (delete, "keystore api_keys"),
        (distrust_a_dek, "keystore"),
        (distrust_the_kek, "keystore"),
        (distrust_the_master_key, "keystore rotation"),
        (destroy_a_kek, "keystore"),
        (destroy_a_document_key, "keystore api_keys access"),
    ],
)
async def test_what_takes_something_away_is_anchored_when_it_returns(
    where: Path, step: Step, names: str
) -> None:
    before = {name: stored(where, name) for name in names.split() if name != "rotation"}
    async with await unseal(where) as vault:
        await step(vault, where)
        now = {name: stored(where, name) for name in names.split()}
        assert {name: anchored(where)[name] for name in now} == now
        assert all(now[name] > at for name, at in before.items())


async def test_an_alarm_is_anchored_when_it_was_accepted(where: Path) -> None:
    async with await unseal(where) as vault:
        await RotationWorker(vault).emit(CompromiseSuspected(service="one"))
        assert anchored(where)["rotation"] == stored(where, "rotation")


async def test_an_ordinary_write_waits_for_the_checkpoint(where: Path) -> None:
    await write_config(
        FileStorage(home_in(where)), Config(AuditConfig(checkpoint_seconds=3600))
    )
    async with await unseal(where) as vault:
        vault.audit.sign()  # of the unsealing, which is signed soon: before the write, then
        before = anchored(where)
        await vault.put("one", ApiKey("new"))
        await vault.grant("q", "one")
        assert anchored(where) == before
        vault.audit.sign()
        assert anchored(where)["api_keys"] == stored(where, "api_keys")
        assert anchored(where)["keystore"] == stored(where, "keystore")


async def test_a_commit_without_an_event_is_anchored_in_the_time_of_a_checkpoint(
    where: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    soon = AuditConfig(checkpoint_seconds=0.01)
    await write_config(FileStorage(home_in(where)), Config(soon))
    kept, keep = threading.Event(), Anchor.keep

    def seen(anchor: Anchor, checkpoint: Checkpoint | None = None) -> None:
        keep(anchor, checkpoint)
        if anchored(where)["api_keys"] == 3:
            kept.set()

    monkeypatch.setattr(Anchor, "keep", seen)
    async with await unseal(where) as vault:
        vault.audit.sign()
        await vault.store.sections.recommit(["api_keys"])
        assert kept.wait(600)


async def test_of_two_processes_neither_sets_the_other_back(where: Path) -> None:
    async with await unseal(where) as one, await unseal(where) as two:
        await one.put("one", ApiKey("3"))
        await two.revoke(plugin="p")
        assert anchored(where)["keystore"] == stored(where, "keystore")
        one.audit.sign()
        assert anchored(where)["keystore"] == stored(where, "keystore")
        assert anchored(where)["api_keys"] == stored(where, "api_keys")


async def test_a_rotation_between_the_key_store_and_the_anchor_is_no_rollback(
    where: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = Anchor.read

    async def late(anchor: Anchor) -> object:
        monkeypatch.setattr(Anchor, "read", read)
        async with await unseal(where) as other:
            await kek_rotation.rotate_kek(other.store, replaces=1, now=other.clock.time())
        return await read(anchor)

    monkeypatch.setattr(Anchor, "read", late)
    async with await unseal(where) as vault:
        assert (await vault.store.keystore()).root_header.keks.primary.version == 2


async def test_one_that_was_open_while_a_rollback_was_accepted_anchors_nothing(
    where: Path,
) -> None:
    old = section_file(where).read_bytes()
    async with await unseal(where) as stale:
        await stale.put("one", ApiKey("3"))
        stale.audit.sign()
        section_file(where).write_bytes(old)
        home, master = home_in(where), f"file:{where}/master.key"
        await (await Vault.unseal(home, master=master, accept_rollback="a test")).close()
        stale._logged.anchor.keep()
    assert anchored(where)["api_keys"] == stored(where, "api_keys")
    assert anchored(where)["rollbacks.accepted"] == 1
    async with await unseal(where) as vault:
        await vault.put("one", ApiKey("4"))
    assert anchored(where)["api_keys"] == stored(where, "api_keys")


async def test_what_can_not_be_anchored_is_done_and_said_once(
    where: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(self: FileProvider, *, vault_id: str, text: str) -> None:
        raise MasterKeyUnavailableError("The keyring is locked.")

    async with await unseal(where) as vault:
        with monkeypatch.context() as patch:
            patch.setattr(FileProvider, "write_anchor", refuse)
            await vault.revoke(plugin="p")
            assert not await vault.grants()
            await vault.revoke(plugin="q")
            said = [r for r in caplog.records if "anchor" in r.getMessage()]
            assert len(said) == 1
    assert anchored(where)["keystore"] == stored(where, "keystore")


# -- what was not authenticated --------------------------------------------------------


def forge(path: Path) -> bytes:
    """Another generation in a document's clear header; returns what was there."""
    data = path.read_bytes()
    number = json.loads(data)["generation"]
    forged = data.replace(f'"generation":{number}'.encode(), b'"generation":7777', 1)
    assert forged != data
    path.write_bytes(forged)
    return data


async def test_a_forged_generation_is_neither_anchored_nor_remembered(where: Path) -> None:
    genuine = forge(section_file(where))
    async with await unseal(where) as vault:
        assert len(await vault.grants()) == 1
        with pytest.raises(CorruptDocumentError, match="MAC"):
            await vault.list()
        await vault.revoke(plugin="p")
        vault.audit.sign()
        section_file(where).write_bytes(genuine)
        assert len((await vault.store.sections.reread("api_keys")).records) == 2
    assert anchored(where)["api_keys"] == stored(where, "api_keys") < 7777
    async with await unseal(where) as vault:
        assert len(await vault.list()) == 2


async def test_a_forged_key_store_is_neither_anchored_nor_remembered(where: Path) -> None:
    async with await unseal(where) as vault:
        genuine = forge(keystore_file(where))
        with pytest.raises(CorruptDocumentError, match="MAC"):
            await vault.store.stored_keystore()
        keystore_file(where).write_bytes(genuine)
        await vault.store.stored_keystore()
        assert len(await vault.grants()) == 1
    assert anchored(where)["keystore"] == stored(where, "keystore") < 7777


async def test_an_anchor_that_an_older_program_let_be_poisoned_is_left_behind(
    where: Path,
) -> None:
    async with await unseal(where) as vault:
        vault.store.rollback._newest["api_keys"] = (7777, "")
        vault._logged.anchor.keep()
    assert anchored(where)["api_keys"] == 7777
    with pytest.raises(RollbackDetectedError, match="accept-rollback"):
        await unseal(where)
    home, master = home_in(where), f"file:{where}/master.key"
    async with await Vault.unseal(home, master=master, accept_rollback="it was forged"):
        pass
    assert anchored(where)["api_keys"] == stored(where, "api_keys")
    async with await unseal(where) as vault:
        assert len(await vault.list()) == 2
        await vault.put("one", ApiKey("new"))


async def test_accepting_a_rollback_does_not_accept_a_forged_header(where: Path) -> None:
    copy = Path(shutil.copytree(home_in(where), where / "copy"))
    async with await unseal(where) as vault:
        await vault.put("one", ApiKey("new"))
    shutil.rmtree(home_in(where))
    shutil.copytree(copy, home_in(where))
    forge(section_file(where))
    home, master = home_in(where), f"file:{where}/master.key"
    async with await Vault.unseal(home, master=master, accept_rollback="restored") as vault:
        assert (await vault.store.keystore()).body.sections["api_keys"] < 7777
        with pytest.raises(CorruptDocumentError):
            await vault.list()
    assert anchored(where).get("api_keys", 0) < 7777


@pytest.mark.parametrize("grants", [2, MANY + 2], ids=["one document", "shards"])
@pytest.mark.parametrize("files", ["security/grants*", "credentials/*", "security/keystore*"])
async def test_what_an_accepted_rollback_gave_up_does_not_come_back(
    where: Path, grants: int, files: str
) -> None:
    home, master = home_in(where), f"file:{where}/master.key"
    async with await unseal(where) as vault:
        for number in range(grants):
            await vault.grant(f"plugin{number}", "one")
    backup = Path(shutil.copytree(home, where / "backup"))
    async with await unseal(where) as vault:
        for number in range(9):
            await vault.grant(f"late{number}", "one")
            await vault.put("one", ApiKey(f"late{number}"))
            await vault.revoke(plugin=f"late{number}")
    given_up = Path(shutil.copytree(home, where / "given-up"))
    shutil.rmtree(home)
    backup.rename(home)
    async with await Vault.unseal(home, master=master, accept_rollback="restored") as vault:
        await vault.revoke(plugin="plugin0")
    for path in given_up.glob(files):
        shutil.copy2(path, home / path.relative_to(given_up))
    with pytest.raises(RollbackDetectedError):
        await unseal(where)


async def test_a_shard_of_grants_that_was_given_up_is_none_that_is_made_since(
    where: Path,
) -> None:
    """Of both branches it is the first version."""
    home, master = home_in(where), f"file:{where}/master.key"
    async with await unseal(where) as vault:
        for number in range(MANY + 2):
            await vault.grant(f"plugin{number}", "one")
    backup = Path(shutil.copytree(home, where / "backup"))
    async with await unseal(where) as vault:
        place = partial(vault.store.sections.names.of, GRANTS, count=SHARDS)
        there = vault.store.grants.existing()
        late = next(n for n in map("late{}".format, range(SHARDS)) if place(n) not in there)
        await vault.grant(late, "one", reveal=True)
        shard = home / f"security/{place(late)}.enc"
    given_up = shard.read_bytes()
    shutil.rmtree(home)
    backup.rename(home)
    async with await Vault.unseal(home, master=master, accept_rollback="restored") as vault:
        await vault.grant(late, "one")
    shard.write_bytes(given_up)
    async with await unseal(where) as vault:
        with pytest.raises(IntegrityError):
            await vault.grants()


# -- its text --------------------------------------------------------------------------

VECTORS = {name: flat.parse(text) for name, text in flat.load("anchor").items()}
GOOD = [name for name, (case, _) in VECTORS.items() if case["expect"] == "success"]


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Anchor]:
    """Of the vault of the vectors."""
    with SecretBytes.from_bytes(make_anchor.SEED) as seed:
        signer = SigningKey.from_seed(seed)
    with signer:
        key = LogKey(make_anchor.VAULT, signer)
        yield Anchor(FileProvider(tmp_path / "k"), key=key, store=None, home=tmp_path)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", GOOD)
def test_an_anchor_is_read_and_written_as_specified(reader: Anchor, name: str) -> None:
    case, text = VECTORS[name]
    numbers = dict(line.split(" ") for line in case["documents"].split(", "))
    accepted = int(numbers.pop("rollbacks.accepted", "0"))
    found = reader._parse(text)
    assert found.documents == {name: int(at) for name, at in numbers.items()}
    assert (found.accepted, found.checkpoint.size) == (accepted, int(case["size"]))
    assert reader._text(found) == text.partition("\n\n")[0] + "\n"


@pytest.mark.parametrize("name", sorted(VECTORS.keys() - GOOD))
def test_an_anchor_that_was_not_signed_so_is_refused(reader: Anchor, name: str) -> None:
    with pytest.raises(IntegrityError):
        reader._parse(VECTORS[name][1])


def test_the_vectors_are_what_their_generator_makes() -> None:
    made = {flat.file_name(name): text for name, text in make_anchor.cases().items()}
    assert made == flat.load("anchor")
