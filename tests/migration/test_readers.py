"""The readers, on whatever an old program may have written, and on damage."""

from __future__ import annotations

import base64
import contextlib
import io
import json
from collections.abc import Mapping

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from apex_creds.errors import ApexCredsError, CorruptDocumentError, DecryptionError
from apex_creds.migration.copy_verify import assign
from apex_creds.migration.entries import (
    FIELDS,
    Entry,
    Format,
    Problem,
    alternative_name,
    credential_name,
    token_entry,
    token_fields,
    token_secret,
)
from apex_creds.migration.legacy_files import detect, is_ours
from apex_creds.migration.legacy_readers import (
    BoxFiles,
    decode_master,
    read_fernet,
    read_secretbox,
)
from apex_creds.migration.progress import read_config
from apex_creds.migration.sources import read_dotenv
from apex_creds.model import CredentialKind, check_name
from tests.support import old

anything = st.text(max_size=40) | st.text(alphabet="a\n\u202e \u0301\ud800é/~", max_size=8)
utf8 = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | utf8
json_values = st.recursive(
    scalars, lambda v: st.lists(v, max_size=3) | st.dictionaries(utf8, v, max_size=3)
)
tokens = st.fixed_dictionaries(
    {"access_token": utf8.filter(bool)},
    optional={
        "refresh_token": utf8 | st.none(),
        "expires_at": json_values,
        "token_type": json_values,
        "scope": json_values,
        "id_token": json_values,
    },
)
quick = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


def same_json(one: object, two: object) -> bool:
    """NaN included, and without taking 1 for 1.0."""
    return json.dumps(one, sort_keys=False) == json.dumps(two, sort_keys=False)


@given(anything)
def test_every_service_gets_a_name_that_can_be_one(service: str) -> None:
    for kind in (CredentialKind.API_KEY, CredentialKind.OAUTH_TOKEN):
        name = credential_name(service)
        assert check_name(name) == name
        assert check_name(alternative_name(name, kind))
        assert credential_name(name) == name


@given(st.sets(anything, max_size=20))
def test_two_services_never_get_one_name(services: set[str]) -> None:
    assert len({credential_name(service) for service in services}) == len(services)


@quick
@given(tokens)
def test_a_token_comes_back_to_the_last_field(token: dict[str, object]) -> None:
    made = token_secret(token)
    access, refresh = made.parts["access"].decode(), made.parts["refresh"].decode()
    if FIELDS in made.parts:
        back = token_fields(made.parts[FIELDS], access=access, refresh=refresh)
    else:
        back = {"access_token": access}
        back |= {"refresh_token": refresh} if refresh else {}
        back |= {} if made.expires_at is None else {"expires_at": made.expires_at}
        back |= {"token_type": made.token_type}
        back |= {"scope": made.scope} if made.scope else {}
    assert same_json(back, token)
    secret = str(token["access_token"])
    assert len(secret) < 4 or secret not in repr(made)


@quick
@given(
    st.dictionaries(anything, utf8 | st.none() | json_values, max_size=6),
    st.dictionaries(anything, tokens | json_values, max_size=6),
)
def test_every_entry_of_a_fernet_file_is_told(
    keys: Mapping[str, object], found: Mapping[str, object]
) -> None:
    data = old.fernet_bytes({"api_keys": keys, "oauth_tokens": found})
    reading = read_fernet(data, [bytes(32), old.MASTER])
    assert [entry.service for entry in reading.entries] == [*keys, *found]
    for entry, value in zip(reading.entries, keys.values(), strict=False):
        told(entry)
        if isinstance(value, str) and value:
            assert entry.secret is not None
            assert entry.secret.parts["value"] == value.encode()
    targets = assign(reading.entries, {})
    names = [target.name for target in targets if target.twin is None]
    assert len(set(names)) == len(names)


def told(entry: Entry) -> None:
    assert (entry.secret is None) is (entry.problem is not None)
    assert entry.name


_URL_SAFE = bytes.maketrans(b"+/", b"-_")


