"""Proofs from stored nodes: those of the whole log, from a part of it, whatever is stored."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import accumulate, islice, pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apex_creds.audit import (
    AuditEvent,
    AuditLog,
    EventKind,
    line,
    log_files,
    nodes,
    proofs,
    segment,
    tree,
)
from apex_creds.audit.checkpoint import CHECKPOINTS, Checkpoint, CheckpointFile, LogKey
from apex_creds.audit.log_files import create_whole
from apex_creds.audit.maintenance import Cadence
from apex_creds.audit.note import base64_of
from apex_creds.audit.segment import compress, file_name, segments
from apex_creds.audit.tree import Frontier
from apex_creds.audit.verify import check, check_newest, entries, latest, read
from apex_creds.errors import AuditTamperedError
from apex_creds.model import SystemClock

VAULT = "ab" * 16
SIZES = (300, 212, 1, 511, 700, 40, 800, 257)
COUNT = sum(SIZES)


def write(directory: Path, sizes: Sequence[int], *, stored: bool = True) -> list[bytes]:
    """A log of segments with that many events, all but the last sealed; returns the leaves."""
    directory.mkdir(0o700)
    edge, leaves = Frontier(), []
    for number, (first, end) in enumerate(pairwise(accumulate(sizes, initial=0)), start=1):
        made = [
            line.link(seq, line.encode(AuditEvent(1.0, EventKind.LEASE, detail=f"event {seq}")))
            for seq in range(first + 1, end + 1)
        ]
        texts = [line.header(segment=number, vault_id=VAULT, edge=edge), *(t for t, _ in made)]
        if number < len(sizes):
            texts.append(line.seal(segment=number, last=end))
        path = directory / file_name(number)
        create_whole(path, b"".join(texts))
        if number < len(sizes):
            compress(path)
            if stored:
                nodes.keep_nodes(path, vault_id=VAULT)
        elif stored:
            grown = edge.copy()
            grown.nodes = []
            grown.extend(leaf for _, leaf in made)
            nodes.keep_open_nodes(directory, head=texts[0], nodes=grown.nodes)
        leaves += [leaf for _, leaf in made]
        edge.extend(leaf for _, leaf in made)
    return leaves


def sign(directory: Path, leaves: Sequence[bytes], key: LogKey) -> Checkpoint:
    edge = Frontier()
    edge.extend(leaves)
    made = Checkpoint.make(edge.size, edge.root(), key=key)
    (directory / CHECKPOINTS).unlink(missing_ok=True)
    CheckpointFile(directory, vault_id=VAULT).add(made)
    return made


class Made:
    """A log on disk, with all its leaves."""

    def __init__(self, directory: Path, sizes: Sequence[int], key: LogKey) -> None:
        self.directory, self.key = directory, key
        self.leaves = write(directory, sizes)
        sign(directory, self.leaves, key)

    def expected(self, seq: int, size: int) -> list[bytes]:
        """The hashes of a proof, from all leaves."""
        return tree.hashes_of(tree.inclusion_ranges(seq - 1, size), self.leaves)


def hashes(proof: str) -> list[str]:
    return proof.partition("\n\n")[0].split("\n")[3:]


@pytest.fixture(scope="module")
def shared(log_key: LogKey) -> Iterator[Made]:
    directory = Path(tempfile.mkdtemp())
    yield Made(directory / "audit", SIZES, log_key)
    shutil.rmtree(directory)


@pytest.fixture
def made(shared: Made, tmp_path: Path) -> Made:
    """A copy, to be altered."""
    copy = object.__new__(Made)
    copy.directory, copy.key, copy.leaves = tmp_path / "audit", shared.key, shared.leaves
    shutil.copytree(shared.directory, copy.directory)
    sign(copy.directory, copy.leaves, copy.key)
    return copy


@pytest.fixture
def no_whole_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where a proof needs all events."""

    def some(directory: Path, *, vault_id: str, after: int = -1) -> object:
        assert after >= 0, "the whole log was read"
        return entries(directory, vault_id=vault_id, after=after)

    monkeypatch.setattr(proofs, "entries", some)


