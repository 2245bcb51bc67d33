"""``demo``: the whole system at work on real input, judged by its own log and results.

Guarantee: everything happens in a fresh directory and on the loopback interface, and the
exit code is zero only if every promise on the last table was kept.
"""

from __future__ import annotations