@quick
@given(st.data())
def test_a_damaged_fernet_file_is_one_error(data: st.DataObject) -> None:
    whole = old.fernet_bytes({"api_keys": {"a": "1"}})
    at = data.draw(st.integers(0, len(whole) - 3))
    other = bytes([whole[at] ^ data.draw(st.integers(1, 127))])
    for damaged in (whole[:at], whole[:at] + other + whole[at + 1 :]):
        try:
            reading = read_fernet(damaged, [old.MASTER])
        except DecryptionError:
            continue
        # Fernet reads both base64 alphabets: the same bytes spelt otherwise are whole.
        assert not reading.entries or damaged.strip().translate(_URL_SAFE) == whole


@quick
@given(
    st.lists(st.integers(0, 30), min_size=1, max_size=6, unique=True),
    st.data(),
)
def test_any_key_version_opens_what_it_sealed(numbers: list[int], data: st.DataObject) -> None:
    named = old.deks("dek_api", tuple(numbers))
    whole, inner = (data.draw(st.sampled_from(sorted(named))) for _ in range(2))
    items = [{"provider": "a", "key": "1"}, {"provider": "b", "key": None}]
    content = old.listed(named[inner], items)
    files = old.box_files(content, {}, api_deks=named, api_key=named[whole])
    reading = read_secretbox(boxes(files), [old.MASTER])
    assert [entry.problem for entry in reading.entries] == [None, Problem.PLACEHOLDER]


@quick
@given(st.lists(st.dictionaries(st.sampled_from(
    ["id", "provider_type", "encrypted_key", "metadata", "x"]), json_values, max_size=5)
    | json_values, max_size=6))  # fmt: skip
def test_every_item_of_a_list_is_told(items: list[object]) -> None:
    files = old.box_files({"keys": items}, {})
    reading = read_secretbox(boxes(files), [old.MASTER])
    assert len(reading.entries) == len(items)
    assert len({entry.key for entry in reading.entries}) == len(items)
    for entry in reading.entries:
        told(entry)


@quick
@given(st.data())
def test_damage_is_told_entry_by_entry(data: st.DataObject) -> None:
    named = old.deks("dek_api")
    key = named["dek_api_v1"]
    count = data.draw(st.integers(1, 6))
    content = old.listed(key, [{"provider": f"p{n}", "key": f"v{n}"} for n in range(count)])
    bad = data.draw(st.sets(st.integers(0, count - 1)))
    for number in bad:
        box = bytearray(base64.b64decode(content["keys"][number]["encrypted_key"]))
        at = data.draw(st.integers(0, len(box) - 1))
        box[at] ^= 1
        content["keys"][number]["encrypted_key"] = old.b64(bytes(box))
    reading = read_secretbox(boxes(old.box_files(content, {})), [old.MASTER])
    unreadable = {n for n, e in enumerate(reading.entries) if e.problem is Problem.UNREADABLE}
    assert unreadable == bad


def boxes(files: Mapping[str, bytes]) -> BoxFiles:
    sections = {
        name.partition("/")[2]: data
        for name, data in files.items()
        if name.startswith("credentials/")
    }
    return BoxFiles(
        keystore=files["security/keystore.enc"],
        sections=sections,
        config=files.get("security/config.json", b""),
    )


@pytest.mark.parametrize("content", [[], {}, {"data_encryption_keys": []}, b"", b"{", b"\xff"])
def test_a_key_store_that_is_none(content: object) -> None:
    files = old.box_files()
    files["security/keystore.enc"] = old.box(old.MASTER, content)
    with pytest.raises(CorruptDocumentError):
        read_secretbox(boxes(files), [old.MASTER])


def test_keys_that_are_none_are_passed_over() -> None:
    keystore = {
        "data_encryption_keys": {
            "api_keys": {"v1": "short", "v2": None, "v3": old.b64(b"k" * 32)},
            "x": 7,
        }
    }
    files = BoxFiles(
        keystore=old.box(old.MASTER, keystore),
        sections={"api_keys.enc": old.box(b"k" * 32, {"a": "1"}), "oauth_tokens.enc": b""},
    )
    reading = read_secretbox(files, [old.MASTER])
    assert [entry.service for entry in reading.entries] == ["a"]


