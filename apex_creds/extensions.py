"""Storages, master key providers, audit sinks and rotators of other packages, by entry point.

Guarantee: only a package that is installed, and whose scheme a URI names, is loaded; a scheme
of this package itself is never replaced. An entry point is called with the whole URI.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Final

from apex_creds.errors import ApexCredsError, InvalidInputError, NotInstalledError

__all__ = ["PROVIDERS", "ROTATORS", "SINKS", "STORAGES", "make"]

STORAGES: Final = "apex_creds.storages"
PROVIDERS: Final = "apex_creds.providers"
SINKS: Final = "apex_creds.sinks"
ROTATORS: Final = "apex_creds.rotators"
_SCHEME: Final = re.compile(r"[a-z][a-z0-9+.-]{1,31}", re.ASCII)


def make(group: str, uri: str) -> object:
    """What an installed package makes of ``uri``; None: no package has its scheme.

    Raises:
        InvalidInputError: Two packages have it, or the one that has it fails.
        NotInstalledError: The package can't be loaded.
    """
    scheme = uri.partition(":")[0]
    known = _SCHEME.fullmatch(scheme) is not None
    found = list(entry_points(group=group, name=scheme)) if known else []
    if not found:
        return None
    if len({point.value for point in found}) > 1:
        raise InvalidInputError(
            f"Several packages have {scheme}: {', '.join(sorted(p.value for p in found))}.",
            hint="Uninstall all but one.",
        )
    try:
        function: Callable[[str], object] = found[0].load()
    except Exception as error:  # noqa: BLE001 - whatever a package of others does
        raise NotInstalledError(
            f"{found[0].value}, which {scheme}: needs, can't be loaded "
            f"({type(error).__name__}).",
            hint="Install that package again, with what it needs.",
        ) from None
    try:
        return function(uri)
    except ApexCredsError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever a package of others does
        raise InvalidInputError(
            f"The package that has {scheme}: can't use this URI ({type(error).__name__}).",
            hint="Look in its documentation how it is to be written.",
        ) from None
