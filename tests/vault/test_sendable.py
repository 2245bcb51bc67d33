"""A key that no request can carry is refused when it is stored, in words that help."""

from __future__ import annotations

import pytest

from apex_creds.errors import InvalidInputError
from apex_creds.model import ApiKey, BasicAuth, GenericSecret, OAuthToken
from apex_creds.vault import Vault

pytestmark = pytest.mark.anyio
ORIGIN = "https://api.example.com"
KEY = "sk-proj-madeUpCANARY0123456789"
WRONG = {
    "byte order mark": ("\ufeff" + KEY, "U+FEFF"),
    "zero-width space": (KEY[:8] + "\u200b" + KEY[8:], "U+200B"),
    "no-break space": (KEY + "\u00a0", "white space around"),
    "inner no-break space": (KEY + "\u00a0x", "U+00A0"),
    "space": (f" {KEY}", "white space around"),
    "tab inside": (f"a\t{KEY}", "U+0009"),
    "line feed": (KEY + "\n", "white space around"),
    "lines": (f"{KEY}\n{KEY}", "U+000A"),
    "dash": (KEY.replace("-", "\u2013"), "U+2013 EN DASH"),
    "quotes": (f"\u201c{KEY}\u201d", "U+201C"),
    "letter": (KEY + "\u00e9", "can't be sent in a header"),
}


@pytest.fixture
async def vault(tmp_path):
    async with await Vault.create(tmp_path / "home", master=f"file:{tmp_path}/m.key") as made:
        yield made


@pytest.mark.parametrize("kind", WRONG)
@pytest.mark.parametrize("delivery", ["bearer", "header:X-Key", None])
async def test_a_key_with_what_is_not_of_it_is_refused(vault, kind, delivery):
    text, why = WRONG[kind]
    for secret in (ApiKey(text), OAuthToken(text)):
        with pytest.raises(InvalidInputError) as refused:
            await vault.put("openai", secret, delivery=delivery, origins=[ORIGIN])
        assert why in str(refused.value)
        assert "'openai'" in str(refused.value)
        assert "CANARY" not in str(refused.value) + repr(refused.value)
    assert not await vault.list()


async def test_what_can_be_sent_is_stored(vault):
    await vault.put("plain", ApiKey(KEY))
    await vault.put("spaced", ApiKey("two words"), origins=[ORIGIN])
    await vault.put("for reveal, as it was", ApiKey(" \n"))
    await vault.put("for reveal", ApiKey("caf\u00e9 \u2013"))
    await vault.put("query", ApiKey("caf\u00e9"), delivery="query:key", origins=[ORIGIN])
    await vault.put("basic", BasicAuth("b\u00f6b", " pass\u00a0word\n"))
    await vault.put("pem", GenericSecret(b"line\nline\n\xff"))
    assert len(await vault.list()) == 7
    with pytest.raises(InvalidInputError, match="white space around"):
        await vault.put(
            "pem", GenericSecret(b"line\n"), delivery="header:X-Key", origins=[ORIGIN]
        )