def test_a_flat_service_that_is_called_keys() -> None:
    reading = read_secretbox(boxes(old.box_files({"keys": "sk"}, {})), [old.MASTER])
    assert [entry.service for entry in reading.entries] == ["keys"]


def test_very_deep_json_is_an_error_not_a_crash() -> None:
    for deep in (b"[" * 100_000, b'{"a":' * 100_000):
        with pytest.raises(CorruptDocumentError):
            read_secretbox(
                BoxFiles(keystore=old.box(old.MASTER, deep), sections={}), [old.MASTER]
            )
        assert read_config(deep)[2]


@quick
@given(st.text(max_size=300))
def test_dotenv_is_read_like_python_dotenv_does(text: str) -> None:
    from dotenv import dotenv_values

    try:
        data = text.encode()
    except UnicodeEncodeError:
        return
    reading = read_dotenv(data)
    found = dotenv_values(stream=io.StringIO(data.decode("utf-8-sig")), interpolate=False)
    for entry in reading.entries:
        if entry.secret is not None:
            assert entry.secret.parts["value"].decode() == found[entry.service]
    names = {entry.service for entry in reading.entries}
    assert {name for name in found if name not in names} == set()


@given(json_values)
@quick
def test_a_configuration_is_never_an_error(value: object) -> None:
    permissions, intervals, _ = read_config(json.dumps(value).encode(), value)
    assert all(isinstance(days, int) and days > 0 for days in intervals.values())
    assert all(isinstance(services, tuple) for services in permissions.values())


@given(st.binary(min_size=32, max_size=32))
def test_master_keys_in_either_alphabet(key: bytes) -> None:
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        text = encode(key).decode()
        assert decode_master(text) == key
        assert decode_master(f" {text.rstrip('=')}\n") == key
    assert decode_master(base64.b64encode(key[:31]).decode()) is None


@pytest.mark.parametrize("text", ["", "=", "é" * 43, "x" * 43 + "!", "A" * 10_000_000])
def test_what_is_no_master_key(text: str) -> None:
    assert decode_master(text) is None


@quick
@given(st.binary(max_size=2000))
def test_detection_never_fails(data: bytes) -> None:
    found = detect(data)
    if found is Format.SECRETBOX:
        assert not is_ours(data)


@quick
@given(json_values)
def test_detection_by_content(content: object) -> None:
    assert detect(old.fernet_bytes(content)) is Format.FERNET
    box = old.box(old.MASTER, json.dumps(content).encode() + b" " * 40)
    assert detect(box) is Format.SECRETBOX
    document = b'{"format":"apex-creds/document","version":99}'
    assert detect(document) is Format.VAULT
    assert detect(b"A=1\n") is Format.DOTENV
    assert detect(b" \n") is Format.EMPTY
    for nothing in (b"{}", b"hello world, this is prose\n", b'{"api_keys": {}}', b"gAAAAA"):
        assert detect(nothing) is None


@quick
@given(json_values)
def test_a_token_entry_is_never_an_error(value: object) -> None:
    entry = token_entry("s", value)
    told(entry)
    with contextlib.suppress(ApexCredsError):
        token_secret({"access_token": value})


@pytest.mark.parametrize(
    ("text", "hides"),
    [
        ("# OPENAI_API_KEY=sk-proj-0123456789abcdef", True),
        ("A=1\n#old: ghp_0123456789abcdefABCDEF", True),
        ("A=value # before: sk-0123456789abcdef", True),
        ("# postgres://user:pa55word0123@host/db", True),
        ("# https://docs.example.com/v2/keys", False),
        ("# DEBUG=true, PORT=8080", False),
        ("A='value # with a sharp 0123456789abc'", False),
        ("A=0123456789abcdef", False),
    ],
)
def test_a_comment_with_what_could_be_a_secret_is_told(text: str, hides: bool) -> None:
    told = [e for e in read_dotenv(text.encode()).entries if "comment" in e.detail]
    assert bool(told) is hides
    assert all(entry.problem is Problem.SKIPPED for entry in told)
