"""The conformance suite of master key providers.

Guarantee: a provider that passes keeps what it made, gives it back to another process,
overwrites nothing, and fails with the errors that ``MasterKeyProvider`` names.

Subclass it in a test module, and say how to make a provider::

    class TestMine(MasterKeyProviderContract):
        @pytest.fixture
        def reopen(self, tmp_path):
            return lambda: MyProvider(tmp_path)
"""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Callable
from typing import ClassVar

import anyio
import pytest

from apex_creds.crypto.memory import SecretBytes
from apex_creds.errors import InvalidInputError, MasterKeyExistsError, MasterKeyNotFoundError
from apex_creds.keys.provider import MASTER_KEY_BYTES, MasterKeyProvider

__all__ = ["MasterKeyProviderContract"]

Reopen = Callable[[], MasterKeyProvider]

VAULT = "0123456789abcdef" * 2
OTHER_VAULT = "fedcba9876543210" * 2


@pytest.mark.anyio
class MasterKeyProviderContract:
    """Base class of a provider's tests; override ``reopen``.

    Attributes:
        stores: The provider stores keys; False where they are derived each time.
        per_vault: Vaults do not share keys in one store.
    """

    stores: ClassVar[bool] = True
    per_vault: ClassVar[bool] = True

    @pytest.fixture
    def reopen(self) -> Reopen:
        """A function that opens the same empty store, each time as another process would."""
        raise NotImplementedError

    async def test_a_created_key_is_32_bytes_and_random(self, reopen: Reopen) -> None:
        key, _ = await reopen().create(vault_id=VAULT, version=1)
        assert isinstance(key, SecretBytes)
        assert len(key) == MASTER_KEY_BYTES
        assert not key.equals(bytes(MASTER_KEY_BYTES))
        key.close()

    async def test_another_process_loads_what_was_created(self, reopen: Reopen) -> None:
        key, params = await reopen().create(vault_id=VAULT, version=1)
        with key, await reopen().load(vault_id=VAULT, version=1, params=params) as loaded:
            assert loaded.equals(key)

    async def test_closing_one_copy_leaves_the_other(self, reopen: Reopen) -> None:
        provider = reopen()
        key, params = await provider.create(vault_id=VAULT, version=1)
        expected = key.expose_bytes()
        key.close()
        with await provider.load(vault_id=VAULT, version=1, params=params) as loaded:
            assert loaded.equals(expected)

    async def test_versions_are_different_keys(self, reopen: Reopen) -> None:
        first, params1 = await reopen().create(vault_id=VAULT, version=1)
        second, params2 = await reopen().create(vault_id=VAULT, version=2)
        with first, second:
            assert not first.equals(second)
            with await reopen().load(vault_id=VAULT, version=1, params=params1) as back:
                assert back.equals(first)
            with await reopen().load(vault_id=VAULT, version=2, params=params2) as back:
                assert back.equals(second)

    async def test_vaults_have_different_keys(self, reopen: Reopen) -> None:
        if not self.per_vault:
            pytest.skip("one store serves one vault")
        first, _ = await reopen().create(vault_id=VAULT, version=1)
        second, _ = await reopen().create(vault_id=OTHER_VAULT, version=1)
        with first, second:
            assert not first.equals(second)

    async def test_a_missing_version_is_not_found(self, reopen: Reopen) -> None:
        if not self.stores:
            pytest.skip("nothing is stored")
        with pytest.raises(MasterKeyNotFoundError):
            await reopen().load(vault_id=VAULT, version=1, params={})
        key, params = await reopen().create(vault_id=VAULT, version=1)
        key.close()
        with pytest.raises(MasterKeyNotFoundError) as caught:
            await reopen().load(vault_id=VAULT, version=2, params=params)
        assert caught.value.hint

    async def test_creating_again_never_overwrites(self, reopen: Reopen) -> None:
        if not self.stores:
            pytest.skip("nothing is stored")
        first, params = await reopen().create(vault_id=VAULT, version=1)
        with pytest.raises(MasterKeyExistsError) as caught:
            await reopen().create(vault_id=VAULT, version=1)
        assert caught.value.hint
        with first, await reopen().load(vault_id=VAULT, version=1, params=params) as stored:
            assert stored.equals(first)

    async def test_of_racing_creators_one_makes_the_key(self, reopen: Reopen) -> None:
        if not self.stores:
            pytest.skip("nothing is stored")
        keys: list[SecretBytes] = []

        async def create() -> None:
            with contextlib.suppress(MasterKeyExistsError):
                keys.append((await reopen().create(vault_id=VAULT, version=1))[0])

        async with anyio.create_task_group() as group:
            for _ in range(4):
                group.start_soon(create)
        assert len(keys) == 1
        with await reopen().load(vault_id=VAULT, version=1, params={}) as stored:
            assert stored.equals(keys[0])
        for key in keys:
            key.close()

    async def test_discard_deletes_that_version_only(self, reopen: Reopen) -> None:
        if not self.stores:
            pytest.skip("nothing is stored")
        first, params1 = await reopen().create(vault_id=VAULT, version=1)
        second, params2 = await reopen().create(vault_id=VAULT, version=2)
        first.close()
        await reopen().discard(vault_id=VAULT, version=1)
        with pytest.raises(MasterKeyNotFoundError):
            await reopen().load(vault_id=VAULT, version=1, params=params1)
        with second, await reopen().load(vault_id=VAULT, version=2, params=params2) as back:
            assert back.equals(second)

    async def test_discarding_what_is_not_there_does_nothing(self, reopen: Reopen) -> None:
        await reopen().discard(vault_id=VAULT, version=7)

    async def test_params_are_text_and_not_the_key(self, reopen: Reopen) -> None:
        key, params = await reopen().create(vault_id=VAULT, version=1)
        with key:
            secret = key.expose_bytes()
        shown = repr(params)
        assert all(isinstance(x, str) for pair in params.items() for x in pair)
        assert secret.hex() not in shown
        assert base64.b64encode(secret).decode() not in shown

    async def test_the_uri_starts_with_the_scheme(self, reopen: Reopen) -> None:
        provider = reopen()
        assert provider.uri.startswith(f"{provider.scheme}:")

    @pytest.mark.parametrize(
        ("vault_id", "version"),
        [
            ("", 1),
            ("a/b", 1),
            ("a\nb", 1),
            ("a" * 65, 1),
            (VAULT, 0),
            (VAULT, -1),
            (VAULT, 2**32),
        ],
    )
    async def test_a_malformed_reference_is_refused(
        self, reopen: Reopen, vault_id: str, version: int
    ) -> None:
        provider = reopen()
        with pytest.raises(InvalidInputError):
            await provider.create(vault_id=vault_id, version=version)
        with pytest.raises(InvalidInputError):
            await provider.load(vault_id=vault_id, version=version, params={})
        with pytest.raises(InvalidInputError):
            await provider.discard(vault_id=vault_id, version=version)
