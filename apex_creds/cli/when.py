"""Points in time as the operator writes and reads them; see ``policy.dates``."""

from __future__ import annotations

from apex_creds.policy.dates import parse, show

__all__ = ["parse", "show"]
