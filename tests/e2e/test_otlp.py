"""Spans and metrics through the real exporter to a real OTLP receiver, and back."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable
from pathlib import Path
from typing import TypeVar

import pytest
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from apex_creds.telemetry import semconv
from tests.e2e.observed_plugin import CANARY
from tests.support.realparts import _free_port

oteltap = pytest.importorskip("oteltap")
T = TypeVar("T")
pytestmark = [pytest.mark.anyio, pytest.mark.e2e]


async def _run(home: Path, port: int, metrics: Awaitable[object]) -> None:
    """Runs the program; it ends when the metrics of its open vault have come."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    env |= {
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}",
        "OTEL_METRIC_EXPORT_INTERVAL": "100",
        "NO_PROXY": "127.0.0.1",
    }
    command = [
        sys.executable,
        "-W",
        "error",
        "-m",
        "tests.e2e.observed_plugin",
        str(home),
        "wait",
    ]
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, env=env, stdin=pipe, stdout=pipe)
    try:
        async with asyncio.timeout(60):
            await metrics
            await process.communicate(b"")
        assert process.returncode == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def _received(tmp_path: Path) -> tuple[list[Span], list[Metric]]:
    port = _free_port()
    settings = oteltap.OtelTapHttpProtobufReceiverSettings(http_port=port)
    spans: list[Span] = []
    metrics: list[Metric] = []
    async with oteltap.OtelTapHttpProtobufReceiver(settings) as receiver:
        every_span = receiver.await_trace(
            lambda span: spans.append(span) or _all_spans(spans), 90
        )
        every_metric = receiver.await_metric(lambda metric: _took(metrics, metric, *_ALL), 90)
        last_span = asyncio.ensure_future(every_span)
        await _run(tmp_path, port, every_metric)
        await last_span
    return spans, metrics


def _all_spans(spans: list[Span]) -> bool:
    return {semconv.ROTATE, semconv.UNSEAL} <= {span.name for span in spans} and _ours(
        spans
    ) == 12


def _ours(spans: list[Span]) -> int:
    return sum(span.name in semconv.SPANS and span.name != semconv.CHECKPOINT for span in spans)


_ALL = semconv.METRICS
_LAST = semconv.ROTATION_DURATION
"""Recorded after all the others: what comes from then on is final."""


def _took(kept: list[T], each: T, *wanted: str) -> bool:
    """Keeps it; whether all that are wanted have come."""
    kept.append(each)
    came = [one.name for one in kept]  # type: ignore[attr-defined]
    return _LAST in came and set(wanted) <= set(came[came.index(_LAST) :])


async def test_spans_and_metrics_come_back_as_they_were_meant(tmp_path: Path) -> None:
    spans, metrics = await _received(tmp_path)
    by_name: dict[str, list[Span]] = {}
    for span in spans:
        by_name.setdefault(span.name, []).append(span)
    counts = {name: len(found) for name, found in by_name.items()}
    assert counts[semconv.INVOKE] == 4
    assert counts[semconv.LEASE] == counts[semconv.REDEEM] == 3
    assert counts[semconv.UNSEAL] == counts[semconv.ROTATE] == 1
    _check_tree(by_name)
    _check_metrics({metric.name: metric for metric in metrics})
    _check_exemplars(metrics, by_name)
    whole = b"".join(each.SerializeToString() for each in (*spans, *metrics))
    assert CANARY.encode() not in whole


def _attributes(span: Span) -> dict[str, object]:
    return {
        each.key: getattr(each.value, each.value.WhichOneof("value"))
        for each in span.attributes
    }


def _check_tree(by_name: dict[str, list[Span]]) -> None:
    invocations = {span.span_id: span for span in by_name[semconv.INVOKE]}
    for span in (*by_name[semconv.REDEEM], *by_name[semconv.LEASE]):
        assert invocations[span.parent_span_id].trace_id == span.trace_id
    failed = [s for s in invocations.values() if s.status.code == Status.STATUS_CODE_ERROR]
    assert [_attributes(span)[semconv.ERROR_TYPE] for span in failed] == ["AccessDeniedError"]
    assert {_attributes(span)[semconv.GEN_AI_TOOL] for span in invocations.values()} == {
        "forecast"
    }


def _check_metrics(found: dict[str, Metric]) -> None:
    assert sum(p.as_int for p in found[semconv.REDEEMS].sum.data_points) == 3
    assert sum(p.as_int for p in found[semconv.DENIALS].sum.data_points) == 1
    assert sum(p.as_int for p in found[semconv.LEAKS].sum.data_points) == 3
    (redeems,) = found[semconv.REDEEM_DURATION].histogram.data_points
    assert redeems.count == 3


def _check_exemplars(metrics: list[Metric], by_name: dict[str, list[Span]]) -> None:
    points = [
        point
        for metric in metrics
        if metric.name == semconv.REDEEM_DURATION
        for point in metric.histogram.data_points
    ]
    came = {exemplar.span_id for point in points for exemplar in point.exemplars}
    assert came
    assert came <= {span.span_id for span in by_name[semconv.REDEEM]}
