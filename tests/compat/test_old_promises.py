"""The old manager's promises, as its own suite would have tested them: with unittest."""

# ruff: noqa: PT009, PT027 - a suite of unittest's on purpose

from __future__ import annotations

import asyncio
import os
import tempfile
import threading
import unittest
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from apex_creds.compat import (
    ApiKeyManager,
    ApiKeyManagerError,
    EncryptionError,
    EnhancedApiKeyManager,
    MasterKeyError,
    StorageError,
)
from apex_creds.policy.grants import GrantDecision
from apex_creds.vault import Vault

TOKEN = {
    "access_token": "at",
    "refresh_token": "rt",
    "expires_at": 1_900_000_000,
    "token_type": "Bearer",
    "scope": "a b",
}


class Base(unittest.TestCase):
    kind: type[ApiKeyManager] = EnhancedApiKeyManager

    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.root = Path(folder.name)
        self.home = self.root / "agent"
        self.master = f"file:{self.root}/master.key"
        caught = warnings.catch_warnings()
        caught.__enter__()
        self.addCleanup(caught.__exit__, None, None, None)
        warnings.simplefilter("ignore", DeprecationWarning)
        self.manager = self.make()

    def make(self, **options: object) -> EnhancedApiKeyManager:
        made = self.kind(
            config_dir=str(self.home / "security"),
            credentials_dir=str(self.home / "credentials"),
            master=options.pop("master", self.master),
            **options,
        )
        self.addCleanup(made.close)
        return made

    def log(self) -> str:
        files = (self.home / "security/audit").glob("*.jsonl")
        return "".join(path.read_text() for path in files)


class TestKeysAndTokens(Base):
    def test_set_and_get_api_key(self) -> None:
        self.assertIsNone(self.manager.get_api_key("openai"))
        self.manager.set_api_key("openai", "sk-1")
        self.assertEqual(self.manager.get_api_key("openai"), "sk-1")
        self.manager.set_api_key("openai", "sk-2")
        self.assertEqual(self.manager.get_api_key("openai"), "sk-2")

    def test_set_and_get_oauth_token(self) -> None:
        self.assertIsNone(self.manager.get_oauth_token("github"))
        for token in (
            TOKEN,
            {"access_token": "only"},
            {"access_token": "x", "refresh_token": None, "expires_at": None, "extra": [1, {}]},
            {"access_token": "x", "expires_at": "2030-01-01", "scope": ["a"], "token_type": ""},
            {"refresh_token": "rt"},
        ):
            self.manager.set_oauth_token("github", dict(token))
            found = self.manager.get_oauth_token("github")
            self.assertEqual(found, token)
            self.assertEqual(
                [type(v) for v in found.values()], [type(v) for v in token.values()]
            )

    def test_a_service_has_both(self) -> None:
        self.manager.set_oauth_token("github", TOKEN)
        self.manager.set_api_key("github", "gh")
        self.assertEqual(self.manager.get_api_key("github"), "gh")
        self.assertEqual(self.manager.get_oauth_token("github"), TOKEN)

    def test_delete(self) -> None:
        for kind, left in (("api_key", (None, TOKEN)), ("oauth_token", ("k", None))):
            self.manager.set_api_key("s", "k")
            self.manager.set_oauth_token("s", TOKEN)
            self.assertIs(self.manager.delete_credential("s", kind), True)
            found = (self.manager.get_api_key("s"), self.manager.get_oauth_token("s"))
            self.assertEqual(found, left)
        self.assertIs(self.manager.delete_credential("s", "all"), True)
        self.assertIs(self.manager.delete_credential("s", "all"), False)
        with self.assertRaises(ValueError):
            self.manager.delete_credential("s", "everything")

    def test_list_configured_services(self) -> None:
        empty = {"api_keys": [], "oauth_tokens": []}
        self.assertEqual(self.manager.list_configured_services(), empty)
        for service in ("b", "a"):
            self.manager.set_api_key(service, "k")
        self.manager.set_oauth_token("a", TOKEN)
        self.assertEqual(
            self.manager.list_configured_services(),
            {"api_keys": ["a", "b"], "oauth_tokens": ["a"]},
        )

    def test_what_is_stored_stays(self) -> None:
        self.manager.set_api_key("s", "k")
        self.manager.close()
        with self.assertRaises(ApiKeyManagerError):
            self.manager.get_api_key("s")
        self.assertEqual(self.make().get_api_key("s"), "k")

    def test_two_managers_see_each_other(self) -> None:
        other = self.make()
        self.manager.set_api_key("s", "1")
        self.assertEqual(other.get_api_key("s"), "1")
        other.set_api_key("s", "2")
        self.assertEqual(self.manager.get_api_key("s"), "2")

    def test_strange_names_and_values(self) -> None:
        for service in ("naïve ☕", "a\nb", " padded ", "x" * 1000, "cafe\u0301", "a/api_key"):
            self.manager.set_api_key(service, service)
            self.assertEqual(self.manager.get_api_key(service), service)
        self.assertEqual(len(self.manager.list_configured_services()["api_keys"]), 6)
        for bad in ("", None, 7, b"x"):
            with self.assertRaises((ValueError, TypeError)):
                self.manager.set_api_key("s", bad)
        with self.assertRaises(ApiKeyManagerError):
            self.manager.set_api_key("s", "x" * 70_000)
        with self.assertRaises(ApiKeyManagerError):
            self.manager.set_oauth_token("s", {})

    def test_each_use_is_audited(self) -> None:
        self.manager.set_api_key("s", "secret-value")
        self.manager.get_api_key("s")
        self.manager.close()
        self.assertIn("compat.get_api_key", self.log())
        self.assertNotIn("secret-value", self.log())

    def test_each_use_is_warned_about_once(self) -> None:
        from apex_creds.compat import manager

        manager._warned.clear()
        self.manager.set_api_key("s", "k")
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            for _ in range(3):
                self.manager.get_api_key("s")
        self.assertEqual(len(seen), 1)
        self.assertIn("credentials['s'].client()", str(seen[0].message))
        self.assertEqual(Path(seen[0].filename).name, Path(__file__).name)


