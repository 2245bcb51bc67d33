"""What the environment asks for is set up, and nothing else."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping

import pytest

from apex_creds.errors import InvalidInputError
from apex_creds.telemetry import sdk


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, False),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_METRICS_EXPORTER": "none"}, False),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, True),
        ({"OTEL_METRICS_EXPORTER": "prometheus"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://localhost:4318"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://localhost:4318/v1/traces"}, True),
        ({"OTEL_TRACES_EXPORTER": "otlp", "OTEL_SDK_DISABLED": "TRUE"}, False),
    ],
)
def test_wanted(environment: Mapping[str, str], expected: bool) -> None:
    assert sdk.wanted(environment) is expected


@pytest.mark.parametrize(
    "environment",
    [
        {"OTEL_TRACES_EXPORTER": "jaeger"},
        {"OTEL_METRICS_EXPORTER": "graphite"},
        {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
        {"OTEL_METRICS_EXPORTER": "prometheus", "OTEL_EXPORTER_PROMETHEUS_PORT": "http"},
        {"OTEL_METRICS_EXPORTER": "prometheus", "OTEL_EXPORTER_PROMETHEUS_PORT": "999999"},
    ],
)
def test_what_can_not_be_done_is_said(environment: Mapping[str, str]) -> None:
    with pytest.raises(InvalidInputError) as refused:
        sdk.configure(environment)
    assert refused.value.hint


def test_nothing_asked_for_costs_no_import() -> None:
    program = (
        "import sys\nfrom apex_creds.telemetry import sdk\nwith sdk.exporting({}):\n    pass\n"
        "assert not [m for m in sys.modules if m.startswith('opentelemetry.sdk')]"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=480)


def test_a_provider_of_the_program_stays() -> None:
    program = (
        "from opentelemetry import metrics, trace\n"
        "from opentelemetry.sdk.metrics import MeterProvider\n"
        "from opentelemetry.sdk.trace import TracerProvider\n"
        "own = TracerProvider(), MeterProvider()\n"
        "trace.set_tracer_provider(own[0])\nmetrics.set_meter_provider(own[1])\n"
        "from apex_creds.telemetry import sdk\n"
        "with sdk.exporting({'OTEL_TRACES_EXPORTER': 'console',\n"
        "                     'OTEL_METRICS_EXPORTER': 'console'}):\n"
        "    assert trace.get_tracer_provider() is own[0]\n"
        "    assert metrics.get_meter_provider() is own[1]\n"
        "trace.get_tracer('x').start_span('still on').end()\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True, timeout=480)


def test_the_extra_is_named_where_it_is_missing() -> None:
    program = (
        "import sys\nsys.modules['opentelemetry.exporter'] = None\n"
        "from apex_creds.telemetry import sdk\n"
        "from apex_creds.errors import InvalidInputError\n"
        "wanted = (('TRACES', 'otlp'), ('METRICS', 'otlp'), ('METRICS', 'prometheus'))\n"
        "for kind, name in wanted:\n"
        "    try:\n        sdk.configure({f'OTEL_{kind}_EXPORTER': name})\n"
        "    except InvalidInputError as error:\n"
        "        assert 'apex-creds[otel]' in error.hint\n"
        "    else:\n        raise SystemExit(1)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=480)
