"""The policy file as plugins meet it: rules, hours, limits, and changes while they run."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from apex_creds.errors import (
    AccessDeniedError,
    InvalidPolicyError,
    LeaseEndedError,
    RateLimitedError,
)
from apex_creds.middleware import CredentialMiddleware
from apex_creds.model import ApiKey
from apex_creds.policy.rate_limits import DenialsExceeded
from apex_creds.vault import Vault
from tests.support.policies import limit, put_policy, rule, use, write
from tests.support.worlds import KEY, REPOSITORY, World, in_other_process, manifest_for

pytestmark = pytest.mark.anyio


async def read_key(credentials) -> bool:
    return await use(credentials["key"]) == KEY


# -- rules -----------------------------------------------------------------------------


async def test_a_rule_allows_without_a_grant_and_refuses_in_spite_of_one(world: World) -> None:
    with pytest.raises(AccessDeniedError):
        await world.call(read_key, plugin="new")
    write(
        world, rule("allow", 'plugin = "new"', "reveal = true") + rule("deny", 'plugin = "d*"')
    )
    assert await world.call(read_key, plugin="new")
    with pytest.raises(AccessDeniedError):
        await world.call(read_key)
    assert world.reasons() == [("key", "not_granted"), ("key", "policy_denied")]


async def test_a_rule_may_be_about_an_action(world: World) -> None:
    write(world, rule("deny", 'action = "delete_*"'))

    async def delete_all(credentials) -> bool:
        return await read_key(credentials)

    with pytest.raises(AccessDeniedError):
        await world.call(delete_all)
    assert await world.call(read_key)


async def test_levels_decide_where_no_rule_does(world: World) -> None:
    for level in ("normal", "sensitive", "critical"):
        await world.vault.put(level, ApiKey(KEY), sensitivity=level)
    write(world, '[levels.normal]\ndecision = "allow"\n')

    async def names(credentials) -> list[str]:
        return sorted(credentials)

    needs = tuple({"name": n, "required": False} for n in ("normal", "sensitive", "critical"))
    assert await world.call(names, needs=needs) == ["normal"]
    for level in ("normal", "sensitive", "critical"):
        await world.vault.grant("demo", level)
    assert await world.call(names, needs=needs) == ["normal", "sensitive"]
    assert ("critical", "second_factor_needed") in world.reasons()


async def test_a_change_reaches_open_leases_by_their_next_use(world: World) -> None:
    async def plugin(credentials) -> None:
        handle = credentials["key"]
        assert await use(handle) == KEY
        write(world, rule("ask"))
        assert await use(handle) == KEY, "it has a grant"
        write(world, rule("deny"))
        with pytest.raises(LeaseEndedError):
            await use(handle)
        assert not handle.active

    await world.call(plugin)


async def test_a_lease_ends_with_the_hours_that_allow_it(world: World) -> None:
    world.clock.now = 1_700_000_000.0 // 86400 * 86400 + 8 * 3600  # 08:00 UTC
    hours = 'time = { from = "08:00", to = "09:00", zone = "UTC" }'
    write(world, rule("allow", 'plugin = "new"', "reveal = true", hours))
    world.middleware = CredentialMiddleware(world.vault, ttl=86400)

    async def plugin(credentials) -> None:
        handle = credentials["key"]
        world.clock.now += 3500
        assert await use(handle) == KEY
        world.clock.now += 99
        with pytest.raises(LeaseEndedError):
            await use(handle)

    await world.call(plugin, plugin="new")
    with pytest.raises(AccessDeniedError):
        await world.call(read_key, plugin="new")


async def test_an_invalid_file_changes_nothing_and_is_in_the_log(world: World) -> None:
    write(world, rule("deny", 'plugin = "bad"'))
    assert await world.call(read_key)
    write(world, rule("deny", 'plugin = "*x"'))
    assert await world.call(read_key)
    with pytest.raises(AccessDeniedError):
        await world.call(read_key, plugin="bad")
    told = world.events("policy")
    assert [event.outcome for event in told] == ["ok", "InvalidPolicyError"]
    assert "line 4" in told[1].detail


async def test_nothing_begins_under_a_policy_that_can_not_be_read(world: World) -> None:
    write(world, "nonsense")
    with pytest.raises(InvalidPolicyError):
        CredentialMiddleware(world.vault)


# -- limits ----------------------------------------------------------------------------


async def test_many_short_leases_are_one_plugin(world: World) -> None:
    write(world, limit(5))
    for _ in range(5):
        assert await world.call(read_key)
    with pytest.raises(RateLimitedError) as raised:
        await world.call(read_key)
    assert raised.value.retry_after == pytest.approx(60)
    assert "60.0 seconds" in raised.value.hint
    assert world.reasons() == [("key", "rate_limited")]
    assert world.events("denial")[0].detail == "limits[0]"
    assert await world.call(read_key, plugin="inner")
    world.clock.now += 60
    assert await world.call(read_key)


async def test_handles_that_are_passed_on_count_for_whom_they_came_from(world: World) -> None:
    write(world, limit(4, "plugin"))

    async def inner(handle) -> str:
        return await use(handle)

    async def outer(credentials) -> int:
        served = 0
        for number in range(10):
            passed = credentials["key"].attenuate(max_uses=1)
            try:
                await world.call(inner, passed, needs=(), plugin=f"helper{number}")
            except RateLimitedError:
                break
            served += 1
        return served

    assert await world.call(outer) == 4


async def test_tasks_and_threads_together_stay_within_it(world: World) -> None:
    write(world, limit(20))
    counts = {"served": 0, "refused": 0}
    lock = threading.Lock()

    def count(what: str) -> None:
        with lock:
            counts[what] += 1

    def in_thread(credentials) -> None:
        try:
            with credentials["key"].reveal():
                count("served")
        except RateLimitedError:
            count("refused")

    async def in_task(credentials) -> None:
        try:
            await read_key(credentials)
            count("served")
        except RateLimitedError:
            count("refused")

    await asyncio.gather(*(world.call(f) for f in [in_thread, in_task] * 25))
    assert counts == {"served": 20, "refused": 30}


async def test_counts_stay_when_the_policy_changes(world: World) -> None:
    write(world, limit(1))
    assert await world.call(read_key)
    write(world, limit(1) + rule("deny", 'plugin = "x"'))
    with pytest.raises(RateLimitedError):
        await world.call(read_key)


async def test_too_many_denials_are_told_once_and_refuse_more(world: World) -> None:
    write(world, limit(3, "plugin", "denials"))
    told: list[DenialsExceeded] = []
    world.middleware.broker.authorizer.on_denials = told.append

    async def snoop(credentials) -> list[str]:
        found = []
        for number in range(6):
            with pytest.raises(AccessDeniedError) as raised:
                credentials[f"guess{number}"]
            found.append(type(raised.value).__name__)
        with pytest.raises(RateLimitedError):
            await read_key(credentials)
        return found

    assert await world.call(snoop) == ["AccessDeniedError"] * 3 + ["RateLimitedError"] * 3
    assert [(event.plugin, event.per, event.amount) for event in told] == [
        ("demo", "plugin", 3)
    ]
    assert await world.call(read_key, plugin="inner")
    world.clock.now += 61
    assert await world.call(read_key)


@pytest.mark.parametrize("policy", ["none", "other limits", "denials"])
async def test_denials_are_limited_without_being_told_to(world: World, policy: str) -> None:
    """By default 100 a minute for each plugin; a limit of the operator's takes its place."""
    amount = 3 if policy == "denials" else 100
    if policy == "other limits":
        write(world, limit(5000, "plugin", "redeems"))
    if policy == "denials":
        write(world, limit(3, "credential", "denials"))

    async def snoop(credentials) -> list[str]:
        assert await read_key(credentials)
        found = []
        for _ in range(amount + 2):
            with pytest.raises(AccessDeniedError) as raised:
                credentials["guess"]
            found.append(type(raised.value).__name__)
        return found

    found = await world.call(snoop)
    assert found == ["AccessDeniedError"] * amount + ["RateLimitedError"] * 2
    if policy != "denials":
        with pytest.raises(RateLimitedError):
            await world.call(read_key)
    assert await world.call(read_key, plugin="inner")
    world.clock.now += 61
    assert await world.call(read_key)


