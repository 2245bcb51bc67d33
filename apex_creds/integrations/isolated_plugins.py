"""A plugin of ApexAgent's as a worker finds and makes it, by its metadata alone.

Guarantee: nothing of the plugin is imported in the runtime's process. Its object is made as the
managers make it, with what its constructor takes of the metadata, and its actions are called as
they would be; what its base class is imported from is shown to the worker as ``folders`` of its
runner.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from apex_creds.errors import IsolationError
from apex_creds.isolation.code import Code, PluginFunction
from apex_creds.isolation.frames import Target
from apex_creds.plain import text_or_none

_FILES: Final = ("main_file", "main_module")
_CLASSES: Final = ("main_class", "class_name")


def plugin_code(
    folder: Path | None,
    metadata: Mapping[str, object],
    method: str,
    *,
    dispatched: bool = False,
    initialized: bool = False,
) -> PluginFunction:
    """What is called for an action.

    Args:
        folder: The plugin's.
        metadata: Its metadata.
        method: The action.
        dispatched: The manager calls the plugin's ``execute_action`` with its name.
        initialized: The manager calls the plugin's ``initialize`` when it has made it.

    Raises:
        IsolationError: The metadata does not say where the class is.
    """
    file = next((found for key in _FILES if (found := _text(metadata, key))), "")
    name = next((found for key in _CLASSES if (found := _text(metadata, key))), "")
    if not (file and name):  # "plugins.ID.FILE.CLASS"
        before, _, name = _text(metadata, "entry_point").rpartition(".")
        file = before.rpartition(".")[2]
    module = os.path.splitext(os.path.basename(file))[0]
    if folder is None or not (module.isidentifier() and name.isidentifier()):
        raise IsolationError(
            "It is not known where this plugin's code is, so it can't be run isolated.",
            hint="Its metadata says main_file and main_class; the file is in its folder.",
        )
    place = Path(os.path.realpath(folder))
    target = Target(
        root=str(place),
        module=module,
        name=name,
        method=method,
        made_with=_made_with(metadata),
        dispatched=dispatched,
        initialized=initialized,
    )
    return PluginFunction(Code(place, target))


def _made_with(metadata: Mapping[str, object]) -> dict[str, object]:
    """What the managers give a plugin's constructor, under each of their names for it."""
    config = metadata.get("config", metadata.get("configuration", {}))
    version = metadata.get("version", "0.0.0")
    return {
        "plugin_id": metadata.get("id"),
        "plugin_name": metadata.get("name"),
        "version": version,
        "plugin_version": version,
        "description": metadata.get("description"),
        "config": config,
    }


def _text(metadata: Mapping[str, object], key: str) -> str:
    return text_or_none(metadata.get(key)) or ""
