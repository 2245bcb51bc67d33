"""Rotation of keys at every level: plan, steps, engine, worker, events.

Guarantee: names are handed on when they are first asked for; nothing is imported before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from apex_creds.scheduler.rotation_state import (
        CompromiseSuspected,
        OperatorRequest,
        RotationState,
    )
    from apex_creds.scheduler.schedule import Level, LevelPolicy, Policies
    from apex_creds.scheduler.status import rotation_status
    from apex_creds.scheduler.worker import Rhythm, RotationWorker

__all__ = [
    "CompromiseSuspected",
    "Level",
    "LevelPolicy",
    "OperatorRequest",
    "Policies",
    "Rhythm",
    "RotationState",
    "RotationWorker",
    "rotation_status",
]

if not TYPE_CHECKING:
    from apex_creds.lazy import names_from

    __getattr__ = names_from(
        __name__,
        {
            "rotation_state": ("CompromiseSuspected", "OperatorRequest", "RotationState"),
            "schedule": ("Level", "LevelPolicy", "Policies"),
            "status": ("rotation_status",),
            "worker": ("Rhythm", "RotationWorker"),
        },
    )