async def test_a_listener_that_fails_undoes_no_refusal(world: World, caplog) -> None:
    write(world, limit(1, "plugin", "denials"))
    world.middleware.broker.authorizer.on_denials = lambda event: 1 / 0  # type: ignore[assignment]

    async def snoop(credentials) -> None:
        for error in (AccessDeniedError, RateLimitedError):
            with pytest.raises(error):
                credentials["guess"]

    await world.call(snoop)
    assert "ZeroDivisionError" in caplog.text


async def test_what_is_declared_as_optional_is_no_offence(world: World) -> None:
    write(world, limit(1, "plugin", "denials"))
    optional = {"name": "ungranted", "required": False}
    for _ in range(5):
        assert await world.call(read_key, needs=("key", optional))


# -- limits that are kept in the vault ---------------------------------------------------

KEPT = limit(3, "pair", "redeems", "persist = true")


async def test_counts_outlive_the_broker(world: World) -> None:
    write(world, KEPT)
    for _ in range(2):
        assert await world.call(read_key)
    await world.middleware.close()
    world.middleware = CredentialMiddleware(world.vault)
    assert await world.call(read_key)
    with pytest.raises(RateLimitedError):
        await world.call(read_key)
    world.clock.now += 61
    assert await world.call(read_key)


async def test_code_that_can_not_wait_is_counted_too(world: World) -> None:
    write(world, KEPT)

    async def on_the_loop(credentials) -> None:
        with credentials["key"].reveal():
            pass

    def in_a_thread(credentials) -> None:
        with credentials["key"].reveal():
            pass

    await world.call(on_the_loop)
    await world.call(in_a_thread)
    await world.call(read_key)
    for plugin in (on_the_loop, in_a_thread, read_key):
        with pytest.raises(RateLimitedError):
            await world.call(plugin)


