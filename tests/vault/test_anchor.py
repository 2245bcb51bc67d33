"""Older copies of a vault are refused at unseal, named, and accepted only with a reason."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from apex_creds.audit import EventKind, check, read
from apex_creds.audit.verify import MAX_UNSIGNED, MAX_UNSIGNED_SECONDS, check_now
from apex_creds.errors import (
    AuditTamperedError,
    IntegrityError,
    MasterKeyUnavailableError,
    RollbackDetectedError,
)
from apex_creds.fs.home import audit_directory
from apex_creds.keys.head_anchor import AnchorFile
from apex_creds.keys.key_file import FileProvider
from apex_creds.model import ApiKey
from apex_creds.vault import Vault
from apex_creds.vault.config import AuditConfig, Config, home_config, write_config

pytestmark = pytest.mark.anyio

Saved = Callable[[], Path]


class Place:
    """A vault's directory and its master key's, which is elsewhere."""

    def __init__(self, root: Path) -> None:
        self.home, self.master, self._root = root / "home", f"file:{root}/keys/master", root
        (root / "keys").mkdir(mode=0o700)
        self._copies = 0

    def save(self) -> Path:
        self._copies += 1
        return Path(shutil.copytree(self.home, self._root / f"copy-{self._copies}"))

    def put_back(self, copy: Path) -> None:
        shutil.rmtree(self.home)
        shutil.copytree(copy, self.home)

    async def use(self, *names: str, reason: str = "") -> None:
        async with await Vault.unseal(
            self.home, master=self.master, accept_rollback=reason
        ) as vault:
            for name in names:
                await vault.put(name, ApiKey(f"secret of {name}"))
            self.id = vault.vault_id

    def events(self) -> list[tuple[EventKind, str, str]]:
        found = read(audit_directory(self.home), vault_id=self.id)
        return [(event.kind, event.reason, event.detail) for event in found]


@pytest.fixture
async def place(tmp_path: Path) -> Place:
    made = Place(tmp_path)
    async with await Vault.create(made.home, master=made.master):
        pass
    await made.use("one")
    return made


async def test_an_untouched_vault_opens_again_and_again(place: Place) -> None:
    for name in "abc":
        await place.use(name)
    report = check(audit_directory(place.home), vault_id=place.id, complete=True)
    assert report.ok
    assert EventKind.RECOVERED not in [kind for kind, *_ in place.events()]


async def test_an_older_copy_of_the_directory(place: Place) -> None:
    copy = place.save()
    await place.use("two", "three")
    place.put_back(copy)
    with pytest.raises(
        RollbackDetectedError, match=r"'api_keys' is at generation 1; 3 .* 2 more"
    ):
        await place.use()
    assert place.save()
    await place.use(reason="the disk failed; restored from Monday")
    await place.use("four")
    (accepted, *_) = [e for e in place.events() if e[0] is EventKind.ROLLBACK]
    assert accepted[1] == "the disk failed; restored from Monday"
    assert "events; 10 were anchored" in accepted[2] or "were anchored" in accepted[2]
    report = check(audit_directory(place.home), vault_id=place.id, complete=True)
    assert report.ok


@pytest.mark.parametrize(
    "alter",
    [
        lambda data: data + b"garbage\n",
        lambda data: b"garbage\n" * 20,
        lambda data: data[: data.index(b"\n\n") + 2],
        lambda data: data[:-5],
        lambda data: b"",
        lambda data: None,
    ],
)
async def test_checkpoints_that_were_altered_stop_every_unsealing(
    place: Place, alter: Callable[[bytes], bytes | None]
) -> None:
    await place.use("one", "two")
    path = audit_directory(place.home) / "checkpoints"
    kept = path.read_bytes()
    made = alter(kept)
    path.unlink() if made is None else path.write_bytes(made)
    with pytest.raises(AuditTamperedError, match="checkpoints"):
        await place.use()
    path.write_bytes(kept)
    path.chmod(0o600)
    await place.use()


async def test_a_checkpoint_that_lost_its_power_is_no_alteration(place: Place) -> None:
    await place.use("one")
    path = audit_directory(place.home) / "checkpoints"
    begun = path.read_bytes().splitlines(keepends=True)[0]
    for torn in (begun, begun[:20] + bytes(40), bytes(100)):
        with path.open("ab") as file:
            file.write(torn)
        await place.use("one")
    assert check(audit_directory(place.home), vault_id=place.id).ok


async def test_a_log_that_was_cut_with_its_checkpoints(place: Place) -> None:
    copy = place.save()
    await place.use()
    shutil.rmtree(audit_directory(place.home))
    shutil.copytree(audit_directory(copy), audit_directory(place.home))
    with pytest.raises(
        RollbackDetectedError, match=r"has 3 events; 4 were anchored: 1 are miss"
    ):
        await place.use()


async def test_a_log_that_was_cut_alone(place: Place) -> None:
    path = audit_directory(place.home) / "000001.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]))
    with pytest.raises(RollbackDetectedError, match="has 2 events; 3 were signed"):
        await place.use()
    await place.use(reason="checked by hand")
    assert check(audit_directory(place.home), vault_id=place.id, complete=True).ok
    assert list(audit_directory(place.home).glob("rolled-back-*-checkpoints"))


async def test_a_log_that_was_removed(place: Place) -> None:
    shutil.rmtree(audit_directory(place.home))
    with pytest.raises(RollbackDetectedError, match="has 0 events; 3 were anchored"):
        await place.use()
    assert not list(audit_directory(place.home).glob("*.jsonl"))


async def test_a_swapped_section(place: Place) -> None:
    copy = place.save()
    await place.use("two")
    shutil.copy(copy / "credentials/api_keys.enc", place.home / "credentials/api_keys.enc")
    with pytest.raises(RollbackDetectedError, match="'api_keys' is at generation 1; 2 was"):
        await place.use()
    await place.use(reason="two was a mistake")
    async with await Vault.unseal(place.home, master=place.master) as vault:
        assert [info.name for info in await vault.list()] == ["one"]
        await vault.put("two", ApiKey("again"))


async def test_a_document_is_anchored_if_its_event_was_signed_before(place: Place) -> None:
    copy = place.save()
    async with await Vault.unseal(place.home, master=place.master) as vault:
        await vault.put("two", ApiKey("x"))
        vault._logged.log.sign()  # as its thread may, before the vault closes
    place.put_back(copy)
    with pytest.raises(RollbackDetectedError, match="'api_keys' is at generation 1; 2 was"):
        await place.use()


async def test_a_crash_before_the_anchor_is_no_rollback(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(FileProvider, "write_anchor", lambda self, *, vault_id, text: None)
        await place.use("two")
    await place.use("three")


async def test_an_anchor_that_was_removed_is_recorded(place: Place) -> None:
    (anchor,) = Path(place.master[5:]).parent.glob("*.anchor")
    anchor.unlink()
    await place.use()
    assert any("no anchor was kept" in detail for _, _, detail in place.events())
    assert anchor.exists()


async def test_an_anchor_that_was_forged(place: Place) -> None:
    (anchor,) = Path(place.master[5:]).parent.glob("*.anchor")
    anchor.write_text(anchor.read_text().replace("api_keys 1", "api_keys 0"))
    with pytest.raises(IntegrityError, match="accept-rollback"):
        await place.use()
    await place.use(reason="the anchor was damaged")


async def test_pseudonyms(place: Place) -> None:
    from apex_creds.storage.file_storage import FileStorage

    storage = FileStorage(place.home)
    await write_config(storage, Config(AuditConfig(pseudonyms=True)))
    await storage.close()
    async with await Vault.unseal(place.home, master=place.master) as vault:
        await vault.put("very private name", ApiKey("x"))
        shown = vault.audit.shown("very private name")
    raw = b"".join(p.read_bytes() for p in audit_directory(place.home).glob("*.jsonl"))
    assert b"very private" not in raw
    assert shown.encode() in raw
    assert shown.startswith("~")


async def test_several_processes_at_once_are_no_rollback(place: Place) -> None:
    async with await Vault.unseal(place.home, master=place.master) as one:
        async with await Vault.unseal(place.home, master=place.master) as two:
            await two.put("two", ApiKey("x"))
            await one.put("one", ApiKey("y"))
        await one.put("three", ApiKey("z"))
    await place.use()


async def test_a_vault_that_is_open_has_a_checkpoint_and_a_rewritten_log_does_not_verify(
    tmp_path: Path,
) -> None:
    """Whoever can write the log can make it anew, but not the signature."""
    async with await Vault.create(tmp_path / "h", master=f"file:{tmp_path}/k") as vault:
        directory = audit_directory(vault.home)
        assert check_now(directory, vault_id=vault.vault_id).signed == 1
        await vault.put("x", ApiKey("v"))
        assert check_now(directory, vault_id=vault.vault_id).ok
        kept = (directory / "checkpoints").read_bytes()
        (directory / "checkpoints").unlink()
        report = check_now(directory, vault_id=vault.vault_id)
        assert (report.bad_line, report.segment) == (1, "000001.jsonl")
        (directory / "checkpoints").write_bytes(kept)


async def test_no_configuration_lets_events_go_unsigned_for_long() -> None:
    cadence = AuditConfig(checkpoint_events=10**9, checkpoint_seconds=1e9).cadence
    assert cadence.events < MAX_UNSIGNED
    assert cadence.seconds < MAX_UNSIGNED_SECONDS


def test_a_pipe_in_the_anchors_place_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "anchor", 0o600)
    with pytest.raises(MasterKeyUnavailableError, match="not a small file"):
        AnchorFile(tmp_path / "anchor").read()


async def test_a_configuration_that_was_read_is_let_go_of(place: Place) -> None:
    async with await Vault.unseal(place.home, master=place.master) as vault:
        await write_config(vault.store.storage, Config(AuditConfig(durable_ms=50)))
    before = os.listdir("/proc/self/fd")
    await home_config(place.home)
    assert os.listdir("/proc/self/fd") == before
