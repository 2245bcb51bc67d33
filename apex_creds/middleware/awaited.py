"""A coroutine whose call ends even if not one step of it was run.

Guarantee: closing it, throwing into it (as a task does that is cancelled before its first
step) or dropping it ends the call's leases. Python runs nothing of a coroutine that was not
started, no ``finally`` either, so the coroutine itself can't see to it.
"""

from __future__ import annotations

import types
import weakref
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Self, final

from apex_creds.middleware.call import GuardedCall


@final
class GuardedCoroutine(Coroutine[object, object, object]):
    """``steps`` as a coroutine that sees to its end.

    Args:
        steps: The coroutine that awaits ``awaitable`` and ends the call, once it has begun.
        awaitable: What the plugin returned.
        call: The call.
    """

    def __init__(
        self,
        steps: Coroutine[object, object, object],
        awaitable: Awaitable[object],
        call: GuardedCall,
    ) -> None:
        for name in ("__name__", "__qualname__"):  # a task's representation has them
            setattr(self, name, getattr(steps, name))
        self._steps = steps
        self._awaitable: Awaitable[object] | None = awaitable
        self._call = call
        self._dropped = weakref.finalize(self, call.finish, "abandoned")
        self._dropped.atexit = False

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        """``inspect.iscoroutine`` is to be true of it: runtimes ask."""
        return types.CoroutineType

    def __getattr__(self, name: str) -> object:
        """``cr_frame``, ``cr_running`` and the like are those of the steps."""
        if name.startswith("cr_"):
            return getattr(self._steps, name)
        raise AttributeError(name)

    def send(self, value: object) -> object:
        """Runs one step."""
        self._begin()
        return self._steps.send(value)

    def throw(self, *error: Any) -> object:
        """Raises an error where it stands; before the first step, that is its end."""
        raised = error[0] if isinstance(error[0], type) else type(error[0])
        self._end(raised.__name__)
        return self._steps.throw(*error)

    def close(self) -> None:
        """Ends it."""
        self._end("closed")
        self._steps.close()

    def __await__(self) -> Self:
        return self

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> object:
        return self.send(None)

    def _begin(self) -> None:
        """From here on the steps end the call, or the stream that they come to."""
        self._dropped.detach()
        self._awaitable = None

    def _end(self, outcome: str) -> None:
        """Ends the call if no step was run."""
        awaitable, begun = self._awaitable, self._dropped.detach() is None
        self._awaitable = None
        if begun:
            return
        self._call.finish(outcome)
        close: Callable[[], object] | None = getattr(awaitable, "close", None)
        if close is not None:  # or its frame has the handles as long as somebody has this one
            close()
