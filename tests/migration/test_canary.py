"""A secret goes through every path of a migration; nothing that is left behind shows it."""

from __future__ import annotations

import base64
import logging
import traceback
import urllib.parse
from pathlib import Path

import pytest

from apex_creds.errors import ApexCredsError
from apex_creds.migration import Fallback, Options, migrate, on_unseal, set_aside
from apex_creds.vault import Vault
from tests.support import old

pytestmark = pytest.mark.anyio
CANARY = "Canary/7f3a+9c0e=5b1d"


def spellings(text: str) -> set[bytes]:
    data = text.encode()
    found = {data, data.hex().encode(), urllib.parse.quote(text, safe="").encode()}
    for shift in range(3):  # base64 at every alignment, without its ragged ends
        found.add(base64.b64encode(b"x" * shift + data)[4:-4])
        found.add(base64.urlsafe_b64encode(b"x" * shift + data)[4:-4])
    return found


CONTENT = {
    "api_keys": {"a": CANARY, "wrong": [CANARY], "big": CANARY * 5000, "conflict": CANARY},
    "oauth_tokens": {
        "t": {"access_token": CANARY, "refresh_token": CANARY, "id_token": CANARY},
        "bad": {"access_token": [CANARY], "x": CANARY},
        "number": 7,
    },
}


async def test_nothing_shows_it(
    place: Path, master: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    home = place / ".apex_agent"
    old.install(home, old.box_files(CONTENT["api_keys"], CONTENT["oauth_tokens"]))
    old.fernet_file(place, CONTENT)
    texts = []
    for environ in (old.WRONG, {}):
        with pytest.raises(ApexCredsError) as caught:
            await set_aside(home, environ=environ)
        texts.append("".join(traceback.format_exception(caught.value)))
    await set_aside(home, environ=old.ENV)
    async with await Vault.create(home, master=master) as vault:
        texts.append(repr(await on_unseal(vault, environ=old.WRONG)))
        texts.append(repr(await on_unseal(vault, environ=old.ENV)))
        texts.append(repr(await Fallback(vault, environ=old.ENV).entries()))
        options = Options(accept_partial=True)
        texts.append(repr(await migrate(vault, options=options, environ=old.ENV)))
        async with vault.open("a") as opened:
            assert bytes(opened.view()).decode() == CANARY  # so that the test can fail
    files = [p for p in place.rglob("*") if p.is_file() and not p.name.endswith(".bak")]
    left = b"".join(path.read_bytes() for path in files)
    shown = "\n".join([*texts, caplog.text]).encode()
    for secret in (CANARY, old.ENV[old.VARIABLE], old.b64(old.MASTER)):
        for spelling in spellings(secret):
            assert spelling not in shown
            assert spelling not in left
    assert len(files) > 5
