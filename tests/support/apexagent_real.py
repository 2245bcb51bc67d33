"""ApexAgent's managers as they stand in its public repository, each cut to what a hook meets.

Where a plugin's instance, record and folder are kept, which methods load it, what is raised,
what ``discover_plugins`` asks of a ``plugin.json``: all is as there. Cut are dependencies,
schemas, states and streams; ``register`` is the tests', and puts a plugin where discovering
and loading would.

* ``AsyncPluginManager``: ``src/plugin_manager.py``, plugins of ``BaseEnhancedPlugin``.
* ``SyncPluginManager``: ``src/core/plugin_manager.py``.
* ``PluginSystem``: ``src/core/plugin_system.py`` with its registry, discovery and loader.
* ``PluginMarketplaceSystem``: ``src/plugin_marketplace/plugin_marketplace_system.py``.
"""

from __future__ import annotations

import importlib.util
import inspect
import json
import logging
import os
import shutil
import sys
from types import SimpleNamespace


class PluginNotFoundError(Exception):
    pass


class PluginDependencyError(Exception):
    pass


class PluginInitializationError(Exception):
    pass


class PluginExecutionError(Exception):
    pass


class PluginNotImplementedError(Exception):
    pass


class BaseEnhancedPlugin:
    """``src/core/base_enhanced_plugin.py``."""

    def __init__(
        self,
        plugin_id,
        plugin_version,
        config=None,
        progress_callback=None,
        save_state_func=None,
        load_state_func=None,
        delete_state_func=None,
    ):
        self.plugin_id = plugin_id
        self.plugin_version = plugin_version
        self.config = config if config is not None else {}
        self.logger = logging.getLogger(f"apex_agent.plugin.{self.plugin_id}")

    async def execute_action(self, action_name, **kwargs):
        if not hasattr(self, action_name):
            raise PluginNotImplementedError(f"Action {action_name} is not implemented.")
        action_method = getattr(self, action_name)
        self.logger.info(f"Executing action {action_name} with args: {kwargs}")  # noqa: G004
        try:
            if inspect.isasyncgenfunction(action_method):
                return action_method(**kwargs)
            if inspect.iscoroutinefunction(action_method):
                return await action_method(**kwargs)
            return action_method(**kwargs)
        except PluginExecutionError:
            raise
        except Exception as e:
            self.logger.exception(f"Unexpected error during {action_name}: {e}")  # noqa: G004
            raise PluginExecutionError(f"Unexpected error in {action_name}: {e!s}") from e


class _Folders:
    """Discovers what has the fields that a build asks for."""

    NAMES: tuple[str, ...] = ("plugin.json",)
    REQUIRED: tuple[str, ...] = ()

    def found_in(self, plugin_dirs):
        for plugin_dir in plugin_dirs:
            for item in sorted(os.listdir(plugin_dir)):
                path = os.path.join(plugin_dir, item)
                files = [os.path.join(path, name) for name in self.NAMES]
                file = next((f for f in files if os.path.isfile(f)), None)
                if file is None:
                    continue
                with open(file) as f:
                    metadata = json.load(f)
                if all(field in metadata for field in self.REQUIRED):
                    yield metadata["id"], metadata, path, file


