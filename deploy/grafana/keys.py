"""The dashboard Keys: how old they are, what is due, and how rotations went."""

from __future__ import annotations

from typing import Final

from grafana_foundation_sdk.builders.dashboard import Dashboard

from deploy.grafana.panels import (
    BLUE,
    GREEN,
    JOB,
    ORANGE,
    RED,
    lines,
    number,
    page,
    ranking,
)

_ROTATION: Final = f'apex_creds_audit_events_total{{{JOB}, apex_creds_audit_kind="rotation"'
_BUCKET: Final = f"apex_creds_rotation_duration_seconds_bucket{{{JOB}}}"
_DUE: Final = (
    f"min by (apex_creds_key_level) (apex_creds_rotation_due_seconds{{{JOB}}})",
    "{{apex_creds_key_level}}",
)


def keys() -> Dashboard:
    """The dashboard."""
    return page(
        "apex-creds / Keys",
        "apex-creds-keys",
        "How old keys are, what is due, what is left to move, and how rotations went.",
        {
            "Now": (
                number(
                    "Age of the primary keys",
                    "Of the oldest primary version of each level.",
                    (
                        f"""max by (apex_creds_key_level) (apex_creds_key_age_seconds{{
                        {JOB}, apex_creds_key_state="primary"}})""",
                        "{{apex_creds_key_level}}",
                    ),
                    unit="s",
                    width=8,
                ),
                number(
                    "Next rotation due in",
                    "Of each level that has an interval or cron; below zero: overdue.",
                    _DUE,
                    unit="s",
                    width=8,
                    steps=((None, RED), (0.0, GREEN)),
                ),
                number(
                    "Credentials left to move",
                    "Not yet under their primary key version.",
                    (f"max(apex_creds_records_left{{{JOB}}})", "left"),
                    steps=((None, GREEN), (1.0, ORANGE)),
                ),
                number(
                    "Problems of the worker",
                    "See the health file, or `systemctl status`.",
                    (f"sum(apex_creds_worker_problems{{{JOB}}})", "problems"),
                    steps=((None, GREEN), (1.0, RED)),
                ),
            ),
            "States": (
                ranking(
                    "Versions by level and state",
                    "Compromised or replaced versions end as retired, then destroyed.",
                    (
                        f"""max by (apex_creds_key_level, apex_creds_key_state)
                        (apex_creds_key_versions{{{JOB}}})""",
                        "{{apex_creds_key_level}} {{apex_creds_key_state}}",
                    ),
                ),
                lines(
                    "Age of the oldest version",
                    "By level and state. A primary that only grows older does not rotate.",
                    (
                        f"""max by (apex_creds_key_level, apex_creds_key_state)
                        (apex_creds_key_age_seconds{{{JOB}}})""",
                        "{{apex_creds_key_level}} {{apex_creds_key_state}}",
                    ),
                    unit="s",
                ),
                lines(
                    "Next rotation due in",
                    "By level; below zero: overdue.",
                    _DUE,
                    unit="s",
                ),
                lines(
                    "Credentials left to move",
                    "Rises with a new primary version, and must come down to zero.",
                    (f"max by (job) (apex_creds_records_left{{{JOB}}})", "{{job}}"),
                ),
                lines(
                    "OAuth connections",
                    "By state. What needs to be connected again is refused until it is.",
                    (
                        f"""max by (apex_creds_connection_state)
                        (apex_creds_connections{{{JOB}}})""",
                        "{{apex_creds_connection_state}}",
                    ),
                ),
                lines(
                    "Rotations at providers",
                    "Credentials with a rotator, by how their last step went.",
                    (
                        f"""max by (apex_creds_rotation_state)
                        (apex_creds_rotations{{{JOB}}})""",
                        "{{apex_creds_rotation_state}}",
                    ),
                ),
            ),
            "Rotations": (
                lines(
                    "Steps of rotations, per minute",
                    "From the log: rotate, move, retire and destroy, of each level.",
                    (
                        f"""sum by (apex_creds_reason) (rate({_ROTATION},
                        apex_creds_reason!=""}}[$__rate_interval])) * 60""",
                        "{{apex_creds_reason}}",
                    ),
                    stacked=True,
                ),
                lines(
                    "Duration of rotations",
                    "The new primary version; records move in the background after it.",
                    (
                        f"""histogram_quantile(0.95, sum by (le, apex_creds_key_level)
                        (rate({_BUCKET}[$__rate_interval])))""",
                        "{{apex_creds_key_level}}, 95 %",
                    ),
                    unit="s",
                ),
                ranking(
                    "Rotations in the whole log",
                    "How often each step was taken since the vault was made.",
                    (
                        f"""sum by (apex_creds_reason) ({_ROTATION},
                        apex_creds_reason!=""}})""",
                        "{{apex_creds_reason}}",
                    ),
                ),
                number(
                    "Rotations in the time shown",
                    "New primary versions by level, by this service's processes.",
                    (
                        f"""sum by (apex_creds_key_level) (increase(
                        apex_creds_rotation_duration_seconds_count{{{JOB}}}[$__range]))""",
                        "{{apex_creds_key_level}}",
                    ),
                    width=12,
                    steps=((None, BLUE),),
                ),
            ),
        },
    )
