"""A random secret goes along every path; then it is looked for in everything that is left."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.spellings import SPELLINGS

pytestmark = pytest.mark.e2e
REPOSITORY = Path(__file__).parents[2]
PROGRAM = REPOSITORY / "tests" / "e2e" / "canary_program.py"


def needles(*values: str) -> dict[bytes, str]:
    """Every spelling, without its ends, which depend on what stands beside them."""
    found = {}
    for value in values:
        for name, spell in SPELLINGS.items():
            found[spell(value).rstrip("=")[4:-4].encode()] = name
        found[value.encode("utf-16-le")[8:-8]] = "UTF-16"
        found[value[::-1].encode()[4:-4]] = "backwards"
        found[value[:16].encode()] = "its beginning"
        found[value[-16:].encode()] = "its end"
    return found


def hits(where: Path, *values: str) -> list[tuple[str, str]]:
    found = []
    for path in sorted(where.rglob("*")):
        name = str(path.relative_to(where))
        text = os.fsencode(name) + (path.read_bytes() if path.is_file() else b"")
        found += [(name, how) for needle, how in needles(*values).items() if needle in text]
    return found


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """A folder with all that a run left behind, and the two secrets of the run."""
    where = tmp_path_factory.mktemp("canary")
    (where / "tmp").mkdir()
    secret = f'{secrets.token_hex(12)}/+="&{secrets.token_hex(12)}'
    password = f"{secrets.token_hex(12)} é\"'\\\n{secrets.token_hex(12)}"
    done = subprocess.run(
        [sys.executable, "-m", "tests.e2e.canary_program", str(where)],
        cwd=REPOSITORY,
        input=json.dumps([secret, password]).encode(),
        env={**os.environ, "TMPDIR": str(where / "tmp"), "HOME": str(where)},
        capture_output=True,
        timeout=480,
    )
    (where / "stdout.txt").write_bytes(done.stdout)
    (where / "stderr.txt").write_bytes(done.stderr)
    assert done.returncode == 0, done.stderr.decode()[-3000:].replace(secret, "SECRET")
    return where, secret, password


def test_it_is_nowhere(left: tuple[Path, str, str]) -> None:
    where, secret, password = left
    assert hits(where, secret, password) == []


def test_everything_was_there_to_be_searched(left: tuple[Path, str, str]) -> None:
    """Or the test above would say nothing."""
    where, _, _ = left
    text = {name: (where / name).read_text() for name in
            ("debug.log", "spans.json", "errors.txt", "results.txt")}  # fmt: skip
    log = text["debug.log"]
    for word in ("httpcore", "asyncio", "plugin", "send_request_headers", "[redacted:api]",
                 "[redacted:login]", "[redacted:oauth]", "Traceback"):  # fmt: skip
        assert word in log, word
    for word in ("ValueError", "RequestNotAllowedError", "HandleExhaustedError", "TimeoutError",
                 "CredentialNotFoundError", "RemoteProtocolError"):  # fmt: skip
        assert word in text["errors.txt"], word
    assert "credentials = " in text["errors.txt"] or "self = " in text["errors.txt"]
    for name in ("apex_creds.invoke", "apex_creds.redeem"):
        assert name in text["spans.json"]
    assert text["results.txt"].count("redacted:api") > 5
    audit = b"".join(
        p.read_bytes() for p in (where / "home/security/audit").iterdir() if p.is_file()
    )
    for kind in (b"redeem", b"leak", b"denial", b"expose", b"delete", b"invocation"):
        assert b'"kind":"%s"' % kind in audit
    assert (where / "home/credentials/api_keys.enc").stat().st_size > 100


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_the_search_finds_what_is_there(
    left: tuple[Path, str, str], tmp_path: Path, spelling: str
) -> None:
    _, secret, password = left
    for value in (secret, password):
        (tmp_path / "file").write_text(f"before {SPELLINGS[spelling](value)} after")
        assert hits(tmp_path, secret, password)
