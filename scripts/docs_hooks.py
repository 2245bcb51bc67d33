"""Hooks of mkdocs: every page of docs/ is in the navigation, those that are there only.

A page that nobody put into mkdocs.yml comes under "More", so that it can be found before
it has its place; one that mkdocs.yml names and that does not exist yet is passed over.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

Nav = list[Any]
"""As mkdocs has it: pages, or titles with pages or more of it."""


def on_config(config: Any) -> Any:
    """Called by mkdocs with its configuration."""
    there = {path.name for path in Path(config.docs_dir).glob("*.md")}
    config.nav = complete(config.nav, there)
    return config


def complete(nav: Nav, there: set[str]) -> Nav:
    """Returns ``nav`` with the pages that are there, each of them."""
    kept = [entry for entry in (_kept(entry, there) for entry in nav) if entry]
    more = sorted(there - set(pages(kept)))
    return [*kept, {"More": more}] if more else kept


def pages(nav: Nav) -> list[str]:
    """Returns the pages that ``nav`` names, in order."""
    found: list[str] = []
    for entry in nav:
        targets = [entry] if isinstance(entry, str) else entry.values()
        for target in targets:
            found += [target] if isinstance(target, str) else pages(target)
    return found


def _kept(entry: dict[str, Any], there: set[str]) -> dict[str, Any]:
    ((title, target),) = entry.items()
    if isinstance(target, str):
        return {title: target} if target in there else {}
    inside = [found for found in (_kept(one, there) for one in target) if found]
    return {title: inside} if inside else {}
