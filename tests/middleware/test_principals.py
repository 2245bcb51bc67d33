"""Credentials that belong to somebody: each call has its own principal's, or is refused."""

from __future__ import annotations

import asyncio
import contextvars
import itertools
import logging
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apex_creds import acting_for
from apex_creds.documents.records import open_record
from apex_creds.errors import (
    AccessDeniedError,
    ApexCredsError,
    CredentialNotFoundError,
    DecryptionError,
    HandleForeignError,
    InvalidInputError,
    InvalidNameError,
    LeaseEndedError,
    RateLimitedError,
)
from apex_creds.middleware import CredentialMiddleware
from apex_creds.model import ApiKey, GenericSecret, key_of
from apex_creds.policy.consent import CallbackConsent, Choice, ConsentAnswer
from apex_creds.policy.grants import GrantDecision
from apex_creds.policy.manifest import Access, Manifest, Need
from apex_creds.vault import Vault
from tests.support.policies import limit, put_policy, rule, use, write
from tests.support.worlds import KEY, World, manifest_for, world_in

pytestmark = pytest.mark.anyio

ALICE, BOB = "alices-secret-0123456789", "bobs-secret-0123456789"


WHOSE = {KEY: "shared", ALICE: "alice", BOB: "bob"}
"""What a plugin returns, since the secret itself would be covered."""


async def secret_of(handle) -> str:
    return WHOSE[await use(handle)]


async def read(credentials) -> str:
    return await secret_of(credentials["key"])


@pytest.mark.parametrize("nobody", [0, False, b"", None, ()])
async def test_what_is_no_text_is_not_taken_for_nobody(two: World, nobody: object) -> None:
    """Else a user's id that is 0 would have the shared credentials."""
    whose: dict[str, Any] = {"principal": nobody}
    manifest = Manifest(plugin="demo", version="1", needs=(Need(name="key"),))
    async with CredentialMiddleware(two.vault) as middleware:

        async def call() -> None:
            raise AssertionError("it was called")

        for wrong in (
            lambda: middleware.invoke(manifest, call, **whose),
            lambda: middleware.invoke_action(manifest, "act", call, **whose),
            lambda: two.vault.get("key", **whose),
        ):
            with pytest.raises(InvalidInputError):
                await wrong()


@pytest.fixture
async def two(tmp_path: Path, anyio_backend: str):
    """alice and bob have a ``key`` each, beside the shared one; both are granted."""
    async with world_in(tmp_path) as world:
        for principal, value in (("alice", ALICE), ("bob", BOB)):
            await world.vault.put("key", ApiKey(value), principal=principal)
            await world.vault.grant("demo", "key", reveal=True, principal=principal)
        yield world


async def test_each_call_has_the_credential_of_whom_it_is_for(two: World):
    assert await two.call(read) == "shared"
    for principal in ("alice", "bob"):
        assert await two.call(read, principal=principal) == principal
        with acting_for(principal):
            assert await two.call(read) == principal


async def test_the_log_names_the_principal_and_the_credential_apart(two: World):
    await two.call(read, principal="alice")
    used = [e for e in two.events() if e.kind in ("lease", "redeem", "invocation")]
    assert {(e.principal, e.credential) for e in used[:2]} == {("alice", "key")}
    assert used[-1].principal == "alice"
    put = [(e.principal, e.credential) for e in two.events("put")]
    assert ("alice", "key") in put


async def test_the_shared_one_is_for_a_principal_only_where_policy_says_so(two: World):
    with pytest.raises(AccessDeniedError):
        await two.call(read, principal="carol")
    assert two.reasons()[-1] == ("key", "shared_not_allowed")
    write(two, rule("ask", 'credential = "key"', 'principal = "car*"', "shared = true"))
    assert await two.call(read, principal="carol") == "shared"
    assert two.events("redeem")[-1].detail == "shared"
    with pytest.raises(AccessDeniedError):
        await two.call(read, principal="dave")
    assert await two.call(read, principal="alice") == "alice"


async def test_a_grant_on_the_shared_one_is_none_on_a_principals(tmp_path: Path):
    async with world_in(tmp_path) as world:
        await world.vault.put("key", ApiKey(ALICE), principal="alice")
        with pytest.raises(AccessDeniedError):
            await world.call(read, principal="alice")
        assert world.reasons()[-1] == ("key", "not_granted")


