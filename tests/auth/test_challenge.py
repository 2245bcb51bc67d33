"""Challenges: the vectors, every field bound, nothing signed or accepted that is not meant."""

from __future__ import annotations

import atexit
import contextlib
from pathlib import Path

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from apex_creds.auth import challenge
from apex_creds.auth.access_document import AccessState, Client
from apex_creds.auth.challenge import (
    Challenge,
    Reason,
    close_challenge,
    expecting,
    issue,
    sign_challenge,
)
from apex_creds.auth.second_factor import Subject
from apex_creds.crypto.memory import SecretBytes
from apex_creds.crypto.public_key import SigningKey
from apex_creds.errors import ChallengeError, InvalidInputError
from tests.vectors import flat, make_challenge

VECTORS = {name: flat.parse(text)[0] for name, text in flat.load("challenge").items()}
GOOD = [name for name, case in VECTORS.items() if case["expect"] == "success"]
VAULT = "10" * 16
NOW = 1000.0
SUBJECT = Subject(plugin="p", credential="c", scopes=("b", "a"))


def key(byte: int = 1) -> SigningKey:
    with SecretBytes.from_bytes(bytes([byte]) * 32) as seed:
        return SigningKey.from_seed(seed)


KEY, OTHER_KEY = key(1), key(2)
atexit.register(KEY.close)
atexit.register(OTHER_KEY.close)


def client(of: SigningKey = KEY, **more: object) -> Client:
    fields = {"credentials": ("c",), "created": 0.0, "name": f"client {of.public[:2].hex()}"}
    return Client(id=challenge.client_id(of.public), public=of.public, **{**fields, **more})


STATE = AccessState(clients=(client(), client(OTHER_KEY)))


def made(**more: object) -> Challenge:
    fields: dict[str, object] = {
        "vault_id": VAULT,
        "client": client().id,
        "nonce": b"n" * 32,
        "credential": "c",
        "plugin": "p",
        "scopes": ("a", "b"),
        "expires": challenge.millis(NOW + 60),
    }
    return Challenge(**{**fields, **more})


def signed(message: bytes, of: SigningKey = KEY, nonce: bytes = b"n" * 32) -> bytes:
    return nonce + of.sign(message)


def opened(one: Challenge | None = None) -> AccessState:
    return issue(STATE, one or made(), now=NOW, ttl=60.0)


# -- the bytes -------------------------------------------------------------------------


@pytest.mark.parametrize("name", GOOD)
def test_the_vectors(name):
    vector = VECTORS[name]
    scopes, expires = tuple(vector["scopes"].split()), int(vector["expires"])
    with SecretBytes.from_bytes(bytes.fromhex(vector["seed"])) as seed:
        signer = SigningKey.from_seed(seed)
    assert signer.public.hex() == vector["public"]
    assert challenge.client_id(signer.public) == vector["client"]
    message = bytes.fromhex(vector["message"])
    one = Challenge(
        vault_id=vector["vault_id"],
        client=vector["client"],
        nonce=bytes.fromhex(vector["nonce"]),
        credential=vector["credential"],
        plugin=vector["plugin"],
        scopes=scopes,
        expires=expires,
    )
    assert one.encode() == message
    assert Challenge.decode(message) == one
    answer = sign_challenge(
        signer,
        message,
        vault_id=vector["vault_id"],
        allow=expecting(
            credential=vector["credential"], plugin=vector["plugin"], scopes=scopes
        ),
        now=expires / 1000 - 1,
    )
    assert answer.hex() == vector["answer"]


@pytest.mark.parametrize("name", sorted(VECTORS.keys() - GOOD))
def test_what_is_not_canonical_is_refused(name):
    with pytest.raises(ChallengeError):
        Challenge.decode(bytes.fromhex(VECTORS[name]["message"]))


def test_the_vectors_are_what_their_generator_makes():
    made = {flat.file_name(name): text for name, text in make_challenge.cases().items()}
    assert made == flat.load("challenge")


def test_truncation_at_every_boundary_is_refused():
    message = made().encode()
    for end in range(len(message)):
        with pytest.raises(ChallengeError):
            Challenge.decode(message[:end])


