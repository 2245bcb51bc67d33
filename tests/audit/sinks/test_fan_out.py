"""A slow or broken destination never holds the log up; drops are counted and audited."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from apex_creds.audit import AuditEvent, AuditLog, EventKind
from apex_creds.audit.sinks import CallbackSink, Destination, Destinations, Level
from apex_creds.errors import AuditUnavailableError, InvalidInputError
from tests.support.held import FailingSink, HeldSink, event
from tests.support.loops import WITHIN

Attach = Callable[..., tuple[AuditLog, Destinations]]
Recorded = Callable[[], list[AuditEvent]]


def test_each_gets_its_level_in_order_exactly_as_written(
    attach: Attach, directory: Path
) -> None:
    sinks = {level: HeldSink() for level in Level}
    for sink in sinks.values():
        sink.go.set()
    each = (Destination(name=name, sink=sink, level=name) for name, sink in sinks.items())
    log, _ = attach(*each)
    for kind in (EventKind.PUT, EventKind.REDEEM, EventKind.DENIAL, EventKind.GRANT):
        log.append(event(kind, credential=f'"kind":"lease" for {kind}'))
    log.append(event(EventKind.LEASE), flush=False)
    log.close()
    got = {level: [line.event.seq for line in sink.taken] for level, sink in sinks.items()}
    assert got == {
        Level.ALL: [1, 2, 3, 4, 5],
        Level.MUTATIONS: [1, 4],
        Level.DENIALS: [3],
        Level.SECURITY: [3, 4],
    }
    written = (directory / "000001.jsonl").read_bytes().splitlines()
    assert [line.data for line in sinks[Level.ALL].taken] == written[1:6]
    assert {sink.closed for sink in sinks.values()} == {1}


def test_a_sink_that_blocks_blocks_nothing_and_its_drops_are_audited(
    attach: Attach, recorded: Recorded
) -> None:
    slow, quick = HeldSink(), HeldSink()
    quick.go.set()
    log, hub = attach(
        Destination(name="slow", sink=slow, capacity=16), Destination(name="quick", sink=quick)
    )
    log.append(event())
    assert slow.entered.wait(WITHIN)
    for _ in range(40):
        log.append(event())
    assert not slow.taken
    outlet = hub.outlets[0]
    assert outlet.waiting == 16
    assert outlet.dropped >= 25
    slow.go.set()
    log.close()
    told = [each.detail for each in recorded() if each.kind is EventKind.DROPPED]
    assert told[0] == "slow is full: events are lost"
    assert told[1].startswith(f"slow: {outlet.dropped} events lost, of numbers 17 to ")
    assert [line.event.seq for line in slow.taken[:16]] == list(range(1, 17))
    assert {line.event.kind for line in slow.taken[16:]} <= {EventKind.DROPPED}
    assert [line.event.seq for line in quick.taken][:41] == list(range(1, 42))


def test_a_sink_that_never_returns_does_not_keep_the_log_open(
    attach: Attach, recorded: Recorded
) -> None:
    stuck = HeldSink()
    log, _ = attach(Destination(name="stuck", sink=stuck), patience=0.01)
    log.append(event())
    assert stuck.entered.wait(WITHIN)
    log.append(event())
    log.close()
    assert "stuck: 2 events lost, of numbers 1 to 2" in [e.detail for e in recorded()]
    stuck.go.set()


def test_what_failed_is_delivered_when_the_sink_is_back(
    attach: Attach, caplog: pytest.LogCaptureFixture
) -> None:
    sink = FailingSink(broken=True)
    log, hub = attach(Destination(name="away", sink=sink))
    for _ in range(5):
        log.append(event())
    assert sink.failed.wait(WITHIN)
    sink.broken = False
    assert sink.delivered.wait(WITHIN)
    log.close()
    assert sink.taken == [1, 2, 3, 4, 5]
    assert hub.outlets[0].dropped == 0
    assert "hunter2" not in caplog.text
    assert "ConnectionRefusedError" in caplog.text


def test_a_required_destination_that_fails_refuses_until_it_is_back(
    attach: Attach, recorded: Recorded
) -> None:
    sink = FailingSink(broken=False)
    log, _ = attach(Destination(name="siem", sink=sink, required=True))
    log.append(event())
    assert sink.delivered.wait(WITHIN)
    sink.broken = True
    log.append(event(detail="taken before anyone can know"))
    assert sink.failed.wait(WITHIN)
    while not _refuses(log):
        pass
    with pytest.raises(AuditUnavailableError, match="siem") as refused:
        log.append(event(detail="never"))
    assert "hunter2" not in str(refused.value)
    assert log.append(event(EventKind.INVOCATION, detail="nothing waits"), flush=False) is None
    sink.delivered.clear()
    sink.broken = False
    assert sink.delivered.wait(WITHIN)
    while _refuses(log):
        pass
    log.append(event(detail="again"))
    log.close()
    details = [each.detail for each in recorded()]
    assert "never" not in details
    assert details[-1] == "again"
    assert sink.taken == list(range(1, len(details) + 1))


def _refuses(log: AuditLog) -> bool:
    try:
        log.append(event(detail="try"))
    except AuditUnavailableError:
        return True
    return False


def test_a_required_destination_that_is_nearly_full_refuses(
    attach: Attach, recorded: Recorded
) -> None:
    sink = HeldSink()
    log, hub = attach(Destination(name="siem", sink=sink, required=True, capacity=16))
    taken = 0
    while not _refuses(log):
        taken += 1
    assert taken == 12
    sink.go.set()
    log.close()
    assert hub.outlets[0].dropped == 0
    assert EventKind.DROPPED not in {each.kind for each in recorded()}


def test_a_required_destination_must_be_there_from_the_start(attach: Attach) -> None:
    with pytest.raises(AuditUnavailableError, match="can't be reached: Connection"):
        attach(Destination(name="siem", sink=FailingSink(broken=True), required=True))


def test_every_append_durable_and_a_callback_that_raises(attach: Attach) -> None:
    seen: list[int] = []

    def function(each: object) -> None:
        seen.append(each.seq)  # type: ignore[attr-defined]

    log, _ = attach(Destination(name="function", sink=CallbackSink(function)))
    log.append(event())
    log.close()
    assert seen == [1]


def test_two_of_one_name_and_a_queue_without_room_are_refused(attach: Attach) -> None:
    one = Destination(name="a", sink=HeldSink())
    with pytest.raises(InvalidInputError, match="one name"):
        attach(one, Destination(name="a", sink=HeldSink()))
    with pytest.raises(InvalidInputError, match="room"):
        Destination(name="a", sink=HeldSink(), capacity=1)
