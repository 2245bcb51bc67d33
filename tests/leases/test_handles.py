"""A handle shows nothing, goes nowhere, and leads to no secret."""

from __future__ import annotations

import copy
import gc
import json
import math
import pickle
import types

import msgspec
import pytest

from apex_creds.crypto.memory import SecretBytes
from apex_creds.documents.records import Record
from apex_creds.errors import AccessDeniedError, InvalidInputError, SecretMisuseError
from apex_creds.keys.hierarchy import Hierarchy
from apex_creds.leases import CredentialMap, LeaseBroker, current_credentials
from apex_creds.leases.lease import Lease
from apex_creds.policy.manifest import parse_manifest
from apex_creds.vault import Vault
from tests.support.worlds import KEY, World

pytestmark = pytest.mark.anyio

FORBIDDEN = (SecretBytes, Vault, Hierarchy, Record, LeaseBroker, Lease)


def reachable(*starts: object) -> list[object]:
    """Everything that references lead to, but for what every program has: code and types."""
    shared = (types.ModuleType, type, types.FunctionType, types.BuiltinFunctionType)
    seen: dict[int, object] = {}
    ahead = list(starts)
    while ahead:
        at = ahead.pop()
        if id(at) in seen or isinstance(at, shared):
            continue
        seen[id(at)] = at
        ahead += gc.get_referents(at)
    return list(seen.values())


def found_from(*starts: object) -> set[str]:
    return {type(o).__name__ for o in reachable(*starts) if isinstance(o, FORBIDDEN)}


async def test_it_shows_its_name_only(world: World) -> None:
    async def plugin(credentials):
        handle = credentials["key"]
        for shown in (repr(handle), str(handle), f"{handle}", f"{handle:>50}"):
            assert shown == "<CredentialHandle 'key'>"
        assert repr(credentials) == "<CredentialMap ['key']>"
        assert not hasattr(handle, "__dict__")

    await world.call(plugin)


async def test_it_can_not_be_taken_away(world: World) -> None:
    async def plugin(credentials):
        handle = credentials["key"]
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            with pytest.raises(SecretMisuseError):
                pickle.dumps(handle, protocol)
            with pytest.raises((SecretMisuseError, TypeError, pickle.PicklingError)):
                pickle.dumps(credentials, protocol)
        for take in (copy.copy, copy.deepcopy):
            with pytest.raises(SecretMisuseError):
                take(handle)
        with pytest.raises(SecretMisuseError):
            copy.deepcopy(credentials)
        for encode in (json.dumps, msgspec.json.encode, msgspec.msgpack.encode):
            for value in (handle, credentials, {"handle": handle}):
                with pytest.raises(TypeError):
                    encode(value)

    await world.call(plugin)


async def test_it_equals_itself_only(world: World) -> None:
    async def plugin(credentials):
        handle = credentials["key"]
        narrower = handle.attenuate()
        assert handle == handle
        assert handle not in (narrower, handle.id, "key", None)
        assert len({handle, narrower}) == 2
        with pytest.raises(TypeError):
            assert handle < narrower

    await world.call(plugin)


async def test_it_can_not_be_made_wider_by_hand(world: World) -> None:
    async def plugin(credentials):
        handle = credentials["key"]
        with pytest.raises(AttributeError):
            handle.scopes = ("admin",)
        object.__setattr__(handle, "_scopes", ("admin",))
        with pytest.raises(AccessDeniedError):
            async with handle.reveal(scope="admin"):
                pass

    await world.call(plugin, needs=({"name": "key", "access": "reveal", "scopes": ["read"]},))


async def test_nothing_leads_from_it_to_a_secret(world: World) -> None:
    async def plugin(credentials):
        handle = credentials["key"]
        reveal = handle.reveal()
        async with handle.client() as client:
            starts = [
                handle,
                handle.attenuate(),
                credentials,
                reveal,
                client,
                client._transport,
            ]
            assert found_from(*starts) == set()
        async with reveal as secret:
            assert found_from(handle, credentials) == set()
            assert found_from(reveal) == {"SecretBytes"}, "the walk finds what is there"
            held = [o for o in reachable(secret) if isinstance(o, FORBIDDEN)]
            assert held == [secret]
        assert found_from(reveal) == set()

    await world.call(plugin)


