"""What several test modules here share."""

from __future__ import annotations

import sys

PROGRAM = [sys.executable, "-W", "error", "-m", "apex_creds.cli"]
