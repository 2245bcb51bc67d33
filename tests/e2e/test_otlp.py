"""Spans and metrics through the real exporter to a real OTLP receiver, and back."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from apex_creds.audit import names
from tests.e2e.observed_plugin import CANARY
from tests.e2e.realparts import _free_port

oteltap = pytest.importorskip("oteltap")
pytestmark = [pytest.mark.anyio, pytest.mark.e2e]


async def _run(home: Path, port: int) -> None:
    env = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    env |= {
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}",
        "NO_PROXY": "127.0.0.1",
    }
    command = [sys.executable, "-W", "error", "-m", "tests.e2e.observed_plugin", str(home)]
    process = await asyncio.create_subprocess_exec(*command, env=env)
    assert await process.wait() == 0


async def _received(tmp_path: Path) -> tuple[list[Span], list[Metric]]:
    port = _free_port()
    settings = oteltap.OtelTapHttpProtobufReceiverSettings(http_port=port)
    spans: list[Span] = []
    metrics: list[Metric] = []
    async with oteltap.OtelTapHttpProtobufReceiver(settings) as receiver:
        last_span = asyncio.ensure_future(
            receiver.await_trace(lambda span: spans.append(span) or span.name == names.ROTATE)
        )
        last_metric = asyncio.ensure_future(
            receiver.await_metric(
                lambda metric: metrics.append(metric) or _have_all(metrics, names.METRICS)
            )
        )
        await _run(tmp_path, port)
        async with asyncio.timeout(30):
            await asyncio.gather(last_span, last_metric)
    return spans, metrics


def _have_all(metrics: list[Metric], wanted: tuple[str, ...]) -> bool:
    return set(wanted) <= {metric.name for metric in metrics}


async def test_spans_and_metrics_come_back_as_they_were_meant(tmp_path: Path) -> None:
    spans, metrics = await _received(tmp_path)
    by_name: dict[str, list[Span]] = {}
    for span in spans:
        by_name.setdefault(span.name, []).append(span)
    counts = {name: len(found) for name, found in by_name.items()}
    assert counts[names.INVOKE] == 4
    assert counts[names.LEASE] == counts[names.REDEEM] == 3
    assert counts[names.UNSEAL] == counts[names.ROTATE] == 1
    _check_tree(by_name)
    _check_metrics({metric.name: metric for metric in metrics}, by_name)
    whole = b"".join(each.SerializeToString() for each in (*spans, *metrics))
    assert CANARY.encode() not in whole


def _attributes(span: Span) -> dict[str, object]:
    return {
        each.key: getattr(each.value, each.value.WhichOneof("value"))
        for each in span.attributes
    }


def _check_tree(by_name: dict[str, list[Span]]) -> None:
    invocations = {span.span_id: span for span in by_name[names.INVOKE]}
    for span in (*by_name[names.REDEEM], *by_name[names.LEASE]):
        assert invocations[span.parent_span_id].trace_id == span.trace_id
    failed = [s for s in invocations.values() if s.status.code == Status.STATUS_CODE_ERROR]
    assert [_attributes(span)[names.ERROR_TYPE] for span in failed] == ["AccessDeniedError"]
    assert {_attributes(span)[names.GEN_AI_TOOL] for span in invocations.values()} == {
        "forecast"
    }


def _check_metrics(found: dict[str, Metric], by_name: dict[str, list[Span]]) -> None:
    assert sum(p.as_int for p in found[names.REDEEMS].sum.data_points) == 3
    assert sum(p.as_int for p in found[names.DENIALS].sum.data_points) == 1
    assert sum(p.as_int for p in found[names.LEAKS].sum.data_points) == 3
    (redeems,) = found[names.REDEEM_DURATION].histogram.data_points
    assert redeems.count == 3
    ids = {span.span_id for span in by_name[names.REDEEM]}
    assert redeems.exemplars
    assert {exemplar.span_id for exemplar in redeems.exemplars} <= ids
