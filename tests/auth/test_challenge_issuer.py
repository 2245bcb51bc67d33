"""Challenges in a vault: single use over restarts, revocation, the log."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from apex_creds.audit.events import EventKind
from apex_creds.audit.verify import read
from apex_creds.auth import challenge
from apex_creds.auth.challenge_client import ClientKey
from apex_creds.auth.challenge_issuer import Challenger
from apex_creds.auth.second_factor import Subject
from apex_creds.errors import (
    ChallengeError,
    CorruptDocumentError,
    InvalidInputError,
    NotFoundError,
)
from apex_creds.vault import Vault
from tests.support.clocks import FakeClock, TwoClocks
from tests.support.vaults import create, home_in

pytestmark = pytest.mark.anyio

SUBJECT = Subject(plugin="p", credential="c", scopes=("read",), action="run")
ALLOW = challenge.expecting(credential="c", plugin="p", scopes=["read"])


@pytest.fixture
def key(tmp_path: Path, clock: FakeClock) -> Iterator[ClientKey]:
    with ClientKey.generate(tmp_path / "client.key", clock=clock) as key:
        yield key


@pytest.fixture
async def challenger(vault: Vault, key: ClientKey) -> Challenger:
    made = Challenger(vault)
    await made.enrol("worker", key.public, credentials=["c"])
    return made


async def answered(challenger: Challenger, key: ClientKey, client: str = "worker") -> bytes:
    message = await challenger.issue(client, SUBJECT)
    return key.answer(message, vault_id=challenger.access.vault_id, allow=ALLOW)


async def test_an_answer_counts_once(challenger, key):
    for name in ("worker", key.id):
        answer = await answered(challenger, key, name)
        assert (await challenger.redeem(answer, SUBJECT)).name == "worker"
        with pytest.raises(ChallengeError):
            await challenger.redeem(answer, SUBJECT)


async def test_replay_is_refused_after_a_restart(tmp_path, clock, vault, challenger, key):
    used = await answered(challenger, key)
    await challenger.redeem(used, SUBJECT)
    unused = await answered(challenger, key)
    await vault.close()
    async with await Vault.unseal(home_in(tmp_path), clock=clock) as again:
        late = Challenger(again)
        with pytest.raises(ChallengeError):
            await late.redeem(used, SUBJECT)
        # What was given out before the restart and not answered yet is good.
        assert (await late.redeem(unused, SUBJECT)).name == "worker"


async def test_an_answer_is_for_its_vault(tmp_path, clock, challenger, key):
    (tmp_path / "other").mkdir()
    async with await create(tmp_path / "other", clock=clock) as other:
        theirs = Challenger(other)
        await theirs.enrol("worker", key.public, credentials=["*"])
        message = await theirs.issue("worker", SUBJECT)
        with pytest.raises(ChallengeError):
            key.answer(message, vault_id=challenger.access.vault_id, allow=ALLOW)
        answer = await answered(challenger, key)
        with pytest.raises(ChallengeError):
            await theirs.redeem(answer, SUBJECT)
        assert await challenger.redeem(answer, SUBJECT)


async def test_a_late_answer_does_not_count(challenger, key, clock):
    answer = await answered(challenger, key)
    clock.now += 60
    with pytest.raises(ChallengeError):
        await challenger.redeem(answer, SUBJECT)


async def test_revocation_reaches_open_challenges_in_other_processes(
    tmp_path, clock, challenger, key
):
    async with await Vault.unseal(home_in(tmp_path), clock=clock) as other:
        theirs = Challenger(other)
        answer = await answered(theirs, key)
        assert (await challenger.revoke("worker")).id == key.id
        with pytest.raises(ChallengeError):
            await theirs.redeem(answer, SUBJECT)
        with pytest.raises(ChallengeError):
            await theirs.issue("worker", SUBJECT)
    with pytest.raises(NotFoundError):
        await challenger.revoke("worker")
    assert await challenger.clients() == []


async def test_a_client_answers_for_its_credentials(challenger, key):
    for subject in (
        Subject(plugin="p", credential="other"),
        Subject(plugin="p", credential="*"),
    ):
        with pytest.raises(ChallengeError):
            await challenger.issue("worker", subject)
    with pytest.raises(ChallengeError):
        await challenger.issue("nobody", SUBJECT)


@pytest.mark.parametrize(
    ("name", "public", "credentials"),
    [("", bytes(32), ["c"]), ("x", bytes(31), ["c"]), ("x", b"", ["c"]), ("x", bytes(32), []),
     ("x", bytes(32), ["a\nb"]), ("worker", bytes(32), ["c"])],
)  # fmt: skip
async def test_bad_enrolments_are_refused(challenger, name, public, credentials):
    with pytest.raises(InvalidInputError):
        await challenger.enrol(name, public, credentials=credentials)
    assert len(await challenger.clients()) == 1


async def test_a_small_order_key_verifies_nothing(challenger, key):
    """Under the identity point, a forged signature could be right for every message."""
    identity = b"\x01" + bytes(31)
    await challenger.enrol("evil", identity, credentials=["*"])
    message = await challenger.issue("evil", SUBJECT)
    nonce = challenge.Challenge.decode(message).nonce
    with pytest.raises(ChallengeError):
        await challenger.redeem(nonce + identity + bytes(32), SUBJECT)


async def test_a_tampered_document_lets_no_answer_count(
    tmp_path, clock, vault, challenger, key
):
    answer = await answered(challenger, key)
    await vault.close()
    path = home_in(tmp_path) / "security/access.enc"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    async with await Vault.unseal(home_in(tmp_path), clock=clock) as again:
        with pytest.raises(CorruptDocumentError):
            await Challenger(again).redeem(answer, SUBJECT)


async def test_the_log_says_why(tmp_path, vault, challenger, key):
    answer = await answered(challenger, key)
    await challenger.redeem(answer, SUBJECT)
    with pytest.raises(ChallengeError) as caught:
        await challenger.redeem(answer, SUBJECT)
    assert "replay" not in str(caught.value)
    await vault.close()
    events = list(read(home_in(tmp_path) / "security/audit", vault_id=vault.vault_id))
    found = [
        (e.plugin, e.credential, e.decision, e.reason, e.detail)
        for e in events
        if e.kind is EventKind.CHALLENGE
    ]
    assert found == [
        ("p", "c", "allow", "answered", f"worker {key.id}"),
        ("p", "c", "deny", "challenge_unknown", ""),
    ]
    assert [e.action for e in events if e.kind is EventKind.CLIENT] == ["enrol"]


@pytest.mark.parametrize("jump", [-1e9, -60.0, 60.0, 3.2e8])
async def test_a_challenge_is_open_for_as_long_as_it_was_made_for(tmp_path, jump):
    clock = TwoClocks()
    async with await create(tmp_path, clock=clock) as vault:
        with ClientKey.generate(tmp_path / "client.key", clock=clock) as key:
            challenger = Challenger(vault)
            await challenger.enrol("worker", key.public, credentials=["c"])
            first, second = [await answered(challenger, key) for _ in range(2)]
            clock.set_by(jump)
            clock.go_on(challenge.TTL - 1)
            assert (await challenger.redeem(first, SUBJECT)).name == "worker"
            clock.go_on(1.1)
            with pytest.raises(ChallengeError):
                await challenger.redeem(second, SUBJECT)
