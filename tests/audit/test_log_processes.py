"""The log among real processes, real kills and a really full disk."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from apex_creds.audit import AuditEvent, AuditLog, EventKind, check, line, read, verify
from apex_creds.audit.checkpoint import LogKey
from apex_creds.audit.crash_recovery import add_segment
from apex_creds.audit.maintenance import Cadence
from apex_creds.audit.segment import Segment, segments
from apex_creds.audit.tree import Frontier
from apex_creds.audit.verify import entries
from apex_creds.errors import AuditUnavailableError
from apex_creds.model import SystemClock

VAULT = "ab" * 16

_PRELUDE = """
import os, signal, sys
from pathlib import Path
from apex_creds.audit import AuditEvent, AuditLog, EventKind
from apex_creds.model import SystemClock
name, directory, count = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
log = AuditLog(directory, vault_id="ab" * 16, clock=SystemClock())
event = lambda i: AuditEvent(1.0, EventKind.REDEEM, plugin=name, detail=str(i))
"""

_APPEND = (
    _PRELUDE
    + """
for i in range(count):
    seq = log.append(event(i), flush=i % 4 != 0)
    if seq is not None:
        os.write(1, b"%d\\n" % seq)
log.close()
"""
)

_DIE_IN_WRITE = (
    _PRELUDE
    + """
log.append(event("acknowledged"))
real = os.write
def write(fd, data):
    real(fd, data[:count])
    os.kill(os.getpid(), signal.SIGKILL)
