"""Notebooks as pages of the site: text, code and outputs as they are committed."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PICTURE = "image/png"


def page_of(path: Path) -> tuple[str, dict[str, bytes]]:
    """Returns a notebook as Markdown, and the pictures that it refers to, by name."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    pictures: dict[str, bytes] = {}
    parts = [part for cell in cells for part in _cell(cell, path.stem, pictures)]
    return "\n\n".join(parts) + "\n", pictures


def _cell(cell: dict[str, Any], stem: str, pictures: dict[str, bytes]) -> Iterator[str]:
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        yield _links(source)
        return
    shell, _, rest = source.partition("\n")
    bash = shell.startswith("%%bash")
    yield _fence("bash" if bash else "python", rest if bash else source)
    for output in cell["outputs"]:
        yield _output(output, stem, pictures)


def _output(output: dict[str, Any], stem: str, pictures: dict[str, bytes]) -> str:
    data = {kind: "".join(text) for kind, text in output.get("data", {}).items()}
    if PICTURE in data:
        name = f"{stem}-{len(pictures) + 1}.png"
        pictures[name] = base64.b64decode(data[PICTURE])
        return f"![A plot of what was just run; the text around says what to see]({name})"
    if "text/markdown" in data:
        return _framed(data["text/markdown"])
    table = re.search(r"<table.*?</table>", data.get("text/html", ""), re.DOTALL)
    if table is not None:
        return f'<div class="output">{table[0]}</div>'
    return _framed(_fence("text", "".join(output.get("text", "")) or data["text/plain"]))


def _framed(text: str) -> str:
    return f'<div class="output" markdown>\n\n{text}\n\n</div>'


def _fence(language: str, text: str) -> str:
    return f"```{language}\n{text.rstrip()}\n```"


def _links(text: str) -> str:
    """Links as they hold in the site: pages are one folder up, notebooks are pages."""
    text = text.replace("](../docs/", "](../")
    return re.sub(r"\]\((\w+)\.ipynb\)", r"](\1.md)", text)