async def test_nothing_leads_from_a_sync_client_to_a_secret(world: World) -> None:
    def plugin(credentials):
        with credentials["key"].sync_client() as client:
            assert found_from(client, client._transport) == set()

    await world.call(plugin)


async def test_what_it_says_of_itself(world: World) -> None:
    needs = ({"name": "key", "access": "reveal", "scopes": ["read"]},)

    async def plugin(credentials):
        handle = credentials["key"]
        assert len(handle.id) == 32
        assert (handle.name, handle.scopes) == ("key", ("read",))
        assert handle.expires == world.clock.now + 300
        assert handle.active
        return handle

    handle = await world.call(plugin, needs=needs)
    assert not handle.active


async def test_the_mapping(world: World) -> None:
    async def plugin(credentials):
        assert isinstance(credentials, CredentialMap)
        assert current_credentials() is credentials
        assert dict(credentials) == {"key": credentials["key"], "token": credentials["token"]}
        assert "key" in credentials
        assert "blob" not in credentials
        assert credentials.get("blob") is None

    await world.call(plugin, needs=("key", "token"))
    assert world.reasons() == [], "looking whether there is one is no offence"
    assert dict(current_credentials()) == {}


async def test_one_refusal_for_all(world: World) -> None:
    """A refusal does not map the vault; the log says what the matter was."""
    optional = {"name": "ungranted", "access": "reveal", "required": False}

    async def plugin(credentials):
        said = {}
        for name in ("blob", "no-such", "ungranted"):
            with pytest.raises(AccessDeniedError) as caught:
                credentials[name]
            error = caught.value
            assert (error.__cause__, error.__context__) == (None, None)
            said[name] = (type(error), str(error).replace(name, "NAME"), error.hint, error.args)
        assert (
            len({str(each).replace("'", '"') for each in said.values()}) == 1
            or len({(each[0], each[1], each[2]) for each in said.values()}) == 1
        )

    await world.call(plugin, needs=("key", optional))
    assert sorted(set(world.reasons())) == [
        ("blob", "undeclared"),
        ("no-such", "undeclared"),
        ("ungranted", "not_granted"),
    ]


async def test_one_refusal_for_what_is_required(world: World) -> None:
    said = set()
    for name in ("no-such", "ungranted"):
        with pytest.raises(AccessDeniedError) as caught:
            await world.call(lambda credentials: None, needs=(name,))
        said.add((type(caught.value), str(caught.value).replace(name, "NAME")))
    assert len(said) == 1
    assert world.reasons() == [("no-such", "unknown_credential"), ("ungranted", "not_granted")]
    assert world.middleware.broker.open_leases == 0


async def test_an_undeclared_name_is_refused_where_nothing_is_declared(world: World) -> None:
    async def plugin(credentials):
        credentials["key"]

    with pytest.raises(AccessDeniedError):
        await world.call(plugin, needs=())
    assert world.reasons() == [("key", "undeclared")]


async def test_outside_of_any_invocation_there_is_nothing(world: World) -> None:
    with pytest.raises(AccessDeniedError):
        current_credentials()["key"]


async def test_the_secret_is_not_in_a_refusals_text(world: World) -> None:
    async def plugin(credentials):
        with pytest.raises(AccessDeniedError) as caught:
            credentials["x" * 100_000]
        assert len(str(caught.value)) < 1000
        async with credentials["key"].reveal() as secret:
            assert secret.expose_str() == KEY

    await world.call(plugin)


