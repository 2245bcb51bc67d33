"""SCRAM-SHA-256: the exchange of RFC 7677, and servers that do not keep to it."""

from __future__ import annotations

from base64 import b64decode

import pytest

from apex_creds.crypto.memory import SecretBytes
from apex_creds.crypto.scram import ScramClient, prepared
from apex_creds.errors import LoginError

NONCE = "rOprNGfwEbeRWgbNEkqO"
BOTH = NONCE + "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0"
CHALLENGE = f"r={BOTH},s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"
PROOF = f"c=biws,r={BOTH},p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
FINAL = "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="


def client(user: str = "user") -> ScramClient:
    made = ScramClient(b64decode(NONCE))
    made._bare = f"n={user},r={NONCE}".encode()  # PostgreSQL has the user elsewhere
    return made


def test_the_exchange_of_the_rfc() -> None:
    one = client()
    assert one.first == f"n,,n=user,r={NONCE}".encode()
    with SecretBytes.from_bytes(b"pencil") as password:
        assert one.proof(CHALLENGE.encode(), password.view()) == PROOF.encode()
    one.verify(FINAL.encode())


@pytest.mark.parametrize(
    "challenge",
    [
        "",
        "e=unknown-user",
        CHALLENGE.replace(BOTH, NONCE),  # nothing of the server's own
        CHALLENGE.replace(NONCE, "x" * 20),
        CHALLENGE.replace("4096", "4095"),
        CHALLENGE.replace("4096", "1000001"),
        CHALLENGE.replace("4096", "-4096"),
        CHALLENGE.replace("W22Z", "W22"),
        CHALLENGE + ",m=more",
    ],
)
def test_a_challenge_that_is_not_as_it_should_be_gets_no_proof(challenge: str) -> None:
    with pytest.raises(LoginError):
        client().proof(challenge.encode(), b"pencil")


@pytest.mark.parametrize("final", ["", "v=", "v=AAAA", "e=other-error", FINAL[2:]])
def test_a_server_that_does_not_know_the_password_is_refused(final: str) -> None:
    one = client()
    one.proof(CHALLENGE.encode(), b"pencil")
    with pytest.raises(LoginError):
        one.verify(final.encode())
    with pytest.raises(LoginError):
        client().verify(FINAL.encode())  # before any proof


@pytest.mark.parametrize(
    ("password", "form"),
    [
        ("pencil", "pencil"),
        ("I\u00adX", "IX"),  # RFC 4013, section 3
        ("\u00aa", "a"),
        ("\u2168", "IX"),
        ("a\u00a0b", "a b"),
        ("\u00e9\u0007", "\u00e9\u0007"),  # prohibited: as it is, as PostgreSQL does
        ("\u0627\u0031", "\u0627\u0031"),
    ],
)
def test_a_password_is_prepared_as_postgresql_does(password: str, form: str) -> None:
    assert bytes(prepared(password.encode())) == form.encode()


def test_a_password_of_ascii_is_not_copied_and_other_bytes_stay() -> None:
    with SecretBytes.from_bytes(b"pencil") as password:
        view = password.view()
        assert prepared(view) is view
    assert prepared(b"\xff\xfe") == b"\xff\xfe"
