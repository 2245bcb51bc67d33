"""The dashboard Security: what was refused, what leaked, and whether the log is whole."""

from __future__ import annotations

from typing import Final

from grafana_foundation_sdk.builders.dashboard import Dashboard

from deploy.grafana.panels import (
    GREEN,
    JOB,
    ORANGE,
    RED,
    lines,
    number,
    page,
    ranking,
)

_FACTOR: Final = f'apex_creds_audit_events_total{{{JOB}, apex_creds_audit_kind="factor"'
_REFUSED: Final = 'apex_creds_reason=~"wrong|replayed|locked_out|not_enrolled"'
_REVOKE: Final = f'apex_creds_audit_events_total{{{JOB}, apex_creds_audit_kind="revoke"}}'
_WATCHED: Final = ((None, GREEN), (1.0, ORANGE))


def security() -> Dashboard:
    """The dashboard."""
    return page(
        "apex-creds / Security",
        "apex-creds-security",
        "What was refused, what leaked, who was locked out, and whether the log is whole.",
        {
            "Now": (
                number(
                    "Audit log",
                    "Whether the whole log verified when a worker last checked it.",
                    (f"min(apex_creds_audit_intact{{{JOB}}})", "log"),
                    words={"1": ("verified", GREEN), "0": ("BROKEN", RED)},
                ),
                number(
                    "Last check of the log",
                    "A worker checks it every hour.",
                    (f"max(apex_creds_audit_check_age_seconds{{{JOB}}})", "age"),
                    unit="s",
                    steps=((None, GREEN), (7200.0, ORANGE), (14400.0, RED)),
                ),
                number(
                    "Denials",
                    "Refused uses of credentials, in the time shown.",
                    (f"sum(increase(apex_creds_denials_total{{{JOB}}}[$__range]))", "denials"),
                    steps=_WATCHED,
                ),
                number(
                    "Secrets redacted",
                    "Secrets that a plugin gave out and that were taken out of it.",
                    (f"sum(increase(apex_creds_leaks_total{{{JOB}}}[$__range]))", "leaks"),
                    steps=((None, GREEN), (1.0, RED)),
                ),
                number(
                    "Second factors refused",
                    "Codes that were wrong, used before, or given while locked out; from "
                    "the log, so also on the command line.",
                    (f"sum(increase({_FACTOR}, {_REFUSED}}}[$__range]))", "refused"),
                    steps=_WATCHED,
                ),
                number(
                    "Revocations",
                    "Of grants, and lockdowns; from the log.",
                    (f"sum(increase({_REVOKE}[$__range]))", "revocations"),
                    steps=_WATCHED,
                ),
            ),
            "What was refused": (
                lines(
                    "Denials by reason, per minute",
                    "Why a use was refused; docs/AUDIT.md says what each reason means.",
                    (
                        f"""sum by (apex_creds_reason)
                        (rate(apex_creds_denials_total{{{JOB}}}[$__rate_interval])) * 60""",
                        "{{apex_creds_reason}}",
                    ),
                    stacked=True,
                ),
                lines(
                    "Redeems by how they ended, per minute",
                    "The class of the error; empty for those that gave the secret.",
                    (
                        f"""sum by (error_type)
                        (rate(apex_creds_redeems_total{{{JOB}}}[$__rate_interval])) * 60""",
                        "{{error_type}}",
                    ),
                ),
                lines(
                    "Second factors by outcome, per minute",
                    "From the log: also what was typed on the command line.",
                    (
                        f"""sum by (apex_creds_reason) (rate({_FACTOR},
                        apex_creds_reason!=""}}[$__rate_interval])) * 60""",
                        "{{apex_creds_reason}}",
                    ),
                    stacked=True,
                ),
                lines(
                    "Revocations and lockdowns, per minute",
                    "From the log. A lockdown ends every lease and releases nothing.",
                    (
                        f"sum by (apex_creds_reason) (rate({_REVOKE}[$__rate_interval])) * 60",
                        "revoke {{apex_creds_reason}}",
                    ),
                    stacked=True,
                ),
            ),
            "What leaked": (
                lines(
                    "Secrets redacted by place, per minute",
                    "Where a plugin gave a secret out: its result, a chunk of its stream, "
                    "an exception, the program's log, a span, or a name it chose.",
                    (
                        f"""sum by (apex_creds_where)
                        (rate(apex_creds_leaks_total{{{JOB}}}[$__rate_interval])) * 60""",
                        "{{apex_creds_where}}",
                    ),
                    stacked=True,
                ),
                ranking(
                    "Exposures, leaks and denials in the whole log",
                    "An exposure: a plugin took a secret out of locked memory.",
                    (
                        f"""sum by (apex_creds_audit_kind) (apex_creds_audit_events_total{{
                        {JOB}, apex_creds_audit_kind=~"expose|leak|denial"}})""",
                        "{{apex_creds_audit_kind}}",
                    ),
                ),
            ),
            "The audit log": (
                lines(
                    "Events by kind, per minute",
                    "From the log itself, whichever process wrote them.",
                    (
                        f"""sum by (apex_creds_audit_kind) (rate(
                        apex_creds_audit_events_total{{{JOB}}}[$__rate_interval])) * 60""",
                        "{{apex_creds_audit_kind}}",
                    ),
                    stacked=True,
                ),
                lines(
                    "Destinations: what waits, and what was lost",
                    "What was lost is in the log's own file all the same.",
                    (
                        f"""sum by (apex_creds_audit_destination)
                        (apex_creds_audit_queue{{{JOB}}})""",
                        "{{apex_creds_audit_destination}} waits",
                    ),
                    (
                        f"""sum by (apex_creds_audit_destination)
                        (increase(apex_creds_audit_drops_total{{{JOB}}}[$__rate_interval]))""",
                        "{{apex_creds_audit_destination}} lost",
                    ),
                ),
            ),
        },
    )
