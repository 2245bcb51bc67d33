"""Second factors in a vault: restarts, tampering, keys of their own, nothing leaks."""

from __future__ import annotations

import base64
import gc
import logging
from pathlib import Path
from typing import ClassVar
from urllib.parse import parse_qs, urlsplit

import msgspec
import pytest

from apex_creds.audit.events import EventKind, Recorded
from apex_creds.audit.verify import read
from apex_creds.auth.access_document import DEK_LABEL, Factor
from apex_creds.auth.enrolment import MAX_FACTORS, Factors
from apex_creds.auth.second_factor import Subject
from apex_creds.auth.totp import code_at
from apex_creds.crypto import envelope
from apex_creds.crypto.memory import SecretBytes, arena
from apex_creds.errors import (
    CorruptDocumentError,
    DecryptionError,
    InvalidInputError,
    InvalidNameError,
    LockedOutError,
    NotFoundError,
    NotInstalledError,
    RollbackDetectedError,
    SecondFactorError,
)
from apex_creds.keys.keyset import KeyState
from apex_creds.model import ApiKey
from apex_creds.vault import Vault
from tests.support.clocks import FakeClock
from tests.support.vaults import home_in, values

pytestmark = pytest.mark.anyio

SUBJECT = Subject(plugin="p", credential="c")


class App:
    """An authenticator app: knows the seed, shows codes."""

    def __init__(self, seed: bytes, settings, clock) -> None:
        self.seed, self.settings, self.clock = seed, settings, clock

    def code(self, away: int = 0) -> str:
        with SecretBytes.from_bytes(self.seed) as seed:
            now = self.clock.now + away * self.settings.period
            return code_at(seed, settings=self.settings, now=now)

    def wrong(self) -> str:
        near = {self.code(away) for away in range(-3, 4)}
        return next(c for c in ("918273", "645981", "370516") if c not in near)


@pytest.fixture
def factors(vault: Vault) -> Factors:
    return Factors(vault)


async def enrol(factors: Factors, clock: FakeClock, label: str = "phone", **more) -> App:
    with factors.begin(label, **more) as new:
        app = App(new.seed.expose_bytes(), new.settings, clock)
        await factors.confirm(new, app.code())
    clock.now += 30
    return app


@pytest.fixture
async def app(factors: Factors, clock: FakeClock) -> App:
    return await enrol(factors, clock)


# -- enrolment -------------------------------------------------------------------------


async def test_a_factor_is_stored_once_its_owner_has_shown_a_code(factors, clock):
    with factors.begin("phone") as new:
        seed = base64.b32decode(parse_qs(urlsplit(new.uri()).query)["secret"][0])
        app = App(seed, new.settings, clock)
        with pytest.raises(SecondFactorError):
            await factors.confirm(new, app.wrong())
        assert await factors.listed() == []
        code = app.code()
        made = await factors.confirm(new, code)
    assert (made.label, made.kind, made.principal) == ("phone", "totp", "operator")
    with pytest.raises(SecondFactorError):  # the code of the enrolment is used up
        await factors.verify(code)
    clock.now += 30
    assert await factors.verify(app.code()) == made.id


async def test_no_slot_of_locked_memory_stays_open(factors, clock, app):
    before = arena().open_slots
    await factors.verify(app.code())
    with factors.begin("other"):
        pass
    codes = await factors.new_recovery_codes()
    await factors.verify(codes[0])
    assert arena().open_slots == before


async def test_an_older_copy_undoes_no_lock_out_while_the_vault_is_open(
    vault, tmp_path, clock, app, monkeypatch
):
    """Whoever asks: nobody keeps the document from one question to the next."""
    monkeypatch.setattr("apex_creds.storage.file_storage._LOOK_EVERY", 0.0)
    file = home_in(tmp_path) / "security/access.enc"
    old, code = file.read_bytes(), app.code()
    await Factors(vault).verify(code)
    gc.collect()
    file.write_bytes(old)
    for _ in range(2):
        with pytest.raises(RollbackDetectedError):
            await Factors(vault).verify(code)
    gc.collect()
    with pytest.raises(RollbackDetectedError):
        await vault.access.read()