def module_of(path, file):
    """A plugin's module, imported from its folder as the loaders do it."""
    name = os.path.splitext(file)[0]
    spec = importlib.util.spec_from_file_location(name, os.path.join(path, f"{name}.py"))
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class AsyncPluginManager(_Folders):
    NAMES = ("plugin.json", "metadata.json")
    # What the schema in docs/plugin_metadata_schema.json asks for; actions is an array.
    REQUIRED = (
        "id",
        "name",
        "version",
        "description",
        "author",
        "main_file",
        "main_class",
        "actions",
    )

    def __init__(self, plugin_dirs=()):
        self.plugin_metadata_registry = {}
        self.plugin_instance_cache = {}
        self.plugin_status = {}
        self.classes = {}
        for plugin_id, metadata, path, file in self.found_in(plugin_dirs):
            if isinstance(metadata["actions"], list):
                self._add(plugin_id, metadata, path, file)

    def _add(self, plugin_id, metadata, path, file):
        self.plugin_metadata_registry[plugin_id] = {
            "metadata": metadata,
            "path": path,
            "metadata_path": file,
        }
        self.plugin_status[plugin_id] = "loaded"

    def register(self, metadata, plugin_class, path="/nonexistent"):
        self._add(metadata["id"], metadata, str(path), f"{path}/plugin.json")
        self.classes[metadata["id"]] = plugin_class

    def get_plugin_metadata(self, plugin_id):
        return self.plugin_metadata_registry.get(plugin_id, {}).get("metadata")

    def _load_plugin_class(self, entry_point):
        """The real one imports ``agent_project.src.{module}``; here the folder is the root."""
        module_name, class_name = entry_point.rsplit(".", 1)
        folder, _, file = module_name.removeprefix("plugins.").partition(".")
        at = self.plugin_metadata_registry[folder]["path"]
        plugin_class = getattr(module_of(at, file), class_name)
        return plugin_class if issubclass(plugin_class, BaseEnhancedPlugin) else None

    def get_plugin_instance(self, plugin_id):
        if self.plugin_status.get(plugin_id) != "loaded":
            raise PluginDependencyError(f"Plugin '{plugin_id}' is not loaded.")
        if plugin_id in self.plugin_instance_cache:
            return self.plugin_instance_cache[plugin_id]
        metadata = self.plugin_metadata_registry[plugin_id]["metadata"]
        plugin_class = self.classes.get(plugin_id)
        if plugin_class is None:
            entry_point = metadata.get("entry_point")
            plugin_class = self._load_plugin_class(entry_point) if entry_point else None
        if plugin_class is None:
            return None
        instance = plugin_class(
            plugin_id=plugin_id,
            plugin_version=metadata.get("version", "0.0.0"),
            config=metadata.get("configuration", {}),
        )
        self.plugin_instance_cache[plugin_id] = instance
        return instance

    async def invoke_plugin_action(self, plugin_id: str, action_name: str, **kwargs):
        plugin_instance = self.get_plugin_instance(plugin_id)
        if not plugin_instance:
            raise PluginNotImplementedError(f"'{plugin_id}' could not be instantiated.")
        try:
            return await plugin_instance.execute_action(action_name, **kwargs)
        except (PluginNotImplementedError, PluginExecutionError):
            raise
        except Exception as e:
            raise PluginExecutionError(f"Unexpected error: {e}") from e


