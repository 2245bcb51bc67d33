"""Where a vault lies on disk: the directory that ApexAgent expects."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from apex_creds.fs.private_files import expanded

HOME_VARIABLE: Final = "APEX_CREDS_HOME"


def resolve_home(home: str | os.PathLike[str] | None = None) -> Path:
    """``home``, else ``$APEX_CREDS_HOME``, else ``~/.apex_agent``; absolute.

    The last component is not resolved, so that a symbolic link there is refused later.

    Raises:
        InvalidInputError: It needs a home directory that this user does not have.
    """
    chosen = home or os.environ.get(HOME_VARIABLE) or "~/.apex_agent"
    return expanded(os.fspath(chosen))


def audit_directory(home: Path) -> Path:
    """Where the log's segments lie."""
    return home / "security" / "audit"
