"""Points in time as the operator writes and reads them; see ``policy.dates``."""

from __future__ import annotations

from apex_creds.policy.dates import parse, parse_past, show

__all__ = ["parse", "parse_past", "show"]
