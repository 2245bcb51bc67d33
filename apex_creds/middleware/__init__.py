"""Wraps plugin invocations: handles go in, no secret comes out, the lease ends.

Guarantee: DESIGN rule 9; and a secret redeemed in an invocation that is found in its
result, its stream, its log records or its exception is replaced and audited.
"""

from __future__ import annotations

from apex_creds.middleware.call import OnLeak, OnOpaque
from apex_creds.middleware.middleware import CredentialMiddleware, report_denials

__all__ = ["CredentialMiddleware", "OnLeak", "OnOpaque", "report_denials"]
