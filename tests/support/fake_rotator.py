"""A provider in memory and its rotator, as the real ones behave; for schedules and failures."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from apex_creds.errors import RotatorError, RotatorRefusedError
from apex_creds.model import ApiKey, CredentialKind, Origin, Secret
from apex_creds.rotators.protocol import Created, Mode, Task, random_text

URI = "fake:https://api.example.com"
ORIGIN = "https://api.example.com"


async def _nothing(step: str) -> None:
    pass


@dataclass
class Provider:
    """Which values it takes, and took; ``around`` is called before and after each step."""

    valid: set[bytes] = field(default_factory=set)
    ended: set[bytes] = field(default_factory=set)
    steps: list[str] = field(default_factory=list)
    around: Callable[[str], Awaitable[None]] = _nothing

    def takes(self, secret: bytes) -> bool:
        return secret in self.valid


class FakeRotator:
    """``dual`` as of an API with two keys, ``swap`` as of one password."""

    kinds = frozenset({CredentialKind.API_KEY})
    longest_grace = None
    admin = ""
    origin = Origin.parse(ORIGIN)

    def __init__(self, provider: Provider, mode: Mode) -> None:
        self.mode = mode
        self._provider = provider

    async def create(self, task: Task) -> Created:
        await self._before("create")
        return Created(secret=ApiKey(random_text()))

    async def set(self, task: Task, new: Secret) -> None:
        await self._before("set")
        value = new.parts["value"]
        if (
            self.mode is Mode.DUAL
            and not self._provider.valid & {value}
            and len(self._provider.valid) == 2
        ):
            raise RotatorRefusedError("There are two keys already.")
        if self.mode is Mode.DUAL:
            assert value not in self._provider.ended
        else:
            self._provider.ended |= self._provider.valid - {value}
            self._provider.valid.clear()
        self._provider.valid.add(value)
        await self._provider.around("after set")

    async def test(self, task: Task, new: Secret) -> None:
        await self._before("test")
        if not self._provider.takes(new.parts["value"]):
            raise RotatorRefusedError("The new key is not taken.")

    async def finish(self, task: Task, old: Secret) -> None:
        await self._before("finish")
        value = old.parts["value"]
        assert value != task.current.parts["value"]
        self._provider.valid.discard(value)
        self._provider.ended.add(value)
        await self._provider.around("after finish")

    async def _before(self, step: str) -> None:
        self._provider.steps.append(step)
        await self._provider.around(step)


def unreachable(*steps: str) -> Callable[[str], Awaitable[None]]:
    """Fails at these steps, as when no answer comes."""

    async def around(step: str) -> None:
        if step in steps:
            raise RotatorError("No answer came.")

    return around


def refuses(*steps: str) -> Callable[[str], Awaitable[None]]:
    """Refuses these steps."""

    async def around(step: str) -> None:
        if step in steps:
            raise RotatorRefusedError("Not you.")

    return around
