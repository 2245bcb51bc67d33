"""Fixtures that every test may use: one async backend, and a home of its own.

The user's own home is out of reach: the session and all that it starts have an empty one in
its place, in which nothing may be left either (what a test needs there, it has by itself).
"""

from __future__ import annotations

import gc
import itertools
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apex_creds.crypto import sodium

if TYPE_CHECKING:
    from tests.support.vendor import Vendor
    from tests.support.worlds import World

# How long an example takes says something about the machine, not about the code.
settings.register_profile("whole", deadline=None)
settings.load_profile("whole")
# For the second and third Python: what differs between them shows in few examples.
settings.register_profile("brief", deadline=None, max_examples=15)

_done = itertools.count(1)
_OWN = ("APEX_CREDS_", "XDG_", "PYTHON_KEYRING_")
_HOMES = ("HOME", "USERPROFILE")
_in_its_place = pytest.StashKey[Path]()
_told_at_the_end = pytest.StashKey[str]()
_seen: set[str] = set()
_real_home: Path

# Every vault waits for the disk dozens of times, which no test can tell: what a process was
# killed in the midst of is there without it, and no test cuts the power.
_MEMORY = Path("/dev/shm")


def _has_room(folder: Path) -> bool:
    """Whether files can be there, programs too, and as many as the whole suite makes."""
    try:
        about = os.statvfs(folder)
    except (OSError, AttributeError):
        return False
    room = about.f_bavail * about.f_frsize >= 4 << 30
    return room and os.access(folder, os.W_OK) and not about.f_flag & os.ST_NOEXEC


def pytest_configure(config: pytest.Config) -> None:
    """Before anything is imported or started."""
    global _real_home
    if hasattr(config, "workerinput"):  # xdist's: has what the first process has
        _real_home = Path(os.environ["HOME"])
        return
    if "TMPDIR" not in os.environ and _has_room(_MEMORY):
        os.environ["TMPDIR"] = tempfile.tempdir = str(_MEMORY)
    home = config.stash[_in_its_place] = Path(tempfile.mkdtemp(prefix="apex-creds-no-home-"))
    _real_home = home
    for name in [name for name in os.environ if name.startswith(_OWN)]:
        if name != "XDG_RUNTIME_DIR":
            del os.environ[name]
    os.environ.update(dict.fromkeys(_HOMES, str(home)))


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """A test that wrote to the user's home, but for what other programs keep, fails all."""
    if (home := session.config.stash.get(_in_its_place, None)) is None:
        return
    left = _left(home)
    seen = _log_of(home).read_text() if _log_of(home).exists() else ""
    shutil.rmtree(home, ignore_errors=True)
    _log_of(home).unlink(missing_ok=True)
    if left:
        told = f"{', '.join(left[:9])}. Seen first after:\n{seen}"
        session.config.stash[_told_at_the_end] = told
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """After all that pytest writes: who reads the end of a log alone sees why it failed."""
    if found := config.stash.get(_told_at_the_end, None):
        print(f"\nLEFT IN THE USER'S HOME: {found}", flush=True)


def _left(home: Path) -> list[str]:
    """What is there, but for caches, and what pip has rustup write when it asks for rustc."""
    found: list[str] = []
    for top in home.iterdir():
        if top.name not in (".cache", ".rustup"):
            found += [str(p.relative_to(home)) for p in (top, *top.rglob("*")) if p.is_file()]
    return found


def _log_of(home: Path) -> Path:
    """Which test was the last to end in its process when something was found there."""
    return home.with_suffix(".log")


@pytest.fixture
def no_slot_left() -> Iterator[None]:
    """A test leaves no secret open; what others of the same process left is not its own."""
    from apex_creds.crypto.memory import arena

    gc.collect()
    before = arena().open_slots
    yield
    gc.collect()  # Python 3.13 keeps what a failed rotation raised until then
    assert arena().open_slots <= before


@pytest.fixture
def anyio_backend() -> str:
    """Async tests (``pytestmark = pytest.mark.anyio``) run on asyncio alone."""
    return "asyncio"


def pytest_collection_finish() -> None:
    """What was there before the tests is not looked at by their ``gc.collect()``.

    Hypothesis makes its generator at the first example, and asks the collector who holds it:
    a module that was set aside would not be found.
    """
    given(st.none())(lambda _: None)()
    _set_aside()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    """Nor is what earlier tests have imported and reported, now and then."""
    if next(_done) % 50 == 0:
        _set_aside()
    new = sorted(set(_left(_real_home)) - _seen)
    if new:
        _seen.update(new)
        with _log_of(_real_home).open("a") as log:
            log.write(f"{item.nodeid}: {', '.join(new)}\n")


def _set_aside() -> None:
    """Tests of leaks collect hundreds of times; each would search the whole session."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _quick_argon2id(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Passphrases are stretched by the same function, with the least work that it takes.

    Which parameters are accepted is checked before. ``real_kdf`` marks what is about the work.
    """
    if request.node.get_closest_marker("real_kdf") is None:
        stretch = sodium.argon2id
        monkeypatch.setattr(
            sodium,
            "argon2id",
            lambda words, salt, _passes, _memory: stretch(words, salt, 1, 8192),
        )


@pytest.fixture
async def world(tmp_path: Path, anyio_backend: str) -> AsyncIterator[World]:
    """A vault, a middleware and plugins to call."""
    from tests.support.worlds import world_in

    async with world_in(tmp_path) as made:
        yield made


@pytest.fixture
async def service() -> AsyncIterator[Vendor]:
    """A vendor's server that insists on a credential."""
    from tests.support.vendor import vendor

    async with vendor() as made:
        yield made


@pytest.fixture
def fresh_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty 0700 home; nothing of the user's settings, keyring or vault is reachable."""
    for name in [name for name in os.environ if name.startswith(_OWN)]:
        monkeypatch.delenv(name)
    monkeypatch.delenv("DBUS_SESSION_BUS_ADDRESS", raising=False)
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    for name in _HOMES:
        monkeypatch.setenv(name, str(home))
    return home
