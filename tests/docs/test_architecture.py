"""docs/ARCHITECTURE.md lists the packages that there are, in the contract's order."""

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


def test_the_page_has_the_packages_of_the_contract() -> None:
    text = PAGE.read_text(encoding="utf-8")
    rows = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", text, re.MULTILINE)
    there = {path.stem for path in (ROOT / "apex_creds").iterdir()}
    rooms = [set(re.findall(r"\w+", row)) for row in rows]
    assert rooms == [layer & there for layer in contract() if layer & there]


def test_each_decision_is_on_the_page() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for path in sorted((ROOT / "docs" / "adr").glob("*.md")):
        assert f"](adr/{path.name})" in text, path.name


def test_diagrams_call_in_the_direction_of_the_contract() -> None:
    """A column is a package or a module, and calls what stands to its right: below it."""
    layers = contract()
    diagrams = re.findall(
        r"^```text\n(.+?)\n.+?^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    assert len(diagrams) == 3
    for head in diagrams:
        columns = head.split()
        assert columns[0] != "runtime" or columns.pop(0)  # it calls the package
        order = []
        for column in columns:
            package, _, module = column.partition("/")
            assert not module or (ROOT / "apex_creds" / f"{column}.py").is_file(), column
            order.append(next(n for n, layer in enumerate(layers) if package in layer))
        assert order == sorted(order), head


def test_files_that_the_page_names_are_there() -> None:
    named = re.findall(r"`(\w+(?:/\w+)*\.py)`", PAGE.read_text(encoding="utf-8"))
    assert len(named) > 30
    for name in named:
        assert (ROOT / "apex_creds" / name).is_file(), name
