"""The project keeps its word: its API, its pages, its shape, and where it can be imported."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest

import apex_creds
from tests.support import snippets

ROOT = Path(__file__).resolve().parents[1]
TESTS = ROOT / "tests"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MODULES = sorted((ROOT / "apex_creds").rglob("*.py"))

# What `import apex_creds` promises. To add a name here is to keep it for good.
PUBLIC: list[str] = [
    "AccessDeniedError",
    "ApexCredsError",
    "ApiKey",
    "AwsKey",
    "BasicAuth",
    "CredentialHandle",
    "CredentialInfo",
    "CredentialKind",
    "CredentialMap",
    "CredentialMiddleware",
    "Deletion",
    "GenericSecret",
    "Grant",
    "Manifest",
    "OAuthToken",
    "OnLeak",
    "OnOpaque",
    "SecretBytes",
    "Vault",
    "acting_for",
    "current_credentials",
    "harden_process",
    "parse_manifest",
]


def test_the_public_names_are_these() -> None:
    assert sorted(getattr(apex_creds, "__all__", [])) == PUBLIC


def test_public_names_are_few_and_documented() -> None:
    assert len(PUBLIC) <= 25
    for name in PUBLIC:
        assert getattr(apex_creds, name).__doc__, name


def test_the_distribution_has_the_version_of_the_changelog_or_is_unreleased() -> None:
    version = importlib.metadata.version("apex-creds")
    assert version == apex_creds.__version__
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## [{version}]" in changelog or "## [Unreleased]" in changelog


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_is_at_most_900_lines_and_says_what_it_is(module: Path) -> None:
    text = module.read_text(encoding="utf-8")
    assert text.count("\n") <= 900
    assert text.startswith(('"""', 'r"""')), "no module docstring"


# Run in a process of its own: takes away what Windows and macOS lack, from this package's
# imports only (the dependencies have guards of their own, and are imported before).
_ELSEWHERE = """
import builtins, importlib, mmap, os, pkgutil, sys
import aiofiles, anyio, apscheduler, cryptography.hazmat.primitives.ciphers.aead, filelock
import httpx, keyring.backends, msgspec, nacl.bindings, opentelemetry.trace
import opentelemetry.sdk.trace, platformdirs, rich.table, typer, concurrent.futures.thread
import asyncio, getpass, logging, random, subprocess, tempfile, threading

# Programs, not modules: for `python -m`, and what needs pytest.
programs = ("__main__", ".testing")
missing = {"fcntl", "resource", "pwd", "grp", "termios", "tty", "secretstorage", "jeepney"}
real = builtins.__import__

def guarded(name, globals=None, locals=None, fromlist=(), level=0):
    importer = (globals or {}).get("__name__", "")
    if importer.startswith("apex_creds") and name.split(".")[0] in missing:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    return real(name, globals, locals, fromlist, level)

builtins.__import__ = guarded
for name in ("O_NOFOLLOW", "O_CLOEXEC", "O_DIRECTORY", "geteuid", "getuid", "register_at_fork",
             "fchmod", "fchown", "fork", "pread", "pwrite"):
    if hasattr(os, name):
        delattr(os, name)
for name in [name for name in dir(mmap) if name.startswith(("MAP_", "PROT_", "MADV_"))]:
    delattr(mmap, name)

import apex_creds
for found in pkgutil.walk_packages(apex_creds.__path__, "apex_creds."):
    if not (found.name.endswith(programs) or ".testing." in found.name):
        try:
            importlib.import_module(found.name)
        except ModuleNotFoundError as error:  # a runtime: one of them at most is here
            if not found.name.startswith("apex_creds.integrations.") or error.name in missing:
                raise
