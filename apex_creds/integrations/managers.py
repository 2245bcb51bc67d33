"""What a plugin manager knows of its plugins, in every build of ApexAgent.

Guarantee: looking asks tables and plain getters only, and has no plugin loaded; what a
manager raises while it is asked is left for the invocation itself to say. ``load`` is the one
function that has a plugin loaded.
"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Awaitable, Iterator, Mapping
from pathlib import Path
from typing import Final, cast

from apex_creds.integrations.folder import metadata_file

_PARTS: Final = ("registry", "discovery")
"""Where a manager keeps its tables if not itself: ``PluginSystem`` has both."""
_INSTANCES: Final = (
    "plugins",
    "loaded_plugins",
    "plugin_instance_cache",
    "_plugins",
    "_loaded_plugins",
)
_RECORDS: Final = ("plugin_metadata", "plugin_metadata_registry", "discovered_plugins")
_PATHS: Final = "plugin_paths"
_FOLDER_KEYS: Final = ("path", "folder", "directory", "plugin_path", "plugin_dir", "location")
_LOADERS: Final = ("load_plugin", "get_plugin_instance", "get_plugin")


def is_known(manager: object, plugin_id: str) -> bool:
    """Whether the manager has a plugin of that id."""
    return any(True for _ in _entries(manager, (*_INSTANCES, *_RECORDS), plugin_id))


def record_of(manager: object, plugin_id: str, *, can_wait: bool) -> object:
    """What the manager has on a plugin (perhaps to be awaited); its own error if it raises."""
    ask = getattr(manager, "get_plugin_metadata", None)
    if callable(ask) and (can_wait or not inspect.iscoroutinefunction(ask)):
        return cast("object", ask(plugin_id))
    return next(_entries(manager, _RECORDS, plugin_id), None)


def loaded(manager: object, plugin_id: str) -> object | None:
    """The plugin's instance, if the manager has it at hand."""
    entry = next(_entries(manager, _INSTANCES, plugin_id), None)
    if isinstance(entry, Mapping):  # one around it
        return next((entry[key] for key in ("instance", "plugin") if key in entry), None)
    return entry


def load(manager: object, plugin_id: str) -> object:
    """Has the manager load a plugin, as it will when it invokes it.

    Returns:
        Its instance or None; perhaps to be awaited.
    """
    found = loaded(manager, plugin_id)
    for name in _LOADERS:
        method = getattr(manager, name, None)
        if found is not None or not callable(method):
            continue
        try:
            found = method(plugin_id)
        except Exception:  # noqa: BLE001 - the invocation itself will say so
            return None
    return _then_loaded(found, manager, plugin_id) if inspect.isawaitable(found) else found


def folder_of(manager: object, plugin_id: str, record: object) -> Path | None:
    """Where a plugin's code is: as the manager's records say, or where its class is from."""
    for entry in (record, *_entries(manager, _RECORDS, plugin_id)):
        if isinstance(entry, Mapping):
            for key in _FOLDER_KEYS:
                if isinstance(entry.get(key), (str, os.PathLike)):
                    return _folder(Path(entry[key]))
    for path in _entries(manager, (_PATHS,), plugin_id):
        if isinstance(path, (str, os.PathLike)):
            return _folder(Path(path))
    plugin = loaded(manager, plugin_id)
    module = sys.modules.get(type(plugin).__module__) if plugin is not None else None
    file = getattr(module, "__file__", None)
    return _folder(Path(file)) if isinstance(file, str) else None


def _entries(manager: object, names: tuple[str, ...], plugin_id: str) -> Iterator[object]:
    for part in (manager, *(getattr(manager, name, None) for name in _PARTS)):
        for name in names:
            table = getattr(part, name, None)
            if isinstance(table, Mapping) and plugin_id in table:
                yield table[plugin_id]


def _folder(place: Path) -> Path | None:
    """The folder itself, or that of a file in it, if there is a plugin's metadata."""
    folder = place if place.is_dir() else place.parent
    return folder if metadata_file(folder) is not None else None


async def _then_loaded(
    loading: Awaitable[object], manager: object, plugin_id: str
) -> object | None:
    try:
        await loading
    except Exception:  # noqa: BLE001 - the invocation itself will say so
        return None
    return loaded(manager, plugin_id)
