"""SecretBytes and SecretArena: masked, wiped, never shared, dead after a fork."""

from __future__ import annotations

import contextlib
import copy
import ctypes
import gc
import json
import logging
import os
import pickle
import resource
import subprocess
import sys
import threading
from collections.abc import Callable
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apex_creds.crypto import aead, memory
from apex_creds.crypto.memory import SecretArena, SecretBytes, arena, harden_process
from apex_creds.errors import (
    AuditUnavailableError,
    InvalidInputError,
    SecretMisuseError,
    SecretWipedError,
    VaultSealedError,
)

CANARY = b"canary-7d1f-secret"
SIZES = [0, 1, 63, 64, 65, 256, 257, 1024, 4096, 16384, 65536, 69632, 69633, 300_000]


@pytest.mark.parametrize("size", SIZES)
def test_it_gives_back_what_went_in(size: int) -> None:
    data = os.urandom(size)
    with SecretBytes.from_bytes(data) as secret:
        assert len(secret) == size
        assert secret.expose_bytes() == data
        assert secret.view() == data
        assert secret.equals(data)


@pytest.mark.parametrize("size", SIZES)
def test_fresh_memory_is_zero_even_where_a_secret_was(size: int) -> None:
    own = SecretArena()
    for _ in range(3):
        with own.allocate(size) as secret:
            assert secret.expose_bytes() == bytes(size)
            secret._mutable()[:] = b"\xaa" * size


@given(st.binary(max_size=5000))
def test_copies_are_equal_and_separate(data: bytes) -> None:
    first = SecretBytes.from_bytes(bytearray(data))
    second = SecretBytes.copy_of(first)
    third = SecretBytes.copy_of(memoryview(data))
    first.close()
    assert second.expose_bytes() == data == third.expose_bytes()


def test_random_is_random() -> None:
    one, two = SecretBytes.random(32), SecretBytes.random(32)
    assert not one.equals(two)
    assert not one.equals(bytes(32))


def test_equals_is_about_content_and_eq_about_identity() -> None:
    one, two = SecretBytes.from_bytes(CANARY), SecretBytes.from_bytes(CANARY)
    assert one.equals(two)
    assert one.equals(bytearray(CANARY))
    assert not one.equals(CANARY[:-1])
    assert not one.equals(CANARY[:-1] + b"!")
    assert not one.equals(b"")
    assert one != two
    assert one == one
    assert one != CANARY


def test_its_first_bytes_are_compared_where_they_lie() -> None:
    with SecretBytes.from_bytes(b"abc") as secret:
        assert all(map(secret.begins_with, (b"", b"a", b"abc")))
        assert not any(map(secret.begins_with, (b"b", b"abd", b"abcd")))
    with pytest.raises(SecretWipedError):
        secret.begins_with(b"a")


@pytest.mark.parametrize(
    "show",
    [
        repr,
        str,
        format,
        "{}".format,
        "{:>30}".format,
        "%s".__mod__,
        "{!r}".format,
        "{!s}".format,
    ],
)
def test_it_masks_itself(show: Callable[[object], str]) -> None:
    secret = SecretBytes.from_bytes(CANARY)
    assert "SecretBytes(***)" in show(secret)
    assert "canary" not in show(secret) + repr([secret])
    secret.close()
    assert "SecretBytes(***)" in show(secret)


@pytest.mark.parametrize(
    "misuse",
    [pickle.dumps, copy.copy, copy.deepcopy, bytes, iter, list, json.dumps, memoryview, hex],
)
def test_it_refuses_to_be_serialised_or_copied(misuse: Callable[[object], object]) -> None:
    secret = SecretBytes.from_bytes(CANARY)
    with pytest.raises(TypeError) as caught:
        misuse(secret)
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize("protocol", range(6))
def test_no_pickle_protocol_works(protocol: int) -> None:
    with pytest.raises(SecretMisuseError):
        pickle.dumps({"a": SecretBytes.from_bytes(CANARY)}, protocol=protocol)


