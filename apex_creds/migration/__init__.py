"""Credentials out of older programs' files, other vaults and keyrings, into the vault.

Guarantee: a source is untouched until every credential in it was written, read back and
compared; nothing in the vault is silently replaced; every entry's fate is told.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from apex_creds.migration.aside import set_aside
    from apex_creds.migration.beside import is_legacy
    from apex_creds.migration.copying import OnConflict
    from apex_creds.migration.fallback import Fallback
    from apex_creds.migration.finishing import Erased, finish
    from apex_creds.migration.hook import SWITCH, look, on_unseal, switch
    from apex_creds.migration.preview import preview
    from apex_creds.migration.report import EntryReport, Fate, Report, SourceReport
    from apex_creds.migration.run import Options, migrate
    from apex_creds.migration.state import migration_document

__all__ = [
    "SWITCH",
    "EntryReport",
    "Erased",
    "Fallback",
    "Fate",
    "OnConflict",
    "Options",
    "Report",
    "SourceReport",
    "finish",
    "is_legacy",
    "look",
    "migrate",
    "migration_document",
    "on_unseal",
    "preview",
    "set_aside",
    "switch",
]

# As the package's own face: every command looks for old files, and few find any.
if not TYPE_CHECKING:
    _MODULES = {
        "aside": ("set_aside",),
        "beside": ("is_legacy",),
        "copying": ("OnConflict",),
        "fallback": ("Fallback",),
        "finishing": ("Erased", "finish"),
        "hook": ("SWITCH", "look", "on_unseal", "switch"),
        "preview": ("preview",),
        "report": ("EntryReport", "Fate", "Report", "SourceReport"),
        "run": ("Options", "migrate"),
        "state": ("migration_document",),
    }

    def __getattr__(name: str) -> object:
        for module, names in _MODULES.items():
            if name in names:
                found = globals()[name] = getattr(import_module(f"{__name__}.{module}"), name)
                return found
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
