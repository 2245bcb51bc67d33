"""Vendor SDKs as they are: one small adapter for each library that SDKs send with.

An SDK's client is made once, where it always is, by credential name. At each request the
adapter finds the handle of the current invocation and redeems through it; the SDK never has
the secret. ``apex_creds.sdk.httpx`` and its like are loaded when they are first used, each with
its library.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING

from apex_creds.sdk.current import Executor, placeholder

if TYPE_CHECKING:
    from types import ModuleType

__all__ = ["Executor", "placeholder"]


def __getattr__(name: str) -> ModuleType:
    if any(name == found.name for found in pkgutil.iter_modules(__path__)):
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