@pytest.mark.parametrize(
    "use",
    [
        len,
        SecretBytes.view,
        SecretBytes.expose_bytes,
        SecretBytes._mutable,
        SecretBytes.copy_of,
        SecretBytes.__enter__,
        lambda s: s.equals(b""),
        lambda s: SecretBytes.allocate(0).equals(s),
    ],
)
def test_nothing_works_after_close(use: Callable[[SecretBytes], object]) -> None:
    secret = SecretBytes.allocate(0)
    secret.close()
    secret.close()
    assert secret.closed
    with pytest.raises(SecretWipedError):
        use(secret)


@pytest.mark.parametrize("length", [-1, -(2**40)])
def test_a_negative_length_is_refused(length: int) -> None:
    for make in (SecretBytes.allocate, SecretBytes.random, arena().allocate):
        with pytest.raises(InvalidInputError):
            make(length)


def test_a_strided_view_is_refused_before_anything_is_copied() -> None:
    with pytest.raises(InvalidInputError):
        SecretBytes.from_bytes(memoryview(b"abcdef")[::2])


# -- wiping and slots --------------------------------------------------------------


def test_close_wipes_the_memory_itself() -> None:
    secret = SecretBytes.from_bytes(CANARY)
    raw = memory.ffi.buffer(secret._pointer(), len(CANARY))
    assert raw[:] == CANARY
    secret.close()
    assert raw[:] == bytes(len(CANARY))


def test_collection_wipes_and_gives_back() -> None:
    own = SecretArena()
    secret = own.allocate(len(CANARY))
    secret._mutable()[:] = CANARY
    raw = memory.ffi.buffer(secret._pointer(), len(CANARY))
    del secret
    gc.collect()
    assert raw[:] == bytes(len(CANARY))
    assert own.open_slots == 0


def test_an_exception_in_the_block_still_wipes() -> None:
    secret = SecretBytes.from_bytes(CANARY)
    with pytest.raises(ZeroDivisionError), secret:
        1 / 0  # noqa: B018
    assert secret.closed


def test_slots_are_counted_and_used_again() -> None:
    own = SecretArena()
    for _ in range(3):
        many = [own.allocate(n) for n in (*SIZES, *SIZES)]
        assert own.open_slots == 2 * len(SIZES)
        for each in many:
            each.close()
        assert own.open_slots == 0
    assert own.quarantined == 0


def test_open_slots_never_overlap() -> None:
    own = SecretArena()
    many = [own.allocate(n) for n in SIZES * 20]
    for i, each in enumerate(many):
        each._mutable()[:] = bytes([i % 251]) * len(each)
    for i, each in enumerate(many):
        assert each.expose_bytes() == bytes([i % 251]) * len(each)


def test_a_view_dies_with_its_secret() -> None:
    secret = SecretBytes.from_bytes(CANARY)
    view = secret.view()
    assert view.readonly
    assert secret.view() is view
    secret.close()
    with pytest.raises(ValueError, match="released"):
        bytes(view)


def test_a_view_can_be_released_and_taken_again() -> None:
    secret = SecretBytes.from_bytes(CANARY)
    for _ in range(100):
        with secret.view() as view:
            assert view == CANARY
    assert len(secret._exports) < 20


@pytest.mark.parametrize("size", [40, 100_000])
@pytest.mark.parametrize("released", [False, True])
@pytest.mark.parametrize("first", ["slice", "copy", "export", "cast"])
def test_a_slot_that_can_still_be_read_is_never_used_again(
    size: int, released: bool, first: str
) -> None:
    own = SecretArena()
    secret = own.allocate(size)
    secret._mutable()[:4] = b"old!"
    view = secret.view()
    kept = {
        "slice": lambda: view[1:3],
        "copy": lambda: memoryview(view),
        "export": lambda: pickle.PickleBuffer(view),
        "cast": lambda: view.cast("c"),
    }[first]()
    if released and first != "export":
        view.release()
    secret.close()
    assert own.quarantined == 1
    assert own.open_slots == 0
    again = [own.allocate(size) for _ in range(200 if size < 100 else 3)]
    for each in again:
        each._mutable()[:] = b"\xff" * size
    with memoryview(kept) as seen:
        assert seen.tobytes() == bytes(seen.nbytes)


def test_a_writable_view_left_alive_also_costs_the_slot() -> None:
    own = SecretArena()
    secret = own.allocate(8)
    kept = secret._mutable()[0:1]
    secret.close()
    kept[0] = 7
    assert own.quarantined == 1


# -- threads -----------------------------------------------------------------------


