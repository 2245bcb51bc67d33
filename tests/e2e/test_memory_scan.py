"""After a reveal is over, the process's own memory has no copy of the secret.

The secret was stored by another process. This one never has it but in locked memory: what
it looks for is the secret XORed with a mask of as many random bytes, and the comparison is
done in numbers, a byte at a time, so that the search itself makes no copy.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc/self/mem"),
]
REPOSITORY = Path(__file__).parents[2]

STORE = """
import anyio, os, secrets, sys
from apex_creds import *
async def main():
    where = sys.argv[1]
    # Letters that compress to nothing else in memory; the search starts at a rare pair.
    secret = secrets.token_hex(24)
    mask = os.urandom(len(secret))
    async with await Vault.create(where + "/home", master="file:" + where + "/key") as vault:
        await vault.put("canary", ApiKey(secret))
        await vault.grant("demo", "canary", reveal=True)
    masked = bytes(a ^ b for a, b in zip(secret.encode(), mask))
    print(mask.hex(), masked.hex())
anyio.run(main)
"""

SCAN = r"""
import anyio, gc, json, sys
from apex_creds import *
from tests.e2e.memory_search import Search

MANIFEST = parse_manifest(
    {"id": "demo", "version": "1", "credentials": [{"name": "canary", "access": "reveal"}]}
)

async def main():
    where, mask, masked, mode = sys.argv[1:]
    search = Search(bytes.fromhex(mask), bytes.fromhex(masked))
    counts = []
    async with await Vault.unseal(where + "/home") as vault:
        async with CredentialMiddleware(vault) as middleware:
            counts.append(search.count())

            async def plugin(credentials):
                async with credentials["canary"].reveal() as secret:
                    counts.append(search.count())
                    if mode == "kept":
                        return [secret.expose_bytes()]
                counts.append(search.count())
                return "harmless, but searched for the secret"

            def leaky(credentials):
                with credentials["canary"].reveal() as secret:
                    kept.append(secret.expose_bytes())

            kept = []
            if mode == "kept":
                await middleware.invoke(MANIFEST, leaky)
            else:
                for _ in range(5):
                    await middleware.invoke(MANIFEST, plugin)
                del counts[3:]
            gc.collect()
            counts.append(search.count())
    counts.append(search.count())
    print(json.dumps(counts))
anyio.run(main)
"""


@pytest.fixture
def stored(tmp_path: Path) -> list[str]:
    made = run(STORE, str(tmp_path))
    return [str(tmp_path), *made.split()]


def run(code: str, *args: str) -> str:
    command = [sys.executable, "-W", "error", "-c", code, *args]
    done = subprocess.run(
        command, cwd=REPOSITORY, check=True, capture_output=True, text=True, timeout=480
    )
    return done.stdout.strip()


def test_a_revealed_secret_is_there_and_then_nowhere(stored: list[str]) -> None:
    before, during, after, at_the_end, closed = json.loads(run(SCAN, *stored, "wiped"))
    assert before == 0
    assert during == 1, "in its slot, and nowhere else"
    assert (after, at_the_end, closed) == (0, 0, 0)


def test_the_search_finds_a_copy_that_was_kept(stored: list[str]) -> None:
    before, at_the_end, closed = json.loads(run(SCAN, *stored, "kept"))
    assert before == 0
    assert at_the_end >= 1
    assert closed >= 1
