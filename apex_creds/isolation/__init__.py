"""Plugins and programs behind a wall: processes without network, files or secrets.

Guarantee: what runs there never holds a secret; see docs/ISOLATION.md and docs/WORKERS.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from apex_creds.lazy import names_from

if TYPE_CHECKING:
    from apex_creds.isolation.code import plugin_function
    from apex_creds.isolation.runner import IsolatedRunner, Isolation
    from apex_creds.isolation.sandbox import Limits

__all__ = ["IsolatedRunner", "Isolation", "Limits", "plugin_function"]

if not TYPE_CHECKING:
    __getattr__ = names_from(
        __name__,
        {
            "code": ("plugin_function",),
            "runner": ("IsolatedRunner", "Isolation"),
            "sandbox": ("Limits",),
        },
    )
