"""The page has every span, metric and destination, and its snippets run elsewhere."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

import pytest

from apex_creds.audit.sinks import Level as Severity
from apex_creds.audit.sinks.sink_factory import _LOCAL, _OPTIONS, _PORTS
from apex_creds.leases import CredentialMap
from apex_creds.scheduler.rotation_state import newest, order
from apex_creds.scheduler.schedule import Level
from apex_creds.scheduler.worker import RotationWorker
from apex_creds.telemetry import semconv
from tests.support.recording import recording
from tests.support.worlds import world_in

PAGE = (Path(__file__).parents[2] / "docs" / "OBSERVABILITY.md").read_text()


def test_every_name_is_on_the_page() -> None:
    own = {
        value
        for name, value in vars(semconv).items()
        if name.isupper() and isinstance(value, str) and "." in value
    }
    assert {name for name in own if f"`{name}`" not in PAGE} == set()


def test_every_destination_and_option_is_on_the_page() -> None:
    assert {scheme for scheme in (*_LOCAL, *_PORTS) if f"`{scheme}:" not in PAGE} == set()
    assert {option for option in _OPTIONS if f"`{option}=`" not in PAGE} == set()
    assert {level.value for level in Severity if f"`{level.value}`" not in PAGE} == set()


def _rows() -> dict[str, set[str]]:
    """The attributes of each span, as its row of the page's table says."""
    table = PAGE.split("### Spans")[1].split("### Metrics")[0]
    rows = [line.split("|")[1:-1] for line in table.splitlines() if line.startswith("| `apex")]
    return {
        span.strip(" `"): set(re.findall(r"`((?:apex_creds|gen_ai)\.[a-z_.]+)`", attributes))
        for span, _, attributes in rows
    }


NOW_AND_THEN = {
    semconv.PARENT_LEASE,
    semconv.LEASE_EXPIRED,
    semconv.OUTCOME,
    semconv.STALE_MS,
    semconv.ERROR_TYPE,
}
"""Attributes that what is done here does not have."""


@pytest.mark.anyio
async def test_the_spans_of_a_vault_s_life_have_the_attributes_of_the_page(
    tmp_path: Path,
) -> None:
    seen: defaultdict[str, set[str]] = defaultdict(set)
    with recording() as found:
        async with world_in(tmp_path) as world:

            async def use(credentials: CredentialMap) -> None:
                async with credentials["key"].reveal():
                    pass

            await world.call(use)
            engine = RotationWorker(world.vault).engine
            for level in Level:
                keystore = await world.vault.store.keystore()
                await order(engine.document, newest(keystore, level, ["api_keys/key"]))
                await engine.run()
            world.vault.audit.sign()
        for span in found.spans():
            seen[span.name] |= set(span.attributes or {})
    rows = _rows()
    assert rows.keys() == set(semconv.SPANS)
    elsewhere = {semconv.CONSENT, semconv.MIGRATE}
    assert seen.keys() >= rows.keys() - elsewhere
    for name, attributes in seen.items():
        assert attributes - NOW_AND_THEN == rows[name] - NOW_AND_THEN, name
