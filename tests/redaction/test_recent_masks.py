"""A mask is made once while it is used, and wiped when it is not; never while it is in use."""

from __future__ import annotations

import threading

from apex_creds.redaction.masks import Mask
from apex_creds.redaction.recent_masks import IDLE, MOST, RecentMasks


class Made:
    """Makes masks, and keeps them all."""

    def __init__(self) -> None:
        self.masks: list[Mask] = []

    def __call__(self) -> Mask:
        self.masks.append(Mask("key", [memoryview(b"secret-%d" % len(self.masks))]))
        return self.masks[-1]

    def whole(self) -> list[bool]:
        return [mask.longest > 0 for mask in self.masks]


def recent() -> tuple[RecentMasks, list[float], Made]:
    now = [0.0]
    return RecentMasks(lambda: now[0]), now, Made()


def test_one_that_is_idle_is_wiped_and_one_in_use_is_not() -> None:
    masks, now, made = recent()
    used = masks.take(b"a", made)
    assert masks.take(b"a", made) is used
    masks.give_back([masks.take(b"b", made)])
    now[0] = IDLE
    masks._on_time()  # as the timer does
    assert made.whole() == [True, False]
    masks.give_back([used])
    masks.give_back([used])
    now[0] = 2 * IDLE
    masks._on_time()
    assert made.whole() == [False, False]
    assert masks._timer is None
    masks.wipe()


def test_of_many_the_ones_used_last_stay() -> None:
    masks, _, made = recent()
    for number in range(MOST + 2):
        masks.give_back([masks.take(b"%d" % number, made)])
    # The last one is in use while room is made for it.
    assert made.whole() == [False, False] + [True] * MOST
    masks.wipe()
    assert not any(made.whole())


def test_what_is_in_use_is_wiped_when_it_is_given_back() -> None:
    masks, _, made = recent()
    used = masks.take(b"a", made)
    masks.wipe()
    assert made.whole() == [True]
    again = masks.take(b"a", made)
    assert again is not used
    masks.give_back([used])
    assert made.whole() == [False, True]
    masks.give_back([again])
    masks.wipe()
    assert made.whole() == [False, False]


def test_threads_share_one() -> None:
    masks, _, made = recent()
    start = threading.Barrier(4)

    def use() -> None:
        start.wait()
        for _ in range(50):
            masks.give_back([masks.take(b"a", made)])

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(made.whole()) == 1
    masks.wipe()
    assert not any(made.whole())
