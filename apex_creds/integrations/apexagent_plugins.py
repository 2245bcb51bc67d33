"""ApexAgent's plugins: what a manager of any build knows of them, and what a worker calls.

Guarantee: only the manager's tables are read, and no plugin is loaded but where that is said
(``ask``, ``load``); what a manager raises meanwhile is left to the invocation itself.

``plugin_code`` needs the metadata alone, so that nothing of an isolated plugin is imported in
the runtime's process. A worker makes the plugin's object as the managers do, from what its
constructor takes of the metadata, and calls its actions as they would.
"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

from apex_creds.errors import IsolationError
from apex_creds.integrations.plugin_metadata import metadata_file
from apex_creds.plain import text_or_none

if TYPE_CHECKING:
    from apex_creds.isolation.code import PluginFunction

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
_GETTERS: Final = ("get_plugin_instance", "get_plugin")


def is_known(manager: object, plugin_id: str) -> bool:
    """Whether the manager has a plugin of that id."""
    return any(True for _ in _entries(manager, (*_INSTANCES, *_RECORDS), plugin_id))


def record_of(manager: object, plugin_id: str, *, can_wait: bool) -> object:
    """What the manager has on a plugin (perhaps to be awaited); its own error if it raises."""
    ask = getattr(manager, "get_plugin_metadata", None)
    if callable(ask) and (can_wait or not inspect.iscoroutinefunction(ask)):
        return cast("object", ask(plugin_id))
    return next(_entries(manager, _RECORDS, plugin_id), None)


def loaded(manager: object, plugin_id: str, *, ask: bool = False) -> object | None:
    """The plugin's instance, if the manager has it at hand.

    Args:
        manager: Any.
        plugin_id: Which plugin.
        ask: It is about to be invoked: ask the manager's getters, too, which may load it.
    """
    entry = next(_entries(manager, _INSTANCES, plugin_id), None)
    getters = (getattr(manager, name, None) for name in _GETTERS if ask and entry is None)
    for getter in getters:
        if entry is None and callable(getter) and not inspect.iscoroutinefunction(getter):
            with suppress(Exception):  # the invocation itself will say so
                entry = getter(plugin_id)
    if isinstance(entry, Mapping):  # one around it
        return next((entry[key] for key in ("instance", "plugin") if key in entry), None)
    return entry


def load(manager: object, plugin_id: str) -> object:
    """Has the manager load a plugin, as it will when it invokes it; perhaps to be awaited."""
    method = getattr(manager, "load_plugin", None)
    if not callable(method) or loaded(manager, plugin_id) is not None:
        return None
    try:
        loading = method(plugin_id)
    except Exception:  # noqa: BLE001 - the invocation itself will say so
        return None

    async def quietly() -> None:
        with suppress(Exception):
            await loading

    return quietly() if inspect.isawaitable(loading) else None


def folder_of(
    manager: object, plugin_id: str, record: object, *, ask: bool = False
) -> Path | None:
    """Where a plugin's code is: as the manager's records say, or where its class is from."""
    for entry in (record, *_entries(manager, _RECORDS, plugin_id)):
        if isinstance(entry, Mapping):
            for key in _FOLDER_KEYS:
                if isinstance(entry.get(key), (str, os.PathLike)):
                    return _folder(Path(entry[key]))
    for path in _entries(manager, (_PATHS,), plugin_id):
        if isinstance(path, (str, os.PathLike)):
            return _folder(Path(path))
    plugin = loaded(manager, plugin_id, ask=ask)
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
    from apex_creds.isolation.code import Code, PluginFunction
    from apex_creds.isolation.frames import Target

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
