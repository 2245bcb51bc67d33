"""Critical credentials: a person decides, and each lease takes a second factor."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import anyio
import pytest

from apex_creds.auth.enrolment import Factors
from apex_creds.auth.second_factor import Subject
from apex_creds.errors import AccessDeniedError, HandleRevokedError
from apex_creds.leases.handle import current_credentials
from apex_creds.model import ApiKey
from apex_creds.policy.consent import CallbackConsent, Choice, ConsentAnswer, ConsentRequest
from tests.support.worlds import World, world_in

pytestmark = pytest.mark.anyio
READ = "[redacted:key]"


class Phone:
    """A TOTP app; types its code, or nothing, when asked."""

    def __init__(self) -> None:
        self.seed = b""
        self.clock = None
        self.asked: list[Subject] = []
        self.answers = True

    async def __call__(self, subject: Subject, why: str) -> str | None:
        self.asked.append(subject)
        return self.code() if self.answers else None

    def code(self) -> str:
        import base64

        import pyotp

        # Each code works once: the clock goes on to the next.
        self.clock.now += 30
        return pyotp.TOTP(base64.b32encode(self.seed).decode()).at(int(self.clock.now))


@contextlib.asynccontextmanager
async def critical(where, policy: str = "", **options) -> AsyncIterator[tuple[World, Phone]]:
    phone = Phone()
    options = {"second_factor": phone, "consent_deadline": 2.0, **options}
    async with world_in(where, **options) as world:
        phone.clock = world.clock
        await world.vault.put("key", ApiKey("critical-secret"), sensitivity="critical")
        if policy:
            path = world.where / "home" / "security" / "policy.toml"
            path.write_text(policy)
            path.chmod(0o600)
            world.middleware.broker.authorizer.reload()
        factors = Factors(world.vault)
        with factors.begin("phone") as new:
            phone.seed = new.seed.expose_bytes()
            await factors.confirm(new, phone.code())
        yield world, phone


async def read() -> str:
    async with current_credentials()["key"].reveal() as secret:
        return secret.expose_str()


async def test_each_lease_takes_one(tmp_path):
    async with critical(tmp_path) as (world, phone):
        assert [await world.call(read) for _ in range(3)] == [READ] * 3
        assert len(phone.asked) == 3
        phone.answers = False
        with pytest.raises(AccessDeniedError):
            await world.call(read)
        assert world.reasons()[-1] == ("key", "second_factor_needed")


async def test_within_its_minutes_one_is_enough(tmp_path):
    policy = "version = 1\n[levels.critical]\nsecond_factor = 10\n"
    async with critical(tmp_path, policy) as (world, phone):
        assert [await world.call(read) for _ in range(3)] == [READ] * 3
        assert len(phone.asked) == 1
        world.clock.now += 600
        assert await world.call(read) == READ
        assert len(phone.asked) == 2


async def test_a_lease_does_not_outlive_the_minutes(tmp_path):
    async def long(world: World) -> None:
        handle = current_credentials()["key"]
        async with handle.reveal():
            pass
        world.clock.now += 61
        with pytest.raises(HandleRevokedError):
            async with handle.reveal():
                pass

    policy = "version = 1\n[levels.critical]\nsecond_factor = 1\n"
    async with critical(tmp_path, policy) as (world, _):
        await world.call(long, world)


async def test_consent_and_then_the_factor(tmp_path):
    asked: list[ConsentRequest] = []

    def yes(request: ConsentRequest) -> ConsentAnswer:
        asked.append(request)
        return ConsentAnswer(choice=Choice.ONCE)

    async with critical(tmp_path, consent=CallbackConsent(yes)) as (world, phone):
        await world.vault.revoke(credential="key")
        assert await world.call(read) == READ
        assert (len(asked), len(phone.asked)) == (1, 1)
        assert asked[0].second_factor
        assert asked[0].level == "critical"
        phone.answers = False
        with pytest.raises(AccessDeniedError):
            await world.call(read)


async def test_without_anybody_to_show_one_it_is_denied(tmp_path):
    async with critical(tmp_path, second_factor=None) as (world, _):
        with pytest.raises(AccessDeniedError):
            await world.call(read)


async def test_a_factor_shown_elsewhere_counts_for_one_lease(tmp_path):
    provider = CallbackConsent(lambda _: None)
    options = {"second_factor": None, "consent": provider}
    async with critical(tmp_path, **options) as (world, phone):
        factors, found = Factors(world.vault), []

        async def one() -> None:
            try:
                found.append(await world.call(read))
            except AccessDeniedError:
                found.append("denied")

        async with anyio.create_task_group() as group:
            group.start_soon(one)
            group.start_soon(one)
            await anyio.wait_all_tasks_blocked()
            await factors.verify(phone.code(), subject=Subject(plugin="demo", credential="key"))
        assert sorted(found) == [READ, "denied"]


async def test_a_lockdown_is_ended_by_the_second_factor_only(tmp_path):
    async with critical(tmp_path) as (world, phone):
        await world.vault.lockdown(keep_grants=True)
        for wrong in (None, "", "000000"):
            with pytest.raises(AccessDeniedError):
                await world.vault.unlock(wrong)
        assert (await world.vault.grants()).lockdown is not None
        assert world.vault.store.sealed
        assert await world.vault.unlock(phone.code())
        assert await world.call(read) == READ
