"""Where a plugin's code is: its folder, and the name of what is called in it.

A function that is loaded in the host is found again by its file and name; ``plugin_function``
names one that the host should not even import.
"""

from __future__ import annotations

import functools
import inspect
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple, NoReturn

from apex_creds.errors import IsolationError
from apex_creds.isolation.frames import Target

_MOST_FILES: Final = 5000
_HINT: Final = (
    "Give a function or method that its module has by name, or "
    "apex_creds.isolation.plugin_function(folder, 'module:function')."
)


class Code(NamedTuple):
    """What is called behind the wall.

    Attributes:
        folder: What the wall shows of the plugin.
        target: What is called.
        bound: Arguments that come before those of the call.
        given: The same, by keyword.
    """

    folder: Path
    target: Target
    bound: tuple[object, ...] = ()
    given: dict[str, object] = {}  # noqa: RUF012 - never changed

    def stamp(self) -> tuple[object, ...]:
        """Another one as soon as a file of it is changed, added or taken away."""
        found: list[object] = []
        for place, folders, files in os.walk(self.folder):
            folders[:] = sorted(each for each in folders if each != "__pycache__")
            for name in sorted(files):
                path = os.path.join(place, name)
                try:
                    status = os.lstat(path)
                except OSError:
                    continue
                found.append((path, status.st_mtime_ns, status.st_size, status.st_ino))
                if len(found) > _MOST_FILES:
                    raise IsolationError(
                        f"{self.folder} has more than {_MOST_FILES} files: "
                        "it is not a plugin's folder.",
                        hint="Give the plugin a folder to itself.",
                    )
        return tuple(found)


class PluginFunction:
    """A function that only a worker imports; the middleware calls it, nobody else can."""

    def __init__(self, code: Code) -> None:
        self.code = code
        self.__name__ = code.target.method or code.target.name.rpartition(".")[2]

    def __call__(self, *_: object, **__: object) -> NoReturn:
        """Refused.

        Raises:
            IsolationError: Always.
        """
        raise IsolationError(
            "This function is called behind the wall only.",
            hint="Pass it to middleware.invoke of a middleware with isolation.",
        )


def plugin_function(folder: str | os.PathLike[str], name: str) -> PluginFunction:
    """What a plugin's folder has under a name, without importing it.

    Args:
        folder: The plugin's own; the wall shows nothing else of the file system.
        name: ``module:function`` or ``module:Class.method``; the module is a file in the
            folder, or a package in it, and an instance is made without arguments.
    """
    module, _, function = name.partition(":")
    if not module or not function or not all(map(str.isidentifier, function.split("."))):
        raise IsolationError(f"{name[:80]!r} names no function.", hint=_HINT)
    place = Path(os.path.realpath(folder))
    return PluginFunction(Code(place, Target(str(place), module, function)))


def code_of(function: Callable[..., object]) -> Code:
    """Where a callable of the host's is found again.

    Raises:
        IsolationError: It can't be found by a name.
    """
    bound: tuple[object, ...] = ()
    given: dict[str, object] = {}
    inner: Any = function
    while isinstance(inner, functools.partial):
        bound, given = (*inner.args, *bound), {**inner.keywords, **given}
        inner = inner.func
    if isinstance(inner, PluginFunction):
        return inner.code._replace(bound=bound, given=given)
    inner = inspect.unwrap(inner)
    plain = getattr(inner, "__func__", inner)
    name = getattr(plain, "__qualname__", "")
    module = sys.modules.get(getattr(plain, "__module__", None) or "")
    file = getattr(module, "__file__", None)
    if not name or "<" in name or not isinstance(file, str):
        raise IsolationError("This function can't be found behind the wall.", hint=_HINT)
    owner = getattr(inner, "__self__", None)
    if owner is not None and not inspect.isclass(owner) and not inspect.ismodule(owner):
        name = f"{type(owner).__qualname__}.{plain.__name__}"
    folder, root, dotted = _place(os.path.realpath(file))
    return Code(folder, Target(str(root), dotted, name), bound, given)


def _place(file: str) -> tuple[Path, Path, str]:
    """The folder to show, where its module is imported from, and under which name."""
    path = Path(file)
    names = [] if path.stem == "__init__" else [path.stem]
    folder = path.parent
    while (folder / "__init__.py").is_file():
        names.insert(0, folder.name)
        folder = folder.parent
    shown = folder / names[0] if len(names) > 1 else path.parent
    return shown, folder, ".".join(names)