@given(data=st.data())
def test_both_ways_lead_to_the_same_proofs(shared: Made, data: st.DataObject) -> None:
    size = data.draw(st.integers(1, COUNT), label="size")
    seq = data.draw(st.integers(1, size), label="seq")
    old = data.draw(st.integers(1, size), label="old")
    newest = sign(shared.directory, shared.leaves[:size], shared.key)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(proofs.tree, "hashes_of", None)  # the way of the whole log
        text = proofs.inclusion(shared.directory, vault_id=VAULT, seq=seq)
        path, _ = proofs.consistency(shared.directory, vault_id=VAULT, old=old)
    assert hashes(text) == [base64_of(each) for each in shared.expected(seq, size)]
    assert proofs.check_inclusion(text, keys=[shared.key.verifier]).seq == seq
    assert path == tree.hashes_of(tree.consistency_ranges(old, size), shared.leaves)
    before = Frontier()
    before.extend(shared.leaves[:old])
    earlier = Checkpoint.make(old, before.root(), key=shared.key)
    proofs.check_consistency(earlier, newest, path)


@settings(max_examples=40)
@given(
    sizes=st.lists(st.integers(1, 600), min_size=1, max_size=7),
    stored=st.booleans(),
    data=st.data(),
)
def test_roots_of_subtrees_wherever_segments_end(
    sizes: list[int], stored: bool, data: st.DataObject
) -> None:
    with tempfile.TemporaryDirectory() as place:
        leaves = write(Path(place) / "audit", sizes, stored=stored)
        kept = nodes.Subtrees(Path(place) / "audit", vault_id=VAULT)
        for start, end in tree.inclusion_ranges(
            data.draw(st.integers(0, len(leaves) - 1)), len(leaves)
        ):
            edge = Frontier()
            edge.extend(leaves[start:end])
            assert kept.root(start, end) == edge.root()


# -- what is read -------------------------------------------------------------------------


@pytest.fixture
def bytes_read(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], int]:
    """Calls something, and returns how many bytes of the log it read."""
    counted: list[int] = []
    pread = log_files._pread

    def counting(fd: int, count: int, offset: int) -> bytes:
        data = pread(fd, count, offset)
        counted.append(len(data))
        return data

    def run(act: Callable[[], object]) -> int:
        counted.clear()
        act()
        return sum(counted)

    monkeypatch.setattr(log_files, "_pread", counting)
    return run