async def test_what_somebody_has_is_not_granted_to_a_call_for_nobody(two: World):
    await two.vault.put("own", ApiKey(ALICE), principal="alice")
    await two.vault.grant("demo", "own", reveal=True, principal="alice")

    async def own(credentials) -> str:
        return await secret_of(credentials["own"])

    for principal in ("", "bob", "Alice", "alice\u200b", "\uff41lice", "alice "):
        with pytest.raises(ApexCredsError):
            await two.call(own, needs=("own",), principal=principal)
    assert await two.call(own, needs=("own",), principal="alice") == "alice"


@pytest.mark.parametrize("name", [key_of("key", "alice"), "key\x1falice\x1f"])
async def test_no_name_leads_to_a_principals_credential(two: World, name: str):
    """What a runtime builds itself is not checked as a plugin's metadata is."""
    manifest = Manifest(plugin="demo", needs=(Need(name=name, access=Access.REVEAL),))

    async def take(credentials) -> str:
        return await secret_of(credentials[name])

    for principal in ("", "bob", "alice"):
        with pytest.raises(ApexCredsError):
            await two.middleware.invoke_action(manifest, "take", take, principal=principal)
    with pytest.raises(AccessDeniedError):
        await two.call(lambda credentials: credentials[name], principal="bob")
    for work in (
        two.vault.get(name),
        two.vault.delete(name),
        two.vault.edit(name, challenge=True),
        two.vault.put(name, ApiKey("a-value-0123456789")),
        two.vault.grant("demo", name),
    ):
        with pytest.raises(InvalidNameError):
            await work
    with pytest.raises(InvalidNameError):
        async with two.vault.open(name):
            pass


@pytest.mark.parametrize(
    "principal", ["a\x1fb", "e\u0301", " alice", "a\nb", "\u202ealice", "x" * 257]
)
async def test_a_principal_is_a_name_in_one_form(two: World, principal: str):
    with pytest.raises(InvalidNameError):
        await two.call(read, principal=principal)
    with pytest.raises(InvalidNameError):
        await two.vault.put("key", ApiKey("a-value-0123456789"), principal=principal)
    with pytest.raises(InvalidNameError), acting_for(principal):
        pass


async def test_what_is_called_within_an_invocation_is_for_the_same_principal(two: World):
    async def inner() -> str:
        return await two.call(read, plugin="demo")

    async def switching(whom: str) -> str:
        return await two.call(read, principal=whom)

    async def pretending() -> str:
        with acting_for("bob"):
            return await two.call(read)

    assert await two.call(inner, principal="alice") == "alice"
    assert await two.call(switching, "alice", principal="alice") == "alice"
    assert await two.call(pretending, principal="alice") == "alice"
    for whom in ("", "alice"):
        with pytest.raises(AccessDeniedError):
            await two.call(switching, "bob", **({"principal": whom} if whom else {}))
        assert two.events("denial")[-1].reason == "foreign_principal"
    assert await two.call(pretending) == "shared"  # called for nobody, it acts for nobody


async def test_a_plugin_without_credentials_acts_for_nobody_else_either(two: World):
    async def bare(whom: str) -> str:
        return await two.call(read, principal=whom)

    async def pretending() -> str:
        with acting_for("bob"):
            return await two.call(read)

    for function, args in ((bare, ("bob",)), (pretending, ())):
        for principal in ({}, {"principal": "alice"}):
            try:
                found = await two.middleware.invoke_action(
                    Manifest(plugin="bare"), "run", function, args, **principal
                )
            except AccessDeniedError:
                continue
            assert found == "alice"  # and for nobody it would be refused


async def test_a_late_handle_is_no_good_in_anothers_call(two: World):
    kept = []

    async def keep(credentials) -> None:
        kept.append(credentials["key"])
        kept.append(credentials["key"].attenuate())

    async def late(credentials) -> str:
        for handle in kept:
            with pytest.raises((LeaseEndedError, HandleForeignError)):
                await secret_of(handle)
        return await secret_of(credentials["key"])

    await two.call(keep, principal="alice")
    assert await two.call(late, principal="bob") == "bob"

    started, over = asyncio.Event(), asyncio.Event()

    async def open_longer(credentials) -> str:
        kept[:] = [credentials["key"], credentials["key"].attenuate()]
        started.set()
        await over.wait()
        return await secret_of(credentials["key"])

    async def at_once(credentials) -> str:
        for handle in kept:
            with pytest.raises(HandleForeignError):
                await use(handle)
        over.set()
        return await secret_of(credentials["key"])

    alices = asyncio.create_task(two.call(open_longer, principal="alice"))
    await started.wait()
    assert await two.call(at_once, principal="bob") == "bob"
    assert await alices == "alice"