class TestThreadsAndLoops(Base):
    def test_threads(self) -> None:
        def work(number: int) -> str | None:
            self.manager.set_api_key(f"s{number}", str(number))
            return self.manager.get_api_key(f"s{number}")

        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(work, range(24)))
        self.assertEqual(found, [str(n) for n in range(24)])

    def test_inside_a_running_loop(self) -> None:
        async def work() -> str | None:
            self.manager.set_api_key("s", "k")
            other = await asyncio.to_thread(self.manager.get_api_key, "s")
            assert other == self.manager.get_api_key("s")
            made = self.make()
            return made.get_api_key("s")

        self.assertEqual(asyncio.run(work()), "k")

    def test_a_manager_that_is_forgotten_ends_its_thread(self) -> None:
        made = self.kind(config_dir=self.home / "security", master=self.master)
        before = sum(t.name == "apex-creds-compat" for t in threading.enumerate())
        del made
        after = sum(t.name == "apex-creds-compat" for t in threading.enumerate())
        self.assertEqual(after, before - 1)


class TestAccessControl(Base):
    def elsewhere(self, work) -> None:
        """Does something with the vault as a person would, beside the manager."""

        async def body() -> None:
            async with await Vault.unseal(self.home, master=self.master) as vault:
                await work(vault)

        asyncio.run(body())

    def test_what_takes_a_challenge_is_not_handed_out(self) -> None:
        self.manager.set_api_key("a", "key of a")
        self.manager.set_plugin_permissions("p", ["a"])

        async def mark(vault: Vault) -> None:
            for info in await vault.list():
                await vault.edit(info.name, challenge=True)

        self.elsewhere(mark)
        with self.assertRaises(ApiKeyManagerError):
            self.manager.get_api_key("a")
        self.assertIsNone(self.manager.get_api_key_secure("p", "a"))
        self.manager.set_api_key("a", "new")  # keeps the mark
        with self.assertRaises(ApiKeyManagerError):
            self.manager.get_api_key("a")
        self.manager.close()
        self.assertIn("challenge_needed", self.log())

    def test_a_lockdown_seals_a_manager_and_takes_its_permissions(self) -> None:
        self.manager.set_api_key("a", "key of a")
        self.manager.set_plugin_permissions("p", ["a"])
        self.elsewhere(lambda vault: vault.lockdown())
        with self.assertRaises(ApiKeyManagerError):
            self.manager.get_api_key("a")
        with self.assertRaises(ApiKeyManagerError):
            self.manager.set_api_key("a", "new")
        self.assertIsNone(self.manager.get_api_key_secure("p", "a"))
        self.elsewhere(lambda vault: vault.unlock())
        self.assertIsNone(self.manager.get_api_key_secure("p", "a"))
        self.assertEqual(self.manager.get_api_key("a"), "key of a")

    def test_a_permission_undoes_no_denial_of_another(self) -> None:
        self.manager.set_api_key("a", "key of a")
        self.manager.set_api_key("b", "key of b")

        async def deny(vault: Vault) -> None:
            [name] = [info.name for info in await vault.list() if info.service == "b"]
            await vault.grant("p", name, decision=GrantDecision.DENY)

        self.elsewhere(deny)
        self.manager.set_plugin_permissions("p", ["a"])
        self.manager.enable_access_control(False)
        self.assertEqual(self.manager.get_api_key_secure("p", "a"), "key of a")
        self.assertIsNone(self.manager.get_api_key_secure("p", "b"))

    def test_permissions(self) -> None:
        manager = self.manager
        for service in ("a", "b"):
            manager.set_api_key(service, f"key of {service}")
        manager.set_oauth_token("a", TOKEN)
        self.assertIs(manager.check_plugin_permission("p", "a"), False)
        self.assertIsNone(manager.get_api_key_secure("p", "a"))
        manager.set_plugin_permissions("p", ["a"])
        self.assertIs(manager.check_plugin_permission("p", "a"), True)
        self.assertEqual(manager.get_api_key_secure("p", "a"), "key of a")
        self.assertEqual(manager.get_oauth_token_secure("p", "a"), TOKEN)
        self.assertIsNone(manager.get_api_key_secure("p", "b"))
        self.assertIsNone(manager.get_api_key_secure("p", "absent"))
        self.assertIsNone(manager.get_api_key_secure("q", "a"))
        manager.set_plugin_permissions("p", ["b"])
        self.assertIsNone(manager.get_api_key_secure("p", "a"))
        self.assertIsNone(manager.get_oauth_token_secure("p", "a"))
        self.assertEqual(manager.get_api_key_secure("p", "b"), "key of b")
        manager.close()
        self.assertIn('"denial"', self.log())
        self.assertIn("compat.get_api_key_secure", self.log())

    def test_a_permission_before_the_credential(self) -> None:
        self.manager.set_plugin_permissions("p", ["later"])
        self.assertIs(self.manager.check_plugin_permission("p", "later"), True)
        self.manager.set_api_key("later", "k")
        self.assertEqual(self.manager.get_api_key_secure("p", "later"), "k")

    def test_switched_off_and_on(self) -> None:
        self.manager.set_api_key("a", "k")
        self.manager.enable_access_control(False)
        self.assertEqual(self.manager.get_api_key_secure("p", "a"), "k")
        self.assertIs(self.manager.check_plugin_permission("p", "a"), True)
        self.assertEqual(self.make().get_api_key_secure("p", "a"), "k")
        self.manager.enable_access_control(True)
        self.assertIsNone(self.manager.get_api_key_secure("p", "a"))

    def test_policy_comes_before_a_permission(self) -> None:
        self.manager.set_api_key("a", "k")
        self.manager.set_plugin_permissions("p", ["a"])
        path = self.home / "security/policy.toml"
        path.write_text('version = 1\n[[rules]]\nid = "no"\nplugin = "p"\ndecision = "deny"\n')
        path.chmod(0o600)
        self.assertIsNone(self.manager.get_api_key_secure("p", "a"))
        self.manager.enable_access_control(False)
        self.assertIsNone(self.manager.get_api_key_secure("p", "a"))

    def test_a_plugin_that_can_have_no_name(self) -> None:
        with self.assertRaises(ApiKeyManagerError):
            self.manager.set_plugin_permissions("bad\nname", ["a"])
        self.manager.set_api_key("a", "k")
        self.assertIsNone(self.manager.get_api_key_secure("bad\nname", "a"))


