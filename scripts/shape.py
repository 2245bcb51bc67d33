"""The shape of the package in numbers: files, lines, circles, functions that are used once.

    python scripts/shape.py [--json] [--list]

Counts ``apex_creds/`` of this clone; ``--list`` names what was counted. Nothing is imported:
only the source is read, so that it runs on any commit.
"""

from __future__ import annotations

import argparse
import ast
import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]
PACKAGE: Final = "apex_creds"
SMALL: Final = 100
"""A file below this many lines is a small one."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


def modules() -> dict[str, Path]:
    """Every module by its dotted name."""
    found = {}
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(name: str, path: Path, known: set[str]) -> set[str]:
    """The modules of the package that one imports: late and type-checking imports, too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in known else node.module)
    return (found & known) - {name}


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """The groups of modules that import each other in a circle (Tarjan's algorithm)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in sorted(graph[name]):
            if other not in index:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], index[other])
        if low[name] == index[name]:
            cut = stack.index(name)
            if len(stack) - cut > 1:
                found.append(sorted(stack[cut:]))
            del stack[cut:]

    for name in sorted(graph):
        if name not in index:
            visit(name)
    return found


def functions(tree: ast.AST) -> Iterator[Function]:
    """Every function and method."""
    return (node for node in ast.walk(tree) if isinstance(node, Function))


def used_once(tree: ast.AST) -> list[str]:
    """Private functions that their module names once beside their definition."""
    names: Counter[str] = Counter()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            names[node.id] += 1
        elif isinstance(node, ast.Attribute):
            names[node.attr] += 1
    private = [f.name for f in functions(tree) if f.name.startswith("_") and f.name[1:2] != "_"]
    return [name for name in private if names[name] == 1]


def measured() -> dict[str, object]:
    """All numbers, and what stands behind them."""
    found = modules()
    lines = {name: path.read_text(encoding="utf-8").count("\n") for name, path in found.items()}
    graph = {name: imports(name, path, set(found)) for name, path in found.items()}
    once: dict[str, list[str]] = {}
    count = 0
    for name, path in found.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        count += len(list(functions(tree)))
        once[name] = used_once(tree)
    places: defaultdict[str, list[str]] = defaultdict(list)
    for name, path in found.items():
        if path.name not in ("__init__.py", "__main__.py", "base.py"):
            places[path.name].append(name)
    single = [f"{name}: {function}" for name, each in once.items() for function in each]
    return {
        "files": len(found),
        "files that are no package faces": sum(p.name != "__init__.py" for p in found.values()),
        "lines": sum(lines.values()),
        "functions": count,
        "private functions named once": single,
        "private functions named once, percent": round(100 * len(single) / count, 1),
        f"files under {SMALL} lines": [
            name
            for name, size in lines.items()
            if size < SMALL and found[name].name != "__init__.py"
        ],
        "file names in two folders": sorted(n for n, all_ in places.items() if len(all_) > 1),
        "import circles": [" ".join(each) for each in circles(graph)],
    }


def main() -> None:
    """Prints them."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="as JSON, with all names")
    parser.add_argument("--list", action="store_true", help="name what was counted")
    options = parser.parse_args()
    numbers = measured()
    if options.json:
        print(json.dumps(numbers, indent=1))
        return
    for what, value in numbers.items():
        print(f"{what:40} {len(value) if isinstance(value, list) else value}")
        if options.list and isinstance(value, list):
            print("".join(f"    {each}\n" for each in value), end="")


if __name__ == "__main__":
    main()