@given(st.data())
def test_a_changed_byte_never_reads_as_the_same_challenge(data):
    message = bytearray(made().encode())
    at = data.draw(st.integers(0, len(message) - 1))
    message[at] ^= data.draw(st.integers(1, 255))
    try:
        found = Challenge.decode(bytes(message))
    except ChallengeError:
        return
    assert found != made()


@given(st.binary(max_size=300))
def test_any_bytes_are_an_answer_or_a_challenge_error(data):
    with contextlib.suppress(ChallengeError):
        assert Challenge.decode(data).encode() == data


NAMES = st.text("ab-:é程𝄞", min_size=1, max_size=8)


@given(NAMES, NAMES, st.lists(NAMES, max_size=4), NAMES, NAMES, st.lists(NAMES, max_size=4))
def test_two_challenges_never_have_one_message(c1, p1, s1, c2, p2, s2):
    one = made(credential=c1, plugin=p1, scopes=challenge.canonical_scopes(s1))
    two = made(credential=c2, plugin=p2, scopes=challenge.canonical_scopes(s2))
    assert Challenge.decode(one.encode()) == one
    assume(one != two)
    assert one.encode() != two.encode()


# -- the vault's side ------------------------------------------------------------------


def test_an_answer_counts_once():
    state = opened()
    answer = signed(made().encode())
    first = close_challenge(state, answer, SUBJECT, now=NOW)
    assert (first.client, first.reason) == (client(), None)
    again = close_challenge(first.state, answer, SUBJECT, now=NOW)
    assert (again.client, again.reason) == (None, Reason.UNKNOWN)


@pytest.mark.parametrize(
    ("answer", "subject", "now", "reason"),
    [
        (b"", SUBJECT, NOW, Reason.MALFORMED),
        (bytes(95), SUBJECT, NOW, Reason.MALFORMED),
        (bytes(97), SUBJECT, NOW, Reason.MALFORMED),
        (bytes(96), SUBJECT, NOW, Reason.UNKNOWN),
        (signed(made().encode()), SUBJECT, NOW + 60, Reason.EXPIRED),
        (signed(made().encode()), SUBJECT, NOW - 1000, Reason.EXPIRED),
        (signed(made().encode(), OTHER_KEY), SUBJECT, NOW, Reason.WRONG_SIGNATURE),
        (b"n" * 32 + bytes(64), SUBJECT, NOW, Reason.WRONG_SIGNATURE),
        (signed(made(expires=2**40).encode()), SUBJECT, NOW, Reason.WRONG_SIGNATURE),
        (signed(made(vault_id="11" * 16).encode()), SUBJECT, NOW, Reason.WRONG_SIGNATURE),
        (signed(made(scopes=()).encode()), SUBJECT, NOW, Reason.WRONG_SIGNATURE),
        (signed(made().encode()), Subject(plugin="q", credential="c", scopes=("a", "b")), NOW,
         Reason.OTHER_SUBJECT),
        (signed(made().encode()), Subject(plugin="p", credential="c"), NOW,
         Reason.OTHER_SUBJECT),
        (signed(made().encode()), Subject(plugin="p", credential="d", scopes=("a", "b")), NOW,
         Reason.CLIENT_NOT_ALLOWED),
    ],
)  # fmt: skip
def test_other_answers_do_not_count_and_close_the_challenge(answer, subject, now, reason):
    redeemed = close_challenge(opened(), answer, subject, now=now)
    assert (redeemed.client, redeemed.reason) == (None, reason)
    assert bool(redeemed.state.challenges) is (reason in (Reason.MALFORMED, Reason.UNKNOWN))


def test_a_revoked_client_answers_nothing_and_its_challenges_are_gone():
    state = challenge.without_client(opened(), client())
    assert state.challenges == ()
    assert (
        close_challenge(state, signed(made().encode()), SUBJECT, now=NOW).reason
        is Reason.UNKNOWN
    )
    with pytest.raises(ChallengeError):
        issue(state, made(), now=NOW, ttl=60.0)
    # Not even if it is enrolled again meanwhile.
    back = challenge.with_client(state, client())
    assert (
        close_challenge(back, signed(made().encode()), SUBJECT, now=NOW).reason
        is Reason.UNKNOWN
    )


def test_a_client_that_is_over_or_narrowed_meanwhile_does_not_count():
    for changed in (client(expires=NOW), client(credentials=("d",))):
        state = msgspec.structs.replace(opened(), clients=(changed,))
        found = close_challenge(state, signed(made().encode()), SUBJECT, now=NOW)
        assert found.reason is Reason.CLIENT_NOT_ALLOWED


