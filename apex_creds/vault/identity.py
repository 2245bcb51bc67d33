"""Which vault a home has: pinned beside the master key when it is made, or first opened.

Guarantee: a home that was opened once opens with the same master key only as the same vault,
until a person accepts another; so whoever replaces the whole directory by that of another
vault, made with the same key, is noticed. A home is known by its path, links resolved: one
that was moved, copied or restored elsewhere is new, and is pinned when it is first opened.

A pin is one line, ``apex-creds-home-v1 VAULT``. It is not signed: whoever can write it could
remove it as well, and then the next opening is a first one, which the log says.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Final

from apex_creds.errors import ForeignVaultError, MasterKeyUnavailableError
from apex_creds.keys import MasterKeyProvider
from apex_creds.keys.head_anchor import PinStore

__all__ = ["check_home", "home_id"]

_PREFIX: Final = "apex-creds-home-v1 "
_DIGITS: Final = 32


def home_id(home: Path) -> str:
    """What a home is known by where its pin is kept: 32 hexadecimal digits."""
    return hashlib.sha256(os.fsencode(os.path.realpath(home))).hexdigest()[:_DIGITS]


def check_home(
    provider: MasterKeyProvider, home: Path, vault_id: str, *, accept: bool = False
) -> str:
    """Compares a home's vault with its pin, and makes one where there is none; may block.

    Args:
        provider: Keeps the pin, if it can.
        home: The directory.
        vault_id: Of the vault that is in it, authenticated.
        accept: A person wants it there, whatever was there before.

    Returns:
        What is worth recording, in words; empty if nothing is.

    Raises:
        ForeignVaultError: Another vault was there before.
        MasterKeyUnavailableError: The pin can't be read.
    """
    if not isinstance(provider, PinStore):
        return ""
    pin, mine = provider.read_pin(home=home_id(home)), f"{_PREFIX}{vault_id}\n"
    if pin == mine:
        return ""
    if pin is not None and not accept:
        before = pin.removeprefix(_PREFIX).strip()
        raise ForeignVaultError(
            f"{home} has the vault {vault_id} now; before, it had {ascii(before)[:66]}.",
            hint="Put the right directory back. If it is meant to be there: "
            "apex-creds audit accept-rollback --reason …",
        )
    try:
        provider.write_pin(home=home_id(home), text=mine)
    except MasterKeyUnavailableError:
        return "this vault could not be pinned to its directory beside the master key"
    if pin is not None:
        return "another vault was in this directory before"
    return "first opened in this directory with this master key, and pinned to it"
