"""The vault against a dictionary: whatever is done to it, and however often it is reopened."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from apex_creds.documents import key_versions
from apex_creds.errors import CredentialExistsError, CredentialNotFoundError
from apex_creds.model import SECTIONS, CredentialKind
from apex_creds.storage import FileStorage
from apex_creds.vault import PutItem, Vault
from tests.support.clocks import FakeClock
from tests.support.vaults import (
    home_in,
    master_in,
    secret_for,
    tree,
    value_of,
    values,
)

NAMES = ["a", "b", "c", "a/b", "é", "A"]
SERVICES = [None, "s", "t", "a"]
names = st.sampled_from(NAMES)
services = st.sampled_from(SERVICES)
kinds = st.sampled_from([kind.value for kind in CredentialKind])
texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)


items = st.tuples(names, services, texts)


class VaultMachine(RuleBasedStateMachine):
    """``self.model``: name to kind, service, value and version."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.where = Path(tempfile.mkdtemp())
        self.home = home_in(self.where)
        self.clock = FakeClock()
        self.model: dict[str, tuple[str, str, bytes, int]] = {}
        self.granted: dict[tuple[str, str], tuple[bool, float | None]] = {}

    @initialize(hashed=st.booleans())
    def create(self, hashed: bool) -> None:
        made = Vault.create(
            self.home, master=master_in(self.where), hashed_names=hashed, clock=self.clock
        )
        self.vault = self.do(made)
        self.hashed = hashed

    def do(self, work):
        return self.loop.run_until_complete(work)

    def teardown(self) -> None:
        self.do(self.vault.close())
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()
        shutil.rmtree(self.where)

    @rule(name=names, service=services, kind=kinds, text=texts)
    def put(self, name: str, service: str | None, kind: str, text: str) -> None:
        self.clock.now += 1
        old = self.model.get(name)
        work = self.vault.put(name, secret_for(kind, text), service=service)
        if old is not None and old[0] != kind:
            self.refused(work, CredentialExistsError)
            return
        info = self.do(work)
        kept = old[1] if old else name
        self.model[name] = (kind, service or kept, text.encode(), old[3] + 1 if old else 1)
        assert (info.kind, info.service, info.version) == (kind, *self.model[name][1::2])
        assert info.updated == self.clock.now

    @rule(chosen=st.lists(items, max_size=4, unique_by=lambda t: t[0]))
    def put_many(self, chosen: list[tuple[str, str | None, str]]) -> None:
        free = [t for t in chosen if self.model.get(t[0], ("generic",))[0] == "generic"]
        items = [
            PutItem(name=name, secret=secret_for("generic", text), service=service)
            for name, service, text in free
        ]
        written = self.do(self.vault.put_many(items))
        assert [info.name for info in written] == [t[0] for t in free]
        for name, service, text in free:
            old = self.model.get(name)
            kept = old[1] if old else name
            version = old[3] + 1 if old else 1
            self.model[name] = ("generic", service or kept, text.encode(), version)

    def unused(self, section: str) -> list[str]:
        """Labels with a version that two renewals in a row have left without a record."""
        return self.do(key_versions.left_behind(self.vault._store, section))

    @rule(name=names)
    def delete(self, name: str) -> None:
        if name not in self.model:
            if any(self.unused(section) for section in SECTIONS.values()):
                self.do(self.vault.delete(name))  # takes it for a deletion that was cut off
            else:
                self.refused(self.vault.delete(name), CredentialNotFoundError)
            return
        sealed = self.do(self.vault.find(name)).sealed
        assert self.do(self.vault.delete(name)).shredded
        del self.model[name]
        found = [data for _, data in tree(self.home).values()]
        assert not any(sealed[:60] in data for data in found)

    @rule(name=names, plugin=st.sampled_from("pq"), reveal=st.booleans())
    def grant(self, name: str, plugin: str, reveal: bool) -> None:
        until = None if reveal else self.clock.now + 100
        self.do(self.vault.grant(plugin, name, reveal=reveal, until=until))
        self.granted[plugin, name] = (reveal, until)

    @rule(name=st.none() | names, plugin=st.none() | st.sampled_from("pq"))
    def revoke(self, name: str | None, plugin: str | None) -> None:
        if name is None and plugin is None:
            return
        gone = {
            (who, what)
            for who, what in self.granted
            if plugin in (None, who) and name in (None, what)
        }
        removed = self.do(self.vault.revoke(plugin=plugin, credential=name))
        assert {(grant.plugin, grant.credential) for grant in removed} == gone
        for pair in gone:
            del self.granted[pair]

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def renew(self, data: st.DataObject) -> None:
        kind, service, _, _ = self.model[data.draw(st.sampled_from(sorted(self.model)))]
        section, store = SECTIONS[CredentialKind(kind)], self.vault._store
        label = f"{section}/{service}"
        self.do(key_versions.renew(store, label, now=self.clock.now))
        if data.draw(st.booleans()):
            self.do(key_versions.move_records(store, section, label))
            self.do(key_versions.destroy_unused(store, section, label, now=self.clock.now))

    @rule()
    def reopen(self) -> None:
        self.do(self.vault.close())
        before = tree(self.home)
        self.vault = self.do(Vault.unseal(self.home, clock=self.clock))
        assert tree(self.home) == before

    @rule(name=names, kind=kinds, text=texts)
    def another_process_puts(self, name: str, kind: str, text: str) -> None:
        mine = self.vault
        self.vault = self.do(Vault.unseal(self.home, clock=self.clock))
        try:
            self.put(name, None, kind, text)
        finally:
            self.do(self.vault.close())
            self.vault = mine

    @invariant()
    def is_as_the_model(self) -> None:
        listed = {info.name: info for info in self.do(self.vault.list())}
        found = {n: (i.kind.value, i.service, i.version) for n, i in listed.items()}
        assert found == {n: (m[0], m[1], m[3]) for n, m in self.model.items()}
        assert self.do(values(self.vault)) == {n: m[2] for n, m in self.model.items()}
        stored = self.do(self.vault.grants())
        grants = {(g.plugin, g.credential): (g.reveal, g.until) for g in stored}
        assert grants == self.granted

    @invariant()
    def file_names_say_nothing_where_they_are_hashed(self) -> None:
        stems = {path.stem for path in (self.home / "credentials").iterdir()}
        assert not (self.hashed and stems & set(SECTIONS.values()))

    def refused(self, work, expected: type[Exception]) -> None:
        before = tree(self.home)
        with pytest.raises(expected):
            self.do(work)
        assert tree(self.home) == before


VaultMachine.TestCase.settings = settings(
    max_examples=25,
    stateful_step_count=15,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
TestVaultMachine = pytest.mark.slow(VaultMachine.TestCase)


@pytest.mark.anyio
async def test_hashed_names_can_be_mapped_only_with_the_key(tmp_path: Path) -> None:
    home = home_in(tmp_path)
    async with await Vault.create(home, master=master_in(tmp_path), hashed_names=True) as vault:
        await vault.put("a", secret_for("api_key", "value"))
    storage = FileStorage(home)
    assert await storage.read("api_keys") is None
    await storage.close()
    async with await Vault.unseal(home) as vault:
        assert await value_of(vault, "a") == b"value"
