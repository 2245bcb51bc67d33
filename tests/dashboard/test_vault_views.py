"""Keys, permissions, verification and the hub: what the page is told of them."""

from __future__ import annotations

import json
from pathlib import Path

import anyio
import pytest
from msgspec import structs

from apex_creds.audit.events import EventKind, Recorded
from apex_creds.audit.verify import read
from apex_creds.dashboard.lease_view import Names, text
from apex_creds.dashboard.live_feed import KEPT, LiveFeed
from apex_creds.dashboard.log_search import trace
from apex_creds.dashboard.log_status import FULL_SECONDS, Verifier
from apex_creds.dashboard.vault_views import hierarchy
from apex_creds.errors import AuditTamperedError
from apex_creds.fs.home import audit_directory
from apex_creds.keys.keyset import KeyState
from apex_creds.model import Rotation, RotationStage
from apex_creds.rotators import plan
from apex_creds.scheduler.status import rotation_status
from apex_creds.scheduler.worker import RotationWorker
from apex_creds.vault import credential_writes
from tests.dashboard.conftest import Served, serve
from tests.dashboard.town import WEATHER, Town, manifest, need, town_in, turn_kek
from tests.support.loops import WITHIN

pytestmark = pytest.mark.anyio

CANARY = '<img src=x onerror="alert(1)">'


# -- keys --------------------------------------------------------------------------------


async def test_the_picture_says_what_the_report_says(town: Town) -> None:
    await turn_kek(town.vault)
    await town.half_rotate("api_keys/tenants", moved=2)
    engine = RotationWorker(town.vault).engine
    found, known = await hierarchy(engine, names=Names()), await rotation_status(engine)
    ours = {
        (key.level, key.label, v.version): (v.state, v.protects, v.encryptions)
        for key in found.keys
        for v in key.versions
        if key.label != "root"
    }
    theirs = {
        (line.level.value, line.label, line.version): (
            line.state,
            line.protects,
            line.encryptions,
        )
        for line in known.lines
    }
    assert {k: v for k, v in ours.items() if not k[1].startswith("access/")} == {
        k: v for k, v in theirs.items() if not k[1].startswith("access/")
    }
    assert {level.value: at for level, at in known.due.items()} == found.due
    assert len(found.steps) == len(known.steps) > 0


async def test_a_rotation_half_done_is_seen_half_done(served: Served) -> None:
    await served.town.half_rotate("api_keys/tenants", moved=2)
    await served.look()
    keys = served.window("keys", text="TENANTS")["items"]
    assert len(keys) == 1
    assert served.told("keys")["moving"] == 1
    tenants = next(key for key in keys if key["label"] == "api_keys/tenants")
    states = [(v["version"], v["state"], v["protects"]) for v in tenants["versions"]]
    assert states == [(1, KeyState.ACTIVE, 1), (2, KeyState.PRIMARY, 2)]


async def test_nothing_is_told_twice(served: Served) -> None:
    await served.look()
    before = served.hub._version
    await served.look()
    assert served.hub._version == before


async def test_a_vault_in_a_database_is_shown_as_well(tmp_path: Path) -> None:
    async with town_in(tmp_path, many=3, storage=f"sqlite:///{tmp_path}/vault.db") as town:
        await town.half_rotate("api_keys/tenants", moved=2)
        await town.use(WEATHER, "weather/openweather")
        made = await serve(town)
        async with made.client:
            await made.log_in()
            await made.look()
            labels = {key["label"] for key in made.window("keys")["items"]}
            assert "api_keys/tenants" in labels
            assert any(cell.get("use") for cell in made.window("permissions")["cells"])
            assert made.told("trouble") == {}
            # It keeps a log of its own, by another id than the vault's.
            assert town.vault.audit.vault_id != town.vault.vault_id
            town.vault.audit.sign()
            directory = audit_directory(town.vault.home)
            assert Verifier(directory, vault_id=town.vault.audit.vault_id).check().state == "ok"
            assert (await made.get("/api/log?before=3")).status_code == 200


# -- permissions -------------------------------------------------------------------------


async def test_the_matrix_says_grants_rules_and_use(served: Served) -> None:
    town = served.town
    await town.use(WEATHER, "weather/openweather")
    await town.denied()
    await served.look()
    told = served.window("permissions")
    place = {row["name"]: at for at, row in enumerate(told["credentials"]["items"])}
    cells = {(told["plugins"]["items"][c["p"]], c["c"]): c for c in told["cells"]}
    weather = cells["org.weather", place["weather/openweather"]]
    assert weather["grant"] == "allow"
    assert weather["reveal"] is True
    assert weather["use"]["redeems"] == 1
    refused = cells["org.snoop", place["payroll/datev"]]
    assert refused["grant"] == "deny"
    assert refused["use"]["why"] == "grant_denied"
    assert cells["org.mailer", place["mail/smtp"]]["grant"] == "over"
    ruled = cells["org.chatter", place["payroll/datev"]]
    assert (ruled["verdict"], ruled["rule"]) == ("deny", "no-payroll-for-chatter")
    rows = told["credentials"]["items"]
    assert rows[place["payments/stripe"]]["factor"] == "each"
    assert rows[place["weather/openweather"]]["rule"] == "allow"
    assert served.told("matrix")["rules"] == 1


