"""The lock has what pyproject.toml asks for, by hash, and names no index; the audit sees."""

from __future__ import annotations

import base64
import hashlib
import tomllib
from importlib.metadata import distributions
from pathlib import Path

import pytest

pytest.importorskip("packaging")

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from scripts import audit

ROOT = Path(__file__).resolve().parents[1]
FILE = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = FILE["project"]
GROUPS = FILE["dependency-groups"]
RUNTIME = ("dashboard", "factors", "otel", "recovery", "sql")


def wanted(*names: str) -> list[Requirement]:
    found = [*PROJECT["dependencies"]]
    for name in names:
        found += PROJECT["optional-dependencies"].get(name) or GROUPS[name]
    return [Requirement(one) for one in found if isinstance(one, str)]


@pytest.mark.parametrize(
    ("file", "names"),
    [
        ("core.txt", ()),
        ("runtime.txt", RUNTIME),
        ("dev.txt", (*RUNTIME, "docs", "notebooks", "test", "dev", "deploy")),
    ],
)
def test_the_lock_has_what_the_project_asks_for(file: str, names: tuple[str, ...]) -> None:
    pins = audit.pins(file)
    for one in wanted(*names):
        if "win32" in str(one.marker):
            continue
        for version in pins[canonicalize_name(one.name)]:
            assert one.specifier.contains(version, prereleases=True), f"make lock: {one}"


@pytest.mark.parametrize("file", ["core.txt", "runtime.txt", "dev.txt"])
def test_every_pin_has_hashes_and_no_index_is_named(file: str) -> None:
    text = (audit.LOCKS / file).read_text(encoding="utf-8")
    assert "://" not in text
    for part in text.replace(" \\\n", " ").splitlines():
        assert "--hash=sha256:" in part, part
    assert not {"lazy-importer", "pydantic"} & audit.pins("runtime.txt").keys()


def test_each_lock_is_part_of_the_next() -> None:
    core, runtime, every = map(audit.pins, ("core.txt", "runtime.txt", "dev.txt"))
    for smaller, larger in ((core, runtime), (runtime, every)):
        for name, versions in smaller.items():
            assert versions.keys() <= larger[name].keys(), name


class TestAudit:
    """What the audit of an environment finds, in one that is made of records only."""

    def install(self, folder: Path, name: str, version: str, licence: str = "MIT") -> Path:
        code = b"pass\n"
        digest = base64.urlsafe_b64encode(hashlib.sha256(code).digest()).rstrip(b"=").decode()
        info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (folder / f"{name}.py").write_bytes(code)
        about = {"Name": name, "Version": version, "License": licence}
        (info / "METADATA").write_text("".join(f"{k}: {v}\n" for k, v in about.items()))
        (info / "RECORD").write_text(f"{name}.py,sha256={digest},{len(code)}\n")
        return folder / f"{name}.py"

    def found(self, folder: Path) -> list[str]:
        every = audit.problems(distributions(path=[str(folder)]))
        return [line for line in every if not line.endswith("is in the lock and not installed")]

    def test_what_is_as_the_lock_says(self, tmp_path: Path) -> None:
        self.install(tmp_path, "httpx", *audit.pins("dev.txt")["httpx"])
        assert self.found(tmp_path) == []

    def test_what_is_in_no_lock(self, tmp_path: Path) -> None:
        self.install(tmp_path, "wrapt", "2.5.2")
        assert self.found(tmp_path) == ["wrapt 2.5.2 is in no lock"]

    def test_another_version_than_the_locks(self, tmp_path: Path) -> None:
        self.install(tmp_path, "httpx", "0.1")
        (line,) = self.found(tmp_path)
        assert line.startswith("httpx 0.1 is not the locked ")

    def test_a_version_that_is_refused(self, tmp_path: Path) -> None:
        self.install(tmp_path, "lazy-importer", "0.1.0")
        assert any("is refused: by an unknown author" in line for line in self.found(tmp_path))

    def test_a_file_that_was_changed_or_removed(self, tmp_path: Path) -> None:
        file = self.install(tmp_path, "httpx", *audit.pins("dev.txt")["httpx"])
        file.write_bytes(b"import os\n")
        assert self.found(tmp_path) == ["httpx: httpx.py was changed after it was installed"]
        file.unlink()
        assert self.found(tmp_path) == ["httpx: httpx.py is missing"]

    def test_a_licence_that_is_not_known(self, tmp_path: Path) -> None:
        self.install(tmp_path, "httpx", *audit.pins("dev.txt")["httpx"], "Pay me")
        (line,) = self.found(tmp_path)
        assert "has a licence that is not known here" in line

    def test_what_is_locked_and_absent(self, tmp_path: Path) -> None:
        lines = list(audit.problems(distributions(path=[str(tmp_path)])))
        (version,) = audit.pins("runtime.txt")["pynacl"]
        assert f"pynacl {version} is in the lock and not installed" in lines


def test_the_bill_of_materials_is_the_locks() -> None:
    assert audit.SBOM.read_text(encoding="utf-8") == audit.sbom(), "make lock"


def test_every_private_use_is_bounded_above() -> None:
    bounded = {one.name: str(one.specifier) for one in wanted()}
    for name in ("pynacl", "python-dotenv", "typer", "importlib-metadata"):
        assert "<" in bounded[name], name
