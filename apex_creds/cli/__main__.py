"""``python -m apex_creds.cli``."""

from __future__ import annotations

import sys

from apex_creds.cli import main

sys.exit(main())
