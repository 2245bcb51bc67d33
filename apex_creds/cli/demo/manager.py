"""A small plugin manager that behaves like ApexAgent's, the habit of logging included.

It knows nothing of apex-creds: ``integrations.apexagent.install`` hooks it as it would
hook the real one.
"""

from __future__ import annotations

import importlib.util
import inspect
import json
import logging
from pathlib import Path

_log = logging.getLogger("apexagent.plugins")


class BasePlugin:
    """What ApexAgent's plugins derive from."""

    async def execute_action(self, action_name: str, **kwargs: object) -> object:
        """Logs the call with all it was given, then makes it."""
        # As the runtime does it, which is the point: nothing secret may be in there.
        _log.info(f"{type(self).__name__}: executing '{action_name}' with {kwargs}")
        result = getattr(self, action_name)(**kwargs)
        return await result if inspect.isawaitable(result) else result

    async def shutdown(self) -> None:
        """Called once at the end."""


class PluginManager:
    """Loads a folder of plugins and invokes their actions."""

    def __init__(self, folder: Path) -> None:
        self.plugins: dict[str, BasePlugin] = {}
        self._metadata: dict[str, dict[str, object]] = {}
        for path in sorted(folder.glob("*/plugin.json")):
            metadata = json.loads(path.read_bytes())
            self._metadata[metadata["id"]] = metadata
            self.plugins[metadata["id"]] = _instance(path.parent, metadata)

    def get_plugin_metadata(self, plugin_id: str) -> dict[str, object] | None:
        """A plugin's record; its ``metadata`` is the content of plugin.json."""
        metadata = self._metadata.get(plugin_id)
        return None if metadata is None else {"id": plugin_id, "metadata": metadata}

    async def invoke_plugin_action(
        self, plugin_id: str, action_name: str, **kwargs: object
    ) -> object:
        """Calls an action; a stream is returned un-iterated."""
        return await self.plugins[plugin_id].execute_action(action_name, **kwargs)

    async def shutdown(self) -> None:
        """Ends all plugins."""
        for plugin in self.plugins.values():
            await plugin.shutdown()


def _instance(folder: Path, metadata: dict[str, str]) -> BasePlugin:
    path = folder / metadata["main_file"]
    spec = importlib.util.spec_from_file_location(f"_demo_{folder.name}", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"no plugin in {path}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made = getattr(module, metadata["main_class"])()
    assert isinstance(made, BasePlugin)
    return made
