"""Policies that tests put in force, and what they use handles by."""

from __future__ import annotations

import os
from pathlib import Path

from tests.support.worlds import World


def put_policy(home: Path, text: str) -> None:
    path = home / "security" / "policy.toml"
    new = path.with_name("policy.new")
    new.write_text(f"version = 1\n{text}", encoding="utf-8")
    new.chmod(0o600)
    os.replace(new, path)


def write(world: World, text: str) -> None:
    """Puts a policy in force."""
    put_policy(world.where / "home", text)
    world.clock.now += 1


def rule(decision: str, *lines: str) -> str:
    return "\n".join(["[[rules]]", f'decision = "{decision}"', *lines, ""])


def limit(amount: int, per: str = "pair", of: str = "redeems", *lines: str) -> str:
    text = [f'per = "{per}"', f'of = "{of}"', f'limit = "{amount}/minute"', *lines, ""]
    return "\n".join(["[[limits]]", *text])


async def use(handle) -> str:
    async with handle.reveal() as secret:
        return secret.expose_str()