def test_a_log_of_sixteen_times_the_length_is_read_hardly_more(
    tmp_path: Path, log_key: LogKey, bytes_read: Callable[[Callable[[], object]], int]
) -> None:
    def costs(times: int) -> tuple[int, int]:
        log = Made(tmp_path / str(times), [400] * 5 * times, log_key)
        size = len(log.leaves)
        proof = max(
            bytes_read(partial(proofs.inclusion, log.directory, vault_id=VAULT, seq=seq))
            for seq in (1, size // 3, size // 2, size - 401, size)
        )
        return proof, bytes_read(lambda: list(read(log.directory, vault_id=VAULT)))

    (short, short_log), (long, long_log) = costs(1), costs(16)
    assert long_log > 10 * short_log
    assert long < 1.4 * short


@pytest.fixture
def files_opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the log's files that were opened to be read."""
    names: list[str] = []
    for module in (log_files, segment, nodes):
        real = module.open_to_read

        def opening(path: Path, real: Callable[[Path], int] = real) -> int:
            names.append(path.name)
            return real(path)

        monkeypatch.setattr(module, "open_to_read", opening)
    return names


READS: dict[str, Callable[[Path], object]] = {
    "tail": lambda log: list(islice(latest(log, vault_id=VAULT), 10)),
    "newest": lambda log: check_newest(log, vault_id=VAULT),
    "prove first": lambda log: proofs.inclusion(log, vault_id=VAULT, seq=7),
    "prove open": lambda log: proofs.inclusion(log, vault_id=VAULT, seq=_last(log) - 900),
    "prove last": lambda log: proofs.inclusion(log, vault_id=VAULT, seq=_last(log)),
    "consistency": lambda log: proofs.consistency(log, vault_id=VAULT, old=1500),
    "from a number": lambda log: list(read(log, vault_id=VAULT, after=_last(log) - 20)),
    "one": lambda log: next(read(log, vault_id=VAULT, after=_last(log) - 900)),
}


def _last(directory: Path) -> int:
    newest = CheckpointFile(directory, vault_id=VAULT).last()
    assert newest is not None
    return newest.size


def test_nothing_that_reads_a_part_reads_more_of_a_log_that_grew(
    tmp_path: Path,
    log_key: LogKey,
    bytes_read: Callable[[Callable[[], object]], int],
    files_opened: list[str],
) -> None:
    """Neither with the number of segments, nor with the length of the one written to."""
    costs: dict[int, dict[str, tuple[int, int]]] = {}
    for times, still_open in ((1, 2000), (24, 9000)):
        log = Made(tmp_path / str(times), [*[1000] * times, still_open], log_key)
        for name, act in READS.items():
            files_opened.clear()
            count = bytes_read(partial(act, log.directory))
            costs.setdefault(times, {})[name] = count, len(files_opened)
    for name, (long, opened) in costs[24].items():
        short, few = costs[1][name]
        window = 1 << 20 if name == "newest" else 2 * 65536
        assert long < 1.3 * max(short, window), name
        assert opened <= few + 20, name  # a few for each level of the tree


def test_a_log_without_nodes_of_its_open_segment_gives_the_same_proofs(made: Made) -> None:
    """One that an older program wrote, or of which a crash left any bytes."""
    path = made.directory / nodes.OPEN
    whole, expected = path.read_bytes(), made.expected(COUNT, COUNT)
    for data in (None, b"", whole[:-1], whole + bytes(32), os.urandom(len(whole)), whole):
        path.unlink(missing_ok=True)
        if data is not None:
            path.write_bytes(data)
        text = proofs.inclusion(made.directory, vault_id=VAULT, seq=COUNT)
        assert hashes(text) == [base64_of(each) for each in expected]


def test_forged_nodes_of_the_open_segment_lead_to_no_wrong_proof(made: Made) -> None:
    first = COUNT - SIZES[-1]
    edge = Frontier()
    edge.extend(made.leaves[:first])
    head = line.header(segment=len(SIZES), vault_id=VAULT, edge=edge)
    path = made.directory / nodes.OPEN
    count = (len(path.read_bytes()) - 37) // tree.HASH_BYTES
    nodes.keep_open_nodes(
        made.directory, head=head, nodes=[os.urandom(32) for _ in range(count)]
    )
    for seq in (1, COUNT - 300, COUNT):
        text = proofs.inclusion(made.directory, vault_id=VAULT, seq=seq)
        assert hashes(text) == [base64_of(each) for each in made.expected(seq, COUNT)]


def test_the_end_of_the_log_is_read_from_its_end(
    made: Made, bytes_read: Callable[[Callable[[], object]], int]
) -> None:
    *_, newest = segments(made.directory).values()

    def end() -> list[int]:
        events = latest(made.directory, vault_id=VAULT)
        return [next(events).seq for _ in range(SIZES[-1])]

    assert bytes_read(lambda: end() == list(range(COUNT, COUNT - SIZES[-1], -1)))
    assert bytes_read(end) == newest.stat().st_size
    every = [event.seq for event in latest(made.directory, vault_id=VAULT)]
    assert every == list(range(COUNT, 0, -1))


@given(after=st.integers(0, COUNT + 3))
def test_reading_begins_where_it_is_asked_to(shared: Made, after: int) -> None:
    found = [seq for seq, _ in entries(shared.directory, vault_id=VAULT, after=after)]
    assert found == list(range(after + 1, COUNT + 1))


# -- what is stored is never trusted -------------------------------------------------------


def spoil(path: Path, how: str) -> None:
    data = path.read_bytes()
    other = path.with_name("000007.nodes" if path.name != "000007.nodes" else "000005.nodes")
    changes: dict[str, Callable[[], object]] = {
        "missing": path.unlink,
        "empty": lambda: path.write_bytes(b""),
        "cut": lambda: path.write_bytes(data[:-1]),
        "longer": lambda: path.write_bytes(data + bytes(32)),
        "garbage": lambda: path.write_bytes(os.urandom(len(data))),
        "another": lambda: path.write_bytes(other.read_bytes()),
        "open": lambda: path.chmod(0),
    }
    changes[how]()


@pytest.mark.parametrize(
    "how", ["missing", "empty", "cut", "longer", "garbage", "another", "open"]
)
@pytest.mark.usefixtures("no_whole_read")
def test_nodes_that_are_no_good_are_made_of_their_segment(made: Made, how: str) -> None:
    paths = sorted(made.directory.glob("0*.nodes"))
    assert len(paths) == len(SIZES) - 1
    for path in paths:
        spoil(path, how)
    for seq in (1, 513, 1724, COUNT):
        text = proofs.inclusion(made.directory, vault_id=VAULT, seq=seq)
        assert hashes(text) == [base64_of(each) for each in made.expected(seq, COUNT)]


def test_a_link_in_the_place_of_nodes_is_not_followed(made: Made, tmp_path: Path) -> None:
    path = made.directory / "000005.nodes"
    elsewhere = tmp_path / "elsewhere"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)
    before = elsewhere.read_bytes()
    text = proofs.inclusion(made.directory, vault_id=VAULT, seq=1030)
    assert hashes(text) == [base64_of(each) for each in made.expected(1030, COUNT)]
    assert elsewhere.read_bytes() == before
    assert not os.path.lexists(path)


