"""docs/ARCHITECTURE.md lists the rooms that there are, in the contract's order."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "ARCHITECTURE.md"


def contract() -> list[set[str]]:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    for each in settings["tool"]["importlinter"]["contracts"]:
        if each["type"] == "layers":
            return [set(re.findall(r"\w+", layer)) for layer in each["layers"]]
    raise AssertionError("no contract of layers")


def test_the_page_has_the_rooms_of_the_contract() -> None:
    text = PAGE.read_text(encoding="utf-8")
    rows = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", text, re.MULTILINE)
    there = {path.stem for path in (ROOT / "apex_creds").iterdir()}
    rooms = [set(re.findall(r"\w+", row)) for row in rows]
    assert rooms == [layer & there for layer in contract() if layer & there]


def test_each_decision_is_on_the_page() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for path in sorted((ROOT / "docs" / "adr").glob("*.md")):
        assert f"](adr/{path.name})" in text, path.name
