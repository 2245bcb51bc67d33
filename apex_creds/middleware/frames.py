"""Takes variables out of the frames of a traceback, and nothing else.

Guarantee: only frames that are over are cleared. One of a coroutine or generator that is
suspended belongs to whoever will resume it (clearing it would close it): the traceback is
cut short before it, so that its variables are not reached from there either.
"""

from __future__ import annotations

import contextlib
import gc
import inspect
import sys
from types import FrameType, TracebackType
from typing import Final

_CAN_BE_SUSPENDED: Final = (
    inspect.CO_COROUTINE
    | inspect.CO_GENERATOR
    | inspect.CO_ASYNC_GENERATOR
    | inspect.CO_ITERABLE_COROUTINE
)


def clear(error: BaseException) -> None:
    """Clears the frames of an exception's own traceback."""
    step, before, kept = error.__traceback__, None, True
    while step is not None:
        after = step.tb_next  # also past the cut: other tracebacks may have these frames
        over = _is_over(step.tb_frame)
        if over:
            with contextlib.suppress(RuntimeError):  # it is running
                step.tb_frame.clear()
        elif kept and not _is_running(step.tb_frame):
            kept = False
            _cut(error, before)
        step, before = after, step


def _cut(error: BaseException, before: TracebackType | None) -> None:
    if before is None:
        error.__traceback__ = None
    else:
        before.tb_next = None


def _is_running(frame: FrameType) -> bool:
    """Whether a frame is being executed by this thread."""
    step: FrameType | None = sys._getframe()
    while step is not None:
        if step is frame:
            return True
        step = step.f_back
    return False


def _is_over(frame: FrameType) -> bool:
    """Whether a frame can be cleared without ending what it is a part of.

    A frame owns (and so refers to) its code only once it is over; until then the
    coroutine or generator does. Where that is not so, no frame of one is cleared.
    """
    if not frame.f_code.co_flags & _CAN_BE_SUSPENDED:
        return True
    return any(owned is frame.f_code for owned in gc.get_referents(frame))
