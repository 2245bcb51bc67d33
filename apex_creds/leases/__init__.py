"""Handles and leases: made for an invocation, redeemed under checks, ended with it.

Guarantee: a handle holds identifiers only; every redeem is checked and audited first.
"""

from __future__ import annotations

from apex_creds.leases.broker import LeaseBroker
from apex_creds.leases.handle import CredentialHandle, CredentialMap, current_credentials
from apex_creds.leases.lease import Invocation, acting_for, current_invocation

__all__ = [
    "CredentialHandle",
    "CredentialMap",
    "Invocation",
    "LeaseBroker",
    "acting_for",
    "current_credentials",
    "current_invocation",
]
