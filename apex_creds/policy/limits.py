"""The older name of ``policy.rate_limits``, which a page showed; for one release."""

from __future__ import annotations

from apex_creds.policy.rate_limits import Breach, DenialsExceeded, LimitState, RateLimits

__all__ = ["Breach", "DenialsExceeded", "LimitState", "RateLimits"]
