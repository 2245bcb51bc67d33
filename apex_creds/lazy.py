"""Names of a package whose modules are imported when a name is first asked for.

So what imports the package costs what it uses. Type checkers read the package's own imports.
``apex_creds`` itself does the same by itself, since importing it loads nothing at all.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module


def names_from(package: str, modules: Mapping[str, tuple[str, ...]]) -> Callable[[str], object]:
    """A package's ``__getattr__``.

    Args:
        package: Its ``__name__``.
        modules: The names that each of its modules has.
    """

    def find(name: str) -> object:
        for module, names in modules.items():
            if name in names:
                found: object = getattr(import_module(f"{package}.{module}"), name)
                return vars(sys.modules[package]).setdefault(name, found)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return find