os.write = write
log.append(event("torn"), flush=False)
log.append(event("torn too"))
"""
)


def spawn(script: str, name: str, directory: Path, count: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", script, name, str(directory), str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE)


def finish(process: subprocess.Popen[bytes]) -> list[int]:
    out, _ = process.communicate(timeout=480)
    return [int(line) for line in out.split(b"\n")[:-1]]


def test_processes_append_to_one_valid_chain(audit_dir: Path) -> None:
    processes = [spawn(_APPEND, name, audit_dir, 1500) for name in "abc"]
    seen = [finish(process) for process in processes]
    assert all(process.returncode == 0 for process in processes)
    assert verify(audit_dir, vault_id=VAULT).count == 4500
    numbers = [number for part in seen for number in part]
    assert len(set(numbers)) == len(numbers)
    for name in "abc":
        events = [e for e in read(audit_dir, vault_id=VAULT) if e.plugin == name]
        assert [e.detail for e in events] == [str(i) for i in range(1500)]


def test_kill_under_load_loses_nothing_acknowledged(
    audit_dir: Path, open_log: Callable[..., AuditLog]
) -> None:
    for lines in (1, 50, 333):
        victim = spawn(_APPEND, "victim", audit_dir, 10**9)
        assert victim.stdout is not None
        seen = [int(victim.stdout.readline()) for _ in range(lines)]
        victim.kill()
        seen += finish(victim)
        open_log().close()
        events = {e.seq: e for e in read(audit_dir, vault_id=VAULT)}
        assert all(events[number].plugin == "victim" for number in seen)


@pytest.mark.parametrize("written", [0, 1, 60, 150, 200, 250])
def test_killed_in_the_middle_of_a_write(
    audit_dir: Path, open_log: Callable[..., AuditLog], written: int
) -> None:
    survivor = open_log(durable_within=60)
    survivor.append(AuditEvent(1.0, EventKind.PUT, detail="before"))
    victim = spawn(_DIE_IN_WRITE, "victim", audit_dir, written)
    victim.communicate(timeout=480)
    assert victim.returncode == -9
    survivor.append(AuditEvent(1.0, EventKind.PUT, detail="after"))
    events = list(read(audit_dir, vault_id=VAULT))
    plain = [e.detail for e in events if e.kind is not EventKind.RECOVERED]
    assert plain[:2] == ["before", "acknowledged"]
    assert plain[-1] == "after"
    torn = list(audit_dir.glob("torn-*.bin"))
    recovered = [e.detail for e in events if e.kind is EventKind.RECOVERED]
    assert len(torn) == len(recovered) == (1 if written else 0)
    assert all(path.name in detail for path, detail in zip(torn, recovered, strict=True))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("needs root to mount a small tmpfs")
    libc = ctypes.CDLL(None, use_errno=True)
    place = tmp_path / "disk"
    place.mkdir()
    if libc.mount(b"tmpfs", bytes(place), b"tmpfs", 0, b"size=65536,mode=700"):
        pytest.skip("can't mount here")
    yield place
    libc.umount2(bytes(place), 2)


def append_forever(log: AuditLog, event: AuditEvent) -> None:
    while True:
        log.append(event)


def test_a_full_disk_refuses_then_works_again(
    small_disk: Path, open_log: Callable[..., AuditLog]
) -> None:
    (small_disk / "ballast").write_bytes(b"x" * 30_000)
    directory = small_disk / "audit"
    log = open_log(directory, durable_within=60)
    event = AuditEvent(1.0, EventKind.REDEEM, detail="d" * 150)
    with pytest.raises(AuditUnavailableError, match="No space left"):
        append_forever(log, event)
    acknowledged = log.seq
    assert acknowledged > 10
    log.append(event, flush=False)
    with pytest.raises(AuditUnavailableError):
        log.append(event)
    assert verify(directory, vault_id=VAULT).count == acknowledged
    (small_disk / "ballast").unlink()
    assert log.append(event) == acknowledged + 2
    log.close()
    assert verify(directory, vault_id=VAULT).count == acknowledged + 2
    assert not list(directory.glob("torn-*"))


def test_a_torn_end_on_a_full_disk_stays_where_it_is(
    small_disk: Path, open_log: Callable[..., AuditLog]
) -> None:
    directory = small_disk / "audit"
    log = open_log(directory)
    log.append(AuditEvent(1.0, EventKind.PUT))
    log.close()
    path = directory / "000001.jsonl"
    with path.open("ab") as file:
        file.write(b'{"seq":2,')
    content = path.read_bytes()
    with pytest.raises(OSError, match="No space left"):
        (small_disk / "ballast").write_bytes(b"x" * 65536)
    with pytest.raises(AuditUnavailableError):
        open_log(directory)
    assert path.read_bytes() == content
    assert [p.name for p in directory.iterdir()] == ["000001.jsonl"]
    (small_disk / "ballast").unlink()
    open_log(directory).close()
    assert verify(directory, vault_id=VAULT).count == 2


@pytest.mark.parametrize("sealed_and_compressed", [1, 2, 5])
@pytest.mark.parametrize("idle", ["append", "flush", "sign"])
def test_a_process_that_was_idle_goes_on_after_segments_that_others_compressed(
    audit_dir: Path, log_key: LogKey, sealed_and_compressed: int, idle: str
) -> None:
    """It makes none of them anew, and writes nowhere but at the end."""
    cadence = Cadence(events=10**9, seconds=10.0**6, segment_bytes=8192)

    def opened() -> AuditLog:
        return AuditLog(
            audit_dir, vault_id=VAULT, clock=SystemClock(), key=log_key, cadence=cadence
        )

    late, busy = opened(), opened()
    late.append(AuditEvent(1.0, EventKind.LEASE, plugin="late"))
    count = 1
    while len(segments(audit_dir)) <= sealed_and_compressed + 1:
        busy.append(AuditEvent(1.0, EventKind.LEASE, plugin="busy"))
        busy._upkeep.work()
        count += 1
    for thread in busy._upkeep._packing:
        thread.join()
    *compressed, _ = segments(audit_dir).values()
    assert {path.suffix for path in compressed} == {".gz"}
    event = AuditEvent(1.0, EventKind.LEASE, plugin="late")
    if idle == "sign":
        late.sign()
    late.append(event, flush=idle != "flush")
    late.flush()
    assert late.seq == count + 1
    assert late.head == root_of(audit_dir).hex()
    late.close()
    busy.close()
    assert not [path for path in compressed if path.with_suffix("").exists()]
    assert verify(audit_dir, vault_id=VAULT).count == count + 1


def root_of(directory: Path) -> bytes:
    edge = Frontier()
    edge.extend(line.leaf_of(text) for _, text in entries(directory, vault_id=VAULT))
    return edge.root()


def test_no_segment_is_made_in_the_place_of_one_that_was_compressed(
    audit_dir: Path, log_key: LogKey
) -> None:
    """By a process that opens the log, found the sealed one last, and was slow since."""
    cadence = Cadence(events=10**9, seconds=10.0**6, segment_bytes=8192)
    log = AuditLog(audit_dir, vault_id=VAULT, clock=SystemClock(), key=log_key, cadence=cadence)
    first = Segment(audit_dir, 1)
    while len(segments(audit_dir)) < 4:
        log.append(AuditEvent(1.0, EventKind.LEASE, plugin="busy"))
        log._upkeep.work()
    for thread in log._upkeep._packing:
        thread.join()
    add_segment(first, Frontier(), vault_id=VAULT)
    assert not (audit_dir / "000002.jsonl").exists()
    log.close()
    assert verify(audit_dir, vault_id=VAULT).ok


_ROTATE = """
import os, sys
from pathlib import Path
from apex_creds.audit import AuditEvent, AuditLog, EventKind
from apex_creds.audit.checkpoint import LogKey
from apex_creds.audit.maintenance import Cadence
from apex_creds.crypto.memory import SecretBytes
from apex_creds.crypto.public_key import SigningKey
from apex_creds.model import SystemClock
name, directory, count = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
key = LogKey("ab" * 16, SigningKey.from_seed(SecretBytes.from_bytes(bytes(range(32)))))
log = AuditLog(directory, vault_id="ab" * 16, clock=SystemClock(), key=key,
    durable_within=0.004, cadence=Cadence(events=40, seconds=0.05, segment_bytes=16384))
for i in range(count):
    seq = log.append(AuditEvent(1.0, EventKind.REDEEM, plugin=name, detail=str(i)))
    os.write(1, b"%d\\n" % seq)
log.close()
"""


def test_processes_rotate_and_sign_one_log(audit_dir: Path) -> None:
    processes = [spawn(_ROTATE, name, audit_dir, 1200) for name in "abc"]
    seen = [finish(process) for process in processes]
    assert all(process.returncode == 0 for process in processes)
    report = check(audit_dir, vault_id=VAULT, complete=True)
    assert report.ok, report
    numbers = sorted(number for part in seen for number in part)
    assert numbers == list(range(1, 3601))
    assert report.count == 3600
    *sealed, _ = segments(audit_dir).values()
    assert len(sealed) >= 2
    for name in "abc":
        events = [e.detail for e in read(audit_dir, vault_id=VAULT) if e.plugin == name]
        assert events == [str(i) for i in range(1200)]
