"""A plugin's folder is read through the links of a volume, and not out of it."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from apex_creds.errors import UnsafePathError
from apex_creds.integrations.plugin_metadata import files, load_metadata, tree_digest

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX links")

CONTENT = {"plugin.json": '{"id": "w"}', "main.py": "x = 1\n", "lib/part.py": "y = 2\n"}


def mount(volume: Path, stamp: str, content: dict[str, str] = CONTENT) -> None:
    """Writes, or refreshes, a ConfigMap's volume as the kubelet does."""
    data = volume / f"..{stamp}"
    for name, text in content.items():
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        (data / name).write_text(text)
    before = (volume / "..data").readlink() if (volume / "..data").is_symlink() else None
    (volume / "..data_tmp").symlink_to(data.name)
    (volume / "..data_tmp").rename(volume / "..data")
    for name in {name.split("/")[0] for name in content}:
        if not (volume / name).is_symlink():
            (volume / name).symlink_to(f"..data/{name}")
    if before is not None:
        shutil.rmtree(volume / before)


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    made = tmp_path / "mounted"
    made.mkdir()
    mount(made, "2026_01_02_03_04_05.1")
    return made


def plain(tmp_path: Path) -> Path:
    for name, text in CONTENT.items():
        (tmp_path / "plain" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "plain" / name).write_text(text)
    return tmp_path / "plain"


def test_a_volume_is_the_files_that_it_shows(volume: Path, tmp_path: Path) -> None:
    assert [name for name, _ in sorted(files(volume))] == sorted(CONTENT)
    assert tree_digest(volume) == tree_digest(plain(tmp_path))
    assert load_metadata(volume) == {"id": "w"}


def test_a_refresh_that_changes_nothing_changes_nothing(volume: Path) -> None:
    before = tree_digest(volume)
    mount(volume, "2027_01_02_03_04_05.2")
    assert tree_digest(volume) == before
    mount(volume, "2028_01_02_03_04_05.3", {**CONTENT, "main.py": "x = 2\n"})
    assert tree_digest(volume) != before


def test_what_is_left_of_an_interrupted_refresh_is_not_seen(volume: Path) -> None:
    before = tree_digest(volume)
    (volume / "..2025_01_01_00_00_00.9").mkdir()
    (volume / "..2025_01_01_00_00_00.9" / "main.py").write_text("old")
    (volume / "..data_tmp").symlink_to("..2025_01_01_00_00_00.9")
    assert tree_digest(volume) == before


def test_without_a_volume_such_names_are_seen(tmp_path: Path) -> None:
    folder = plain(tmp_path)
    before = tree_digest(folder)
    (folder / "..hidden").mkdir()
    (folder / "..hidden" / "more.py").write_text("")
    assert tree_digest(folder) != before


@pytest.mark.parametrize(
    "place", ["main.py", "lib/part.py", "more.py", "plugin.json", "..data/main.py"]
)
@pytest.mark.parametrize("target", ["/etc/passwd", "../../outside", "/"])
def test_a_link_that_leaves_the_folder_is_refused(volume: Path, place, target) -> None:
    (volume.parent / "outside").write_text("{}")
    (volume / place).unlink(missing_ok=True)
    (volume / place).symlink_to(target)
    with pytest.raises(UnsafePathError) as caught:
        load_metadata(volume) if place == "plugin.json" else tree_digest(volume)
    assert caught.value.hint


def test_a_neighbour_whose_name_begins_like_the_folder_is_outside(volume: Path) -> None:
    (volume.parent / "mounted-too").write_text("")
    (volume / "more.py").symlink_to("../mounted-too")
    with pytest.raises(UnsafePathError):
        tree_digest(volume)


@pytest.mark.parametrize("target", [".", "lib", "..data", "gone", "round"])
def test_circles_and_links_to_nothing_are_refused(volume: Path, target: str) -> None:
    (volume / "..data" / "lib" / "round").symlink_to(f"../{target}")
    if target == "round":
        (volume / "..data" / "round").symlink_to("lib/round")
    with pytest.raises(UnsafePathError):
        tree_digest(volume)


def test_a_folder_may_be_seen_twice(volume: Path) -> None:
    (volume / "again").symlink_to("..data/lib")
    assert "again/part.py" in dict(files(volume))
