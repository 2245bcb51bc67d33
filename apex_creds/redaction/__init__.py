"""Finds secrets in what a plugin gives back, and replaces them.

Guarantee: knows no lease, no vault and no log: what to search for comes from a
``SecretSource``, and what was found goes to a callback.
"""

from __future__ import annotations