async def test_a_rotation_at_the_provider_that_failed_is_seen(served: Served) -> None:
    vault = served.town.vault
    name = "weather/openweather"

    def row() -> tuple[object, ...]:
        found = served.window("permissions", text=name)["credentials"]["items"]
        return next(
            (row["rotation"], row["stage"], row["step_outcome"], row["replaced"], row["due"])
            for row in found
            if row["name"] == name
        )

    await served.look()
    assert row() == ("", "", "", 0.0, None)
    works = Rotation(rotator="fake:https://api.example.com", changed=5.0, interval=60.0)
    for state, shown in (
        (works, ("works", "idle", "", 5.0, 65.0)),
        (
            plan.failed(works, "unreachable", now=6.0),
            ("failed", "idle", "unreachable", 5.0, 65.0),
        ),
        (
            plan.refused(structs.replace(works, stage=RotationStage.UNDO), now=6.0),
            ("needs_person", "needs_person", "refused", 5.0, 65.0),
        ),
    ):
        await credential_writes.edit(
            vault.store,
            "api_keys",
            name,
            credential_writes.Edit(rotation=state),
            clock=vault.clock,
        )
        await served.look()
        assert row() == shown


async def test_a_revocation_is_seen(served: Served) -> None:
    await served.look()
    before = served.window("permissions")["cells"]
    await served.town.vault.revoke(plugin="org.weather")
    await served.look()
    assert len(served.window("permissions")["cells"]) == len(before) - 1


async def test_a_policy_file_that_is_not_valid_is_told(served: Served) -> None:
    path = served.town.vault.home / "security" / "policy.toml"
    valid = path.read_text()
    path.write_text("nonsense")
    await served.look()
    assert served.told("matrix")["rules"] == -1
    assert "policy" in served.told("trouble")
    for content, fault in ((valid, False), ("nonsense", True), (valid + "\n", False)):
        path.write_text(content)
        served.watcher._policy_due = 0.0
        await served.look()
        assert served.told("matrix")["rules"] == 1, "what was in force stays in force"
        assert ("policy" in served.told("trouble")) is fault


async def test_hostile_names_stay_text(served: Served) -> None:
    town = served.town
    hostile = manifest(f"{CANARY}", need("llm/openai", reason=f"\u202e{CANARY}\x1b[31m"))
    async with anyio.create_task_group() as group:
        group.start_soon(town.ask, hostile, "llm/openai", CANARY)
        question = await served.question()
        group.cancel_scope.cancel()
    assert question["plugin"] == CANARY
    assert question["reason"] == f"\\u202e{CANARY}\\x1b[31m"


# -- stories ------------------------------------------------------------------------------


async def test_a_story_of_altered_lines_is_not_told(town: Town) -> None:
    await town.use(WEATHER, "weather/openweather")
    town.vault.audit.flush()
    directory, vault = audit_directory(town.vault.home), town.vault.vault_id
    events = list(read(directory, vault_id=vault))
    mine = next(e.invocation for e in events if e.kind == "redeem")
    found, whole = trace(directory, vault_id=vault, invocation=mine)
    assert [e.kind for e in found] == ["lease", "redeem", "invocation"]
    assert whole
    path = directory / "000001.jsonl"
    lines = path.read_bytes()
    path.write_bytes(lines.replace(b'"kind":"redeem"', b'"kind":"expose"'))
    with pytest.raises(AuditTamperedError):
        trace(directory, vault_id=vault, invocation=mine)
    path.write_bytes(lines.replace(vault.encode(), b"0" * 32, 1))
    with pytest.raises(AuditTamperedError):
        trace(directory, vault_id=vault, invocation=mine)
    path.write_bytes(lines)


# -- verification ------------------------------------------------------------------------


