"""What an operator sees of invocations in spans and metrics, and what nobody may see."""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator

import pytest
from opentelemetry import trace
from opentelemetry.trace import StatusCode

from apex_creds.errors import AccessDeniedError, ApexCredsError
from apex_creds.leases import CredentialMap
from apex_creds.telemetry import semconv, tracing
from apex_creds.vault import Vault
from tests.support.recording import recording
from tests.support.worlds import KEY, World

pytestmark = pytest.mark.anyio


async def use(credentials: CredentialMap) -> str:
    async with credentials["key"].reveal() as secret:
        return str(len(secret))


def _parents(seen: object) -> dict[str, str]:
    """Name of each span's parent, by its own; but for the log's thread, which has its times."""
    found = [s for s in seen.spans() if s.name != semconv.CHECKPOINT]  # type: ignore[attr-defined]
    by_id = {span.context.span_id: span.name for span in found}
    return {
        span.name: by_id.get(span.parent.span_id, "?") if span.parent else "" for span in found
    }


async def test_what_a_plugin_sets_on_the_current_span_goes_nowhere(world: World) -> None:
    """Its own spans are children of the invocation's, which nobody else writes to."""

    async def plugin(credentials):
        async with credentials["key"].reveal() as secret:
            value = secret.expose_str()
        current = trace.get_current_span()
        current.set_attribute(semconv.PLUGIN, "somebody-else")
        current.set_attribute("key", value)
        current.add_event(value)
        current.update_name(value)
        current.set_status(StatusCode.ERROR, value)
        current.record_exception(ValueError(value))
        current.end()
        with trace.get_tracer("plugin").start_as_current_span("its own"):
            async with credentials["key"].reveal():
                pass

    def in_thread(credentials):
        trace.get_current_span().set_attribute(semconv.PLUGIN, "somebody-else")

    async def stream(credentials):
        trace.get_current_span().set_attribute(semconv.PLUGIN, "somebody-else")
        yield 1

    with recording() as seen:
        await world.call(plugin)
        await world.call(in_thread)
        async for _ in await world.call(stream):
            pass
        invocations = [span for span in seen.spans() if span.name == semconv.INVOKE]
        assert [dict(span.attributes)[semconv.PLUGIN] for span in invocations] == ["demo"] * 3
        assert not [span for span in seen.spans() if KEY in span.to_json()]
        assert {span.status.status_code for span in invocations} == {StatusCode.UNSET}
        (own,) = [span for span in seen.spans() if span.name == "its own"]
        assert own.parent.span_id in {span.context.span_id for span in invocations}


async def test_three_spans_with_their_attributes(world: World) -> None:
    with recording() as seen:
        await world.call(use)
        assert _parents(seen) == {
            semconv.INVOKE: "",
            semconv.LEASE: semconv.INVOKE,
            semconv.REDEEM: semconv.INVOKE,
        }
        invoke, lease, redeem = (
            dict(seen.span(name).attributes or {})
            for name in (semconv.INVOKE, semconv.LEASE, semconv.REDEEM)
        )
        assert invoke == {
            semconv.GEN_AI_OPERATION: "execute_tool",
            semconv.GEN_AI_TOOL: "use",
            semconv.PLUGIN: "demo",
            semconv.PLUGIN_VERSION: "1.0.0",
        }
        (event,) = world.events("redeem")
        shared = {
            semconv.CREDENTIAL: "key",
            semconv.LEASE_ID: event.lease,
            semconv.KEY_ID: event.key_id,
            semconv.KEY_VERSION: event.key_version,
        }
        assert lease == shared
        assert redeem == {**shared, semconv.METHOD: "reveal"}
        redeemed = seen.span(semconv.REDEEM).context
        assert event.span_id == format(redeemed.span_id, "016x")
        assert event.trace_id == format(redeemed.trace_id, "032x")
    assert not tracing.OPEN