async def test_a_document_never_looked_at_is_as_new_as_it_was_at_unseal(
    vault, tmp_path, clock, factors, app, monkeypatch
):
    monkeypatch.setattr("apex_creds.storage.file_storage._LOOK_EVERY", 0.0)
    file = home_in(tmp_path) / "security/access.enc"
    old = file.read_bytes()
    await factors.verify(app.code())
    async with await Vault.unseal(home_in(tmp_path), clock=clock) as later:
        file.write_bytes(old)
        with pytest.raises(RollbackDetectedError):
            await Factors(later).enrolled()


async def test_the_key_store_notes_how_far_the_factors_are(
    vault, tmp_path, clock, factors, app, monkeypatch
):
    """So a process that never looked knows, too, once another wrote the key store."""
    monkeypatch.setattr("apex_creds.storage.file_storage._LOOK_EVERY", 0.0)
    file = home_in(tmp_path) / "security/access.enc"
    old = file.read_bytes()
    async with await Vault.unseal(home_in(tmp_path), clock=clock) as other:
        await factors.verify(app.code())
        await vault.grant("p", "c")
        file.write_bytes(old)
        with pytest.raises(RollbackDetectedError):
            await Factors(other).enrolled()


async def test_labels_are_a_principals_and_few(factors, clock, app):
    with pytest.raises(InvalidInputError):
        await enrol(factors, clock)
    await enrol(factors, clock, principal="bob")
    for bad in ("", " a", "a\nb", "x" * 300):
        with pytest.raises(InvalidNameError):
            factors.begin(bad)
    for number in range(MAX_FACTORS - 1):
        await enrol(factors, clock, f"f{number}")
    with pytest.raises(InvalidInputError):
        await enrol(factors, clock, "one too many")


async def test_a_factor_that_was_removed_shows_nothing(factors, clock, app):
    [found] = await factors.listed()
    await factors.new_recovery_codes()
    await factors.remove(found.id)
    assert not await factors.enrolled()
    assert await factors.recovery_codes_left() == 0
    with pytest.raises(SecondFactorError, match="no second factor"):
        await factors.verify(app.code())
    with pytest.raises(NotFoundError):
        await factors.remove(found.id)
    with pytest.raises(SecondFactorError):
        await factors.new_recovery_codes()


# -- over restarts ---------------------------------------------------------------------


async def reopened(tmp_path: Path, clock: FakeClock) -> Vault:
    return await Vault.unseal(home_in(tmp_path), clock=clock)


async def test_a_code_does_not_pass_again_after_a_restart(tmp_path, clock, vault, factors, app):
    code = app.code()
    await factors.verify(code)
    await vault.close()
    async with await reopened(tmp_path, clock) as again:
        with pytest.raises(SecondFactorError):
            await Factors(again).verify(code)
        with pytest.raises(SecondFactorError):  # nor does an older one, never used
            await Factors(again).verify(app.code(-1))
        assert await Factors(again).verify(app.code(1))


async def test_a_code_does_not_pass_again_when_the_clock_goes_back(factors, clock, app):
    code = app.code()
    await factors.verify(code)
    clock.now -= 30
    with pytest.raises(SecondFactorError):
        await factors.verify(code)


async def test_a_clock_that_was_ahead_keeps_nobody_out_once_it_is_right(factors, clock, app):
    right = clock.now
    clock.now += 10 * 365 * 86_400
    far = app.code()
    await factors.verify(far)
    for later in (60, 3600, 30 * 86_400):
        clock.now = right + later
        code = app.code()
        assert await factors.verify(code)
        with pytest.raises(SecondFactorError):
            await factors.verify(code)
        clock.now += 60
    clock.now = right + 10 * 365 * 86_400
    with pytest.raises(SecondFactorError):
        await factors.verify(far)


