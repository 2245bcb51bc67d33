"""What can't be shown is not what can't be done: encodings, full disks, closed streams."""

from __future__ import annotations

import os
import subprocess

import pytest

from tests.support.commands import PROGRAM

pytestmark = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
NAME = "Kundenportal \u0141\u00f3d\u017a"


def run(cli, *arguments, redirected="", stdin=b"", **env):
    command = [*PROGRAM, "--home", str(cli.home), *arguments]
    return subprocess.run(
        ["sh", "-c", f'exec "$@" {redirected}', "sh", *command],
        input=stdin, capture_output=True, env={**os.environ, "PYTHONUTF8": "0", **env},
    )  # fmt: skip


@pytest.mark.parametrize(
    "encoding",
    [
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("cp1252", "latin-1", "utf-8")
        ),
        "ascii",
    ],
)
def test_every_encoding_shows_every_name(cli, encoding):
    stored = run(cli, "set", NAME, stdin=b"sk-made-up-1234", PYTHONIOENCODING=encoding)
    assert stored.returncode == 0, stored.stderr
    for command in (["list"], ["show", NAME], ["audit", "tail", "--names"], ["status"]):
        done = run(cli, *command, PYTHONIOENCODING=encoding)
        assert done.returncode == 0, done.stderr
        assert (b"\\u0141" in done.stdout) is (encoding != "utf-8" and command != ["status"])
    assert run(cli, "rm", NAME, "--yes", PYTHONIOENCODING=encoding).returncode == 0
    assert cli("show", NAME).code == 8


def test_a_full_disk_under_the_output_is_told_apart(cli):
    done = run(cli, "set", "openai", redirected=">/dev/full", stdin=b"sk-made-up-1234")
    assert done.returncode == 74
    assert b"What was done is done" in done.stderr
    assert b"Traceback" not in done.stderr
    assert cli("show", "openai").code == 0


@pytest.mark.parametrize("redirected", [">&-", "2>/dev/full", "2>&-", ">&- 2>&-", "<&-"])
def test_what_nobody_sees_is_done(cli, redirected):
    cli("set", "openai", stdin=b"sk-made-up-1234")
    assert run(cli, "list", redirected=redirected).returncode == 0
    assert run(cli, "show", "nothing", redirected=redirected).returncode == 8


def test_a_closed_standard_input_has_nothing(cli):
    for command in (["set", "openai"], ["rm", "openai"], ["set", "k", "--kind", "generic"]):
        done = run(cli, *command, redirected="<&-")
        assert done.returncode in (7, 8), done.stderr
