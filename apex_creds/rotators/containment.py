"""Code of others that works with secrets: what a rotator does in a step stays in that step.

The rules, in order:

1. What is logged meanwhile is searched for every value that the step is given, in any spelling
   and from any thread, as in a plugin's invocation: a provider's client may log its requests.
2. What ``create`` logs is held back until it returns, and searched for the value that it has
   made, too (``steps``); from a thread without its context it is shown at once.
3. An error that repeats such a value is replaced by one of its kind that says nothing.
4. What would end more than the step (an exit, a cancellation from inside) is a failure of the
   rotator. What comes from outside, a cancelled task or Ctrl-C, passes.

Of a ``create`` that fails nobody knows what it had made; its log is shown as it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterable, Iterator

from apex_creds.crypto.memory import SecretBytes
from apex_creds.errors import ApexCredsError, RotatorError
from apex_creds.model import Secret
from apex_creds.redaction.log_records import hook, redact, unhook
from apex_creds.redaction.matcher import Needles
from apex_creds.redaction.redactor import PUBLIC_PARTS, Key, Redactor
from apex_creds.telemetry import instruments


@contextlib.contextmanager
def exits_contained() -> Iterator[None]:
    """Takes what would end more than a step for a failure of the rotator.

    Passed on, it would end a worker, or be tried forever.
    """
    task, ended = asyncio.current_task(), ""
    try:
        yield
    except (Exception, KeyboardInterrupt):
        raise
    except BaseException as error:
        if task is None or task.cancelling() or not _runs(task):
            raise
        ended = type(error).__name__
    if ended:
        raise RotatorError(
            f"The rotator ended its own step ({ended}).", hint="It is tried again."
        )


def _runs(task: asyncio.Task[object]) -> bool:
    try:
        return asyncio.current_task() is task
    except RuntimeError:  # its coroutine is closed, after its loop
        return False


@contextlib.contextmanager
def values_contained(name: str, values: Iterable[Secret]) -> Iterator[None]:
    """Keeps values out of what is logged and raised inside of ``with``.

    Args:
        name: What stands in their place in a log.
        values: What a step is given.
    """
    known, said = tuple(values), None
    with SecretBytes.random(8) as salt:
        source = _Source(name, known, salt)
        redactor = Redactor(source, on_found=lambda _, where: instruments.leaked(where))

        def search(record: logging.LogRecord) -> None:
            redact(record, redactor)

        hook(search)
        try:
            yield
        except ApexCredsError as error:
            if not _has_secret(error, known):
                raise
            said = type(error)
        finally:
            unhook(search)
            redactor.close()
    if said is not None:
        raise said("What the rotator says of its failure has a secret in it.")


def _has_secret(error: ApexCredsError, values: Iterable[Secret]) -> bool:
    """Whether an error, of a package of others perhaps, repeats a value in any form."""
    said = (error, error.hint, error.args, vars(error), getattr(error, "__notes__", ()))
    found, needles = set[str](), Needles()
    try:
        for value in values:
            for part in value.parts.keys() - PUBLIC_PARTS:
                needles.add(part, memoryview(value.parts[part]))
        text = " ".join(map(str, said)).encode("utf-8", "surrogatepass")
        needles.replace(text + text.replace(b"\\\\", b"\\"), found)
    except Exception:  # noqa: BLE001 - it has an object that can't be shown
        return True
    finally:
        needles.close()
    return bool(found)


class _Source:
    """The values of one step, all under the name of the credential that is replaced."""

    def __init__(self, name: str, values: Iterable[Secret], salt: SecretBytes) -> None:
        self.salt = salt
        self._by_key = {(name, number): value for number, value in enumerate(values)}

    def __bool__(self) -> bool:
        return bool(self._by_key)

    def names(self) -> list[Key]:
        return list(self._by_key)

    def open(self, key: Key) -> _Value:
        return _Value(self._by_key[key])


class _Value:
    """One value, as a search opens it."""

    def __init__(self, secret: Secret) -> None:
        self._parts = secret.parts

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._parts)

    def view(self, part: str = "") -> memoryview:
        return memoryview(self._parts[part])

    def __enter__(self) -> _Value:
        return self

    def __exit__(self, *_: object) -> None:
        pass