async def test_a_redeem_that_is_refused_is_not_counted(world: World) -> None:
    write(world, KEPT)

    async def refused(credentials) -> None:
        for _ in range(5):
            with pytest.raises(AccessDeniedError):
                async with credentials["key"].reveal(scope="other"):
                    pass

    await world.call(refused)
    for _ in range(3):
        assert await world.call(read_key)


async def test_denials_are_kept_too(world: World) -> None:
    write(world, limit(2, "plugin", "denials", "persist = true"))

    async def snoop(credentials) -> None:
        with pytest.raises(AccessDeniedError):
            credentials["guess"]

    await world.call(snoop)
    await world.call(snoop)
    await world.middleware.close()
    world.middleware = CredentialMiddleware(world.vault)
    with pytest.raises(RateLimitedError):
        await world.call(read_key)


IN_BOTH = """
from apex_creds.errors import RateLimitedError
manifest = parse_manifest(
    {"id": "demo", "version": "1.0.0", "credentials": [{"name": "key", "access": "reveal"}]}
)
async def plugin(credentials):
    async with credentials["key"].reveal():
        return 1
result = 0
async with CredentialMiddleware(vault) as middleware:
    for _ in range(8):
        try:
            result += await middleware.invoke(manifest, plugin)
        except RateLimitedError:
            pass
"""


async def test_processes_share_the_count(tmp_path: Path) -> None:
    home = tmp_path / "home"
    async with await Vault.create(home, master=f"file:{tmp_path}/master.key") as vault:
        await vault.put("key", ApiKey(KEY))
        await vault.grant("demo", "key", reveal=True)
        put_policy(home, KEPT.replace("3/minute", "7/hour"))
        work = [asyncio.to_thread(in_other_process, tmp_path, IN_BOTH) for _ in range(3)]
        assert sum(await asyncio.gather(*work)) == 7
        async with CredentialMiddleware(vault) as middleware:
            with pytest.raises(RateLimitedError):
                await middleware.invoke(manifest_for("key"), read_key)


async def test_without_limits_nothing_of_them_is_loaded(tmp_path: Path) -> None:
    async with await Vault.create(tmp_path / "home", master=f"file:{tmp_path}/master.key"):
        pass
    code = (
        "import anyio, sys\n"
        "from apex_creds import CredentialMiddleware, Vault\n"
        "async def main():\n"
        f"    async with await Vault.unseal({str(tmp_path / 'home')!r}) as vault:\n"
        "        async with CredentialMiddleware(vault):\n"
        "            assert 'limits' not in sys.modules\n"
        "            assert 'apex_creds.policy.rate_limits' not in sys.modules\n"
        "anyio.run(main)\n"
    )
    command = [sys.executable, "-W", "error", "-c", code]
    await asyncio.to_thread(subprocess.run, command, cwd=REPOSITORY, check=True, timeout=480)
