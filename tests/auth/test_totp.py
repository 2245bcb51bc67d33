"""One-time codes: the vectors of RFC 6238, the drift window, and what is no code."""

from __future__ import annotations

import base64
import sys
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apex_creds.auth import totp
from apex_creds.auth.access_document import Factor
from apex_creds.auth.totp import TotpSettings, code_at, matching_step
from apex_creds.crypto.memory import SecretBytes
from apex_creds.errors import CorruptDocumentError, InvalidInputError, NotInstalledError

# RFC 6238, appendix B; the seeds are those of its reference implementation.
SEEDS = {
    "SHA1": b"12345678901234567890",
    "SHA256": b"12345678901234567890123456789012",
    "SHA512": b"1234567890123456789012345678901234567890123456789012345678901234",
}
VECTORS = [
    (59, "94287082", "46119246", "90693936"),
    (1111111109, "07081804", "68084774", "25091201"),
    (1111111111, "14050471", "67062674", "99943326"),
    (1234567890, "89005924", "91819424", "93441116"),
    (2000000000, "69279037", "90698825", "38618901"),
    (20000000000, "65353130", "77737706", "47863826"),
]
SEED = SEEDS["SHA1"]
USUAL = TotpSettings()


@pytest.mark.parametrize("vector", VECTORS, ids=lambda v: str(v[0]))
@pytest.mark.parametrize("algorithm", SEEDS)
def test_the_vectors_of_rfc_6238(vector, algorithm):
    settings = TotpSettings(digits=8, algorithm=algorithm, drift=0)
    code = vector[1 + list(SEEDS).index(algorithm)]
    with SecretBytes.from_bytes(SEEDS[algorithm]) as seed:
        assert code_at(seed, settings=settings, now=vector[0]) == code
        step = matching_step(seed, code, settings=settings, now=vector[0])
        assert step == vector[0] // 30


@pytest.mark.parametrize("drift", [0, 1, 2])
def test_the_drift_window_is_as_wide_as_it_says(drift):
    settings = TotpSettings(drift=drift, digits=8)
    with SecretBytes.from_bytes(SEED) as seed:
        now = 1234567890.0
        for away in range(-4, 5):
            code = code_at(seed, settings=settings, now=now + 30 * away)
            found = matching_step(seed, code, settings=settings, now=now)
            assert found == (int(now // 30) + away if abs(away) <= drift else None)


@given(now=st.floats(0, 4e9), away=st.integers(-5, 5), digits=st.integers(6, 8))
def test_what_matches_is_the_code_of_a_step_within_the_window(now, away, digits):
    settings = TotpSettings(digits=digits)
    with SecretBytes.from_bytes(SEED) as seed:
        code = code_at(seed, settings=settings, now=max(0.0, now + 30 * away))
        step = matching_step(seed, code, settings=settings, now=now)
        if step is None:
            assert abs(away) > 1
        else:
            assert abs(step - now // 30) <= 1
            assert code_at(seed, settings=settings, now=step * 30) == code


@pytest.mark.parametrize(
    "answer",
    ["", " ", "9428708", "942870823", "94287o82", "-4287082",
     "\uff19\uff14\uff12\uff18\uff17\uff10\uff18\uff12", "\u0669" * 8,
     "94287082\0", "0x287082", "+4287082", "9428.082", "x" * 100_000],
)  # fmt: skip
def test_what_is_no_code_does_not_match(answer):
    settings = TotpSettings(digits=8)
    with SecretBytes.from_bytes(SEED) as seed:
        assert matching_step(seed, answer, settings=settings, now=59.0) is None


@given(st.text())
def test_any_text_is_an_answer_and_no_error(answer):
    with SecretBytes.from_bytes(SEED) as seed:
        assert matching_step(seed, answer, settings=USUAL, now=59.0) in (None, 0, 1, 2)


def test_white_space_in_a_code_is_ignored():
    with SecretBytes.from_bytes(SEED) as seed:
        settings = TotpSettings(digits=8)
        assert matching_step(seed, " 9428 7082\n", settings=settings, now=59.0) == 1


def test_the_uri_is_what_apps_read():
    with SecretBytes.from_bytes(SEED) as seed:
        uri = totp.provisioning_uri(seed, settings=USUAL, account="ops phone")
    parts = urlsplit(uri)
    query = parse_qs(parts.query)
    assert (parts.scheme, parts.netloc) == ("otpauth", "totp")
    assert parts.path == "/apex-creds:ops%20phone"
    assert query["issuer"] == ["apex-creds"]
    assert base64.b32decode(query["secret"][0]) == SEED


def test_the_uri_names_what_is_not_usual():
    settings = TotpSettings(digits=8, period=60, algorithm="SHA256")
    with SecretBytes.from_bytes(SEEDS["SHA256"]) as seed:
        query = parse_qs(
            urlsplit(totp.provisioning_uri(seed, settings=settings, account="a")).query
        )
    assert (query["digits"], query["period"], query["algorithm"]) == (["8"], ["60"], ["SHA256"])


@pytest.mark.parametrize(
    "bad",
    [{"digits": 5}, {"digits": 9}, {"period": 0}, {"period": -30}, {"drift": -1}, {"drift": 3},
     {"algorithm": "MD5"}, {"algorithm": ""}],
)  # fmt: skip
def test_weak_settings_are_refused(bad):
    with pytest.raises(InvalidInputError):
        TotpSettings(**bad)


def test_settings_are_stored_and_read_back():
    settings = TotpSettings(digits=8, algorithm="SHA512", drift=2)
    assert TotpSettings.of(factor(settings.stored())) == settings
    for bad in ({"digits": "x"}, {"digits": "1"}, {"period": "1e3"}):
        with pytest.raises(CorruptDocumentError):
            TotpSettings.of(factor(bad))


def test_without_pyotp_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyotp", None)
    with SecretBytes.from_bytes(SEED) as seed, pytest.raises(NotInstalledError) as caught:
        code_at(seed, settings=USUAL, now=1.0)
    assert "apex-creds[factors]" in caught.value.hint


def factor(settings: dict[str, str]) -> Factor:
    return Factor(id="0" * 32, kind="totp", created=0.0, sealed=b"", settings=settings)