def _together(work: Callable[[], None], threads: int = 6) -> None:
    failures: list[BaseException] = []
    barrier = threading.Barrier(threads)

    def run() -> None:
        barrier.wait()
        try:
            work()
        except BaseException as problem:
            failures.append(problem)

    running = [threading.Thread(target=run) for _ in range(threads)]
    for each in running:
        each.start()
    for each in running:
        each.join()
    assert not failures


@pytest.fixture
def _fast_switching() -> object:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("_fast_switching")
def test_threads_never_share_a_slot() -> None:
    own = SecretArena()

    def work() -> None:
        mine = threading.get_ident().to_bytes(8, "big") * 4
        for _ in range(300):
            with own.allocate(32) as secret:
                secret._mutable()[:] = mine
                assert secret.expose_bytes() == mine

    _together(work)
    assert own.open_slots == 0


@pytest.mark.usefixtures("_fast_switching")
def test_a_slot_closed_by_many_threads_is_given_back_once() -> None:
    own = SecretArena()
    secrets = [own.allocate(16) for _ in range(300)]

    def work() -> None:
        for each in secrets:
            each.close()

    _together(work)
    assert own.open_slots == 0
    free = [id(slot) for slots in own._free for slot in slots]
    assert len(free) == len(set(free))


@pytest.mark.usefixtures("_fast_switching")
def test_views_taken_while_others_close_never_read_another_secret() -> None:
    own = SecretArena()
    shared: list[SecretBytes] = [own.allocate(16)]
    kept: list[memoryview] = []

    def work() -> None:
        for _ in range(200):
            secret = shared[0]
            with contextlib.suppress(SecretWipedError, ValueError):
                kept.append(secret.view()[2:4])
            shared[0] = own.allocate(16)
            secret.close()

    _together(work, threads=4)
    shared[0].close()
    fresh = [own.allocate(16) for _ in range(2000)]
    for each in fresh:
        each._mutable()[:] = b"\xff" * 16
    assert all(bytes(view) == b"\0\0" for view in kept)


# -- the process -------------------------------------------------------------------

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")


def _in_child(check: Callable[[], bool]) -> bool:
    import warnings

    with warnings.catch_warnings():  # 3.12 and later warn of threads around fork
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = 0 if check() else 2
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


@needs_fork
@pytest.mark.parametrize("size", [18, 100_000])
def test_a_forked_child_reads_zeros_and_every_use_is_refused(size: int) -> None:
    secret = SecretBytes.from_bytes(CANARY.ljust(size, b"."))
    view, raw = secret.view(), memory.ffi.buffer(secret._pointer(), 18)

    def check() -> bool:
        blank = bytes(raw) == bytes(18) and bytes(view[:18]) == bytes(18)
        for use in (len, SecretBytes.view, SecretBytes.expose_bytes, SecretBytes.copy_of):
            try:
                use(secret)
            except VaultSealedError:
                continue
            return False
        secret.close()
        return blank

    assert _in_child(check)
    assert secret.expose_bytes()[:18] == CANARY


@needs_fork
def test_a_forked_child_opens_nothing_under_a_subkey_of_its_parent() -> None:
    key = SecretBytes.random(32)
    message = aead.take_apart(aead.seal(key, CANARY, aad=b"place"))
    aead.open_parts(key, message, b"place").close()

    def check() -> bool:
        try:
            aead.open_parts(key, message, b"place")
        except VaultSealedError:
            key.close()
            return arena().open_slots == 0
        return False

    assert _in_child(check)
    with aead.open_parts(key, message, b"place") as opened:
        assert opened.expose_bytes() == CANARY


@needs_fork
def test_a_forked_child_can_have_secrets_of_its_own() -> None:
    held = [SecretBytes.from_bytes(CANARY) for _ in range(100)]

    def check() -> bool:
        if arena().open_slots:
            return False
        own = SecretBytes.from_bytes(b"child")
        for each in held:
            each.close()
        fresh = [SecretBytes.allocate(18) for _ in range(100)]
        one = arena().open_slots == 101 and own.expose_bytes() == b"child"
        return one and all(each.expose_bytes() == bytes(18) for each in fresh)

    assert _in_child(check)


