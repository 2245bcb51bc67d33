"""Secrets replaced at their providers: what a rotator is, those that are here, their steps.

Guarantee: names are handed on when they are first asked for; nothing is imported before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from apex_creds.rotators.configuration import configure, rotator_from_uri
    from apex_creds.rotators.protocol import Created, Mode, Rotator, Task
    from apex_creds.rotators.rotation import Rotations

__all__ = [
    "Created",
    "Mode",
    "Rotations",
    "Rotator",
    "Task",
    "configure",
    "rotator_from_uri",
]

if not TYPE_CHECKING:
    from apex_creds.lazy import names_from

    __getattr__ = names_from(
        __name__,
        {
            "protocol": ("Created", "Mode", "Rotator", "Task"),
            "configuration": ("configure", "rotator_from_uri"),
            "rotation": ("Rotations",),
        },
    )