async def test_metrics_of_invocations(world: World) -> None:
    with recording() as seen:

        async def look(credentials: CredentialMap) -> None:
            await use(credentials)
            assert seen.values(semconv.LEASES) == {(): 1}
            assert seen.values(semconv.LEASE_AGE)[()] >= 0

        await world.call(look)
        await world.call(use)
        with pytest.raises(AccessDeniedError):
            await world.call(use, needs=("ungranted",))
        plugin, method = (semconv.PLUGIN, "demo"), (semconv.METHOD, "reveal")
        assert seen.values(semconv.REDEEMS) == {(method, plugin): 2}
        assert seen.values(semconv.DENIALS)[((semconv.REASON, "not_granted"),)] == 1
        assert seen.values(semconv.LEASES) == {(): 0}
        assert seen.values(semconv.LEASE_DURATION) == {(): 2}
        points = seen.metrics()[semconv.INVOKE_DURATION]
        assert sum(point.count for point in points) == 3
        assert {point.attributes.get(semconv.ERROR_TYPE) for point in points} == {
            None,
            "AccessDeniedError",
        }


async def test_exemplars_lead_from_metrics_to_spans(world: World) -> None:
    with recording() as seen:
        await world.call(use)
        found = seen.metrics()
        for name in (semconv.REDEEM, semconv.INVOKE, semconv.LEASE):
            (point,) = found[f"{name}.duration"]
            (exemplar,) = point.exemplars
            assert exemplar.span_id == seen.span(name).context.span_id
            assert exemplar.trace_id == seen.span(name).context.trace_id


async def test_keys_and_leaks(world: World) -> None:
    with recording() as seen:

        async def leak(credentials: CredentialMap) -> str:
            async with credentials["key"].reveal() as secret:
                return secret.expose_bytes().decode()

        await world.call(leak)
        leaks = seen.values(semconv.LEAKS)
        assert leaks == {((semconv.WHERE, w),): w == "result" for w in semconv.WHERES}
        world.clock.now += 3600
        ages = seen.values(semconv.KEY_AGE)
        for level in ("dek", "kek", "master"):
            age = ages[((semconv.KEY_LEVEL, level), (semconv.KEY_STATE, "primary"))]
            assert age >= 3600
        assert sum(seen.values(semconv.RECORDS_LEFT).values()) == 0
        assert KEY not in seen.everything()


async def test_records_left_while_a_key_moves(world: World) -> None:
    from apex_creds.documents import key_versions

    with recording() as seen:
        label = "api_keys/key"
        await key_versions.renew(world.vault._store, label, now=world.clock.time())
        await world.vault.refresh()
        assert sum(seen.values(semconv.RECORDS_LEFT).values()) >= 1


async def test_an_error_has_a_class_and_no_text(world: World) -> None:
    async def fail(credentials: CredentialMap) -> None:
        async with credentials["key"].reveal() as secret:
            raise ValueError(secret.expose_bytes().decode())

    with recording() as seen:
        with pytest.raises(ValueError, match="redacted"):
            await world.call(fail)
        invoke = seen.span(semconv.INVOKE)
        assert invoke.status.status_code is StatusCode.ERROR
        assert (invoke.attributes or {})[semconv.ERROR_TYPE] == "ValueError"
        assert not any(span.events for span in seen.spans())
        assert KEY not in seen.everything()


async def test_a_plugin_can_not_name_a_class_after_a_secret(world: World) -> None:
    async def fail(credentials: CredentialMap) -> None:
        async with credentials["key"].reveal() as secret:
            raise type(secret.expose_bytes().decode(), (Exception,), {})

    with recording() as seen:
        with pytest.raises(Exception):  # noqa: B017, PT011
            await world.call(fail)
        assert (seen.span(semconv.INVOKE).attributes or {})[semconv.ERROR_TYPE] == "_OTHER"
        assert KEY not in seen.everything()