async def test_a_task_that_outlives_its_call_has_no_other_principal(two: World):
    left: list[asyncio.Task[object]] = []
    go = asyncio.Event()

    async def leave() -> None:
        async def later() -> object:
            await go.wait()
            return await two.call(read, principal="bob")

        left.append(asyncio.create_task(later()))

    await two.call(leave, principal="alice")
    go.set()
    with pytest.raises(AccessDeniedError):
        await left[0]


async def test_a_keyword_of_the_function_is_given_to_it_too(two: World):
    async def mine(credentials, principal: str) -> tuple[str, str]:
        return principal, await secret_of(credentials["key"])

    assert await two.call(mine, principal="alice") == ("alice", "alice")
    # What a model chose is an argument, and no principal.
    found = await two.middleware.invoke_action(
        manifest_for("key"), "mine", mine, (), {"principal": "alice"}
    )
    assert found == ("alice", "shared")


async def test_synchronous_calls_know_their_principal(two: World):
    def blocking(credentials) -> str:
        with credentials["key"].reveal() as secret:
            return WHOSE[secret.expose_str()]

    assert await two.call(blocking, principal="bob") == "bob"
    manifest = manifest_for("key")
    found = await asyncio.to_thread(
        two.middleware.invoke_sync, manifest, "read", blocking, principal="alice"
    )
    assert found == "alice"


async def test_revoking_the_one_leaves_the_others(two: World):
    await two.vault.revoke(plugin="demo", credential="key", principal="alice")
    with pytest.raises(AccessDeniedError):
        await two.call(read, principal="alice")
    assert await two.call(read, principal="bob") == "bob"
    assert await two.call(read) == "shared"
    await two.vault.revoke(plugin="demo", credential="key")
    assert await two.call(read, principal="bob") == "bob"


async def test_a_use_for_somebody_does_not_stand_for_one_of_the_shared(two: World):
    """A grant is bound to what used it first, each for itself."""
    for _ in range(2):
        assert await two.call(read, principal="alice") == "alice"
    assert await two.call(read) == "shared"
    found = [g for g in await two.vault.grants() if g.plugin == "demo"]
    bound = {g.principal: bool(g.manifest) for g in found if g.credential == "key"}
    assert bound == {"": True, "alice": True, "bob": True}


async def test_secrets_of_all_principals_are_covered_in_logs(two: World, caplog):
    """Both are version 1 of a credential of one name."""
    with caplog.at_level(logging.INFO):
        await two.call(read, principal="alice")
        await two.call(read, principal="bob")
        contextvars.Context().run(logging.getLogger("late").info, "%s %s", ALICE, BOB)
    assert ALICE not in caplog.text
    assert BOB not in caplog.text


async def test_rules_know_who_a_call_is_for(two: World):
    write(two, rule("deny", 'principal = "bob"', 'credential = "key"'))
    assert await two.call(read, principal="alice") == "alice"
    assert await two.call(read) == "shared"
    with pytest.raises(AccessDeniedError):
        await two.call(read, principal="bob")


@pytest.mark.parametrize("per", ["principal", "credential", "pair"])
async def test_the_limit_that_one_reaches_is_not_anothers(two: World, per: str):
    write(two, limit(2, per))
    for _ in range(2):
        await two.call(read, principal="alice")
    with pytest.raises(RateLimitedError):
        await two.call(read, principal="alice")
    assert await two.call(read, principal="bob") == "bob"


async def test_what_one_answers_counts_for_his_credential_only(tmp_path: Path):
    asked = []

    def answer(request):
        asked.append((request.principal, request.owner))
        return ConsentAnswer(choice=Choice.SESSION)

    async with world_in(tmp_path, consent=CallbackConsent(answer)) as world:
        for principal, value in (("alice", ALICE), ("bob", BOB)):
            await world.vault.put("key", ApiKey(value), principal=principal)
        for _ in range(2):
            assert await world.call(read, principal="alice") == "alice"
        assert asked == [("alice", "alice")]
        assert await world.call(read, principal="bob") == "bob"
        assert asked == [("alice", "alice"), ("bob", "bob")]


async def test_a_principals_record_under_anothers_name_does_not_open(two: World):
    """As somebody would move it who has the document's key and not the credential's."""
    record = await two.vault.find("key", principal="alice")
    keystore, vault_id = two.vault.store.unsealed(), bytes.fromhex(two.vault.vault_id)
    open_record(record, vault_id=vault_id, find_key=keystore.dek).close()
    for principal in ("bob", ""):
        info = msgspec.structs.replace(record.info, principal=principal)
        moved = msgspec.structs.replace(record, info=info)
        with pytest.raises(DecryptionError):
            open_record(moved, vault_id=vault_id, find_key=keystore.dek)


