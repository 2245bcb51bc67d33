"""The site of docs/ builds without a warning, has every page, loads nothing from elsewhere."""

from __future__ import annotations

import functools
import http.server
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

import apex_creds.errors
from scripts import docs_hooks
from tests.support import chromium

ROOT = Path(__file__).resolve().parents[2]
PICTURE = ROOT / "docs" / "images" / "keys.svg"

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, as `make docs` builds it; a warning is an error there."""
    place = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", place],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1", "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        timeout=480,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return place


class Loads(HTMLParser):
    """What a browser fetches by itself for a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        has = dict(attrs)
        if tag == "link" and set((has.get("rel") or "").split()) & {
            "next",
            "prev",
            "canonical",
        }:
            return
        names = ("src", "srcset", "poster", "data") if tag != "link" else ("href",)
        self.found += [has[name] or "" for name in names if name in has]
        self.found += urls(has.get("style") or "")


def urls(css: str) -> list[str]:
    return re.findall(r"""(?:url\(|@import\s)\s*["']?([^"')]+)""", css)


def elsewhere(target: str) -> bool:
    return not target.startswith("data:") and ("//" in target or target.startswith("\\"))


def test_every_page_is_in_the_site_and_in_its_navigation(site: Path) -> None:
    pages = {path.stem for path in (ROOT / "docs").glob("*.md")}
    home = (site / "index.html").read_text(encoding="utf-8")
    assert pages <= {path.stem for path in site.glob("*.html")}
    assert not [page for page in pages if f'href="{page}.html"' not in home]


def test_the_notebooks_are_pages_with_their_outputs_and_plots(site: Path) -> None:
    books = sorted((ROOT / "notebooks").glob("*.ipynb"))
    for book in books:
        page = (site / "notebooks" / f"{book.stem}.html").read_text(encoding="utf-8")
        assert 'class="output"' in page
        assert f"{book.stem}.html" in (site / "NOTEBOOKS.html").read_text(encoding="utf-8")
        assert page.count("-1.png") == ('"image/png"' in book.read_text(encoding="utf-8"))
    assert len(books) == 4


def test_the_reference_has_every_public_name_and_error(site: Path) -> None:
    page = (site / "API.html").read_text(encoding="utf-8")
    errors = {name for name in vars(apex_creds.errors) if name.endswith("Error")}
    names = [f"apex_creds.{name}" for name in apex_creds.__all__ if name not in errors]
    names += [f"apex_creds.errors.{name}" for name in errors]
    assert not [name for name in names if f'id="{name}"' not in page]


def test_no_page_loads_anything_from_another_origin(site: Path) -> None:
    found = []
    for path in site.rglob("*.html"):
        page = Loads()
        page.feed(path.read_text(encoding="utf-8"))
        assert page.found, path
        found += [(path.name, target) for target in page.found if elsewhere(target)]
    for path in (*site.rglob("*.css"), *site.rglob("*.svg")):
        found += [
            (path.name, t) for t in urls(path.read_text(encoding="utf-8")) if elsewhere(t)
        ]
    assert not found


@pytest.fixture
def origin(site: Path) -> Iterator[str]:
    """The site, served on the loopback interface."""
    handler = functools.partial(Quiet, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Says nothing."""


def test_a_browser_asks_nobody_but_the_site_and_finds_all(origin: str, tmp_path: Path) -> None:
    from playwright.sync_api import sync_playwright

    asked: list[str] = []
    wrong: list[str] = []
    with sync_playwright() as play:
        browser = play.chromium.launch(**chromium.options(tmp_path))
        page = browser.new_page(color_scheme="dark")
        page.on("request", lambda request: asked.append(request.url))
        page.on("response", lambda r: wrong.append(r.url) if r.status >= 400 else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        for name in ("index", "CONCEPTS", "API"):
            page.goto(f"{origin}{name}.html")
        page.goto(f"{origin}index.html?q=lockdown")
        page.wait_for_selector("li.md-search-result__item", state="attached")
        browser.close()
    assert any(url.endswith("keys.svg") for url in asked)
    assert not wrong
    assert not [url for url in asked if not url.startswith((origin, "data:", "blob:"))]


def test_the_picture_is_one_file_for_light_and_dark_and_says_what_it_shows() -> None:
    text = PICTURE.read_text(encoding="utf-8")
    root = ElementTree.fromstring(text)
    space = "{http://www.w3.org/2000/svg}"
    assert root.findtext(f"{space}title")
    assert root.findtext(f"{space}desc")
    light, dark = text.split("prefers-color-scheme: dark", 1)
    used = set(re.findall(r'class="([a-z]+)', text))
    for name in used - {"bold"}:
        assert f".{name}" in light, name
        assert re.search(rf"\.{name}\b", dark.split("</style>")[0]), name
    assert not {tag.tag for tag in root.iter()} & {f"{space}script", f"{space}image"}


def test_a_page_without_a_place_comes_last_and_one_that_is_not_there_is_passed_over() -> None:
    nav = [
        {"Home": "index.md"},
        {"Part": [{"A": "A.md"}, {"B": "B.md"}]},
        {"Gone": [{"C": "C.md"}]},
    ]
    full = docs_hooks.complete(nav, {"index.md", "A.md", "NEW.md"})
    assert full == [{"Home": "index.md"}, {"Part": [{"A": "A.md"}]}, {"More": ["NEW.md"]}]
    assert docs_hooks.pages(full) == ["index.md", "A.md", "NEW.md"]
    assert docs_hooks.complete(nav[:1], {"index.md"}) == nav[:1]


def test_notebooks_come_after_the_page_that_lists_them() -> None:
    nav = [{"Notebooks": docs_hooks.LIST}]
    full = docs_hooks.complete(nav, {docs_hooks.LIST}, ["notebooks/a.md"])
    assert full == [{"Notebooks": [docs_hooks.LIST, "notebooks/a.md"]}]
