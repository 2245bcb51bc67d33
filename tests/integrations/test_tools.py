"""What a tool declares, wherever its function is; and the guard of a function."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from apex_creds import ApiKey
from apex_creds.errors import InvalidInputError
from apex_creds.integrations.tools import ToolGuard, needs
from tests.support.worlds import World

pytestmark = pytest.mark.anyio


async def plain(city: str) -> str:
    return city


@pytest.mark.parametrize("shell", [classmethod, staticmethod, functools.partial])
def test_a_declaration_that_would_be_lost_is_refused(shell: Callable[..., object]) -> None:
    with pytest.raises(InvalidInputError):
        needs("weather")(shell(plain))


def test_above_what_makes_a_tool_no_parameter_can_be_hidden_any_more() -> None:
    async def tool(city: str, credentials: object) -> str:
        return city

    with pytest.raises(InvalidInputError, match="model"):
        needs("weather")(SimpleNamespace(coroutine=tool))  # as LangChain's keeps it
    assert needs("weather")(SimpleNamespace(coroutine=plain))


async def test_a_declaration_is_found_in_a_partial(world: World) -> None:
    declared = functools.partial(needs("weather")(plain), city="Oslo")
    manifest = ToolGuard(world.middleware).manifest("tool", declared)
    assert manifest is not None
    assert [need.name for need in manifest.needs] == ["weather"]


async def test_arguments_of_a_tool_have_any_name(world: World) -> None:
    """A model chooses them: none is taken for one of the guard's, or for the principal."""
    await world.vault.put("weather", ApiKey("sk-0123456789"), origins=["https://a.example"])
    await world.vault.grant("tool", "weather")

    @needs("weather", plugin="tool")
    async def tool(**given: str) -> dict[str, str]:
        return given

    given = dict.fromkeys(("action", "function", "manifest", "self", "principal"), "x")
    guarded = ToolGuard(world.middleware).function(tool)
    assert await guarded(**given) == given  # type: ignore[misc]
    assert {event.principal for event in world.events("invocation")} <= {""}


@pytest.mark.parametrize("said", [0, False, b"alice", ["alice"]])
async def test_a_principal_that_is_no_text_is_not_nobody(world: World, said: object) -> None:
    guard = ToolGuard(world.middleware, principal=lambda: said)  # type: ignore[arg-type,return-value]
    with pytest.raises(InvalidInputError):
        guard.principal()
