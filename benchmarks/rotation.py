"""What rotation costs with 1,000 to 100,000 credentials, beside the peers.

``python -m benchmarks.rotation [--sizes 1000,10000,100000] [--json FILE] [--plot FILE]``

One run rotates the same values with each: apex-creds in the file backend, durable (a new
DEK version, every record re-encrypted, the old version destroyed; then a KEK and a master
rotation), `MultiFernet.rotate` and Tink in memory, the key-wrap rotation of
`envelope-rotator` (which, like a KEK rotation, touches no value), and OpenBao transit's
`rewrap` in batches over loopback. It prints seconds, ratios, the longest stall of the event
loop, and where the budgets stand; ``--plot`` draws cost and stall against size.

A stall is how late a task gets its turn. On a machine that others use, too, that is mostly
because of them: so it is given also as the processor time that this process used meanwhile,
which is the most that it can have been the cause of.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import gc
import importlib
import json
import os
import secrets
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import httpx
from rich.console import Console
from rich.table import Table

from apex_creds import ApiKey, Vault
from apex_creds.keys.keyset import KeyState
from apex_creds.scheduler.engine import Engine
from apex_creds.scheduler.rotation_state import (
    RotationState,
    labels_of,
    newest,
    rotation_document,
)
from apex_creds.scheduler.schedule import Level, LevelPolicy, Policies
from apex_creds.vault.lookup import PutItem
from benchmarks.harness import Budget, UnavailableError, budget_table, duration
from tests.support import realparts

SIZES: Final = (1_000, 10_000, 100_000)
STALL_LIMIT: Final = 0.010
_NO_ROTATION: Final = frozenset({"apex-creds put", "apex-creds load"})
BATCH: Final = 400
"""OpenBao refuses requests with more than 1,000 strings."""


@dataclass(frozen=True, slots=True)
class Figure:
    """Seconds that one subject took for one size; the longest stall of the event loop.

    ``own`` is the longest of which this process itself can be the cause.
    """

    subject: str
    size: int
    seconds: float
    stall: float | None = None
    own: float | None = None


class Stalls:
    """Watches how late a task of the event loop gets its turn."""

    def __init__(self) -> None:
        self.longest = self.own = 0.0
        self._task: asyncio.Task[None] | None = None

    async def _watch(self) -> None:
        while True:
            began, used = time.perf_counter(), time.process_time()
            await asyncio.sleep(0.001)
            late = time.perf_counter() - began - 0.001
            self.longest = max(self.longest, late)
            self.own = max(self.own, min(late, time.process_time() - used))

    async def __aenter__(self) -> Stalls:
        self._task = asyncio.create_task(self._watch())
        await asyncio.sleep(0.01)
        self.longest = self.own = 0.0
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()


def values(size: int) -> list[str]:
    """Secrets of 40 characters."""
    return [f"sk-{secrets.token_hex(20)[:37]}" for _ in range(size)]


# -- apex-creds --------------------------------------------------------------------------


async def apex_creds(chosen: list[str], *, services: int) -> list[Figure]:
    """All three levels, on one vault in the file backend."""
    with tempfile.TemporaryDirectory(prefix="rotation-") as name:
        home, master = Path(name) / "home", f"file:{name}/master.key"
        async with await Vault.create(home, master=master) as vault:
            items = put_items(chosen, services)
            async with timing("put", len(chosen), services) as figures:
                await vault.put_many(items)
            del items
            for level in (Level.DEK, Level.KEK, Level.MASTER):
                figures.append(await _level(vault, level, len(chosen), services))
            await _check(vault, chosen)
        async with await Vault.unseal(home, master=master) as vault:
            figures += await _loaded(vault, len(chosen), services)
    return figures


async def _loaded(vault: Vault, size: int, services: int) -> list[Figure]:
    async with timing("load", size, services) as figures:
        await vault.find("credential 0")
    return figures


@asynccontextmanager
async def timing(what: str, size: int, services: int) -> AsyncIterator[list[Figure]]:
    """A list that has the block's figure in it afterwards."""
    figures: list[Figure] = []
    gc.collect()
    async with Stalls() as stalls:
        began = time.perf_counter()
        yield figures
        seconds = time.perf_counter() - began
    name = f"apex-creds {what}" + (f", {services} services" if services > 1 else "")
    figures.append(Figure(name, size, seconds, stalls.longest, stalls.own))


