"""A function of a module that the host imports, too."""

from __future__ import annotations

import os

from apex_creds import CredentialMiddleware, Vault

TYPES = (CredentialMiddleware, Vault)


def in_host(x):
    return x, os.getpid()
