"""Rotations and re-encryptions as spans and metrics, while telemetry is on.

Guarantee: the decorated function does what it did; a span has ids and versions of keys, what
started it, the name of a section and counts.
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Concatenate, Final, ParamSpec, TypeVar

from apex_creds.documents.store import DocumentStore
from apex_creds.telemetry import semconv, tracing

P = ParamSpec("P")
T = TypeVar("T")
V = TypeVar("V", str, int)

MANY: Final = 64
"""A span names so many of the keys that are renewed at once."""

Rotates = Callable[Concatenate[DocumentStore, P], Awaitable[T]]
RotatesSome = Callable[Concatenate[DocumentStore, Iterable[str], P], Awaitable[T]]
Moves = Callable[Concatenate[DocumentStore, str, P], Awaitable[T]]


_trigger: Final[ContextVar[str]] = ContextVar("apex_creds_trigger", default="")


@contextmanager
def triggered(by: str) -> Iterator[None]:
    """Says what starts the rotations of the block."""
    token = _trigger.set(by)
    try:
        yield
    finally:
        _trigger.reset(token)


def rotating(level: str) -> Callable[[Rotates[P, T]], Rotates[P, T]]:
    """For a rotation of the KEK or the master key, which touches every key."""

    def decorate(rotate: Rotates[P, T]) -> Rotates[P, T]:
        @functools.wraps(rotate)
        async def wrapped(store: DocumentStore, /, *args: P.args, **kwargs: P.kwargs) -> T:
            if not tracing.on():
                return await rotate(store, *args, **kwargs)
            before = store.unsealed()
            keys = [keyset.id for keyset in before.body.deks]
            with tracing.rotation(level=level, keys=keys, trigger=_trigger.get()) as step:
                step.set(semconv.KEY_ID, before.root_header.keks.id)
                done = await rotate(store, *args, **kwargs)
                root = store.unsealed().root_header
                chosen = root.master if level == "master" else root.keks.primary
                step.set(semconv.KEY_VERSION, chosen.version)
                return done

        return wrapped

    return decorate


def renewing(renew: RotatesSome[P, T]) -> RotatesSome[P, T]:
    """For a rotation of DEKs, by label."""

    @functools.wraps(renew)
    async def wrapped(
        store: DocumentStore, labels: Iterable[str], /, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        chosen = frozenset(labels)
        if not tracing.on() or not chosen:
            return await renew(store, chosen, *args, **kwargs)
        by_label = store.unsealed().by_label
        labels = sorted(chosen & by_label.keys())
        keys = [by_label[label].id for label in labels]
        with tracing.rotation(level="dek", keys=keys, trigger=_trigger.get()) as step:
            step.set(semconv.KEY_ID, _one_or_many(keys))
            done = await renew(store, chosen, *args, **kwargs)
            after = store.unsealed().by_label
            versions = [after[label].primary.version for label in labels if label in after]
            step.set(semconv.KEY_VERSION, _one_or_many(versions))
            return done

    return wrapped


def _one_or_many(values: list[V]) -> V | Sequence[V]:
    return values[0] if len(values) == 1 else values[:MANY]


def reencrypting(move: Moves[P, T]) -> Moves[P, T]:
    """For a move of a section's records to other key versions."""

    @functools.wraps(move)
    async def wrapped(
        store: DocumentStore, section: str, /, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        if not tracing.on():
            return await move(store, section, *args, **kwargs)
        with tracing.step(semconv.REENCRYPT, {semconv.SECTION: section}):
            return await move(store, section, *args, **kwargs)

    return wrapped
