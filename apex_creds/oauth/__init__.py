"""OAuth tokens that stay valid: connect, refresh, revoke.

Guarantee: a token is renewed by one request at a time, over tasks, threads and processes; what
a crash leaves is known afterwards.
"""

from __future__ import annotations

from apex_creds.oauth.connect import Connected, Way, connect, disconnect
from apex_creds.oauth.provider_presets import Provider
from apex_creds.oauth.refresh import Refresher

__all__ = ["Connected", "Provider", "Refresher", "Way", "connect", "disconnect"]
