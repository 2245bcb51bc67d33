"""Which parts of a secret are looked for besides it, and which are public."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from apex_creds.crypto.memory import arena
from apex_creds.redaction.secret_parts import MOST_PARTS, contents

TOKEN = "glpat-madeUpToken0123456789"
KEY = ec.derive_private_key(0xA9E2, ec.SECP384R1())  # always the same: it is in tests' names
PEM = KEY.private_bytes(
    serialization.Encoding.PEM,
    serialization.PrivateFormat.PKCS8,
    serialization.NoEncryption(),
).decode()
DER = KEY.private_bytes(
    serialization.Encoding.DER,
    serialization.PrivateFormat.PKCS8,
    serialization.NoEncryption(),
)
BODY = PEM.splitlines()[1:-1]
SERVICE_ACCOUNT = {
    "type": "service_account",
    "project_id": "demo-project-1234567890",
    "private_key_id": "f" * 40,
    "private_key": PEM,
    "client_email": "bot@demo.iam.gserviceaccount.com",
    "token_uri": "https://oauth2.googleapis.com/token",
}


@pytest.fixture(autouse=True)
def no_slot_is_left() -> Iterator[None]:
    before = arena().open_slots
    yield
    assert arena().open_slots == before


def inside(secret: str | bytes) -> set[bytes]:
    data = secret.encode() if isinstance(secret, str) else secret
    found = set()
    for part in contents(memoryview(data)):
        found.add(part.secret.expose_bytes())
        part.secret.close()
    return found


@pytest.mark.parametrize(
    "stored",
    [
        f"{TOKEN}\n", f"{TOKEN}\r\n", f" {TOKEN} ", f"\ufeff{TOKEN}", f'"{TOKEN}"',
        base64.b64encode(json.dumps({"token": TOKEN}).encode()).decode(), f"'{TOKEN}'\n",
        f"\u200b{TOKEN}\u00a0", f"Bearer {TOKEN}", f"token {TOKEN}\n", f"GITLAB_TOKEN={TOKEN}",
        f'export GITLAB_TOKEN="{TOKEN}"\n', f"[default]\naws_secret_access_key = {TOKEN}\n",
        f"# mine\nurl: https://example.com/\ntoken: {TOKEN}\n", f"https://bob:{TOKEN}@example.com/x",
        f"postgresql://bob:{TOKEN}@[::1]:5432/db?sslmode=require", json.dumps(TOKEN),
        json.dumps({"a": {"client_secret": TOKEN}}), json.dumps([{"v": TOKEN}], indent=1),
        json.dumps({"dsn": f"redis://:{TOKEN}@h/0"}), json.dumps(json.dumps({"token": TOKEN})),
        f"Server=db,1433;User ID=u;Password={TOKEN};Encrypt=true", f"bob:{TOKEN}",
        f"host=localhost user=me password={TOKEN} dbname=x", f"db:5432:app:bob:{TOKEN}",
        f"jdbc:postgresql://h/db?user=x&password={TOKEN}", f"https://h/hooks/T0/{TOKEN}",
        "Basic " + base64.b64encode(f"bob:{TOKEN}".encode()).decode(),
        json.dumps({"auth": base64.b64encode(f"bob:{TOKEN}".encode()).decode()}),
        f"machine h\nlogin bob\npassword {TOKEN}", f'A=1\nPASSWORD="{TOKEN}" # mine\n',
        f"A=1\nPASSWORD={TOKEN} # mine\n", f"A=1\nTOKEN={TOKEN}\n{PEM}",
        f"{PEM}token: {TOKEN}\n", base64.b64encode(TOKEN.encode()).decode(),
        f"sessionid={TOKEN}; theme=dark", json.dumps([TOKEN, "another"], indent=1),
        "\n".join(f"https://bob:{TOKEN}@host-{n}.example.com" for n in range(20)),
    ],
)  # fmt: skip
def test_the_token_in_it_is_a_part(stored: str) -> None:
    assert TOKEN.encode() in inside(stored)


@pytest.mark.parametrize(
    "stored",
    [
        PEM,
        PEM.replace("\n", "\r\n"),
        f"{PEM}\n{PEM}",
        json.dumps(SERVICE_ACCOUNT),
        f"\ufeff{PEM}",
        f'TOKEN=1234\nKEY="{PEM}"\nOTHER=1234\n',
        "key: |\n  " + PEM.replace("\n", "\n  "),
        f"{PEM}TOKEN={TOKEN}\n",
        PEM.replace("\n", "\\n"),
        "A=1\nKEY='" + PEM.replace("\n", "\\n") + "'\n",
    ],
)
def test_of_a_pem_key_the_lines_and_what_they_encode(stored: str) -> None:
    found = inside(stored)
    assert {line.encode() for line in BODY} <= found
    assert DER in found
    edges = [part for part in found if part.startswith(b"-----") and b"\n" not in part]
    assert all(b"\\n" in part for part in edges), "the whole key in one line"


def test_escapes_in_json_are_undone() -> None:
    stored = '{"password": "p\\u00e4\\ud83d\\udd11\\n\\"\\/word"}'
    assert 'p\u00e4\U0001f511\n"/word'.encode() in inside(stored)


def test_what_is_public_is_left_out() -> None:
    public = [SERVICE_ACCOUNT[n] for n in ("type", "project_id", "client_email", "token_uri")]
    found = inside(json.dumps(SERVICE_ACCOUNT))
    assert not found & {text.encode() for text in public}
    assert not inside("https://example.com/a/long/path/1234567890")
    assert not inside("region=us-east-1")


@pytest.mark.parametrize(
    "public",
    [
        "apiVersion: v1", "current-context: default", "server: https://10.0.0.1:6443",
        "NODE_ENV=production", "DB_HOST=localhost", "AUTH_MODE=disabled", "AUTHOR=someone",
        "SESSION_DRIVER=database", "PASSWORD_FILE=/run/secrets/password", "TOKEN_TYPE=access",
    ],
)  # fmt: skip
def test_settings_that_everyone_has_are_no_parts(public: str) -> None:
    found = inside(f"{public}\nAPI_TOKEN={TOKEN}\n")
    value = public.replace("=", ": ").partition(": ")[2]
    assert TOKEN.encode() in found
    assert not {public.encode(), value.encode()} & found
    connection = inside(f"Server=db.example.com;Database=stocks;Password={TOKEN};Encrypt=true")
    assert TOKEN.encode() in connection
    assert not [part for part in connection if TOKEN.encode() not in part]


def test_a_password_is_looked_for_without_the_escapes_of_its_url() -> None:
    assert b"p@ss/w0rd%zz" in inside("postgres://bob:p%40ss%2Fw0rd%zz@db/x")


@pytest.mark.parametrize("secret", [TOKEN, "a", "", "p@ss word", "\n", base64.b64encode(DER)])
def test_a_plain_secret_has_no_parts(secret: str | bytes) -> None:
    assert not inside(secret)


@given(secret=st.one_of(st.binary(max_size=300), st.text('{["\\:,u0\n =-ab', max_size=99)))
def test_anything_at_all_can_be_searched(secret: str | bytes) -> None:
    assert all(inside(secret))


def test_parts_are_bounded() -> None:
    lines = "\n".join(f"token_{n}: {TOKEN}{n}" for n in range(2000))
    assert len(inside(lines)) == MOST_PARTS
