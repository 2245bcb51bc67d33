"""Rotations and re-encryption of a real vault in spans and metrics; nothing secret in them."""

from __future__ import annotations

from pathlib import Path

import pytest
from opentelemetry.sdk.trace import ReadableSpan

from apex_creds.documents import key_versions
from apex_creds.model import ApiKey
from apex_creds.scheduler import kek_rotation, master_rotation
from apex_creds.scheduler.compromise import declare
from apex_creds.scheduler.reencryption import reencrypt
from apex_creds.scheduler.rotation_state import newest, order
from apex_creds.scheduler.schedule import Level
from apex_creds.scheduler.worker import RotationWorker
from apex_creds.telemetry import semconv
from tests.support.recording import Recording, recording
from tests.support.vaults import create

pytestmark = pytest.mark.anyio
SECRET = "sk-canary-observed"


def _levels(seen: Recording) -> list[object]:
    return [(span.attributes or {})[semconv.KEY_LEVEL] for span in seen.spans(semconv.ROTATE)]


async def test_rotations_of_each_level(tmp_path: Path) -> None:
    async with await create(tmp_path) as vault:
        await vault.put("openai", ApiKey(SECRET))
        await vault.put("other", ApiKey(SECRET))
        with recording() as seen:
            now = vault.clock.time()
            await key_versions.renew(vault.store, "api_keys/openai", now=now)
            await kek_rotation.rotate_kek(vault.store, replaces=1, now=now)
            await master_rotation.rotate_master(vault.store, replaces=1, now=now)
            assert _levels(seen) == ["dek", "kek", "master"]
            counts = seen.values(semconv.ROTATION_DURATION)
            assert counts == {
                ((semconv.KEY_LEVEL, level),): 1 for level in ("dek", "kek", "master")
            }
            await vault.refresh()
            assert sum(seen.values(semconv.RECORDS_LEFT).values()) == 1
            async for _ in reencrypt(vault.store, "api_keys"):
                pass
            assert sum(seen.values(semconv.RECORDS_LEFT).values()) == 0
            moved = dict(seen.span(semconv.REENCRYPT).attributes or {})
            assert moved == {semconv.SECTION: "api_keys", semconv.RECORDS: 1}
            states = {dict(key)[semconv.KEY_STATE] for key in seen.values(semconv.KEY_AGE)}
            assert states == {"primary", "active"}
            assert SECRET not in seen.everything()
            assert "openai" not in seen.everything()


async def test_a_sealed_vault_says_nothing(tmp_path: Path) -> None:
    with recording() as seen:
        vault = await create(tmp_path)
        assert seen.values(semconv.KEY_AGE)
        await vault.close()
        assert not seen.values(semconv.KEY_AGE)
        assert sum(seen.values(semconv.RECORDS_LEFT).values()) == 0


async def test_the_lease_of_a_rotated_key_is_linked(tmp_path: Path) -> None:
    from apex_creds.leases import CredentialMap
    from tests.support.worlds import world_in

    async with world_in(tmp_path) as world:

        async def during(credentials: CredentialMap) -> None:
            await key_versions.renew(world.vault.store, "api_keys/key", now=world.clock.time())
            async with credentials["key"].reveal():
                pass

        with recording() as seen:
            await world.call(during)
            (link,) = seen.span(semconv.LEASE).links
            assert link.context.span_id == seen.span(semconv.ROTATE).context.span_id


async def test_a_rotation_says_which_key_and_why(tmp_path: Path) -> None:
    async with await create(tmp_path) as vault:
        for name in ("one", "two"):
            await vault.put(name, ApiKey(SECRET), service=name)
        engine = RotationWorker(vault).engine
        keystore = await vault.store.keystore()
        ids = {label: keyset.id for label, keyset in keystore.by_label.items()}
        with recording() as seen:
            await order(engine.document, newest(keystore, Level.DEK, ["api_keys/one"]))
            await engine.run()
            for level in (Level.DEK, Level.KEK, Level.MASTER):
                labels = ["api_keys/one", "api_keys/two"]
                keystore = await vault.store.keystore()
                await order(engine.document, newest(keystore, level, labels))
                await engine.run()
            await declare(vault.store, engine.document, level=Level.DEK, service="two")
            await engine.run()
            await vault.delete("two")
            kek = keystore.root_header.keks.id
            one, two = ids["api_keys/one"], ids["api_keys/two"]
            assert [_facts(span) for span in seen.spans(semconv.ROTATE)] == [
                ("dek", "requested", one, 2),
                ("dek", "requested", (one, two), (3, 2)),
                ("kek", "requested", kek, 2),
                ("master", "requested", kek, 2),
                ("dek", "compromised", two, 3),
                ("dek", "deletion", two, 4),
            ]
            assert SECRET not in seen.everything()


def _facts(span: ReadableSpan) -> tuple[object, ...]:
    chosen = (semconv.KEY_LEVEL, semconv.TRIGGER, semconv.KEY_ID, semconv.KEY_VERSION)
    return tuple((span.attributes or {})[name] for name in chosen)
