"""Credentials out of older programs' files, other vaults and keyrings, into the vault.

Guarantee: a source is untouched until every credential in it was written, read back and
compared; nothing in the vault is silently replaced; every entry's fate is reported.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from apex_creds.migration.auto_migrate import (
        SWITCH,
        on_unseal,
        on_unseal_logged,
        switch,
    )
    from apex_creds.migration.cleanup import Erased, finish, set_aside
    from apex_creds.migration.copy_verify import OnConflict
    from apex_creds.migration.fallback import Fallback
    from apex_creds.migration.importer import Options, migrate, preview
    from apex_creds.migration.legacy_files import is_legacy
    from apex_creds.migration.progress import (
        EntryReport,
        Fate,
        Report,
        SourceReport,
        migration_document,
    )

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
    "migrate",
    "migration_document",
    "on_unseal",
    "on_unseal_logged",
    "preview",
    "set_aside",
    "switch",
]

# As the package's own face: every command asks for old files, and few find any.
if not TYPE_CHECKING:
    from apex_creds.lazy import names_from

    __getattr__ = names_from(
        __name__,
        {
            "auto_migrate": ("SWITCH", "on_unseal", "on_unseal_logged", "switch"),
            "cleanup": ("Erased", "finish", "set_aside"),
            "copy_verify": ("OnConflict",),
            "fallback": ("Fallback",),
            "importer": ("Options", "migrate", "preview"),
            "legacy_files": ("is_legacy",),
            "progress": ("EntryReport", "Fate", "Report", "SourceReport", "migration_document"),
        },
    )
