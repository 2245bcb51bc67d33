"""Who serves plugins, rotates or shows a page keeps other processes out of its memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="prctl")

REPOSITORY = Path(__file__).parents[2]
PROGRAM = """
import asyncio, ctypes, resource, sys
from apex_creds import CredentialMiddleware, Vault
from apex_creds.dashboard.server import Settings, serve
from apex_creds.errors import InvalidInputError
from apex_creds.scheduler.worker import RotationWorker

async def main(where, who, options):
    async with await Vault.create(f"{where}/home", master=f"file:{where}/key") as vault:
        if who == "middleware":
            await CredentialMiddleware(vault, **options).close()
        elif who == "worker":
            RotationWorker(vault, **options)
        else:
            missing = {"certificate": (where, where), "address": "127.0.0.2"}
            try:
                await serve(vault, Settings(**missing, **options), say=print)
            except InvalidInputError:
                pass
    return ctypes.CDLL(None).prctl(3, 0, 0, 0, 0) == 0, resource.getrlimit(resource.RLIMIT_CORE)

options = {} if sys.argv[3] == "by default" else {"harden": False}
resource.setrlimit(resource.RLIMIT_CORE, (resource.getrlimit(resource.RLIMIT_CORE)[1],) * 2)
print(asyncio.run(main(sys.argv[1], sys.argv[2], options)))
"""


@pytest.mark.parametrize("who", ["middleware", "worker", "dashboard"])
def test_it_is_hardened_unless_told_not_to(tmp_path: Path, who: str) -> None:
    for number, how in enumerate(["by default", "not"]):
        where = tmp_path / str(number)
        where.mkdir(mode=0o700)
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, str(where), who, how],
            cwd=REPOSITORY, capture_output=True, text=True, timeout=480, check=True,
        )  # fmt: skip
        is_hardened = done.stdout.startswith("(True, (0, 0))")
        assert is_hardened is (how == "by default"), done.stdout
