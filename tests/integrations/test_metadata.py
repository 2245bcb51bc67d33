"""Metadata files are read strictly; manifests follow the metadata that they came from."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apex_creds import parse_manifest
from apex_creds.errors import InvalidManifestError, UnsafePathError
from apex_creds.integrations.apexagent import load_metadata
from apex_creds.integrations.plugin_metadata import MAX_METADATA_BYTES, Manifests
from tests.support import apexagent_builds as builds

GOOD = builds.metadata("demo", "openai")


def put(folder: Path, text: str | bytes, name: str = "plugin.json") -> Path:
    data = text.encode() if isinstance(text, str) else text
    (folder / name).write_bytes(data)
    return folder


class TestLoading:
    @pytest.mark.parametrize("name", ["plugin.json", "metadata.json"])
    def test_either_file_is_read(self, tmp_path: Path, name: str) -> None:
        loaded = load_metadata(str(put(tmp_path, json.dumps(GOOD), name)))
        assert loaded == GOOD
        assert parse_manifest(loaded).need("openai")

    def test_plugin_json_comes_first(self, tmp_path: Path) -> None:
        put(tmp_path, '{"id": "second"}', "metadata.json")
        assert load_metadata(put(tmp_path, '{"id": "first"}'))["id"] == "first"

    def test_a_bad_first_one_is_not_passed_over(self, tmp_path: Path) -> None:
        put(tmp_path, '{"id": "second"}', "metadata.json")
        with pytest.raises(InvalidManifestError):
            load_metadata(put(tmp_path, "{"))

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "[]",
            "null",
            '"text"',
            '{"id": "a", "id": "b"}',
            '{"id": "a", "nested": {"x": 1, "x": 2}}',
            '{"n": NaN}',
            '{"n": Infinity}',
            '{"id": "a"} trailing',
            b'{"id": "\xff"}',
            b'\xef\xbb\xbf{"id": "a"}',
            '{"x": ' + "[" * 100_000 + "]" * 100_000 + "}",
            '{"n": ' + "9" * 5000 + "}",
            '{"x": "' + "a" * MAX_METADATA_BYTES + '"}',
        ],
    )
    def test_what_is_not_strict_is_refused(self, tmp_path: Path, text) -> None:
        with pytest.raises(InvalidManifestError):
            load_metadata(put(tmp_path, text))

    def test_the_largest_file_is_read(self, tmp_path: Path) -> None:
        text = json.dumps({"x": "a" * (MAX_METADATA_BYTES - len('{"x": ""}'))})
        assert len(text) == MAX_METADATA_BYTES
        assert load_metadata(put(tmp_path, text))

    def test_a_folder_without_is_said_to_be_so(self, tmp_path: Path) -> None:
        for folder in (tmp_path, tmp_path / "missing", put(tmp_path, "{}", "f") / "f"):
            with pytest.raises(InvalidManifestError, match="no plugin metadata"):
                load_metadata(folder)

    @pytest.mark.skipif(sys.platform == "win32", reason="POSIX file kinds")
    def test_a_link_a_folder_and_a_fifo_are_refused(self, tmp_path: Path) -> None:
        outside = put(tmp_path, json.dumps(GOOD), "outside.json") / "outside.json"
        for number, make in enumerate(
            (
                lambda p: p.symlink_to(outside),
                lambda p: p.symlink_to("gone"),
                Path.mkdir,
                os.mkfifo,
            )
        ):
            folder = tmp_path / str(number)
            folder.mkdir()
            make(folder / "plugin.json")
            with pytest.raises(UnsafePathError):
                load_metadata(folder)

    @given(st.binary(max_size=200))
    def test_any_bytes_are_read_or_refused(self, data: bytes) -> None:
        import tempfile

        with tempfile.TemporaryDirectory() as folder:
            put(Path(folder), data)
            with contextlib.suppress(InvalidManifestError):
                assert isinstance(load_metadata(folder), dict)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=5) | st.floats(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=8,
)


class TestManifests:
    def test_the_same_content_is_parsed_once(self) -> None:
        manifests = Manifests()
        first = manifests.find("demo", GOOD)
        assert manifests.find("demo", {"metadata": json.loads(json.dumps(GOOD))}) is first

    @pytest.mark.parametrize("record", [None, 1, [], {}, {"id": "demo"}, {"metadata": {}}])
    def test_nothing_known_is_nothing_declared(self, record) -> None:
        assert Manifests().find("demo", record).needs == ()

    def test_a_type_that_equals_another_is_a_change(self) -> None:
        manifests = Manifests()
        entry = {"name": "openai", "required": True}
        manifests.find("demo", {"id": "demo", "credentials": [entry]})
        entry["required"] = 1
        with pytest.raises(InvalidManifestError):
            manifests.find("demo", {"id": "demo", "credentials": [entry]})

    def test_a_deep_or_endless_one_is_refused(self) -> None:
        endless: list = []
        endless.append(endless)
        with pytest.raises(InvalidManifestError):
            Manifests().find("demo", {"id": "demo", "credentials": endless})

    @given(_JSON, _JSON)
    def test_it_is_always_as_if_read_anew(self, first: object, second: object) -> None:
        manifests = Manifests()
        for credentials in (first, second, first):
            record = {"id": "demo", "credentials": credentials}
            assert _outcome(manifests, record) == _outcome(Manifests(), record)


def _outcome(manifests: Manifests, record: dict) -> object:
    try:
        return manifests.find("demo", record)
    except InvalidManifestError as error:
        return str(error)