def put_items(chosen: list[str], services: int) -> list[PutItem]:
    """The values, evenly over so many services."""
    return [
        PutItem(name=f"credential {n}", secret=ApiKey(v), service=f"service {n % services}")
        for n, v in enumerate(chosen)
    ]


def engine_of(vault: Vault) -> Engine:
    """One that rotates nothing by itself, and keeps no old key."""
    document = rotation_document(vault.store)
    return Engine(vault.store, document, next_fire=lambda *_: None)


async def request(engine: Engine, level: Level) -> None:
    """Has the keys of a level rotated by the next run, old ones destroyed at once."""
    never = LevelPolicy(interval=None, grace=0.0)
    quiet = Policies(master=never, kek=never, dek=never)
    keystore = await engine.store.keystore()
    wanted = newest(keystore, level, labels_of(keystore))
    state = RotationState(policies=quiet, renew=wanted)
    await engine.document.change(lambda _: state)


async def _level(vault: Vault, level: Level, size: int, services: int) -> Figure:
    engine = engine_of(vault)
    await request(engine, level)
    async with timing(level.value, size, services) as figures:
        if level is Level.DEK:
            outcome = await engine.run(lease=False)
        else:  # what makes the old key useless; documents are re-sealed in the background
            step = (await engine.plan())[0]
            await engine._take([step])
            outcome = None
    assert outcome is None or not outcome.failed
    await engine.run(lease=False)
    return figures[0]


async def _check(vault: Vault, chosen: list[str]) -> None:
    async with vault.open(f"credential {len(chosen) - 1}") as opened:
        assert bytes(opened.view()).decode() == chosen[-1]
    for keyset in (await vault.store.keystore()).body.deks:
        assert {v.state for v in keyset.versions} == {KeyState.PRIMARY, KeyState.DESTROYED}


# -- peers -------------------------------------------------------------------------------


@contextmanager
def timed(figures: list[Figure], subject: str, size: int) -> Iterator[None]:
    """Adds how long the block took."""
    gc.collect()
    began = time.perf_counter()
    yield
    figures.append(Figure(subject, size, time.perf_counter() - began))


