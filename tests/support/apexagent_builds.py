"""Fakes of ApexAgent's builds, faithful in what a hook can meet: names, signatures, logging.

* ``AsyncManager``: ``await invoke_plugin_action(plugin_id, action_name, **kwargs)``, plugins
  of ``EnhancedPlugin``, whose ``execute_action`` logs its keyword arguments at INFO.
* ``SyncManager``: ``execute_action(plugin_id, action, *args, **kwargs)``, which returns what
  the plugin's method returns; ``plugin_metadata`` by id, ``actions`` keyed by name.
* ``DispatchingPlugin``: ``async execute_action(action_name, params=None, …)``, no keywords.
"""

from __future__ import annotations

import inspect
import logging


class PluginNotFoundError(Exception):
    pass


class PluginExecutionError(Exception):
    pass


class EnhancedPlugin:
    def __init__(self, plugin_id: str, plugin_version: str = "1.0.0") -> None:
        self.plugin_id = plugin_id
        self.plugin_version = plugin_version
        self.logger = logging.getLogger(f"apex_agent.plugin.{plugin_id}")

    async def execute_action(self, action_name, **kwargs):
        method = getattr(self, action_name, None)
        if method is None:
            raise PluginExecutionError(f"no action {action_name}")
        self.logger.info(f"Executing {action_name} of {self.plugin_id} with args: {kwargs}")  # noqa: G004
        try:
            if inspect.isasyncgenfunction(method):
                return method(**kwargs)
            if inspect.iscoroutinefunction(method):
                return await method(**kwargs)
            return method(**kwargs)
        except Exception as error:
            self.logger.exception(f"Unexpected error in {action_name}: {error}")  # noqa: G004
            raise PluginExecutionError(f"error in {action_name}: {error!s}") from error


class DispatchingPlugin:
    """As the base class of the synchronous build: no place for keywords."""

    def __init__(self, plugin_id: str, plugin_version: str = "1.0.0") -> None:
        self._plugin_id = plugin_id

    @property
    def plugin_id(self) -> str:
        return self._plugin_id

    async def execute_action(
        self, action_name, params=None, progress_callback=None, cancellation_token=None
    ):
        logging.getLogger("apex_agent.plugin").info(f"{action_name}: {params}")  # noqa: G004
        method = getattr(self, action_name)
        result = method(**(params or {}))
        return await result if inspect.iscoroutine(result) else result


class AsyncManager:
    """Loads lazily; records that wrap the metadata, or are it (``wrap=False``)."""

    def __init__(self, *, wrap: bool = True) -> None:
        self.loaded_plugins: dict[str, object] = {}
        self._classes: dict[str, type] = {}
        self._records: dict[str, dict] = {}
        self._wrap = wrap

    def register(self, metadata: dict, plugin_class: type) -> None:
        plugin_id = metadata["id"]
        record = {"metadata": metadata, "enabled": True} if self._wrap else metadata
        self._records[plugin_id] = record
        self._classes[plugin_id] = plugin_class

    def get_plugin_metadata(self, plugin_id):
        return self._records.get(plugin_id)

    async def load_plugin(self, plugin_id):
        if plugin_id not in self.loaded_plugins:
            if plugin_id not in self._classes:
                raise PluginNotFoundError(plugin_id)
            plugin = self._classes[plugin_id](plugin_id)
            plugin.agent = self
            self.loaded_plugins[plugin_id] = plugin
        return self.loaded_plugins[plugin_id]

    async def invoke_plugin_action(self, plugin_id: str, action_name: str, **kwargs):
        """Invokes."""
        plugin = await self.load_plugin(plugin_id)
        return await plugin.execute_action(action_name, **kwargs)


class ParamsManager(AsyncManager):
    """An asynchronous manager of ``DispatchingPlugin``s."""

    async def invoke_plugin_action(self, plugin_id: str, action_name: str, **kwargs):
        plugin = await self.load_plugin(plugin_id)
        return await plugin.execute_action(action_name, params=kwargs)


class SyncManager:
    def __init__(self) -> None:
        self.plugins: dict[str, object] = {}
        self.plugin_metadata: dict[str, dict] = {}
        self._classes: dict[str, type] = {}

    def register(self, metadata: dict, plugin_class: type) -> None:
        self.plugin_metadata[metadata["id"]] = metadata
        self._classes[metadata["id"]] = plugin_class

    def get_plugin_metadata(self, plugin_id):
        if plugin_id not in self.plugin_metadata:
            raise PluginNotFoundError(plugin_id)
        return self.plugin_metadata[plugin_id]

    def get_plugin(self, plugin_id):
        if plugin_id not in self.plugin_metadata:
            raise PluginNotFoundError(plugin_id)
        return self.plugins.get(plugin_id)

    def load_plugin(self, plugin_id, check_dependencies=True):
        plugin = self.plugins[plugin_id] = self._classes[plugin_id](plugin_id)
        plugin.agent = self
        return plugin

    def execute_action(self, plugin_id: str, action: str, *args, **kwargs):
        if plugin_id not in self.plugin_metadata:
            raise PluginNotFoundError(plugin_id)
        plugin = self.get_plugin(plugin_id) or self.load_plugin(plugin_id)
        if not hasattr(plugin, action):
            raise AttributeError(f"{action} not found in {plugin_id}")
        return getattr(plugin, action)(*args, **kwargs)


def metadata(plugin_id: str, *names: str, keyed: bool = False, **extra: object) -> dict:
    """What a plugin.json says; reveals the credentials of these names."""
    action = {"description": "…", "parameters_schema": {"type": "object"}}
    return {
        "id": plugin_id,
        "name": plugin_id.title(),
        "version": "1.2.3",
        "description": "A plugin of the tests",
        "author": "tests",
        "main_file": "plugin.py",
        "main_class": "Plugin",
        "actions": {"run": action} if keyed else [{"name": "run", **action}],
        "checksum": {"algorithm": "sha256", "value": ""},  # as the examples have it
        "default_enabled": True,
        **({"credentials": [{"name": n, "access": "reveal"} for n in names]} if names else {}),
        **extra,
    }
