"""``ProviderType``, ``ModelCategory`` and ``ApiKeyMode``, and where the mode is kept.

Guarantee: the names and values of ApexAgent's own enumerations; a member of one of those is
taken for the one here that has its value, and compares equal to it.
"""

from __future__ import annotations

import json
import logging
import stat
from enum import Enum
from pathlib import Path
from typing import Final

from apex_creds.fs.private_files import replace_file

INSTALLATION_FILE: Final = "installation.json"
_MODE: Final = "api_key_mode"

_log = logging.getLogger(__name__)


class _Same(Enum):
    """Equal to a member of another enumeration of the same name and value."""

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Enum):
            return NotImplemented
        return type(other).__name__ == type(self).__name__ and other.value == self.value

    # As for those: of the member's name, so that a mapping of theirs finds one of ours.
    __hash__ = Enum.__hash__


class ProviderType(_Same):
    """The providers that ApexAgent knows."""

    OPENAI = "openai"
    ANTHROPIC = "anthropic"
    GOOGLE = "google"
    META = "meta"
    COHERE = "cohere"
    MISTRAL = "mistral"
    AZURE_OPENAI = "azure_openai"
    AWS_BEDROCK = "aws_bedrock"
    TOGETHER_AI = "together_ai"


class ModelCategory(_Same):
    """What a model is good for."""

    STANDARD = "standard"
    HIGH_REASONING = "high_reasoning"


class ApiKeyMode(_Same):
    """Whose keys are used; it hides none that the vault has."""

    COMPLETE_SYSTEM = "complete_system"
    USER_PROVIDED = "user_provided"


def name_of(service: object) -> object:
    """A service's name; that of a provider, if it is a member of an enumeration."""
    return service.value if isinstance(service, Enum) else service


def parse_mode(mode: object) -> ApiKeyMode:
    """A mode, as a member of any enumeration or by its value.

    Raises:
        ValueError: There is no such mode.
    """
    return ApiKeyMode(name_of(mode))


def read_mode(folder: Path) -> ApiKeyMode:
    """What an installation says; ``COMPLETE_SYSTEM`` where it says nothing, as before."""
    mode = _installation(folder).get(_MODE)
    user = mode == ApiKeyMode.USER_PROVIDED.value
    return ApiKeyMode.USER_PROVIDED if user else ApiKeyMode.COMPLETE_SYSTEM


def write_mode(folder: Path, mode: ApiKeyMode) -> None:
    """Keeps the mode in an installation's file, if there is one; in the log if not."""
    found = _installation(folder)
    if not found:
        return
    path = folder / INSTALLATION_FILE
    text = json.dumps({**found, _MODE: mode.value}, indent=2) + "\n"
    try:
        # Another program's, which others may read: its permissions stay.
        replace_file(path, [text.encode()], mode=stat.S_IMODE(path.stat().st_mode))
    except OSError as error:
        _log.warning("%s could not be written: %s.", path, error.strerror)


def _installation(folder: Path) -> dict[str, object]:
    try:
        found = json.loads((folder / INSTALLATION_FILE).read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError):
        _log.warning("%s is not understood.", folder / INSTALLATION_FILE)
        return {}
    return found if isinstance(found, dict) else {}