def _need(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise UnavailableError(f"no module {module}: pip install it") from None


def multifernet(chosen: list[str], figures: list[Figure]) -> None:
    """`cryptography`, in memory."""
    fernet = _need("cryptography.fernet")
    old, new = (fernet.Fernet(fernet.Fernet.generate_key()) for _ in range(2))
    tokens = [old.encrypt(value.encode()) for value in chosen]
    many = fernet.MultiFernet([new, old])
    with timed(figures, "MultiFernet.rotate", len(chosen)):
        for token in tokens:
            many.rotate(token)


def tink(chosen: list[str], figures: list[Figure]) -> None:
    """Google Tink, XChaCha20-Poly1305 with an AAD: decrypt and encrypt again, in memory."""
    module, aead = _need("tink"), _need("tink.aead")
    aead.register()
    old, new = (
        module.new_keyset_handle(aead.aead_key_templates.XCHACHA20_POLY1305).primitive(
            aead.Aead
        )
        for _ in range(2)
    )
    sealed = [old.encrypt(value.encode(), b"record") for value in chosen]
    with timed(figures, "Tink re-encrypt", len(chosen)):
        for one in sealed:
            new.encrypt(old.decrypt(one, b"record"), b"record")


def envelope_rotator(chosen: list[str], figures: list[Figure]) -> None:
    """PyPI `envelope-rotator`: the key that the values are under is wrapped anew, in a file."""
    module, stores = _need("envelope_rotator"), _need("envelope_rotator.stores")
    with tempfile.TemporaryDirectory(prefix="rotation-") as folder:
        key = module.EnvelopeKey(
            dek_store=stores.InMemoryDekStore(),
            master_store=stores.FileMasterStore(f"{folder}/master"),
        )
        key.initialize(os.urandom(32))
        cipher = module.AESGCM()
        sealed = [cipher.wrap(key.master(), value.encode()) for value in chosen]
        with timed(figures, "envelope-rotator (key wrap)", len(chosen)):
            key.rotate()
        key.invalidate()
        assert cipher.unwrap(key.master(), sealed[-1]).decode() == chosen[-1]


def openbao(chosen: list[str], figures: list[Figure]) -> None:
    """OpenBao transit: `rewrap` in batches over loopback, one kept-alive client."""
    try:
        with realparts.openbao() as bao:
            headers = {"X-Vault-Token": bao.token}
            url = f"{bao.address}/v1"
            with httpx.Client(headers=headers, timeout=120, trust_env=False) as client:
                _transit(client, url, chosen, figures)
    except realparts.PartMissingError as reason:
        raise UnavailableError(str(reason)) from None


def _transit(client: httpx.Client, url: str, chosen: list[str], figures: list[Figure]) -> None:
    client.post(f"{url}/sys/mounts/transit", json={"type": "transit"}).raise_for_status()
    client.post(f"{url}/transit/keys/bench").raise_for_status()
    plain = [{"plaintext": base64.b64encode(v.encode()).decode()} for v in chosen]
    sealed = _batches(client, f"{url}/transit/encrypt/bench", plain)
    client.post(f"{url}/transit/keys/bench/rotate").raise_for_status()
    with timed(figures, "OpenBao transit rewrap", len(chosen)):
        _batches(client, f"{url}/transit/rewrap/bench", sealed)


def _batches(client: httpx.Client, url: str, items: list[dict[str, str]]) -> list[Any]:
    results: list[Any] = []
    for start in range(0, len(items), BATCH):
        reply = client.post(url, json={"batch_input": items[start : start + BATCH]})
        reply.raise_for_status()
        results += reply.json()["data"]["batch_results"]
    return [{"ciphertext": item["ciphertext"]} for item in results]


PEERS: Final[dict[str, Callable[[list[str], list[Figure]], None]]] = {
    "multifernet": multifernet,
    "tink": tink,
    "envelope-rotator": envelope_rotator,
    "openbao": openbao,
}


# -- the run -----------------------------------------------------------------------------


async def run(
    sizes: list[int], *, only: list[str] | None = None, many_services: bool = True
) -> tuple[list[Figure], dict[str, str]]:
    """Every subject on every size; what can't run here, and why."""
    figures: list[Figure] = []
    skipped: dict[str, str] = {}
    for size in sizes:
        chosen = values(size)
        for name, peer in PEERS.items():
            if only is not None and name not in only:
                continue
            try:
                await asyncio.to_thread(peer, chosen, figures)
            except UnavailableError as reason:
                skipped[name] = str(reason)
        figures += await apex_creds(chosen, services=1)
        if many_services:
            figures += await apex_creds(chosen, services=max(2, size // 100))
    return figures, skipped


def budgets(figures: list[Figure]) -> list[Budget]:
    """Where DESIGN section 9 stands, for the largest size."""
    by = {(f.subject, f.size): f for f in figures}
    sizes = sorted({f.size for f in figures})
    most, least = sizes[-1], sizes[0]
    dek = by["apex-creds dek", most]
    found = [
        Budget("event loop, longest stall", (dek.stall or 0) * 1e3, 1e3 * STALL_LIMIT, "ms"),
        Budget(
            "  of which this process computed", (dek.own or 0) * 1e3, 1e3 * STALL_LIMIT, "ms"
        ),
    ]
    peer = by.get(("MultiFernet.rotate", most))
    if peer is not None:
        rate = peer.seconds / dek.seconds
        found.append(
            Budget(f"DEK, {most:,} durable, × MultiFernet", rate, 3, "×", at_least=True)
        )
    for level in ("kek", "master"):
        big, small = by[f"apex-creds {level}", most], by[f"apex-creds {level}", least]
        what = f"{level}: {most:,} over {least:,} credentials"
        found.append(Budget(what, big.seconds / small.seconds, 1.2, "×"))
    return found


def show(figures: list[Figure], skipped: dict[str, str]) -> None:
    """Prints the tables."""
    out, sizes = Console(), sorted({f.size for f in figures})
    table = Table(title="rotation: seconds, and credentials a second", title_justify="left")
    table.add_column("what")
    for size in sizes:
        table.add_column(f"{size:,}", justify="right")
    table.add_column("longest stall\n(own)", justify="right")
    for subject in dict.fromkeys(_without_number(f.subject) for f in figures):
        row = {f.size: f for f in figures if _without_number(f.subject) == subject}
        cells = [
            f"{duration(row[s].seconds)}\n{s / row[s].seconds:,.0f}/s" if s in row else "-"
            for s in sizes
        ]
        stall, own = (max(getattr(f, n) or 0 for f in row.values()) for n in ("stall", "own"))
        shown = f"{duration(stall)}\n({duration(own)})" if stall else "-"
        table.add_row(subject, *cells, shown)
    out.print(table)
    for name, reason in skipped.items():
        out.print(f"skipped {name}: {reason}")
    out.print(budget_table(budgets(figures)))


def plot(figures: list[Figure], path: Path) -> None:
    """Cost and stall against size; needs matplotlib."""
    _need("matplotlib").use("Agg")
    pyplot = _need("matplotlib.pyplot")
    drawing, (cost, stall) = pyplot.subplots(1, 2, figsize=(13, 7), layout="constrained")
    curves = dict.fromkeys(_without_number(f.subject) for f in figures)
    bases = list(dict.fromkeys(subject.partition(",")[0] for subject in curves))
    for subject in curves:
        rows = [f for f in figures if _without_number(f.subject) == subject]
        rows.sort(key=lambda figure: figure.size)
        sizes, ours = [f.size for f in rows], subject.startswith("apex-creds")
        style = {
            "marker": "o" if ours else "s",
            "linestyle": ":" if "," in subject else "-" if ours else "--",
            "color": f"C{bases.index(subject.partition(',')[0])}",
            "label": subject,
        }
        if subject.partition(",")[0] not in _NO_ROTATION:
            cost.loglog(sizes, [f.seconds for f in rows], **style)
        if ours:
            stall.loglog(sizes, [(f.own or 0) * 1e3 for f in rows], **style)
    stall.axhline(STALL_LIMIT * 1e3, color="black", linestyle="-.", label="budget")
    for axes, what in ((cost, "seconds"), (stall, "ms in which the event loop was held up")):
        axes.set(xlabel="credentials", ylabel=what)
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small", ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.12))
    cost.set_title("What a rotation costs")
    stall.set_title("The longest stall of the event loop, own processor time")
    drawing.savefig(path, dpi=110)
    pyplot.close(drawing)


def _without_number(subject: str) -> str:
    """The curve that a figure belongs to; how many services there are grows with the size."""
    front, comma, _ = subject.partition(", ")
    return f"{front}, many services" if comma else subject


Main = Callable[[], Awaitable[None]]


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)))
    parser.add_argument("--only", nargs="*", help="these peers alone")
    parser.add_argument("--one-service", action="store_true", help="leave out many services")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    chosen = parser.parse_args()
    sizes = [int(text) for text in chosen.sizes.split(",")]
    figures, skipped = asyncio.run(
        run(sizes, only=chosen.only, many_services=not chosen.one_service)
    )
    show(figures, skipped)
    if chosen.json:
        rows = [asdict(figure) for figure in figures]
        chosen.json.write_text(json.dumps({"cpus": os.cpu_count(), "figures": rows}, indent=2))
    if chosen.plot:
        plot(figures, chosen.plot)


if __name__ == "__main__":
    main()