@needs_fork
def test_a_fork_while_another_thread_holds_the_lock_does_not_hang_the_child() -> None:
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with arena()._lock:
            held.set()
            done.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    try:
        assert _in_child(lambda: SecretBytes.allocate(5000).expose_bytes() == bytes(5000))
    finally:
        done.set()
        thread.join()


_REFUSED = """
import logging, os, resource
from apex_creds.crypto.memory import SecretBytes, arena
logging.basicConfig(level=logging.WARNING, format="%(message)s")
resource.setrlimit(resource.RLIMIT_MEMLOCK, (0, 0))
if os.geteuid() == 0:
    os.setuid(65534)  # root may lock whatever it likes, where it has CAP_IPC_LOCK
many = [SecretBytes.from_bytes(b"x" * n) for n in (10, 5000, 100000, 200000)]
assert all(s.expose_bytes() == b"x" * len(s) for s in many)
print(arena().locked)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_MEMLOCK as Linux has it")
def test_where_locking_is_refused_it_says_so_once_and_works() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _REFUSED], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "False"
    assert done.stderr.count("RLIMIT_MEMLOCK") == 1


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_memory_is_locked_and_neither_dumped_nor_inherited() -> None:
    own = SecretArena()
    secret = own.allocate(64)
    address = int(memory.ffi.cast("uintptr_t", secret._pointer()))
    flags = _vm_flags(address)
    assert {"dd", "wf"} <= flags
    assert ("lo" in flags) == own.locked


def _vm_flags(address: int) -> set[str]:
    inside = False
    with open("/proc/self/smaps") as lines:
        for line in lines:
            first = line.split(maxsplit=1)[0]
            if not first.endswith(":"):
                low, high = (int(part, 16) for part in first.split("-"))
                inside = low <= address < high
            elif inside and first == "VmFlags:":
                return set(line.split()[1:])
    return set()


_HARDEN = """
import ctypes, resource
from apex_creds.crypto.memory import harden_process
result = harden_process()
assert result.undumpable and result.no_core_files, result
assert ctypes.CDLL(None).prctl(3, 0, 0, 0, 0) == 0
assert resource.getrlimit(resource.RLIMIT_CORE) == (0, 0)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="prctl")
def test_harden_process() -> None:
    subprocess.run([sys.executable, "-c", _HARDEN], check=True)


def test_harden_process_never_raises(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from apex_creds.crypto import memory

    monkeypatch.setattr(memory, "_reported", set())
    monkeypatch.setattr(ctypes, "CDLL", lambda _: SimpleNamespace(prctl=lambda *_: -1))
    monkeypatch.setattr(resource, "setrlimit", lambda *_: None)
    with caplog.at_level(logging.WARNING):
        assert not harden_process().undumpable
        assert not harden_process().undumpable
    assert len(caplog.records) == 1


def test_the_interpreter_exits_quietly_with_secrets_open() -> None:
    script = (
        "from apex_creds.crypto.memory import SecretBytes\n"
        "a = SecretBytes.from_bytes(b'x' * 99); b = a.view(); c = [a, b]; c.append(c)"
    )
    done = subprocess.run([sys.executable, "-X", "dev", "-c", script], capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")


def test_every_exposure_is_told_first_and_a_wiped_secret_is_none() -> None:
    told: list[str] = []
    secret = SecretBytes.from_bytes("pässword".encode())
    secret.on_expose(lambda: told.append("exposed"))
    assert secret.expose_str() == "pässword"
    assert secret.expose_bytes().decode() == "pässword"
    with pytest.raises(SecretMisuseError):
        secret.on_expose(told.clear)
    secret.close()
    with pytest.raises(SecretWipedError):
        secret.expose_str()
    assert told == ["exposed", "exposed"]


def test_a_refused_exposure_gives_nothing() -> None:
    def refuse() -> None:
        raise AuditUnavailableError("full")

    secret = SecretBytes.from_bytes(CANARY)
    secret.on_expose(refuse)
    for expose in (secret.expose_bytes, secret.expose_str):
        with pytest.raises(AuditUnavailableError):
            expose()


def test_what_is_not_text_is_said_without_showing_it() -> None:
    with SecretBytes.from_bytes(b"\xff" + CANARY) as secret:
        with pytest.raises(InvalidInputError) as caught:
            secret.expose_str()
        assert "canary" not in repr(caught.value)
        assert caught.value.__context__ is None