@pytest.mark.parametrize(
    ("credentials", "expires", "allowed"),
    [(("c",), None, True), (("*",), None, True), (("d", "c"), NOW + 1, True),
     (("d",), None, False), ((), None, False), (("c",), NOW, False), (("C",), None, False)],
)  # fmt: skip
def test_who_may_answer(credentials, expires, allowed):
    one = client(credentials=credentials, expires=expires)
    assert challenge.may_answer(one, "c", now=NOW) is allowed
    assert not challenge.may_answer(None, "c", now=NOW)


def test_a_client_has_a_few_challenges_open_and_the_old_ones_are_forgotten():
    state = STATE
    for number in range(challenge.MAX_OPEN):
        state = issue(state, made(nonce=bytes([number]) * 32), now=NOW, ttl=60.0)
    with pytest.raises(ChallengeError):
        issue(state, made(), now=NOW, ttl=60.0)
    others = made(client=client(OTHER_KEY).id)
    assert len(issue(state, others, now=NOW, ttl=60.0).challenges) == challenge.MAX_OPEN + 1
    later = made(expires=challenge.millis(NOW + 200))
    assert len(issue(state, later, now=NOW + 100, ttl=60.0).challenges) == 1


@pytest.mark.parametrize("ttl", [0.0, -1.0, 600.1, float("inf"), float("nan")])
def test_a_challenge_is_not_good_for_long(ttl):
    with pytest.raises(InvalidInputError):
        issue(STATE, made(), now=NOW, ttl=ttl)


def test_names_and_keys_of_clients_are_unique():
    for taken in (
        client(name="another"),  # the key
        client(key(3), name=client().name),
        client(key(3), name=client().id),  # an id as a name
    ):
        with pytest.raises(InvalidInputError):
            challenge.with_client(STATE, taken)
    assert len(challenge.with_client(STATE, client(key(3))).clients) == 3


# -- the client's side -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "vault", "now"),
    [
        ({"vault_id": "11" * 16}, VAULT, NOW),
        ({}, "11" * 16, NOW),
        ({"client": client(OTHER_KEY).id}, VAULT, NOW),
        ({"credential": "d"}, VAULT, NOW),
        ({"plugin": "q"}, VAULT, NOW),
        ({"scopes": ("a", "b", "c")}, VAULT, NOW),
        ({"scopes": ()}, VAULT, NOW),
        ({}, VAULT, NOW + 60),
        ({}, VAULT, NOW - 600),
    ],
)
def test_a_client_signs_nothing_that_it_does_not_expect(changed, vault, now):
    allow = expecting(credential="c", plugin="p", scopes=("b", "a"))
    with pytest.raises(ChallengeError):
        sign_challenge(KEY, made(**changed).encode(), vault_id=vault, allow=allow, now=now)


def test_a_client_signs_no_other_bytes():
    for message in (b"", b"apex-creds/v1/challenge", b"{}", made().encode()[1:]):
        with pytest.raises(ChallengeError):
            sign_challenge(KEY, message, vault_id=VAULT, allow=lambda _: True, now=NOW)


def test_it_signs_what_it_expects():
    allow = expecting(credential="c", plugin="p", scopes=("b", "a", "a"))
    message = opened().challenges[0].message
    answer = sign_challenge(KEY, message, vault_id=VAULT, allow=allow, now=NOW)
    assert close_challenge(opened(), answer, SUBJECT, now=NOW).client == client()


def test_the_worked_example_of_the_page():
    page = (Path(__file__).parents[2] / "docs/CHALLENGE.md").read_text(encoding="utf-8")
    block = page.split("<!-- example: challenge -->\n```text\n")[1].split("```")[0]
    joined = block.replace("\n             ", "")
    example = dict(line.split() for line in joined.splitlines())
    vector = VECTORS["usual.txt"]
    for field in ("seed", "public", "client", "vault_id", "nonce", "message", "answer"):
        assert example[field] == vector[field]
    for field in ("credential", "plugin"):
        assert bytes.fromhex(example[field]).decode() == vector[field]
    assert int(example["expires"], 16) == int(vector["expires"])
    assert example["scopes"] in example["message"]