async def test_a_document_with_principals_is_refused_by_older_programs(two: World):
    (shard,) = (await two.vault.store.sections.read("api_keys")).shards.values()
    assert shard.header.version == 3
    for principal in ("alice", "bob"):
        await two.vault.delete("key", principal=principal)
    (shard,) = (await two.vault.store.sections.read("api_keys")).shards.values()
    assert shard.header.version == 2
    assert await two.call(read) == "shared"


async def test_principals_are_there_after_a_restart_and_a_rotation(two: World):
    from apex_creds.documents import key_versions

    now = two.clock.time()
    await key_versions.renew(two.vault.store, "api_keys/key", now=now)
    await key_versions.move_records(two.vault.store, "api_keys", "api_keys/key")
    assert await two.call(read, principal="alice") == "alice"
    found = two.elsewhere(
        "for who in ('', 'alice', 'bob'):\n"
        "    async with vault.open('key', principal=who) as opened:\n"
        "        result = (result or []) + [bytes(opened.view()).decode()]"
    )
    assert found == [KEY, ALICE, BOB]


# -- against a model -----------------------------------------------------------------------

_WHO = ("", "alice", "bob", "Alice", "b\u00f6b")
_NAMES = ("key", "blob", "key.x")
_one = st.tuples(
    st.sampled_from(["put", "delete", "grant", "deny", "revoke", "share", "unshare"]),
    st.sampled_from(_WHO),
    st.sampled_from(_NAMES),
)


class _Model:
    """What the vault has, and who is to get what."""

    def __init__(self) -> None:
        self.values: dict[tuple[str, str], str] = {}
        self.grants: dict[tuple[str, str], bool] = {}
        self.shares: set[tuple[str, str]] = set()
        self.made = 0

    def expected(self, who: str, name: str) -> str | None:
        owner = who if (who, name) in self.values else ""
        value = self.values.get((owner, name))
        if value is None or not self.grants.get((owner, name)):
            return None
        return value if owner == who or (who, name) in self.shares else None

    def policy(self) -> str:
        found = [
            rule("ask", f'principal = "{who}"', f'credential = "{name}"', "shared = true")
            for who, name in sorted(self.shares)
        ]
        return "\n".join([*found, limit(100_000, "plugin", "denials")])


async def _apply(vault: Vault, home: Path, model: _Model, step: tuple[str, str, str]) -> None:
    what, who, name = step
    at = (who, name)
    if what == "put":
        model.made += 1
        value = f"the value number {model.made}"
        await vault.put(name, GenericSecret(value.encode()), principal=who)
        model.values[at] = value
    elif what == "delete":
        if model.values.pop(at, None) is None:
            with pytest.raises(CredentialNotFoundError):
                await vault.delete(name, principal=who)
        else:
            await vault.delete(name, principal=who)
    elif what in ("grant", "deny"):
        decision = GrantDecision.ALLOW if what == "grant" else GrantDecision.DENY
        await vault.grant("demo", name, reveal=True, decision=decision, principal=who)
        model.grants[at] = what == "grant"
    elif what == "revoke":
        await vault.revoke(plugin="demo", credential=name, principal=who)
        model.grants.pop(at, None)
    elif who:
        (model.shares.add if what == "share" else model.shares.discard)(at)
        put_policy(home, model.policy())


@settings(max_examples=6, deadline=None)
@given(steps=st.lists(_one, min_size=8, max_size=24))
async def test_every_call_gets_what_a_model_says(tmp_path_factory, steps):
    where = tmp_path_factory.mktemp("model")
    master = f"file:{where}/key"
    model = _Model()
    async with await Vault.create(where / "home", master=master) as vault:
        put_policy(where / "home", model.policy())
        middleware = CredentialMiddleware(vault, harden=False)
        try:
            for step in steps:
                await _apply(vault, where / "home", model, step)
                middleware.broker.authorizer.reload()
                for who, name in itertools.product(_WHO, _NAMES):
                    wanted = model.expected(who, name)
                    found = await _got(middleware, who, name)
                    assert found == (None if wanted is None else hash(wanted))
        finally:
            await middleware.close()


async def _got(middleware: CredentialMiddleware, who: str, name: str) -> int | None:
    async def take(credentials) -> int:
        return hash(await use(credentials[name]))

    manifest = manifest_for(name)
    try:
        found = await middleware.invoke_action(manifest, "take", take, principal=who)
    except AccessDeniedError:
        return None
    assert isinstance(found, int)
    return found
