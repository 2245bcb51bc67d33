"""import FILE.env: names and reasons, never values."""

from __future__ import annotations

import json

import pytest

from apex_creds.cli.import_export import read_plan

FILE = """\
# a comment
export PLAIN=plain-value-1
QUOTED="quoted \\"value\\" 2"   # comment
SINGLE='single # value 3'
EMPTY=
BARE
REFERS=${HOME}/value-4
this is not it at all
TWICE=first-value-5
TWICE=second-value-6
"""


def test_the_grammar():
    plan = read_plan(FILE.encode())
    values = {name: item.secret.parts["value"].decode() for name, item in plan.items.items()}
    assert values == {
        "PLAIN": "plain-value-1",
        "QUOTED": 'quoted "value" 2',
        "SINGLE": "single # value 3",
        "TWICE": "second-value-6",
    }
    assert [name for name, _ in plan.skipped] == ["EMPTY", "BARE", "REFERS", "line 8", "TWICE"]


def test_import_reports_names_and_no_values(cli, tmp_path):
    path = tmp_path / "x.env"
    path.write_text(FILE)
    path.chmod(0o644)
    done = cli("import", str(path), "--origin", "https://a.example")
    assert done.code == 1
    assert "4 imported, 5 skipped" in done.out
    assert "Other users can read" in done.err
    for text in (done.out, done.err, cli("import", str(path), "--json").out):
        assert "value" not in text.replace("no value", "").replace("a value", "").replace(
            "earlier value", ""
        )
    assert cli("get", "PLAIN", "--reveal", "--force").out == "plain-value-1"
    assert cli("show", "PLAIN", "--json").json()["origins"] == ["https://a.example"]


def test_what_is_there_stays_unless_told(cli):
    cli("import", "-", stdin=b"A=one\nB=two\n")
    done = cli("import", "-", "--json", stdin=b"A=three\nC=x\n")
    assert json.loads(done.out)["imported"] == ["C"]
    assert json.loads(done.out)["skipped"][0]["name"] == "A"
    assert cli("get", "A", "--reveal", "--force").out == "one"
    cli("import", "-", "--replace", stdin=b"A=three\n")
    assert cli("get", "A", "--reveal", "--force").out == "three"


def test_another_kind_is_not_replaced(cli):
    cli("set", "A", "--kind", "basic", stdin=b"u\np\n")
    done = cli("import", "-", "--replace", "--json", stdin=b"A=x\n")
    assert done.json()["imported"] == []
    assert cli("show", "A", "--json").json()["kind"] == "basic"


def test_names_that_can_not_be(cli, error):
    done = cli("import", "-", stdin="A\u202eB=value-1\n'Ä'=v\n".encode())
    assert done.code == 1
    assert (done.out + done.err).replace("\n", "").isprintable()


def test_files_that_can_not_be_read(error, tmp_path):
    error(6, "import", str(tmp_path / "absent"))
    error(6, "import", str(tmp_path))
    (tmp_path / "latin").write_bytes(b"A=\xff\n")
    error(7, "import", str(tmp_path / "latin"))
    (tmp_path / "large").write_bytes(b"#" * (1024 * 1024 + 1))
    error(7, "import", str(tmp_path / "large"))


def test_each_may_have_an_origin_of_its_own(cli, error):
    where = ("--origin", "https://a.example", "--origin", "B=https://b.example")
    assert cli("import", "-", *where, stdin=b"A=value-1\nB=value-2\n").code == 0
    assert cli("show", "A", "--json").json()["origins"] == ["https://a.example"]
    assert cli("show", "B", "--json").json()["origins"] == ["https://b.example"]
    assert "C" in error(7, "import", "-", "--origin", "C=https://c.example", stdin=b"A=1\n")


@pytest.mark.parametrize("value", ["\"'sk-1'\"", "sk\u200b-1", '"sk-1\\nsk-2"'])
def test_what_is_hardly_a_key_is_left_out(cli, value):
    done = cli("import", "-", "--json", stdin=f"A={value}\n".encode())
    assert done.code == 1
    assert [one["name"] for one in done.json()["skipped"]] == ["A"]
    assert "generic" in done.json()["skipped"][0]["reason"]