async def test_a_lock_out_outlives_a_restart(tmp_path, clock, vault, factors, app):
    for _ in range(3):
        with pytest.raises(SecondFactorError):
            await factors.verify(app.wrong())
    await vault.close()
    async with await reopened(tmp_path, clock) as again:
        late = Factors(again)
        assert await late.locked_for() == 30.0
        with pytest.raises(LockedOutError) as caught:
            await late.verify(app.code())
        assert caught.value.retry_after == 30.0
        clock.now += 30
        with pytest.raises(SecondFactorError) as caught:
            await late.verify(app.wrong())
        assert not isinstance(caught.value, LockedOutError)
        assert await late.locked_for() == 60.0
        clock.now += 60
        assert await late.verify(app.code())
        assert await late.locked_for() == 0.0


async def test_a_recovery_code_passes_once_over_restarts(tmp_path, clock, vault, factors, app):
    codes = await factors.new_recovery_codes()
    assert await factors.recovery_codes_left() == 10
    await factors.verify(codes[0].lower().replace("-", " "))
    await vault.close()
    async with await reopened(tmp_path, clock) as again:
        late = Factors(again)
        with pytest.raises(SecondFactorError):
            await late.verify(codes[0])
        assert await late.verify(codes[1])
        assert await late.recovery_codes_left() == 8
        newer = await late.new_recovery_codes()
        with pytest.raises(SecondFactorError):
            await late.verify(codes[2])
        assert await late.verify(newer[2])


async def test_two_vault_objects_see_each_other_at_once(tmp_path, clock, factors, app):
    async with await reopened(tmp_path, clock) as other:
        code = app.code()
        await factors.verify(code)
        with pytest.raises(SecondFactorError):
            await Factors(other).verify(code)


# -- showing it for something ------------------------------------------------------------


async def test_a_pass_is_found_by_others_once_it_is_claimed_by_none(
    tmp_path, clock, factors, app
):
    async with await reopened(tmp_path, clock) as other:
        there, since = Factors(other), clock.now
        assert not await there.passed(SUBJECT, since=since)
        await factors.verify(app.code(), subject=SUBJECT)
        assert await there.passed(SUBJECT, since=since)
        assert there.passed_now(SUBJECT, since=since)
        assert there.passed_now(SUBJECT, since=since)
        assert await there.claim(SUBJECT, since=since)
        assert not await factors.claim(SUBJECT, since=since)
        assert not factors.passed_now(SUBJECT, since=since)


async def test_what_is_not_to_be_remembered_is_not(factors, clock, app):
    await factors.verify(app.code(), subject=SUBJECT, remember=False)
    assert not await factors.passed(SUBJECT, since=0.0)


async def test_it_is_the_subjects_principal_who_must_answer(factors, clock, app):
    bob = msgspec.structs.replace(SUBJECT, principal="bob")
    bobs = await enrol(factors, clock, principal="bob")
    with pytest.raises(SecondFactorError):
        await factors.verify(app.code(), subject=bob)
    assert await factors.verify(bobs.code(), subject=bob)


# -- another kind ------------------------------------------------------------------------


class Token:
    """A stand-in for WebAuthn: the answer is a signature counter, with a MAC of sorts."""

    kind: ClassVar[str] = "token"

    async def check(
        self, factor: Factor, secret: SecretBytes, answer: str, *, now: float
    ) -> int | None:
        name, _, count = answer.partition(":")
        right = secret.equals(name.encode()) and factor.settings == {"alg": "none"}
        return int(count) if right and count.isdigit() else None


async def test_another_kind_of_factor_has_the_same_guarantees(vault, clock):
    factors = Factors(vault, kinds=[Token()])
    with SecretBytes.from_bytes(b"tok") as secret:
        made = await factors.add(
            kind="token", label="key", secret=secret, settings={"alg": "none"}
        )
    assert await factors.verify("tok:1") == made.id
    for bad in ("tok:1", "tok:0", "kot:2"):
        with pytest.raises(SecondFactorError):
            await factors.verify(bad)
    assert await factors.locked_for() == 30.0
    assert not await Factors(vault).locked_for("bob")
    clock.now += 30
    with pytest.raises(SecondFactorError):  # a kind that nobody knows passes never
        await Factors(vault).verify("tok:9")


