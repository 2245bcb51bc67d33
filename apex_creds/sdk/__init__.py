"""Vendor SDKs as they are: one small adapter for each library that SDKs send with.

An SDK's client is made once, where it always is, by credential name. At each request the
adapter finds the handle of the current invocation and redeems through it; the SDK never has
the secret.
"""

from __future__ import annotations
