"""Windows of lists: what is searched, where it is cut, what is refused."""

from __future__ import annotations

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from apex_creds.audit.events import EventKind, Recorded
from apex_creds.dashboard.lease_view import MAX_OPEN
from apex_creds.dashboard.paging import MAX_SIZE, MAX_TEXT, PageQuery, page
from apex_creds.errors import InvalidInputError, NotFoundError
from apex_creds.model import Rotation
from apex_creds.vault import credential_writes
from tests.dashboard.conftest import Served
from tests.dashboard.town import BOOKS, CHATTER

NAMES = st.lists(st.text("abAB", max_size=4), max_size=60)


@given(NAMES, st.text("abAB", max_size=2), st.integers(0, 90), st.integers(1, MAX_SIZE))
def test_a_window_is_of_what_matches_and_never_beyond_the_end(
    names: list[str], text: str, at: int, size: int
) -> None:
    asked = PageQuery.parse({"text": text, "at": str(at), "size": str(size)})
    found = page(names, asked, str)
    matching = [name for name in names if text.lower() in name.lower()]
    assert found.of == len(matching)
    assert list(found.items) == matching[found.at : found.at + size]
    assert found.at <= at
    assert bool(found.items) is bool(matching)


def test_a_window_is_bounded_whatever_is_asked_for() -> None:
    for size in ("0", "999999999", str(MAX_SIZE)):
        assert len(page(range(10_000), PageQuery.parse({"size": size}), str).items) == MAX_SIZE


@pytest.mark.parametrize(
    "query",
    [{"at": "-1"}, {"at": "x"}, {"size": "1e9"}, {"at": "9" * 10}, {"at": "٣"}],
)
def test_what_is_no_place_is_refused(query: dict[str, str]) -> None:
    with pytest.raises(InvalidInputError):
        PageQuery.parse(query)


def test_a_search_that_is_too_long_is_refused() -> None:
    with pytest.raises(InvalidInputError):
        PageQuery.parse({"text": "x" * (MAX_TEXT + 1)})


@pytest.mark.anyio
async def test_a_list_that_there_is_not_is_not_found(served: Served) -> None:
    for name in ("nothing", "keys", "permissions"):
        with pytest.raises(NotFoundError):
            served.watcher.window(name, {})
    await served.look()
    for name in ("keys", "steps", "permissions", "leases", "requests"):
        served.window(name)


@pytest.mark.anyio
async def test_lists_take_a_session_and_say_what_is_wrong(served: Served) -> None:
    await served.look()
    assert (await served.get("/api/lists/keys")).status_code == 401
    await served.log_in()
    answer = await served.get("/api/lists/permissions?text=PAYROLL&plugin_text=snoop&size=1")
    found = answer.json()
    assert [row["name"] for row in found["credentials"]["items"]] == ["payroll/datev"]
    assert found["plugins"] == {"items": ["org.snoop"], "at": 0, "of": 1}
    assert [cell["grant"] for cell in found["cells"]] == ["deny"]
    assert (await served.get("/api/lists/keys?at=x")).status_code == 400
    assert (await served.get("/api/lists/nothing")).status_code == 404


@pytest.mark.anyio
async def test_a_search_finds_an_entry_by_what_is_read_of_it(served: Served) -> None:
    town, stop = served.town, anyio.Event()
    await town.enrol()
    await town.half_rotate("api_keys/tenants", moved=2)
    late = Rotation(rotator="fake:https://x.test", changed=5.0, interval=60.0)
    await credential_writes.edit(
        town.vault.store,
        "api_keys",
        "weather/openweather",
        credential_writes.Edit(rotation=late),
        clock=town.vault.clock,
    )
    async with anyio.create_task_group() as group:
        group.start_soon(town.hold, CHATTER, "llm/openai", stop, "stream")
        group.start_soon(town.ask, BOOKS, "payments/stripe")
        await served.question()
        await served.look()
        for name, words in {
            "leases": ("chatter uses llm/openai", "used 1×, last reveal", "open", "stream"),
            "requests": ("wants to read payments/stripe critical", "last month's", "1.4.0"),
            "keys": ("Second factors", "v2 primary", "the vault's own", "api_keys/tenants"),
            "steps": ("move what version 1 of api_keys/tenants still", "there is a newer one"),
        }.items():
            for word in words:
                assert served.window(name, text=word.upper())["of"] == 1, (name, word)
            for hidden in ("true", "none", "expires", 'uses": 1', "undefined"):
                assert served.window(name, text=hidden)["of"] == 0, (name, hidden)
        for word in ("rotation overdue", "normal"):
            rows = served.window("permissions", text=word)["credentials"]["items"]
            assert [row["name"] for row in rows] == ["weather/openweather"], word
        second = served.window("permissions", text="2nd factor")["credentials"]["items"]
        assert {row["name"] for row in second} == {"payments/stripe", "payroll/datev"}
        assert served.window("permissions", text="reconnect")["credentials"]["of"] == 0
        stop.set()
        group.cancel_scope.cancel()


@pytest.mark.anyio
async def test_leases_beyond_the_most_that_are_kept_are_not_said_to_be_all(
    served: Served,
) -> None:
    await served.look()
    assert served.told("leases")["full"] is False
    now = served.town.vault.clock.time()
    for n in range(MAX_OPEN + 1):
        kind, lease = EventKind.LEASE, f"lease-{n}"
        served.watcher.leases.take(Recorded(time=now, kind=kind, seq=1, hash="", lease=lease))
    await served.look()
    told = served.told("leases")
    assert (told["count"], told["full"]) == (MAX_OPEN, True)
