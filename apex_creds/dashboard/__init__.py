"""A page: what a vault's keys, leases, permissions and log are doing, live.

Guarantee: nothing secret is ever sent to the page; it changes nothing unless it was started
to take decisions; it answers only on the addresses and names that it was given, and only to
who showed the one-time link that was printed on the terminal.
"""

from __future__ import annotations
