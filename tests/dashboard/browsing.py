"""A page in a real Chromium, and what went wrong in it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from axe_playwright_python.base import AXE_FILE_PATH
from playwright.async_api import Browser, Page

# Told by the browser itself, whatever the page does; init scripts are not under its CSP.
_WITNESS = """
window.violations = [];
document.addEventListener('securitypolicyviolation', (e) =>
    window.violations.push(`${e.violatedDirective} ${e.blockedURI} ${e.sample}`));
"""

# Contrast (WCAG 2) of every piece of text that can be seen, where it is below 4.5.
CONTRAST = """() => {
  const paint = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
  const rgba = (color) => {
    paint.clearRect(0, 0, 1, 1); paint.fillStyle = color; paint.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = paint.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
  };
  const mixed = (top, under) => (i) => top[i] * top[3] + under[i] * (1 - top[3]);
  const over = (top, under) => [...[0, 1, 2].map(mixed(top, under)), 1];
  const ground = (node) => {
    const layers = [];
    for (let at = node; at; at = at.parentElement) {
      layers.push(rgba(getComputedStyle(at).backgroundColor));
    }
    return layers.reverse().reduce((under, top) => over(top, under), [255, 255, 255, 1]);
  };
  const light = (c) => {
    const linear = (v) => (v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
    const [r, g, b] = c.slice(0, 3).map((v) => linear(v / 255));
    return .2126 * r + .7152 * g + .0722 * b;
  };
  const bad = [];
  for (const node of document.querySelectorAll('body *:not(svg *)')) {
    const own = [...node.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!own || !node.checkVisibility() || node.closest('.sr, dialog:not([open])')) continue;
    const back = ground(node), ink = over(rgba(getComputedStyle(node).color), back);
    const [a, b] = [light(ink), light(back)].sort((x, y) => y - x);
    const ratio = (a + .05) / (b + .05);
    if (ratio < 4.5) bad.push(`${node.textContent.trim().slice(0, 30)} ${ratio.toFixed(2)}`);
  }
  return [...new Set(bad)];
}"""


_AXE = """() => axe.run(document).then((found) => found.violations.map(
  (one) => `${one.id}: ${one.nodes.map((node) => node.target.join(' ')).join(', ')}`))"""


async def barriers(page: Page) -> list[str]:
    """What axe-core finds that shuts people out, by any of its rules."""
    await page.evaluate(Path(AXE_FILE_PATH).read_text(encoding="utf-8"))
    return list(await page.evaluate(_AXE))


@dataclass
class Tab:
    """A page, and what happened in it."""

    page: Page
    origin: str
    console: list[str] = field(default_factory=list)
    requested: list[str] = field(default_factory=list)

    async def innocent(self) -> None:
        """Nothing ran or was fetched that is not the page's own."""
        violations = await self.page.evaluate("window.violations")
        assert self.console == [], self.console
        assert violations == [], violations
        assert await self.page.evaluate("window.pwned") is None
        for url in self.requested:
            parts = urlsplit(url)
            assert f"{parts.scheme}://{parts.netloc}" == self.origin, url
            own = parts.path in ("/", "/login") or parts.path.startswith(("/assets/", "/api/"))
            assert own, url

    async def fits(self) -> None:
        """The page is no wider than the window."""
        wide, window = await self.page.evaluate(
            "[document.documentElement.scrollWidth, window.innerWidth]"
        )
        assert wide <= window


async def tab(made: Browser, origin: str, **options: Any) -> Tab:
    """A page in a context of its own, watched."""
    context = await made.new_context(viewport={"width": 1280, "height": 900}, **options)
    await context.add_init_script(_WITNESS)
    page = await context.new_page()
    page.set_default_timeout(15_000)
    found = Tab(page, origin)
    page.on("console", lambda m: found.console.append(f"{m.type}: {m.text}"))
    page.on("pageerror", lambda e: found.console.append(f"error: {e}"))
    page.on("request", lambda r: found.requested.append(r.url))
    page.on("dialog", lambda d: found.console.append(f"dialog: {d.message}"))
    return found
