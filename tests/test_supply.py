"""The lock has what pyproject.toml asks for, by hash, and names no index; the audit sees."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

pytest.importorskip("packaging")

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from scripts import audit

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
RUNTIME = ("dashboard", "factors", "otel", "recovery", "sql")


def wanted(*extras: str) -> list[Requirement]:
    found = [*PROJECT["dependencies"]]
    for extra in extras:
        found += PROJECT["optional-dependencies"][extra]
    return [one for one in map(Requirement, found) if one.name != "apex-creds"]


@pytest.mark.parametrize(
    ("file", "extras"),
    [
        ("runtime.txt", RUNTIME),
        ("dev.txt", (*RUNTIME, "docs", "notebooks", "test", "dev", "deploy")),
    ],
)
def test_the_lock_has_what_the_project_asks_for(file: str, extras: tuple[str, ...]) -> None:
    pins = audit.pins(file)
    for one in wanted(*extras):
        if "win32" in str(one.marker):
            continue
        for version in pins[canonicalize_name(one.name)]:
            assert one.specifier.contains(version, prereleases=True), f"make lock: {one}"


@pytest.mark.parametrize("file", ["runtime.txt", "dev.txt"])
def test_every_pin_has_hashes_and_no_index_is_named(file: str) -> None:
    text = (audit.LOCKS / file).read_text(encoding="utf-8")
    assert "://" not in text
    for part in text.replace(" \\\n", " ").splitlines():
        assert "--hash=sha256:" in part, part
    assert not {"lazy-importer", "pydantic"} & audit.pins("runtime.txt").keys()


def test_the_bill_of_materials_is_the_locks() -> None:
    assert audit.SBOM.read_text(encoding="utf-8") == audit.sbom(), "make lock"


def test_every_private_use_is_bounded_above() -> None:
    bounded = {one.name: str(one.specifier) for one in wanted()}
    for name in ("pynacl", "python-dotenv", "typer", "importlib-metadata"):
        assert "<" in bounded[name], name
