"""What the dashboard costs a reader as the vault grows: in a real Chromium, small over large.

``python -m benchmarks.dashboard [--plugins N] [--credentials N] [--events N]``

Two vaults in files: one of 20 plugins, 20 credentials and 1,000 events, and one of the sizes
asked for. ``apex-creds dashboard`` shows each, as a process of its own, beside the other; a
Chromium opens a link and works as a person would. Seconds are medians, measured by the browser
from the key or click to the frame in which the answer is seen. ``--keep DIRECTORY`` leaves the
vaults there, and takes those that are there.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Final

from rich.console import Console
from rich.table import Table

from apex_creds import ApiKey, Vault
from apex_creds.audit.events import AuditEvent, EventKind
from apex_creds.vault.lookup import PutItem
from benchmarks.harness import Budget, UnavailableError, duration

try:
    from playwright.async_api import Browser, Page

    from tests.dashboard.browsing import tab
    from tests.dashboard.running import Running, running
    from tests.support.chromium import browser
except ImportError as error:
    raise UnavailableError("needs playwright: make dev") from error

TIMES: Final = 5
TOOLS: Final = '#permissions-tools input[aria-label="Filter credentials"]'
NOWHERE: Final = "no-such-word-anywhere"
LIMITS: Final = {
    "first content": 2.0,
    "a credential found": 2.0,
    "an event found": 2.0,
    "nothing found in the whole log": 100.0,
}
"""Of the small vault's time; a search that finds nothing reads 1,000 times as many events."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How large a vault is."""

    plugins: int
    credentials: int
    events: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Seconds that one thing took in both vaults."""

    small: float
    large: float

    @property
    def ratio(self) -> float:
        """How much longer in the large one."""
        return self.large / self.small


SMALL: Final = Size(plugins=20, credentials=20, events=1_000)
LARGE: Final = Size(plugins=200, credentials=200, events=1_000_000)


async def build(where: Path, size: Size) -> Path:
    """A vault of that size; one that is there is taken as it is."""
    home = where / "home"
    if home.exists():
        return home
    async with await Vault.create(home, master=f"file:{where}/key") as vault:
        names = [f"service-{n:03}/key" for n in range(size.credentials)]
        await vault.put_many(PutItem(name=name, secret=ApiKey("x" * 32)) for name in names)
        for n in range(size.plugins):
            await vault.grant(f"org.plugin-{n:03}", names[n % len(names)])
        begins = vault.clock.time() - size.events
        for n in range(size.events):
            vault.audit.append(_event(n, begins + n, size, names))
    return home


def _event(n: int, when: float, size: Size, names: Sequence[str]) -> AuditEvent:
    """The n-th event: uses, and a denial now and then; a word of its own in the first ones."""
    use, step = divmod(n, 3)
    plugin, credential = f"org.plugin-{use % size.plugins:03}", names[use % len(names)]
    invocation, lease = f"{use:032x}", f"{use:031x}f"
    if n % 2_500 == 0:
        return AuditEvent(
            when,
            EventKind.DENIAL,
            plugin="org.snoop",
            action="look",
            credential=credential,
            decision="deny",
            reason="no_grant",
        )
    if step == 2:
        return AuditEvent(
            when,
            EventKind.INVOCATION,
            plugin=plugin,
            action="forecast",
            invocation=invocation,
            outcome="ok",
            duration_us=1_000 + n % 90_000,
        )
    return AuditEvent(
        when,
        EventKind.REDEEM if step else EventKind.LEASE,
        plugin=plugin,
        plugin_version="1.2.0",
        action="forecast",
        invocation=invocation,
        lease=lease,
        credential=credential,
        decision="allow",
        reason="granted",
        origin="https://api.example.com" if step else "",
        method="GET" if step else "",
    )


# -- as a person would ----------------------------------------------------------------------

_SEEN: Final = """([text, place]) => new Promise((done) => {
  const look = () => (document.querySelector(place)?.textContent ?? '').includes(text)
    ? requestAnimationFrame(() => done()) : requestAnimationFrame(look);
  look();
})"""


async def seen(page: Page, text: str, place: str) -> None:
    """Waits, in the browser, for the frame that shows a text."""
    await page.evaluate(_SEEN, [text, place])


async def visit(page: Page, made: Running, size: Size) -> dict[str, float]:
    """Opens the page and looks for things in it; the seconds that each took."""
    took: dict[str, float] = {}

    async def timed(what: str, act: Callable[[], Awaitable[object]], *shown: str) -> None:
        began = time.perf_counter()
        await act()
        await seen(page, *shown)
        took[what] = time.perf_counter() - began

    last, filter_text = f"service-{size.credentials - 1:03}/key", "#filter-text"
    await timed("first content", lambda: page.goto(made.link), "Open leases", "#tiles")
    await seen(page, "service-000/key", "#permissions-table")
    await seen(page, "forecast", "#audit-list")
    await timed(
        "a credential found", lambda: page.fill(TOOLS, last), last, "#permissions-table"
    )
    for what, text, *shown in (
        ("an event found", "org.snoop", "org.snoop", "#audit-list"),
        ("nothing found in the whole log", NOWHERE, "all of the log", "#searched"),
    ):
        await page.fill(filter_text, text)
        await timed(what, lambda: page.click("#earlier"), *shown)
    return took


async def run(home: Path, size: Size, chrome: Browser) -> dict[str, float]:
    """One visit, to a dashboard that has just been started."""
    with running(home) as made:
        watched = await tab(chrome, made.origin)
        try:
            watched.page.set_default_timeout(120_000)
            return await visit(watched.page, made, size)
        finally:
            await watched.page.context.close()


async def compare(large: Size, times: int, where: Path) -> dict[str, Pair]:
    """The medians of both vaults, visited by turns."""
    found: dict[str, Pair] = {}
    homes = {size: await build(where / name, size) for name, size in _named(large).items()}
    visits: dict[Size, list[dict[str, float]]] = {size: [] for size in homes}
    async with browser() as chrome:
        for number in range(times + 1):
            for size, home in homes.items():
                took = await run(home, size, chrome)
                if number:  # the first ones warm up
                    visits[size].append(took)
    for what in visits[SMALL][0]:
        small, big = (median(each[what] for each in visits[size]) for size in (SMALL, large))
        found[what] = Pair(small=small, large=big)
    return found


def _named(large: Size) -> dict[str, Size]:
    return {f"{size.plugins}-{size.credentials}-{size.events}": size for size in (SMALL, large)}


def budgets(found: Mapping[str, Pair]) -> list[Budget]:
    """How much longer the large vault's reader waits."""
    return [Budget(what, found[what].ratio, limit, "×") for what, limit in LIMITS.items()]


def show(found: Mapping[str, Pair]) -> None:
    """Prints a table, and where the budgets stand."""
    out = Console()
    table = Table("what", "small", "large", "ratio", title="dashboard")
    for what, pair in found.items():
        times = (duration(pair.small), duration(pair.large))
        table.add_row(what, *times, f"{pair.ratio:.2f} ×")
    out.print(table)
    for budget in budgets(found):
        verdict = "kept" if budget.kept else "MISSED"
        out.print(f"{budget.what}: {budget.measured:.3g} × (≤ {budget.limit:g}) {verdict}")


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    for name, default in asdict(LARGE).items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--times", type=int, default=TIMES)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--keep", type=Path)
    chosen = parser.parse_args()
    large = Size(plugins=chosen.plugins, credentials=chosen.credentials, events=chosen.events)
    with tempfile.TemporaryDirectory() as scratch:
        where = chosen.keep or Path(scratch)
        found = asyncio.run(compare(large, chosen.times, where))
    show(found)
    if chosen.json:
        rows = {what: asdict(pair) for what, pair in found.items()}
        chosen.json.write_text(json.dumps({"size": asdict(large), "seconds": rows}, indent=2))


if __name__ == "__main__":
    main()