class SyncPluginManager(_Folders):
    REQUIRED = ("id", "name", "version", "description", "main_file", "main_class")

    def __init__(self, plugin_dir=None):
        self.plugin_dir = plugin_dir
        self.plugins = {}
        self.plugin_metadata = {}
        self.plugin_paths = {}
        self.plugin_modules = {}
        self.plugin_enabled = {}
        self.streaming_actions = {}
        self.classes = {}

    def register(self, metadata, plugin_class, path="/nonexistent"):
        self.plugin_metadata[metadata["id"]] = metadata
        self.plugin_paths[metadata["id"]] = str(path)
        self.plugin_enabled[metadata["id"]] = True
        self.classes[metadata["id"]] = plugin_class

    def discover_plugins(self):
        count = 0
        for plugin_id, metadata, path, _ in self.found_in([self.plugin_dir]):
            self.plugin_metadata[plugin_id] = metadata
            self.plugin_paths[plugin_id] = path
            try:
                for action_id, action in metadata.get("actions", {}).items():
                    if action.get("streaming"):
                        self.streaming_actions[plugin_id] = action_id
            except AttributeError:  # a warning there, and the plugin is not counted
                continue
            self.plugin_enabled[plugin_id] = True
            count += 1
        return count

    def _check(self, plugin_id):
        if plugin_id not in self.plugin_metadata:
            raise PluginNotFoundError(f"Plugin {plugin_id} not found")

    def get_plugin_metadata(self, plugin_id):
        self._check(plugin_id)
        return self.plugin_metadata[plugin_id]

    def get_plugin_path(self, plugin_id):
        self._check(plugin_id)
        return self.plugin_paths[plugin_id]

    def get_plugin(self, plugin_id):
        self._check(plugin_id)
        return self.plugins.get(plugin_id)

    def load_plugin(self, plugin_id, check_dependencies=True):
        self._check(plugin_id)
        if not self.plugin_enabled.get(plugin_id, False):
            return None
        if plugin_id in self.plugins:
            return self.plugins[plugin_id]
        metadata = self.plugin_metadata[plugin_id]
        plugin_class = self.classes.get(plugin_id)
        if plugin_class is None:
            module = module_of(self.plugin_paths[plugin_id], metadata["main_file"])
            self.plugin_modules[plugin_id] = module
            plugin_class = getattr(module, metadata["main_class"])
        plugin = self.plugins[plugin_id] = plugin_class(
            plugin_id=metadata["id"],
            plugin_name=metadata["name"],
            version=metadata["version"],
            description=metadata["description"],
            config=metadata.get("config", {}),
        )
        return plugin

    def disable_plugin(self, plugin_id: str) -> None:
        self._check(plugin_id)
        self.plugin_enabled[plugin_id] = False

    def unload_plugin(self, plugin_id: str) -> None:
        self._check(plugin_id)
        self.plugins.pop(plugin_id, None)
        self.plugin_modules.pop(plugin_id, None)

    def execute_action(self, plugin_id: str, action: str, *args, **kwargs):
        self._check(plugin_id)
        plugin = self.get_plugin(plugin_id)
        if not plugin:
            plugin = self.load_plugin(plugin_id)
        if not hasattr(plugin, action):
            raise AttributeError(f"Action {action} not found in plugin {plugin_id}")
        action_method = getattr(plugin, action)
        return action_method(*args, **kwargs)


class PluginRegistry:
    def __init__(self):
        self.plugins = {}
        self.metadata = {}
        self.plugin_states = {}

    def register_plugin(self, plugin_id, plugin_instance, metadata=None):
        self.plugins[plugin_id] = plugin_instance
        self.metadata[plugin_id] = metadata
        self.plugin_states[plugin_id] = "registered"

    def unregister_plugin(self, plugin_id):
        if plugin_id not in self.plugins:
            raise PluginNotFoundError(f"Plugin '{plugin_id}' is not registered")
        for table in (self.plugins, self.metadata, self.plugin_states):
            del table[plugin_id]

    def get_plugin(self, plugin_id):
        if plugin_id not in self.plugins:
            raise PluginNotFoundError(f"Plugin '{plugin_id}' is not registered")
        return self.plugins[plugin_id]

    def get_metadata(self, plugin_id):
        if plugin_id not in self.metadata:
            raise PluginNotFoundError(f"Plugin '{plugin_id}' is not registered")
        return self.metadata[plugin_id]


class PluginDiscovery(_Folders):
    NAMES = ("manifest.json", "plugin.json")
    REQUIRED = ("id", "name", "version", "description", "main_module", "class_name")

    def __init__(self):
        self.discovered_plugins = {}
        self.plugin_paths = {}

    def discover_plugins(self, plugin_dirs):
        for plugin_id, metadata, path, _ in self.found_in(plugin_dirs):
            self.discovered_plugins[plugin_id] = metadata
            self.plugin_paths[plugin_id] = path
        return self.discovered_plugins


