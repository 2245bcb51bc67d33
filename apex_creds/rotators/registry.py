"""Rotators by URI: those of this package, and of others by entry point.

Guarantee: what this package has itself is never replaced; a URI that is not understood is not
repeated in an error.
"""

from __future__ import annotations

from importlib import import_module
from typing import Final, Protocol

from apex_creds import extensions
from apex_creds.errors import InvalidInputError
from apex_creds.model import (
    DYNAMIC,
)
from apex_creds.rotators.protocol import Rotator

BUILT_IN: Final = {
    "aws-access-key": "apex_creds.rotators.aws_access_key",
    "github-app": "apex_creds.rotators.github_app",
    "openbao-approle": "apex_creds.rotators.openbao_approle",
    "postgres-role": "apex_creds.rotators.postgres_role",
    "redis-acl": "apex_creds.rotators.redis_acl",
}


class FromUri(Protocol):
    """A module's function ``from_uri``."""

    def __call__(self, uri: str) -> Rotator:
        """The rotator of a whole URI."""


def rotator_from_uri(uri: str) -> Rotator:
    """The rotator for ``KIND:ADDRESS…``.

    Raises:
        InvalidInputError: There is none of that kind, or its address is not understood.
        NotInstalledError: What it needs is not installed.
    """
    kind = uri.partition(":")[0]
    if kind in BUILT_IN:
        make: FromUri = import_module(BUILT_IN[kind]).from_uri
        return make(uri)
    made = extensions.make(extensions.ROTATORS, uri)
    if not isinstance(made, Rotator):
        raise InvalidInputError(
            "There is no such rotator.",
            hint=f"Use {', '.join([*BUILT_IN, DYNAMIC])}, or install the package that has it "
            "(docs/EXTENDING.md).",
        )
    return made
