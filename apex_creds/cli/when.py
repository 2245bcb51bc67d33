"""Points in time as the operator writes and reads them."""

from __future__ import annotations

from apex_creds.policy.display import parse_past_time as parse_past
from apex_creds.policy.display import parse_time as parse
from apex_creds.policy.display import show_time as show

__all__ = ["parse", "parse_past", "show"]
