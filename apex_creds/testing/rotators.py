"""The conformance suite of rotators.

Guarantee: a rotator that passes takes each step again without harm, never leaves its provider
without a value that the vault knows, tells a refusal from success, and says no secret.

Subclass it in a test module, and say how to make a provider with one valid value::

    class TestMine(RotatorContract):
        @pytest.fixture
        async def place(self):
            async with my_server() as server:
                yield Place(
                    rotator=MyRotator(server.url),
                    first=ApiKey(server.key),
                    takes=server.lets_in,
                )
"""

from __future__ import annotations

import traceback
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

import pytest

from apex_creds.errors import RotatorError
from apex_creds.model import CredentialKind, Origin, Secret, new_id
from apex_creds.rotators.protocol import Mode, Rotator, Task

__all__ = ["Place", "RotatorContract"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A provider, as a test sees it.

    Attributes:
        rotator: Of one credential there.
        first: Its value, which is valid.
        takes: Whether a value is valid there now, by using it.
        admin: What the rotator logs in with; None: with the credential itself.
        now: Unix seconds.
    """

    rotator: Rotator
    first: Secret
    takes: Callable[[Secret], Awaitable[bool]]
    admin: Secret | None = None
    now: float = 1_700_000_000.0

    def task(self, current: Secret | None = None, *others: Secret) -> Task:
        """What a step is about, with another current value."""
        return Task(
            credential="mine",
            attempt=new_id(),
            begun=self.now,
            now=self.now,
            current=current or self.first,
            others=others,
            admin=self.admin,
        )


@pytest.mark.anyio
class RotatorContract:
    """Base class of a rotator's tests; override ``place``."""

    @pytest.fixture
    def place(self) -> Place:
        """A provider with one valid value, of this test alone."""
        raise NotImplementedError

    async def made(self, place: Place) -> tuple[Task, Secret]:
        """The next value, which is not set yet."""
        task = place.task()
        new = (await place.rotator.create(task)).secret
        return replace(task, others=(new,)), new

    async def test_it_says_what_it_is(self, place: Place) -> None:
        rotator = place.rotator
        assert isinstance(rotator, Rotator)
        assert rotator.mode in set(Mode)
        assert isinstance(rotator.origin, Origin)
        assert isinstance(rotator.admin, str)
        assert rotator.kinds
        assert set(rotator.kinds) <= set(CredentialKind)
        assert place.first.kind in rotator.kinds
        grace = rotator.longest_grace
        assert grace is None or grace >= 0
        assert bool(rotator.admin) == (place.admin is not None)

    async def test_the_next_value_is_another_of_the_same_kind(self, place: Place) -> None:
        _, new = await self.made(place)
        assert new.kind is place.first.kind
        assert new.parts != place.first.parts
        assert await place.takes(place.first)

    async def test_it_is_replaced(self, place: Place) -> None:
        task, new = await self.made(place)
        await place.rotator.set(task, new)
        assert await place.takes(new)
        assert await place.takes(place.first) is (place.rotator.mode is Mode.DUAL)
        await place.rotator.test(task, new)
        await place.rotator.finish(place.task(new, place.first), place.first)
        assert await place.takes(new)
        assert not await place.takes(place.first)

    async def test_each_step_again_comes_to_the_same(self, place: Place) -> None:
        task = place.task()
        await place.rotator.create(task)
        new = (await place.rotator.create(task)).secret
        task = replace(task, others=(new,))
        for _ in range(2):
            await place.rotator.set(task, new)
            await place.rotator.test(task, new)
        after = place.task(new, place.first)
        for _ in range(2):
            await place.rotator.finish(after, place.first)
        assert await place.takes(new)
        assert not await place.takes(place.first)

    async def test_it_is_replaced_again_and_again(self, place: Place) -> None:
        current, seen = place.first, [place.first]
        for _ in range(3):
            task = place.task(current)
            new = (await place.rotator.create(task)).secret
            await place.rotator.set(replace(task, others=(new,)), new)
            await place.rotator.test(replace(task, others=(new,)), new)
            await place.rotator.finish(place.task(new, current), current)
            current = new
            seen.append(new)
        assert [await place.takes(each) for each in seen] == [False, False, False, True]

    async def test_what_was_set_can_be_undone(self, place: Place) -> None:
        task, new = await self.made(place)
        await place.rotator.set(task, new)
        if place.rotator.mode is Mode.DUAL:
            await place.rotator.finish(task, new)
        else:
            await place.rotator.set(task, place.first)
        await place.rotator.test(task, place.first)
        assert await place.takes(place.first)
        assert not await place.takes(new)

    async def test_a_value_that_is_not_valid_fails_its_test(self, place: Place) -> None:
        task, new = await self.made(place)
        wrong = Secret(new.kind, {name: data + b"x" for name, data in new.parts.items()})
        with pytest.raises(RotatorError):
            await place.rotator.test(task, wrong)

    async def test_to_end_what_never_was_valid_is_to_do_nothing(self, place: Place) -> None:
        task, new = await self.made(place)
        await place.rotator.finish(task, new)
        assert await place.takes(place.first)

    async def test_it_says_no_secret(self, place: Place) -> None:
        task, new = await self.made(place)
        wrong = Secret(new.kind, {name: data + b"x" for name, data in new.parts.items()})
        with pytest.raises(RotatorError) as caught:
            await place.rotator.test(task, wrong)
        said = "".join(traceback.format_exception(caught.value)) + caught.value.hint
        said += repr(place.rotator)
        for value in (new, place.first, *([place.admin] if place.admin else [])):
            for name, data in value.parts.items():
                assert name == "user" or data.decode(errors="replace") not in said
