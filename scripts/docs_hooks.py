"""Hooks of mkdocs: every page is in the navigation, those that are there only, and notebooks.

A page that nobody put into mkdocs.yml comes under "More", so that it can be found before
it has its place; one that mkdocs.yml names and that does not exist yet is passed over. The
notebooks are pages beside the one that lists them.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

sys.path.insert(0, str(Path(__file__).resolve().parent))

from docs_notebooks import page_of

Nav = list[Any]
"""As mkdocs has it: pages, or titles with pages or more of it."""

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"
LIST = "NOTEBOOKS.md"


def on_config(config: Any) -> Any:
    """Called by mkdocs with its configuration."""
    there = {path.name for path in Path(config.docs_dir).glob("*.md")}
    books = [f"notebooks/{path.stem}.md" for path in sorted(NOTEBOOKS.glob("*.ipynb"))]
    config.nav = complete(config.nav, there, books)
    return config


def on_files(files: Any, config: Any) -> Any:
    """Called by mkdocs with what it found; adds the notebooks."""
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        text, pictures = page_of(path)
        files.append(File.generated(config, f"notebooks/{path.stem}.md", content=text))
        for name, data in pictures.items():
            files.append(File.generated(config, f"notebooks/{name}", content=data))
    return files


def complete(nav: Nav, there: set[str], books: list[str] | None = None) -> Nav:
    """Returns ``nav`` with the pages that are there, each of them, and the notebooks."""
    kept = [entry for entry in (_kept(entry, there, books or []) for entry in nav) if entry]
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


def _kept(entry: dict[str, Any], there: set[str], books: list[str]) -> dict[str, Any]:
    ((title, target),) = entry.items()
    if isinstance(target, list):
        inside = [found for found in (_kept(one, there, books) for one in target) if found]
        return {title: inside} if inside else {}
    if target == LIST and books:
        return {title: [target, *books]}
    return {title: target} if target in there else {}