@given(data=st.data())
def test_forged_nodes_never_lead_to_a_wrong_proof(shared: Made, data: st.DataObject) -> None:
    """Of someone who knows the format."""
    sign(shared.directory, shared.leaves, shared.key)
    path = data.draw(st.sampled_from(sorted(shared.directory.glob("0*.nodes"))))
    seq = data.draw(st.integers(1, COUNT))
    number = int(path.stem)
    edge = Frontier()
    edge.extend(shared.leaves[: sum(SIZES[: number - 1])])
    head = line.header(segment=number, vault_id=VAULT, edge=edge)
    before = {each: each.read_bytes() for each in shared.directory.glob("0*.nodes")}
    size = len(before[path]) // tree.HASH_BYTES - 1
    try:
        path.write_bytes(nodes._pack(head, os.urandom(size * tree.HASH_BYTES)))
        text = proofs.inclusion(shared.directory, vault_id=VAULT, seq=seq)
        assert hashes(text) == [base64_of(each) for each in shared.expected(seq, COUNT)]
    finally:
        for each, content in before.items():
            each.write_bytes(content)


def test_a_forged_line_of_a_segment_is_found_or_not_needed(made: Made) -> None:
    for number, path in list(segments(made.directory).items())[:-1]:
        whole = path.read_bytes()
        first = sum(SIZES[: number - 1])
        path.chmod(0o600)
        path.write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])
        with pytest.raises(AuditTamperedError):
            proofs.inclusion(made.directory, vault_id=VAULT, seq=first + 1)
        path.write_bytes(whole)


def test_a_log_that_is_not_the_signed_one_gives_no_proof(made: Made) -> None:
    sign(made.directory, [*made.leaves[:-1], bytes(32)], made.key)
    for seq in (1, 900, COUNT):
        with pytest.raises(AuditTamperedError, match="not those signed"):
            proofs.inclusion(made.directory, vault_id=VAULT, seq=seq)
    with pytest.raises(AuditTamperedError, match="not those signed"):
        proofs.consistency(made.directory, vault_id=VAULT, old=5)
    sign(made.directory, [*made.leaves, bytes(32)], made.key)
    with pytest.raises(AuditTamperedError, match="not those signed"):
        proofs.inclusion(made.directory, vault_id=VAULT, seq=1)


