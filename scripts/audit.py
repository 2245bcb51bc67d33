"""Checks what is installed, without a network: ``make audit``.

    scripts/audit.py            fails if anything is not as requirements/ and this file say
    scripts/audit.py --sbom     writes requirements/sbom.json (CycloneDX) from the lock

It checks that each package of this environment is in the lock with that version, and each of
the run-time's is installed; that the files on disk are those of its RECORD (changed after the
installation?); that no version is one of REFUSED; that the licences of the run-time are known.
It does *not* know advisories: where there is a network, ``pip-audit -r
requirements/runtime.txt`` asks for them. The hashes in the lock are compared by pip when it
installs, not here.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import re
import sys
from collections.abc import Iterable, Iterator
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Final

from packaging.markers import Marker
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT: Final = Path(__file__).resolve().parents[1]
LOCKS: Final = ROOT / "requirements"
SBOM: Final = LOCKS / "sbom.json"
REFUSED: Final = {
    "lazy-importer": ("", "by an unknown author, with one release"),
    "importlib-metadata": (">=10.2", "brings lazy-importer"),
    "typer": (">=0.29", "brings pydantic into every installation"),
}
"""Versions that must not be here: by name, which, and why. Yanked ones are added by hand."""
_TOOLS: Final = {"apex-creds", "pip", "setuptools", "wheel"}
_FREE: Final = re.compile(
    r"apache|bsd|\bmit\b|\bisc\b|psf|python software foundation|mpl|mozilla|lgpl|unlicense",
    re.IGNORECASE,
)
_PIN: Final = re.compile(r"(?P<name>[\w.-]+)==(?P<version>[^\s;\\]+)(?: ; (?P<marker>[^\\]+))?")


def pins(file: str) -> dict[str, dict[str, str]]:
    """Of a lock: for each package its versions, and the marker of each."""
    found: dict[str, dict[str, str]] = {}
    for line in (LOCKS / file).read_text(encoding="utf-8").splitlines():
        if pin := _PIN.match(line):
            found.setdefault(pin["name"], {})[pin["version"]] = (pin["marker"] or "").strip()
    return found


def _here(versions: dict[str, str]) -> str | None:
    """The version for this Python, if there is one."""
    fit = (v for v, marker in versions.items() if not marker or Marker(marker).evaluate())
    return next(fit, None)


def problems(installed: Iterable[Distribution]) -> Iterator[str]:
    """What is wrong with an environment, a line each."""
    here = {canonicalize_name(d.metadata["Name"]): d for d in installed}
    runtime, every = pins("runtime.txt"), pins("dev.txt")
    for name, found in sorted(here.items()):
        version = found.version
        which, why = REFUSED.get(name, (None, ""))
        if which is not None and SpecifierSet(which).contains(version, prereleases=True):
            yield f"{name} {version} is refused: {why}"
        if name not in _TOOLS and name not in every:
            yield f"{name} {version} is in no lock"
        elif name not in _TOOLS and version != (locked := _here(every[name])):
            yield f"{name} {version} is not the locked {locked}"
        yield from _changed(found)
        if name in runtime and not _FREE.search(licence := _licence(found)):
            yield f"{name} {version} has a licence that is not known here: {licence[:60]!r}"
    for name, versions in runtime.items():
        if name not in here and (locked := _here(versions)):
            yield f"{name} {locked} is in the lock and not installed"


def _changed(found: Distribution) -> Iterator[str]:
    # Not `found.files`: from Python 3.12 on that leaves out what is missing.
    for name, recorded, _ in csv.reader((found.read_text("RECORD") or "").splitlines()):
        kind, _, expected = recorded.partition("=")
        # Commands lie outside: their first line is the environment's own.
        if kind != "sha256" or name.startswith("../") or name.endswith(".pyc"):
            continue
        path = Path(str(found.locate_file(name)))
        if not path.is_file():
            yield f"{found.name}: {name} is missing"
            continue
        digest = hashlib.sha256(path.read_bytes()).digest()
        if base64.urlsafe_b64encode(digest).rstrip(b"=").decode() != expected:
            yield f"{found.name}: {name} was changed after it was installed"


def _licence(found: Distribution) -> str:
    about = found.metadata
    classes = [c for c in about.get_all("Classifier") or () if c.startswith("License")]
    return " ".join(
        [about.get("License-Expression") or "", about.get("License") or "", *classes]
    )


def sbom() -> str:
    """The run-time's packages, as CycloneDX JSON; the same for the same lock."""
    parts = [
        {
            "type": "library",
            "bom-ref": f"pkg:pypi/{name}@{version}",
            "name": name,
            "version": version,
            "purl": f"pkg:pypi/{name}@{version}",
            **({"properties": [{"name": "marker", "value": marker}]} if marker else {}),
        }
        for name, versions in sorted(pins("runtime.txt").items())
        for version, marker in versions.items()
    ]
    root = {"type": "library", "name": "apex-creds", "bom-ref": "apex-creds"}
    whole = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": root},
        "components": parts,
    }
    return json.dumps(whole, indent=1) + "\n"


def main() -> int:
    """The program."""
    if sys.argv[1:] == ["--sbom"]:
        SBOM.write_text(sbom(), encoding="utf-8")
        return 0
    found = list(problems(distributions()))
    print(
        *found or ["everything installed is as the lock says, and its files as installed"],
        sep="\n",
    )
    print("advisories were not looked up: that needs a network (pip-audit)")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
