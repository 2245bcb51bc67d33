"""``doctor``: is everything around the vault as it should be, and if not, what to do.

Guarantee: looks and tells, mends nothing.
"""

from __future__ import annotations