@given(data=st.data())
@settings(max_examples=60)
def test_a_reader_from_the_end_finds_what_one_from_the_beginning_finds(
    shared: Made, data: st.DataObject
) -> None:
    """Whichever byte of the segment that is written to was altered, or where it was cut."""
    path = shared.directory / file_name(len(SIZES))
    whole = path.read_bytes()
    at = data.draw(st.integers(0, len(whole) - 1))
    cut = data.draw(st.booleans())
    path.write_bytes(whole[:at] if cut else whole[:at] + b"~" + whole[at + 1 :])

    def all_of(events: Callable[[], object]) -> object:
        try:
            return sorted(event.seq for event in events())  # type: ignore[attr-defined]
        except AuditTamperedError as error:
            return error.message

    try:
        forwards = all_of(lambda: read(shared.directory, vault_id=VAULT))
        assert all_of(lambda: latest(shared.directory, vault_id=VAULT)) == forwards
    finally:
        path.write_bytes(whole)


# -- upkeep -------------------------------------------------------------------------------


def fill(directory: Path, key: LogKey, count: int) -> None:
    cadence = Cadence(events=10**9, seconds=10.0**6, segment_bytes=8192)
    log = AuditLog(directory, vault_id=VAULT, clock=SystemClock(), key=key, cadence=cadence)
    for number in range(count):
        log.append(AuditEvent(1.0, EventKind.LEASE, detail=f"event {number}"))
        log._upkeep.work()
    log.close()


def test_nodes_of_the_open_segment_come_with_checkpoints(
    audit_dir: Path, log_key: LogKey, bytes_read: Callable[[Callable[[], object]], int]
) -> None:
    """Also where another process sealed segments meanwhile."""
    cadence = Cadence(events=10**9, seconds=10.0**6, segment_bytes=65536)
    one, two = (
        AuditLog(audit_dir, vault_id=VAULT, clock=SystemClock(), key=log_key, cadence=cadence)
        for _ in range(2)
    )
    for number in range(1500):
        (one, two)[number // 400 % 2].append(
            AuditEvent(1.0, EventKind.LEASE, detail=f"event {number}")
        )
        if number % 50 == 0:
            one._upkeep.work()
        if number % 300 == 299:
            (two, one)[number // 300 % 2].sign()
            leaves = [line.leaf_of(text) for _, text in entries(audit_dir, vault_id=VAULT)]
            last = list(segments(audit_dir).values())[-1]
            head, *_ = segment.read_segment(last).splitlines(keepends=True)
            before = line.parse_header(head, segment=int(last.name[:6]), vault_id=VAULT)
            assert before is not None
            grown, grown.nodes = before.copy(), []
            grown.extend(leaves[before.size :])
            stored = (audit_dir / nodes.OPEN).read_bytes()
            assert stored == nodes._pack(head, b"".join(grown.nodes)) or not grown.nodes
    assert len(segments(audit_dir)) > 2
    for log in (one, two):
        log.close()


def test_nodes_come_with_sealing_and_come_back(audit_dir: Path, log_key: LogKey) -> None:
    fill(audit_dir, log_key, 400)
    *sealed, last = segments(audit_dir).values()
    assert len(sealed) > 4
    while not all(map(nodes.has_nodes, sealed)):  # a closing log leaves some to the next
        before = sum(map(nodes.has_nodes, sealed))
        fill(audit_dir, log_key, 0)
        assert sum(map(nodes.has_nodes, sealed)) > before
    assert not nodes.has_nodes(last)
    made = {path: path.read_bytes() for path in audit_dir.glob("0*.nodes")}
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in made)
    for path in made:
        path.unlink()
    while not all(map(nodes.has_nodes, sealed)):
        fill(audit_dir, log_key, 0)
    assert {path: path.read_bytes() for path in audit_dir.glob("0*.nodes")} == made
    assert check(audit_dir, vault_id=VAULT, complete=True).ok
    leaves = [line.leaf_of(text) for _, text in entries(audit_dir, vault_id=VAULT)]
    for seq in (1, 256, 257, 400):
        text = proofs.inclusion(audit_dir, vault_id=VAULT, seq=seq)
        expected = tree.hashes_of(tree.inclusion_ranges(seq - 1, 400), leaves)
        assert hashes(text) == [base64_of(each) for each in expected]
