"""The older name of ``integrations.apexagent_events``, which a page showed; for one release."""

from __future__ import annotations

from importlib import import_module


def __getattr__(name: str) -> object:
    return getattr(import_module("apex_creds.integrations.apexagent_events"), name)