class TestRotation(Base):
    def test_rotations_keep_everything(self) -> None:
        self.manager.set_api_key("a", "k")
        self.manager.set_oauth_token("a", TOKEN)
        self.assertIs(self.manager.rotate_master_key(), True)
        for kind in ("kek", "dek", "all"):
            self.assertIs(self.manager.rotate_encryption_keys(kind), True)
        self.assertEqual(self.manager.get_api_key("a"), "k")
        self.manager.close()
        made = self.make()
        self.assertEqual(made.get_api_key("a"), "k")
        self.assertEqual(made.get_oauth_token("a"), TOKEN)
        with self.assertRaises(ValueError):
            made.rotate_encryption_keys("master")

    def test_intervals(self) -> None:
        names = ("master_key", "key_encryption_keys", "data_encryption_keys")
        for number, name in enumerate(names, 30):
            self.manager.set_key_rotation_interval(name, number)
        status = self.make().check_key_rotation_status()
        found = [status[name]["rotation_interval_days"] for name in names]
        self.assertEqual(found, [30, 31, 32])
        for name, days in (("dek", 1), ("master_key", 0), ("master_key", -1)):
            with self.assertRaises(ValueError):
                self.manager.set_key_rotation_interval(name, days)
        with self.assertRaises((ValueError, TypeError)):
            self.manager.set_key_rotation_interval("master_key", "often")


class TestErrors(Base):
    def test_no_vault_and_none_to_be_made(self) -> None:
        with self.assertRaises(StorageError):
            self.kind(config_dir=self.root / "none", create_dirs=False, master=self.master)
        self.assertFalse((self.root / "none").exists())

    def test_a_wrong_master_key(self) -> None:
        other = self.root / "other.key"
        self.kind(config_dir=self.root / "x", master=f"file:{other}").close()
        with self.assertRaises(MasterKeyError):
            self.make(master=f"file:{other}")

    def test_a_changed_document(self) -> None:
        self.manager.set_api_key("a", "k")
        path = self.home / "credentials/api_keys.enc"
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
        with self.assertRaises(EncryptionError):
            self.make().get_api_key("a")

    def test_open_permissions(self) -> None:
        os.chmod(self.home, 0o755)  # as those managers make it
        self.make().close()
        os.chmod(self.home, 0o777)
        with self.assertRaises(StorageError) as caught:
            self.make()
        self.assertIn("chmod 700", str(caught.exception))

    def test_one_base(self) -> None:
        for kind in (MasterKeyError, EncryptionError, StorageError):
            self.assertTrue(issubclass(kind, ApiKeyManagerError))


class TestTheFirstManager(TestKeysAndTokens):
    kind = ApiKeyManager


del Base