# -- keys, tampering, faults --------------------------------------------------------------


async def test_secrets_are_under_a_key_of_their_own_that_can_be_renewed(
    vault, factors, clock, app
):
    codes = await factors.new_recovery_codes()
    await vault.put("a", ApiKey("value"))
    access, store = vault.access, vault._store
    before = (await access.read()).factors[0].sealed
    keyset = (await store.keystore()).by_label[DEK_LABEL]
    assert envelope.header(before) == (bytes.fromhex(keyset.id), 1)
    assert keyset.id != (await store.keystore()).by_label["api_keys/a"].id
    for version in (2, 3):
        assert await access.rekey()
        after = (await access.read()).factors[0].sealed
        assert envelope.header(after) == (bytes.fromhex(keyset.id), version)
        states = [v.state for v in (await store.keystore()).by_label[DEK_LABEL].versions]
        assert states == [KeyState.DESTROYED] * (version - 1) + [KeyState.PRIMARY]
    assert await factors.verify(app.code())
    assert await factors.verify(codes[0])
    assert await values(vault) == {"a": b"value"}


async def test_a_factor_enrolled_while_the_key_is_renewed_opens(tmp_path, clock, vault, app):
    """Another process renews between a writer's look at the keys and its commit."""
    async with await reopened(tmp_path, clock) as other:
        mine, renewer = Factors(vault), other.access
        document = mine.access.document
        write = document._write

        async def overtaken(*args):
            document._write = write
            await renewer.rekey()
            return await write(*args)

        document._write = overtaken
        late = await enrol(mine, clock, "late")
        assert await mine.verify(late.code())
        [_, stored] = (await renewer.read()).factors
        assert envelope.header(stored.sealed)[1] == 2


async def test_a_code_shown_while_the_key_is_renewed_passes(
    tmp_path, clock, vault, factors, app
):
    """Another process renews between the look at the factors and the look at the keys."""
    codes = await factors.new_recovery_codes()
    async with await reopened(tmp_path, clock) as other:
        access, renewer = factors.access, other.access
        read_state = access.read

        async def overtaken():
            access.read = read_state
            state = await read_state()
            await renewer.rekey()
            return state

        for answer in (app.code(), codes[0]):
            access.read = overtaken
            assert await factors.verify(answer)


async def test_a_secret_opens_only_as_its_own_records(vault, factors, clock, app):
    second = await enrol(factors, clock, "tablet")

    def swapped(state, _):
        one, two = state.factors
        replace = msgspec.structs.replace
        pair = (replace(one, sealed=two.sealed), replace(two, sealed=one.sealed))
        return replace(state, factors=pair)

    await factors.access.change(swapped)
    with pytest.raises(DecryptionError):
        await factors.verify(second.code())


@pytest.mark.parametrize("how", ["flip", "truncate", "empty", "delete"])
async def test_a_document_that_was_tampered_with_lets_nobody_pass(
    tmp_path, clock, vault, factors, app, how
):
    await vault.close()
    path = home_in(tmp_path) / "security" / "access.enc"
    data = path.read_bytes()
    if how == "delete":
        path.unlink()
    else:
        at = len(data) // 2
        bad = {"flip": data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :],
               "truncate": data[:at], "empty": b""}  # fmt: skip
        path.write_bytes(bad[how])
    async with await reopened(tmp_path, clock) as again:
        for _ in range(2):
            with pytest.raises(CorruptDocumentError):
                await Factors(again).verify(app.code())
        with pytest.raises(CorruptDocumentError):
            await enrol(Factors(again), clock, "new")
        with pytest.raises(CorruptDocumentError):
            await Factors(again).enrolled()