class PluginSystem:
    INTERFACE = ("initialize", "get_metadata", "get_actions", "execute_action", "shutdown")

    def __init__(self, plugin_dirs=None):
        self.plugin_dirs = plugin_dirs or []
        self.registry = PluginRegistry()
        self.discovery = PluginDiscovery()
        self.loaded_plugins = set()
        self.classes = {}

    def register(self, metadata, plugin_class, path="/nonexistent"):
        self.discovery.discovered_plugins[metadata["id"]] = metadata
        self.discovery.plugin_paths[metadata["id"]] = str(path)
        self.classes[metadata["id"]] = plugin_class

    def discover_plugins(self):
        return self.discovery.discover_plugins(self.plugin_dirs)

    def load_plugin(self, plugin_id):
        try:
            return self.registry.get_plugin(plugin_id)
        except PluginNotFoundError:
            pass
        if plugin_id not in self.discovery.discovered_plugins:
            raise PluginInitializationError(f"Failed to load plugin {plugin_id}")
        metadata = self.discovery.discovered_plugins[plugin_id]
        plugin_class = self.classes.get(plugin_id)
        if plugin_class is None:
            path = self.discovery.plugin_paths[plugin_id]
            plugin_class = getattr(
                module_of(path, metadata["main_module"]), metadata["class_name"]
            )
        taken = inspect.signature(plugin_class.__init__).parameters
        known = {
            "plugin_id": metadata["id"],
            "plugin_name": metadata["name"],
            "version": metadata["version"],
            "description": metadata["description"],
            "config": metadata.get("config", {}),
        }
        instance = plugin_class(**{k: v for k, v in known.items() if k in taken})
        missing = [name for name in self.INTERFACE if not callable(getattr(instance, name, 0))]
        if missing:
            raise PluginInitializationError(f"missing: {', '.join(missing)}")
        self.registry.register_plugin(plugin_id, instance, metadata)
        self.loaded_plugins.add(plugin_id)
        instance.initialize()
        return instance

    def get_plugin(self, plugin_id):
        try:
            return self.registry.get_plugin(plugin_id)
        except PluginNotFoundError:
            return self.load_plugin(plugin_id)

    def get_plugin_metadata(self, plugin_id):
        try:
            return self.registry.get_metadata(plugin_id)
        except PluginNotFoundError:
            found = self.discovery.discovered_plugins.get(plugin_id)
            if found is None:
                raise PluginNotFoundError(f"Plugin {plugin_id} not found") from None
            return found

    def execute_plugin_action(self, plugin_id: str, action: str, *args, **kwargs):
        plugin = self.get_plugin(plugin_id)
        if not hasattr(plugin, action) or not callable(getattr(plugin, action)):
            raise AttributeError(f"Action '{action}' not found in plugin '{plugin_id}'")
        action_method = getattr(plugin, action)
        return action_method(*args, **kwargs)

    def reload_plugin(self, plugin_id: str):
        if plugin_id not in self.loaded_plugins:
            raise PluginNotFoundError(f"Plugin '{plugin_id}' is not loaded")
        self.unload_plugin(plugin_id)
        return self.load_plugin(plugin_id)

    def unload_plugin(self, plugin_id: str) -> None:
        if plugin_id not in self.loaded_plugins:
            raise PluginNotFoundError(f"Plugin '{plugin_id}' is not loaded")
        self.registry.get_plugin(plugin_id).shutdown()
        self.registry.unregister_plugin(plugin_id)
        self.loaded_plugins.remove(plugin_id)


class PluginMarketplaceSystem:
    """Installs and removes; its own ``manager`` invokes nothing."""

    def __init__(self, plugin_directory):
        self.plugin_directory = plugin_directory
        self.manager = SimpleNamespace(installed_plugins={})

    def disable_plugin(self, plugin_id: str) -> bool:
        return plugin_id in self.manager.installed_plugins

    def uninstall_plugin(self, plugin_id: str) -> bool:
        shutil.rmtree(os.path.join(self.plugin_directory, plugin_id))
        self.manager.installed_plugins.pop(plugin_id, None)
        return True
