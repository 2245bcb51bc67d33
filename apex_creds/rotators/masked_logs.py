"""What is logged while a rotator takes a step, without the values that it works with.

Guarantee: as in a plugin's invocation, no value that a step is given reaches a handler of a
log, in any spelling and from any thread: a client of a provider may log its requests. A value
that is only being made is not known before ``create`` returns it.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator

from apex_creds.crypto.memory import SecretBytes
from apex_creds.model import Secret
from apex_creds.redaction.log_records import hook, redact, unhook
from apex_creds.redaction.redactor import Key, Redactor
from apex_creds.telemetry import instruments


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


class _Values:
    """Those of one step, all under the name of the credential that is replaced."""

    def __init__(self, name: str, values: Iterable[Secret | None], salt: SecretBytes) -> None:
        self.salt = salt
        given = (value for value in values if value is not None)
        self._by_key = {(name, number): value for number, value in enumerate(given)}

    def __bool__(self) -> bool:
        return bool(self._by_key)

    def names(self) -> list[Key]:
        return list(self._by_key)

    def open(self, key: Key) -> _Value:
        return _Value(self._by_key[key])


@contextlib.contextmanager
def masked_logs(name: str, values: Iterable[Secret | None]) -> Iterator[None]:
    """Has what is logged searched for these values, inside of ``with``.

    Args:
        name: What stands in their place.
        values: What a step is given.
    """
    with SecretBytes.random(8) as salt:
        source = _Values(name, values, salt)
        redactor = Redactor(source, on_found=lambda _, where: instruments.leaked(where))

        def search(record: logging.LogRecord) -> None:
            redact(record, redactor)

        hook(search)
        try:
            yield
        finally:
            unhook(search)
            redactor.close()