async def test_nobody_passes_if_it_can_not_be_written_down(
    vault, factors, clock, app, monkeypatch
):
    async def full(*args, **kwargs):
        raise OSError(28, "full")

    code = app.code()
    with monkeypatch.context() as patch:
        patch.setattr(vault._store.storage, "write_many", full)
        with pytest.raises(OSError, match="full"):
            await factors.verify(code)
    assert await factors.verify(code)


async def test_without_pyotp_nobody_passes_and_nothing_is_counted(factors, app, monkeypatch):
    import sys

    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "pyotp", None)
        with pytest.raises(NotInstalledError):
            await factors.verify("123456")
    assert await factors.verify(app.code())


@pytest.mark.parametrize(
    "answer",
    ["", "x" * 10**6, "\0", "\ud800", "\uff11\uff12\uff13\uff14\uff15\uff16", "0" * 24],
)
async def test_any_answer_is_wrong_and_nothing_worse(factors, app, answer):
    await factors.new_recovery_codes()
    with pytest.raises(SecondFactorError):
        await factors.verify(answer)


# -- nothing leaks ------------------------------------------------------------------------


async def test_neither_seeds_nor_codes_are_stored_logged_or_shown(
    tmp_path, vault, factors, clock, caplog
):
    caplog.set_level(logging.DEBUG)
    app = await enrol(factors, clock)
    codes = await factors.new_recovery_codes()
    shown = [repr(factors.begin("x")), repr(await factors.access.read())]
    typed = [app.code(), app.wrong(), codes[0], codes[0]]
    for answer in typed:
        try:
            await factors.verify(answer, subject=SUBJECT)
        except SecondFactorError as error:
            shown += [repr(error), str(error), repr(error.__cause__), repr(error.__context__)]
    shown += [r.getMessage() for r in caplog.records]
    await vault.close()
    stored = [p.read_bytes() for p in home_in(tmp_path).rglob("*") if p.is_file()]
    seed = app.seed
    forbidden = [
        seed, seed.hex().encode(), base64.b32encode(seed), base64.b64encode(seed)[:-2],
        *(code.encode() for code in codes),
        *(code.replace("-", "").encode() for code in codes),
        repr(seed)[2:-1].encode(),
    ]  # fmt: skip
    for text in [*stored, *(s.encode() for s in shown)]:
        assert not [canary for canary in forbidden if canary in text]
    # Six digits may turn up in ciphertext, times and hashes by chance.
    said = [*shown, *(str((e.action, e.reason, e.detail)) for e in logged(tmp_path, vault))]
    assert len(said) > 5
    assert not [text for text in said if any(answer in text for answer in typed)]


async def test_every_outcome_is_in_the_log(tmp_path, vault, factors, clock, app):
    await factors.new_recovery_codes()
    code = app.code()
    await factors.verify(code, subject=SUBJECT)
    for bad in (code, app.wrong(), app.wrong(), code):
        with pytest.raises(SecondFactorError):
            await factors.verify(bad)
    [found] = await factors.listed()
    await factors.remove(found.id)
    await vault.close()
    ours = [e for e in logged(tmp_path, vault) if e.kind is EventKind.FACTOR]
    assert [(e.action, e.decision, e.reason) for e in ours] == [
        ("enrol", "", ""),
        ("recovery_codes", "", ""),
        ("verify", "allow", "passed"),
        ("verify", "deny", "replayed"),
        ("verify", "deny", "wrong"),
        ("verify", "deny", "wrong"),
        ("verify", "deny", "locked_out"),
        ("remove", "", ""),
    ]
    assert (ours[2].plugin, ours[2].credential) == ("p", "c")
    assert (ours[2].principal, ours[2].detail) == ("operator", found.id)


def logged(tmp_path: Path, vault: Vault) -> list[Recorded]:
    return list(read(home_in(tmp_path) / "security/audit", vault_id=vault.vault_id))
