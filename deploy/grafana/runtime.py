"""The dashboard Runtime: invocations, latency, leases, and who uses what most."""

from __future__ import annotations

from typing import Final

from grafana_foundation_sdk.builders.dashboard import Dashboard

from deploy.grafana.panels import GREEN, JOB, ORANGE, RED, lines, number, page, ranking, spread

_INVOKE: Final = f"apex_creds_invoke_duration_seconds_count{{{JOB}}}"
_FAILED: Final = f'apex_creds_invoke_duration_seconds_count{{{JOB}, error_type!=""}}'
_REDEEMED: Final = f"apex_creds_redeem_duration_seconds_bucket{{{JOB}}}"
_INVOKED: Final = f"apex_creds_invoke_duration_seconds_bucket{{{JOB}}}"
_LEASED: Final = f"apex_creds_lease_duration_seconds_bucket{{{JOB}}}"


def _quantile(
    share: float, bucket: str, *, by: str = "le", over: str = "$__rate_interval"
) -> str:
    return f"histogram_quantile({share}, sum by ({by}) (rate({bucket}[{over}])))"


def _percentiles(bucket: str) -> tuple[tuple[str, str], ...]:
    shares = (0.5, 0.9, 0.95, 0.99)
    return tuple((_quantile(share, bucket), f"{share:.0%}") for share in shares)


def runtime() -> Dashboard:
    """The dashboard."""
    return page(
        "apex-creds / Runtime",
        "apex-creds-runtime",
        "What plugins do: invocations, how long secrets take, leases, and who uses most.",
        {
            "Now": (
                number(
                    "Invocations per second",
                    "Of plugins, through the middleware.",
                    (f"sum(rate({_INVOKE}[$__rate_interval]))", "invocations"),
                    unit="reqps",
                ),
                number(
                    "Failed invocations",
                    "The part that ended with an error, a refusal among them.",
                    (
                        f"""(sum(rate({_FAILED}[$__rate_interval])) or vector(0))
                        / sum(rate({_INVOKE}[$__rate_interval]))""",
                        "failed",
                    ),
                    unit="percentunit",
                    steps=((None, GREEN), (0.01, ORANGE), (0.1, RED)),
                ),
                number(
                    "Redeem, 50 %",
                    "From a handle to the secret in locked memory: the median.",
                    (_quantile(0.5, _REDEEMED), "50 %"),
                    unit="s",
                ),
                number(
                    "Redeem, 99 %",
                    "From a handle to the secret in locked memory: all but one in a hundred.",
                    (_quantile(0.99, _REDEEMED), "99 %"),
                    unit="s",
                    steps=((None, GREEN), (0.01, ORANGE), (0.1, RED)),
                ),
                number(
                    "Open leases",
                    "Handles that work at this moment.",
                    (f"sum(apex_creds_leases{{{JOB}}})", "leases"),
                ),
                number(
                    "Oldest open lease",
                    "A lease ends with its invocation.",
                    (f"max(apex_creds_lease_age_seconds{{{JOB}}})", "age"),
                    unit="s",
                    steps=((None, GREEN), (3600.0, ORANGE)),
                ),
            ),
            "Invocations": (
                lines(
                    "Invocations by how they ended",
                    "The class of the error; empty for those that succeeded.",
                    (
                        f"sum by (error_type) (rate({_INVOKE}[$__rate_interval]))",
                        "{{error_type}}",
                    ),
                    unit="reqps",
                    stacked=True,
                ),
                lines(
                    "Duration of invocations",
                    "The plugin's own time is in it.",
                    *_percentiles(_INVOKED),
                    unit="s",
                ),
                ranking(
                    "Top plugins by invocations",
                    "The ten that were invoked most, in the time shown.",
                    (
                        f"topk(10, sum by (apex_creds_plugin) (increase({_INVOKE}[$__range])))",
                        "{{apex_creds_plugin}}",
                    ),
                ),
                ranking(
                    "Slowest actions, 95 %",
                    "The ten slowest, in the time shown.",
                    (
                        "topk(10, "
                        + _quantile(
                            0.95,
                            _INVOKED,
                            by="le, apex_creds_plugin, gen_ai_tool_name",
                            over="$__range",
                        )
                        + ")",
                        "{{apex_creds_plugin}} {{gen_ai_tool_name}}",
                    ),
                    unit="s",
                ),
            ),
            "Secrets": (
                lines(
                    "Duration of redeems",
                    "Policy, audit and decryption; no plugin's time is in it.",
                    *_percentiles(_REDEEMED),
                    unit="s",
                ),
                spread(
                    "Redeems by duration",
                    "Two bands mean two ways: from memory, and after another process wrote.",
                    (f"sum by (le) (increase({_REDEEMED}[$__rate_interval]))", "{{le}}"),
                ),
                ranking(
                    "Top plugins by redeems",
                    "The ten that took secrets most, in the time shown.",
                    (
                        f"""topk(10, sum by (apex_creds_plugin)
                        (increase(apex_creds_redeems_total{{{JOB}}}[$__range])))""",
                        "{{apex_creds_plugin}}",
                    ),
                ),
                lines(
                    "Redeems by method",
                    "An HTTP method where the secret was sent by the broker, or reveal.",
                    (
                        f"""sum by (apex_creds_method)
                        (rate(apex_creds_redeems_total{{{JOB}}}[$__rate_interval]))""",
                        "{{apex_creds_method}}",
                    ),
                    unit="reqps",
                ),
            ),
            "Leases": (
                lines(
                    "Open leases",
                    "By service.",
                    (f"sum by (job) (apex_creds_leases{{{JOB}}})", "{{job}}"),
                ),
                lines("Life of leases", "From grant to end.", *_percentiles(_LEASED), unit="s"),
            ),
        },
    )
