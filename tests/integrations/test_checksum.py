"""A checksum that is stated passes only if it is that of the code."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import sys
import types

import pytest

from apex_creds.errors import UnsafePathError
from apex_creds.integrations.apexagent_plugins import folder_of
from apex_creds.integrations.plugin_metadata import Manifests, tree_digest, verified

CODE = b"class Plugin: ...\n"


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "weather"
    made.mkdir()
    (made / "main.py").write_bytes(CODE)
    (made / "plugin.json").write_text("{}")
    return made


def stated(value: str, algorithm: str = "sha256") -> dict[str, object]:
    return {"checksum": {"algorithm": algorithm, "value": value}}


def test_the_only_file_or_the_tree(folder):
    framed = b"main.py\0" + struct.pack(">Q", len(CODE)) + CODE
    tree = hashlib.sha256(framed).hexdigest()
    single = hashlib.sha256(CODE).hexdigest()
    assert tree_digest(folder) == tree
    assert verified(folder, stated(tree)) == f"sha256:{tree}"
    assert verified(folder, stated(single.upper())) == f"sha256:{tree}"
    (folder / "other.py").write_bytes(b"")
    assert verified(folder, stated(single)).startswith("unverified:sha256:")
    assert verified(folder, stated(tree)).startswith("unverified:sha256:")


@pytest.mark.parametrize("algorithm", ["SHA-256", "sha512", "SHA3-256", "blake2b"])
def test_spellings(folder, algorithm):
    name = algorithm.lower().replace("sha-", "sha").replace("sha3-", "sha3_")
    assert verified(folder, stated(tree_digest(folder, algorithm=name), algorithm)).startswith(
        f"{name}:"
    )


@pytest.mark.parametrize(
    "checksum", ["x", {}, {"algorithm": "md5", "value": "0"}, {"algorithm": 1, "value": 2}, []]
)
def test_what_is_malformed_never_passes(folder, checksum):
    assert verified(folder, {"checksum": checksum}).startswith("unverified:")


def test_nothing_stated_or_nowhere_to_look(folder):
    assert verified(folder, {}) == ""
    assert verified(folder, stated("")) == ""  # as ApexAgent's own examples leave it
    assert verified(folder, {"checksum": {"algorithm": "sha256"}}).startswith("unverified:")
    assert verified(None, stated("00")) == ""


def test_any_change_is_seen(folder):
    (folder / "sub").mkdir()
    (folder / "sub" / "data.txt").write_bytes(b"1")
    before = tree_digest(folder)
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__" / "main.cpython-311.pyc").write_bytes(b"x")
    (folder / "plugin.json").write_text('{"version": "2"}')
    assert tree_digest(folder) == before
    (folder / "sub" / "data.txt").rename(folder / "sub" / "data2.txt")
    assert tree_digest(folder) != before
    (folder / "sub" / "plugin.json").write_text("code of a sort")
    assert tree_digest(folder) != before


@pytest.mark.skipif(sys.platform == "win32", reason="no links, no pipes")
@pytest.mark.parametrize("what", ["link", "folder", "pipe"])
def test_links_and_special_files_do_not_match(folder, what):
    good = tree_digest(folder)
    if what == "pipe":
        os.mkfifo(folder / "p")
    else:
        (folder / "l").symlink_to("/etc/hostname" if what == "link" else "/")
    with pytest.raises(UnsafePathError) as caught:
        tree_digest(folder)
    assert "copy what is elsewhere into it" in (caught.value.hint or "")
    assert verified(folder, stated(good)) == "unverified:unreadable"


def test_where_a_plugin_is(folder, monkeypatch):
    nobody = types.SimpleNamespace()
    assert folder_of(nobody, "w", {"path": str(folder)}) == folder
    assert folder_of(nobody, "w", {"path": str(folder / "main.py")}) == folder
    assert folder_of(nobody, "w", {"path": str(folder.parent)}) is None
    paths = types.SimpleNamespace(plugin_paths={"w": str(folder)})
    assert folder_of(paths, "w", {}) == folder
    assert folder_of(types.SimpleNamespace(discovery=paths), "w", {}) == folder
    records = types.SimpleNamespace(plugin_metadata_registry={"w": {"path": str(folder)}})
    assert folder_of(records, "w", {}) == folder
    assert folder_of(records, "v", {}) is None
    module = types.ModuleType("weather_main")
    module.__file__ = str(folder / "main.py")
    monkeypatch.setitem(sys.modules, "weather_main", module)
    plugin = type("Plugin", (), {"__module__": "weather_main"})()
    assert folder_of(types.SimpleNamespace(plugins={"w": plugin}), "w", {}) == folder
    assert folder_of(types.SimpleNamespace(plugins={"w": object()}), "w", {}) is None


def test_a_checksum_that_can_be_compared_later_is_compared_then(folder):
    metadata = {"id": "w", "credentials": [{"name": "k"}], **stated("00")}
    manifests, places = Manifests(), [None, None, folder]

    def look(found):
        return verified(places.pop(0), found)

    first = manifests.find("w", metadata, checksum=look)
    assert first.checksum == ""
    assert manifests.unsure == {"w"}
    assert manifests.find("w", metadata, checksum=look) is first
    assert manifests.find("w", metadata, checksum=look).checksum.startswith("unverified:")
    assert manifests.unsure == set()
    assert manifests.find("w", json.loads(json.dumps(metadata)), checksum=look)
