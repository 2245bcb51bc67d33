"""Bytecode is left out of a checksum only where it is what Python makes of the source."""

from __future__ import annotations

import contextlib
import importlib.util
import marshal
import os
import subprocess
import sys
from importlib import _bootstrap_external as importing
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from apex_creds.errors import InvalidInputError
from apex_creds.integrations import bytecode
from apex_creds.integrations.plugin_metadata import UNREADABLE, tree_digest, verified

TAG = sys.implementation.cache_tag
GOOD = """
import os, sys
NAMES = {"a", "b", 3, 4.5, 2j, b"bytes", ..., None, True, 10**30, -(10**20), "é", "\\ud800"}
def run(x, *, y=(1, (2, "three")), **z):
    \"\"\"A docstring.\"\"\"
    assert x != "never"
    return [v for v in NAMES if v in {1, "two", (3, "drei")}] + [lambda: x]
class C[T] if False else object: ...
""".replace("class C[T] if False else object: ...", "class C: attr = run")
EVIL = GOOD.replace("A docstring.", "Another one.")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "weather"
    made.mkdir()
    (made / "main.py").write_text(GOOD, encoding="utf-8")
    (made / "plugin.json").write_text("{}")
    return made


def cache(folder: Path, name: str = f"main.{TAG}.pyc") -> Path:
    place = folder / "__pycache__" / name
    place.parent.mkdir(exist_ok=True)
    return place


def of(text: str) -> object:
    return compile(text, "main.py", "exec", dont_inherit=True)


def timestamped(folder: Path, code: object, *, late: int = 0) -> bytes:
    now = (folder / "main.py").stat()
    data = importing._code_to_timestamp_pyc(code, int(now.st_mtime) + late, now.st_size)
    return bytes(data)


@pytest.mark.parametrize("flags", [[], ["-O"], ["-OO"]])
def test_what_python_leaves_behind_changes_nothing(folder: Path, flags: list[str]) -> None:
    before = tree_digest(folder)
    program = [sys.executable, *flags, "-c", "import main; main.run(1)"]
    for seed in ("1", "2"):  # strings hash, and sets are ordered, differently
        env = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONDONTWRITEBYTECODE": ""}
        subprocess.run(program, cwd=folder, env=env, check=True)
        written = list((folder / "__pycache__").iterdir())
        assert len(written) == 1
        assert tree_digest(folder) == before
        written[0].unlink()


@pytest.mark.parametrize("kind", ["timestamp", "unchecked hash", "checked hash"])
def test_other_code_under_a_header_that_fits_is_refused(folder: Path, kind: str) -> None:
    good = tree_digest(folder)
    hashed = importlib.util.source_hash((folder / "main.py").read_bytes())
    for text, right in ((EVIL, False), (GOOD, True)):
        if kind == "timestamp":
            data = timestamped(folder, of(text))
        else:
            data = importing._code_to_hash_pyc(of(text), hashed, kind.startswith("checked"))
        cache(folder).write_bytes(data)
        found = verified(folder, {"checksum": {"algorithm": "sha256", "value": good}})
        assert found == (f"sha256:{good}" if right else UNREADABLE)
    cache(folder).write_bytes(data + b"more")
    with pytest.raises(InvalidInputError, match="not what Python makes") as caught:
        tree_digest(folder)
    assert "__pycache__" in (caught.value.hint or "")


def test_what_python_would_compile_again_is_left_out(folder: Path) -> None:
    good = tree_digest(folder)
    fitting = timestamped(folder, of(EVIL))
    for data in (
        b"",
        b"x",
        timestamped(folder, of(EVIL), late=1),
        b"\0\0\r\n" + fitting[4:],
        fitting[:4] + b"\x04\0\0\0" + fitting[8:],
    ):
        cache(folder).write_bytes(data)
        assert tree_digest(folder) == good


@pytest.mark.parametrize(
    ("name", "same"),
    [
        (f"main.{TAG}.opt-1.pyc", None),
        (f"main.{TAG}.opt-3.pyc", False),  # read under -OOO: not known what it is of
        (f"gone.{TAG}.pyc", None),
        (f"main.{TAG}.name.{TAG}.pyc", None),
        ("main.pyc", False),
        ("main.py", False),
        (f"main.{TAG}.so", False),
        ("main.cpython-27.pyc", True),
        (f"main.{TAG}-pytest-8.3.2.pyc", True),
        ("main.pypy310.opt-1.pyc", True),
    ],
)
def test_what_is_beside_it(folder: Path, name: str, same: bool | None) -> None:
    """What this Python reads must be of a source, what others read is left out."""
    good = tree_digest(folder)
    cache(folder, name).write_bytes(timestamped(folder, of(EVIL)))
    if same is None:
        with pytest.raises(InvalidInputError):
            tree_digest(folder)
    else:
        assert (tree_digest(folder) == good) is same


@pytest.mark.parametrize("name", ["helper.pyc", "main.pyo", "lib/x.pyc", "json.py", "main.so"])
def test_code_outside_of_a_cache_is_part_of_the_digest(folder: Path, name: str) -> None:
    good = tree_digest(folder)
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(importing._code_to_timestamp_pyc(of(EVIL)))
    assert tree_digest(folder) != good


def test_the_name_of_the_file_is_all_that_may_differ() -> None:
    def digest(code) -> bytes:
        return bytecode._digest(marshal.dumps(code))

    code = of(GOOD)
    assert digest(code) == digest(code.replace(co_filename="elsewhere.py"))
    assert digest(code) != digest(code.replace(co_stacksize=code.co_stacksize + 1))
    assert digest(code) != digest(code.replace(co_flags=code.co_flags ^ 1))
    assert digest(code) != digest(code.replace(co_firstlineno=99))
    assert digest(code) != digest(code.replace(co_consts=(*code.co_consts, 1)))
    one, true, float_one = (compile(t, "x", "exec") for t in ("x=1", "x=True", "x=1.0"))
    assert len({digest(one), digest(true), digest(float_one)}) == 3


def test_what_refers_to_itself_or_grows_without_end_is_refused_at_once() -> None:
    endless = b"\xa9\x01r\x00\x00\x00\x00"  # a tuple of itself
    deep = b")\x01" * 100_000 + b"N"
    huge = b"(\xff\xff\xff\xff"
    for data in (endless, deep, huge, b"s\xff\xff\xff\x7f", b"{0", b"?"):
        with pytest.raises((ValueError, RecursionError)):
            bytecode._digest(data)
    # Each level is the one below, twice: one digest for each, not one for each of 2^200.
    levels = b"".join(b"\xa9\x02" for _ in range(200)) + b"\xa9\x00"
    twice = levels + b"".join(b"r" + (200 - n).to_bytes(4, "little") for n in range(200))
    assert len(bytecode._digest(twice)) == 32


@given(st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_bit_of_the_code_can_be_changed(data: st.DataObject) -> None:
    """But for flags that say an object is referred to, and the file's name."""
    plain = marshal.dumps(of(GOOD))
    place = data.draw(st.integers(0, len(plain) - 1))
    bit = data.draw(st.integers(0, 7))
    changed = bytearray(plain)
    changed[place] ^= 1 << bit
    try:
        same = bytecode._digest(bytes(changed)) == bytecode._digest(plain)
    except (ValueError, RecursionError):
        return
    if same:
        with contextlib.suppress(ValueError, EOFError, TypeError):  # Python refuses it
            assert marshal.loads(bytes(changed)) == of(GOOD)