async def test_the_newest_events_are_shown_before_all_of_the_log_is_checked(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    topics: list[str] = []
    publish = served.hub.publish

    def publishing(topic: str, value: object) -> None:
        topics.append(topic)
        publish(topic, value)

    monkeypatch.setattr(served.hub, "publish", publishing)
    async with anyio.create_task_group() as group:
        group.start_soon(served.watcher.run)
        with anyio.fail_after(WITHIN):
            while "verified" not in topics:
                await anyio.lowlevel.checkpoint()
        group.cancel_scope.cancel()
    assert "leases" in topics[: topics.index("verified")]


async def test_the_log_is_verified_all_then_what_is_new(town: Town) -> None:
    town.vault.audit.sign()
    verifier = Verifier(audit_directory(town.vault.home), vault_id=town.vault.vault_id)
    first = verifier.check()
    assert (first.state, first.full > 0) == ("ok", True)
    await town.use(WEATHER, "weather/openweather")
    town.vault.audit.sign()
    second = verifier.check()
    assert second.state == "ok"
    assert second.count > first.count
    assert second.full == first.full, "not all of it again"
    assert verifier.check(full=True).full > first.full


async def test_all_of_the_log_is_checked_in_time_whatever_the_wall_clock_says(
    town: Town, monkeypatch: pytest.MonkeyPatch
) -> None:
    town.vault.audit.sign()
    paced = 0.0
    directory = audit_directory(town.vault.home)
    verifier = Verifier(directory, vault_id=town.vault.vault_id, now=lambda: paced)
    first = verifier.check()
    monkeypatch.setattr("apex_creds.dashboard.log_status.time.time", lambda: 5.0)
    assert verifier.check().full == first.full
    paced += FULL_SECONDS + 1
    assert verifier.check().full == 5.0


async def test_an_alteration_is_found_and_located(town: Town, tmp_path: Path) -> None:
    town.vault.audit.sign()
    directory = audit_directory(town.vault.home)
    verifier = Verifier(directory, vault_id=town.vault.vault_id)
    assert verifier.check().state == "ok"
    path = directory / "000001.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b'"kind":"put"', b'"kind":"puT"', 1))
    found = verifier.check(full=True)
    assert found.state == "bad"
    assert found.bad > 1
    assert f"Event {found.bad} " in found.what
    path.write_bytes(whole)
    assert verifier.check().state == "ok"


def test_a_log_that_is_not_there_is_bad(tmp_path: Path) -> None:
    (tmp_path / "audit").mkdir()
    assert Verifier(tmp_path / "audit", vault_id="ab" * 16).check().state == "bad"


# -- the hub and words -------------------------------------------------------------------


async def test_a_reader_that_comes_late_gets_the_newest_of_each() -> None:
    hub = LiveFeed()
    for n in range(5):
        hub.publish("keys", n)
    hub.log({"seq": n} for n in range(1, KEPT + 10))
    found: list[bytes] = []
    async for frame in hub.frames(lasts=lambda: True):
        found.append(frame)
        if frame.startswith(b"event: log"):
            hub.close()
    assert found[0] == b"event: keys\ndata: 4\n\n"
    numbers = [event["seq"] for event in json.loads(found[1].split(b"data: ")[1])]
    assert numbers == list(range(10, KEPT + 10))
    assert hub.readers == 0


async def test_a_line_found_altered_is_told_to_who_reads_already(served: Served) -> None:
    await served.look()
    town = served.town
    path = audit_directory(town.vault.home) / "000001.jsonl"
    await town.use(WEATHER, "weather/openweather")
    town.vault.audit.flush()
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b'"kind":"redeem"', b'"kind":"expose"'))
    await served.watcher.read_log()
    path.write_bytes(whole)
    kept = [json.loads(data) for _, data in served.hub._log]
    faults = [event for event in kept if "fault" in event]
    assert len(faults) == 1
    numbers = [at for at, _ in served.hub._log]
    assert numbers == sorted(numbers)


async def test_a_reader_is_told_that_it_is_alive() -> None:
    hub = LiveFeed()
    async for frame in hub.frames(lasts=lambda: True, alive=0.01):
        assert frame == b": alive\n\n"
        hub.close()


def test_text_is_escaped_and_cut() -> None:
    assert text("a\u202eb\x00c") == "a\\u202eb\\x00c"
    assert len(text("x" * 5000)) == 401
    assert text("naïve ✓ 漢字") == "naïve ✓ 漢字"


def test_labels_hide_services_but_not_sections() -> None:
    hidden = Names(lambda name: f"~{len(name)}")
    assert hidden.label("api_keys/openai") == "api_keys/~6"
    assert hidden.label("access/factors") == "access/factors"
    named = Names(lambda name: f"~{len(name)}", named=True)
    named.learn(["openai"])
    assert named.label("api_keys/openai") == "api_keys/openai"
    assert named.logged("~6") == "openai"
    assert named.logged("~9") == "~9"


def test_the_detail_of_a_rotation_is_escaped_like_all_text_and_left_out_if_empty() -> None:
    def shown(detail: str) -> dict[str, object]:
        event = Recorded(v=1, seq=1, time=1.0, kind=EventKind.ROTATION, detail=detail, hash="")
        return Names().event(event)

    assert shown("no\x1blabel")["detail"] == "no\\x1blabel"
    assert shown("api\x1b_keys/a\x1bb")["detail"] == "api\\x1b_keys/a\\x1bb"
    assert not shown("").get("detail")
