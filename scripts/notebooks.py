"""Runs notebooks/, to keep their outputs or to compare them: ``run`` or ``check`` [NAME ...].

Guarantee: each runs in a fresh kernel, in an empty folder that is also HOME, with no setting
of the user's. What two runs print is the same, but for cells with the tag ``varies`` (times,
and plots of times), of which only the kind of each output is compared; pictures are compared
by being there. Nothing in a notebook tells when or where it was run.
"""

from __future__ import annotations

import difflib
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

FOLDER: Final = Path(__file__).resolve().parents[1] / "notebooks"
_ADDRESS: Final = re.compile(r"0x[0-9a-f]{6,}")
_OWN: Final = ("APEX_CREDS_", "XDG_", "OTEL_", "PYTHON_KEYRING_", "JUPYTER", "IPYTHON")


def execute(path: Path) -> Any:
    """Returns the notebook as it is after a run.

    Raises:
        CellExecutionError: A cell failed.
    """
    book = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory(prefix="notebook-") as name:
        client = NotebookClient(
            book,
            timeout=None,  # no cell has one: who runs this ends what hangs
            kernel_name="python3",
            record_timing=False,
            coalesce_streams=True,
            resources={"metadata": {"path": name}},
        )
        client.create_kernel_manager()
        client.km.transport = "ipc" if os.name == "posix" else "tcp"
        client.km.ip = str(Path(name) / ".kernel") if os.name == "posix" else "127.0.0.1"
        client.execute(env=_environment(name))
    return tidy(book)


def _environment(home: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(_OWN)}
    kept.pop("DBUS_SESSION_BUS_ADDRESS", None)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    plain = {"NO_COLOR": "1", "COLUMNS": "100", "LANG": "C.UTF-8", "TZ": "UTC"}
    places = {"HOME": home, "USERPROFILE": home, "TMPDIR": home, "TEMP": home, "TMP": home}
    return {**kept, **plain, **places, "PATH": path}


def tidy(book: Any) -> Any:
    """Returns ``book`` without what differs between machines and runs."""
    book.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for number, cell in enumerate(book.cells, start=1):
        cell.id = f"cell-{number}"
        cell.metadata = {k: v for k, v in cell.metadata.items() if k == "tags"}
        if cell.cell_type == "code":
            cell.outputs = [_tidied(output) for output in cell.outputs]
    return book


def _tidied(output: Any) -> Any:
    if "text" in output:
        output.text = _ADDRESS.sub("0x…", output.text)
    output.get("metadata", {}).clear()
    return output


def differences(kept: Any, found: Any) -> list[str]:
    """Returns what a run printed otherwise than what is kept."""
    if len(kept.cells) != len(found.cells):
        return ["the number of cells"]
    pairs = zip(kept.cells, found.cells, strict=True)
    both = [(old.id, promised(old), promised(new)) for old, new in pairs]
    return [
        "\n".join(difflib.unified_diff(old, new, f"{name} kept", f"{name} found", lineterm=""))
        for name, old, new in both
        if old != new
    ]


def promised(cell: Any) -> list[str]:
    """Returns what a cell promises of its outputs, in lines."""
    exact = "varies" not in cell.metadata.get("tags", ())
    return [line for output in cell.get("outputs", ()) for line in _shown(output, exact=exact)]


def _shown(output: Any, *, exact: bool) -> list[str]:
    data = output.get("data", {})
    kind = f"{output.output_type}: {' '.join(sorted(data))}"
    if not exact or "image/png" in data:
        return [kind]
    text = data.get("text/markdown") or data.get("text/plain") or output.get("text", "")
    return [kind, *text.splitlines()]


def main(arguments: list[str]) -> int:
    """See the module."""
    if not arguments or arguments[0] not in ("run", "check"):
        sys.stderr.write(f"usage: {sys.argv[0]} run|check [NOTEBOOK ...]\n")
        return 2
    named = [Path(each) for each in arguments[1:]] or sorted(FOLDER.glob("*.ipynb"))
    return max((_one(path, keep=arguments[0] == "run") for path in named), default=2)


def _one(path: Path, *, keep: bool) -> int:
    try:
        found = execute(path)
    except CellExecutionError as error:
        print(f"{path.name}: {error}")
        return 1
    wrong = [] if keep else differences(nbformat.read(path, as_version=4), found)
    if keep:
        path.write_text(nbformat.writes(found, indent=1) + "\n", encoding="utf-8")
    print("\n".join([f"{path.name}: {'is otherwise than it was' if wrong else 'ok'}", *wrong]))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