print("imported")
"""


def loaded(code: str, *arguments: str) -> list[str]:
    """The modules that a program loads beyond those of ``python -c pass``, by name."""
    before = "import sys, __future__; bare = set(sys.modules)"
    program = f"{before}\n{code}\nprint(*set(sys.modules) - bare)"
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return sorted(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize("folder", sorted(p.name for p in TESTS.iterdir() if p.is_dir()))
def test_what_two_folders_of_tests_need_is_in_support(folder: str) -> None:
    own = (f"tests.{folder}", "tests.support", "tests.vectors")
    for path in sorted((TESTS / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tests."):
                assert node.module is not None
                assert node.module.startswith(own), f"{path}: {node.module}"


WRITERS = {"fs/private_files.py", "storage/file_storage.py", "audit/segment.py"}
"""What may make a file durable, or put one in the place of another, by itself."""


def test_files_are_made_durable_and_put_in_place_by_few_modules() -> None:
    found = set()
    for path in (ROOT / "apex_creds").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                used = node.value.id == "os" and node.attr in {"fsync", "replace", "link"}
            else:
                names = node.names if isinstance(node, ast.ImportFrom) else []
                used = any(each.name in {"fsync", "replace", "link"} for each in names)
                used = used and isinstance(node, ast.ImportFrom) and node.module == "os"
            if used:
                found.add(path.relative_to(ROOT / "apex_creds").as_posix())
    assert found <= WRITERS


def test_importing_the_package_costs_nothing_and_a_name_its_own_modules() -> None:
    assert loaded("import apex_creds") == ["apex_creds"]
    ours = [name for name in loaded("from apex_creds import ApexCredsError") if "apex_" in name]
    assert ours == ["apex_creds", "apex_creds.errors"]


def test_the_version_is_said_before_anything_is_loaded() -> None:
    code = "from apex_creds.cli import main; sys.argv[1:] = ['--version']; main()"
    assert loaded(code) == ["apex_creds", "apex_creds.cli"]


def test_a_command_loads_what_it_uses() -> None:
    """Counted, since how long it takes says something about the machine."""
    found = loaded("from apex_creds.cli import app; app.tree('list')")
    late = {"rich", "cryptography.hazmat.backends.openssl.backend", "httpx"}
    # Old files are looked for by every command, and read by few.
    late |= {
        "apex_creds.migration.importer",
        "apex_creds.migration.legacy_readers",
        "sqlalchemy",
    }
    assert not late & set(found)
    assert len(found) < 500, len(found)


def test_a_line_that_is_not_for_a_terminal_needs_no_rich() -> None:
    code = "from apex_creds.cli.console import fail, say; say('x'); fail('x', kind='E', code=1)"
    found = loaded(code)
    assert not [name for name in found if name.startswith("rich")]


def test_pages_import_from_the_face_of_a_room() -> None:
    """What is in which file of these rooms may change: nobody should copy it from a page."""
    pages = [*(ROOT / "docs").rglob("*.md"), ROOT / "README.md", *ROOT.glob("*/*.ipynb")]
    for page in pages:
        deep = re.findall(
            r"from (apex_creds\.(?:admin|auth|scheduler|vault)\.\w+) import",
            page.read_text(encoding="utf-8"),
        )
        assert not deep, page


def test_ci_names_tests_that_there_are() -> None:
    words = (ROOT / ".ci/run").read_text(encoding="utf-8").split()
    named = [word for word in words if word.startswith("tests/")]
    assert named
    for word in named:
        shown = subprocess.run(["bash", "-c", f"ls -d {word}"], cwd=ROOT, capture_output=True)
        assert shown.returncode == 0, word


def test_a_name_that_there_is_not_is_an_attribute_error() -> None:
    assert set(apex_creds.__all__) <= set(dir(apex_creds))
    with pytest.raises(AttributeError, match="nothing_of_it"):
        apex_creds.nothing_of_it  # noqa: B018
    with pytest.raises(ImportError):
        exec("from apex_creds import nothing_of_it")


def test_what_few_programs_need_is_imported_when_they_need_it() -> None:
    late = ["httpx", "keyring", "cryptography.fernet", "apscheduler", "psycopg", "rich"]
    code = f"import sys, apex_creds; print([name for name in {late} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "[]\n", done


def test_every_module_imports_where_posix_parts_are_missing() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", _ELSEWHERE],
        capture_output=True,
        text=True,
        timeout=480,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("imported\n")


QUICK = ("README.md", "QUICKSTART.md", "PLUGINS.md")  # the pages that are read first


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=[] if page.name in QUICK else [pytest.mark.slow], id=page.name)
        for page in PAGES
    ],
)
def test_what_a_page_says_to_run_runs(page: Path, fresh_home: Path) -> None:
    snippets.run_page(page.read_text(encoding="utf-8"), fresh_home)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_a_page_links_to_files_that_are_there(page: Path) -> None:
    for target in snippets.local_links(page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


class TestSnippets:
    """The runner itself: a page that lies is found out."""

    def run(self, page: str, home: Path) -> int:
        return snippets.run_page(page, home)

    def test_blocks_run_in_order_in_one_folder(self, fresh_home: Path) -> None:
        page = (
            "```bash\necho hello > note\n```\ntext\n"
            "```console\n$ cat note\nhello\n$ pwd\n...home\n```\n"
            "```python\nassert len(__import__('os').listdir()) == 1\n```\n"
            "```json\n{not run}\n```\n"
        )
        assert self.run(page, fresh_home) == 3

    @pytest.mark.parametrize(
        "page",
        [
            "```bash\nfalse\ntrue\n```",
            "```bash\nfalse | cat\n```",
            "```python\nimport warnings; warnings.warn('old')\n```",
            "```console\n$ echo one\ntwo\n```",
            "```bash\necho open",
            "<!-- no-test -->\n```bash\nfalse\n```",
            "<!-- no-test: -->\n```bash\nfalse\n```",
            "<!-- file: ../x -->\n```json\n{}\n```",
        ],
    )
    def test_a_page_that_lies_fails(self, page: str, fresh_home: Path) -> None:
        with pytest.raises(snippets.SnippetError):
            self.run(page, fresh_home)

    def test_marks_write_a_file_or_skip(self, fresh_home: Path) -> None:
        page = (
            "<!-- file: plugins/a.json -->\n```json\n{}\n```\n"
            "<!-- no-test: needs a live service -->\n\n```bash\nfalse\n```\n"
        )
        assert self.run(page, fresh_home) == 0
        assert (fresh_home / "plugins/a.json").read_text() == "{}\n"

    def test_a_command_may_go_on(self) -> None:
        assert snippets.commands("$ a \\\n> b\nout\n$ c\n") == [("a \\\nb", "out\n"), ("c", "")]