async def test_refused_redeems_are_seen(world: World) -> None:
    with recording() as seen:

        async def twice(credentials: CredentialMap) -> None:
            once = credentials["key"].attenuate(max_uses=1)
            async with once.reveal():
                pass
            with pytest.raises(ApexCredsError):
                async with once.reveal():
                    pass

        await world.call(twice)
        (failed,) = [
            span
            for span in seen.spans(semconv.REDEEM)
            if span.status.status_code is StatusCode.ERROR
        ]
        assert (failed.attributes or {})[semconv.ERROR_TYPE] == "HandleExhaustedError"
        parents = [
            (span.attributes or {}).get(semconv.PARENT_LEASE)
            for span in seen.spans(semconv.LEASE)
        ]
        assert sum(parent is not None for parent in parents) == 1


async def test_a_stream_keeps_its_span_until_it_ends(world: World) -> None:
    async def stream(credentials: CredentialMap) -> AsyncIterator[str]:
        for _ in range(2):
            yield await use(credentials)

    with recording() as seen:
        chunks = await world.call(stream)
        assert not seen.spans(semconv.INVOKE)
        assert tracing.current_ids() == tracing.NO_IDS
        assert [chunk async for chunk in chunks] == [str(len(KEY))] * 2  # type: ignore[attr-defined]
        assert tracing.current_ids() == tracing.NO_IDS
        assert len(seen.spans(semconv.REDEEM)) == 2
        assert _parents(seen)[semconv.REDEEM] == semconv.INVOKE
        assert seen.span(semconv.INVOKE).status.status_code is StatusCode.UNSET


async def test_a_stream_that_is_dropped_ends_its_span(world: World) -> None:
    async def stream(credentials: CredentialMap) -> AsyncIterator[str]:
        yield await use(credentials)

    with recording() as seen:
        chunks = await world.call(stream)
        del chunks
        gc.collect()
        assert (seen.span(semconv.INVOKE).attributes or {})[semconv.OUTCOME] == "abandoned"
        assert len(seen.spans(semconv.LEASE)) == 1


async def test_synchronous_runtimes_and_threads(world: World) -> None:
    def plain(credentials: CredentialMap) -> int:
        with credentials["key"].reveal() as secret:
            return len(secret)

    from tests.support.worlds import manifest_for

    with recording() as seen:
        assert await world.call(plain) == len(KEY)
        manifest = manifest_for("key")
        assert world.middleware.invoke_sync(manifest, "plain", plain) == len(KEY)
        later = world.middleware.invoke_sync(manifest, "use", use)
        assert await later == str(len(KEY))  # type: ignore[misc]
        assert len(seen.spans(semconv.INVOKE)) == 3
        by_id = {span.context.span_id: span.name for span in seen.spans()}
        parents = [
            by_id[span.parent.span_id] for span in seen.spans(semconv.REDEEM) if span.parent
        ]
        assert parents == [semconv.INVOKE] * 3


async def test_unsealing_is_a_span(world: World) -> None:
    with recording() as seen:
        async with await Vault.unseal(world.where / "home") as vault:
            attributes = dict(seen.span(semconv.UNSEAL).attributes or {})
            assert attributes[semconv.VAULT] == vault.vault_id
        with pytest.raises(ApexCredsError):
            await Vault.unseal(world.where / "nowhere")
        failed = seen.spans(semconv.UNSEAL)[1]
        assert (failed.attributes or {})[semconv.ERROR_TYPE] == "VaultNotFoundError"


async def test_names_are_shown_as_the_log_shows_them(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(world.vault.audit, "_pseudonym", lambda name: f"~{len(name)}")
    with recording() as seen:
        await world.call(use)
        for name in (semconv.LEASE, semconv.REDEEM):
            assert (seen.span(name).attributes or {})[semconv.CREDENTIAL] == "~3"


async def test_nothing_is_recorded_while_it_is_off(world: World) -> None:
    await world.call(use)
    assert not tracing.on()
    assert not tracing.OPEN
    with recording() as seen:
        assert not seen.spans()
