"""One string names a provider; a string that does not is never repeated."""

from __future__ import annotations

import pytest

from apex_creds.errors import InvalidInputError
from apex_creds.keys import provider_from_uri
from apex_creds.keys.key_file import FileProvider
from apex_creds.keys.os_keyring import KeyringProvider
from apex_creds.keys.passphrase import PassphraseProvider


@pytest.mark.parametrize(
    ("uri", "cls"),
    [
        ("keyring:", KeyringProvider),
        ("file:/etc/apex/master.key", FileProvider),
        ("passphrase:", PassphraseProvider),
        ("passphrase:fd=3", PassphraseProvider),
    ],
)
def test_each_form(uri, cls):
    provider = provider_from_uri(uri)
    assert type(provider) is cls
    assert provider.uri == uri


def test_a_relative_path_is_made_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert provider_from_uri("file:m.key").uri == f"file:{tmp_path}/m.key"


def test_the_home_is_expanded(fresh_home):
    assert provider_from_uri("file:~/m.key").uri == f"file:{fresh_home}/m.key"


@pytest.mark.parametrize(
    "uri",
    ["", ":", "keyring", "keyring:hunter2", "file:", "file", "passphrase", "passphrase:hunter2",
     "passphrase:fd=", "passphrase:fd=-1", "passphrase:fd=03", "passphrase:fd=\u0663",
     "passphrase:fd=3\n", "passphrase:fd=9999999", "hunter2", "KEYRING:", "vault:hunter2",
     "file:a\0hunter2", "file:a\nhunter2", " keyring:"],
)  # fmt: skip
def test_anything_else_is_refused_and_not_repeated(uri):
    with pytest.raises(InvalidInputError) as caught:
        provider_from_uri(uri)
    assert "hunter2" not in str(caught.value)
    assert "file:" in caught.value.hint
