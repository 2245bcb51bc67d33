"""Credentials out of older programs' files, other vaults and keyrings, into the vault.

Guarantee: a source is untouched until every credential in it was written, read back and
compared; nothing in the vault is silently replaced; every entry's fate is told.
"""

from __future__ import annotations

from apex_creds.migration.aside import is_legacy, set_aside
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