class Lying(str):
    """Equals every text, and has the hash of one."""

    def __eq__(self, other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return hash("read")

    def upper(self) -> str:
        return "GET"


async def test_arguments_that_lie_widen_nothing(world: World) -> None:
    async def plugin(credentials):
        handle = credentials["key"]
        for use in (
            lambda: handle.reveal(scope=Lying("admin")).__aenter__(),
            lambda: handle.client(scope=Lying("admin")).get("https://api.example.com/"),
        ):
            with pytest.raises(AccessDeniedError):
                await use()
        with pytest.raises(AccessDeniedError):
            handle.attenuate(scopes=(Lying("admin"),))
        with pytest.raises(AccessDeniedError):
            credentials[Lying("guess")]
        assert credentials.get(Lying("guess")) is None
        assert Lying("guess") not in credentials
        for wrong in (
            {"max_uses": 1.5}, {"max_uses": True}, {"max_uses": math.inf}, {"max_uses": 0},
            {"ttl": math.nan}, {"ttl": math.inf}, {"ttl": "5"}, {"ttl": True},
            {"scopes": "read"}, {"scopes": 5}, {"scopes": [b"read"]},
        ):  # fmt: skip
            with pytest.raises(InvalidInputError):
                handle.attenuate(**wrong)
        narrow = handle.attenuate(scopes=[Lying("read")])
        assert [type(scope) for scope in narrow.scopes] == [str]

    need = {"name": "key", "access": "reveal", "scopes": ["read"]}
    await world.call(plugin, needs=(need,))


async def test_an_action_that_lies_poisons_no_decision(world: World) -> None:
    """A policy's answers are remembered by the action's name."""
    policy = world.where / "home" / "security" / "policy.toml"
    policy.write_text(
        'version = 1\n[[rules]]\ndecision = "deny"\naction = "read"\ncredential = "key"\n'
    )
    policy.chmod(0o600)
    world.clock.now += 1

    async def named_so(credentials):
        return list(credentials)

    named_so.__name__ = Lying("other")
    assert await world.call(named_so) == ["key"]
    named_so.__name__ = "read"
    with pytest.raises(AccessDeniedError):
        await world.call(named_so)
    named_so.__name__ = "other"
    assert await world.call(named_so) == ["key"]


def test_metadata_that_lies_is_what_it_is() -> None:
    """A runtime may pass on what a plugin's code made."""

    class Changing(list):
        def __iter__(self):
            return iter([Lying("admin")])

    need = {
        "name": Lying("key"), "scopes": Changing([Lying("read")]), "methods": [Lying("DELETE")],
        "paths": [Lying("/v1/*")], "origins": [Lying("https://api.example.com")],
    }  # fmt: skip
    made = parse_manifest({"id": Lying("demo"), "version": Lying("1.0"), "credentials": [need]})
    (found,) = made.needs
    texts = [made.plugin, made.version, found.name, *found.scopes, *found.methods, *found.paths]
    assert texts == ["demo", "1.0", "key", "read", "DELETE", "/v1/*"]
    assert {type(text) for text in texts} == {str}


async def test_however_deep_it_is_attenuated_all_of_it_ends(world: World) -> None:
    kept = []

    async def plugin(credentials):
        kept.append(credentials["key"])
        for _ in range(2_000):  # deeper than calls can be
            kept.append(kept[-1].attenuate())
        async with kept[-1].reveal() as secret:
            assert secret.expose_str() == KEY
        return kept[-1].active

    assert await world.call(plugin) is True
    assert world.middleware.broker.open_leases == 0
    assert not any(each.active for each in kept)
    with pytest.raises(AccessDeniedError):
        async with kept[-1].reveal():
            pass


async def test_an_invocation_has_no_leases_without_end(world: World, monkeypatch) -> None:
    monkeypatch.setattr("apex_creds.leases.broker.MOST_LEASES", 50)

    async def plugin(credentials):
        made = [credentials["key"].attenuate() for _ in range(49)]
        with pytest.raises(InvalidInputError, match="at most 50"):
            made[0].attenuate()

    await world.call(plugin)
