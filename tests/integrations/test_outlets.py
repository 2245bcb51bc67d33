"""A runtime's objects as a tool sees them: they are given nothing but what is cleaned."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from typing import Any

import pytest

from apex_creds import ApiKey, current_credentials
from apex_creds.errors import SecretLeakError
from apex_creds.integrations.outlets import clean_items, cleaning, outlet
from apex_creds.middleware import CredentialMiddleware, OnLeak
from tests.support.worlds import World, manifest_for

pytestmark = pytest.mark.anyio
SECRET = "sk-outlet-0123456789"
NEED = {"name": "weather", "access": "reveal"}


class Sender:
    """What a runtime gives a tool to send by."""

    def __init__(self) -> None:
        self.got: list[object] = []
        self.note = ""
        self.own = self.got

    def send(self, *what: object, **more: object) -> int:
        self.got += [*what, more]
        return len(self.got)

    async def asend(self, *what: object, **more: object) -> int:
        return self.send(*what, **more)

    def child(self) -> Sender:
        return self


async def within(
    world: World, tool: Callable[[str], Any], *, on_leak: OnLeak = OnLeak.REDACT
) -> object:
    """Runs a tool that has seen its credential."""
    await world.vault.put("weather", ApiKey(SECRET), origins=["https://a.example"])
    await world.vault.grant("demo", "weather", reveal=True)

    async def call() -> object:
        async with current_credentials()["weather"].reveal() as secret:
            text = f"key={secret.expose_str()}"
        made = tool(text)
        return await made if inspect.isawaitable(made) else made

    async with CredentialMiddleware(world.vault, on_leak=on_leak, harden=False) as creds:
        return await creds.invoke_action(manifest_for(NEED), "call", call)


async def test_whatever_a_method_is_given_is_cleaned(world: World) -> None:
    sender = Sender()

    async def tool(text: str) -> None:
        seen = outlet(sender)
        assert seen.send(text, more=[text]) == 2
        assert await seen.asend({"of": text}) == 4
        seen.child().send(text)
        seen.note = text
        held = {"text": text, "other": 1}
        clean_items(held)
        sender.send(held)
        cleaning(sender.send)(text)

    await within(world, tool)
    assert SECRET not in f"{sender.got} {sender.note}"
    assert str(sender.got).count("redacted") == 6
    assert "key=" in sender.note
    assert ("weather", "chunk") in {(e.credential, e.detail) for e in world.events("leak")}


async def test_it_is_what_it_stands_for(world: World) -> None:
    sender = Sender()

    def tool(text: str) -> None:
        seen = outlet(sender)
        assert isinstance(seen, Sender)
        assert seen == sender == outlet(sender) == seen
        assert hash(seen) == hash(sender)
        assert bool(seen)
        assert seen.own is sender.own
        assert asyncio.iscoroutinefunction(seen.asend)
        assert not asyncio.iscoroutinefunction(seen.send)
        seen.send(len, Sender, seen)
        assert sender.got[:2] == [len, Sender]
        assert outlet(None) is None

    await within(world, tool)


async def test_where_a_leak_is_an_error_nothing_is_sent(world: World) -> None:
    sender = Sender()
    with pytest.raises(SecretLeakError):
        await within(world, lambda text: outlet(sender).send(text), on_leak=OnLeak.ERROR)
    assert sender.got == []
