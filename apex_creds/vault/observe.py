"""Rotations and re-encryptions as spans and metrics, while telemetry is on.

Guarantee: the decorated function does what it did; a span has ids of keys, the name of a
section and counts.
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Iterable
from typing import Concatenate, ParamSpec, TypeVar

from apex_creds.audit import names, telemetry
from apex_creds.vault.store import DocumentStore

P = ParamSpec("P")
T = TypeVar("T")

Rotates = Callable[Concatenate[DocumentStore, P], Awaitable[T]]
RotatesSome = Callable[Concatenate[DocumentStore, Iterable[str], P], Awaitable[T]]
Moves = Callable[Concatenate[DocumentStore, str, P], Awaitable[T]]


def rotating(level: str) -> Callable[[Rotates[P, T]], Rotates[P, T]]:
    """For a rotation of the KEK or the master key, which touches every key."""

    def decorate(rotate: Rotates[P, T]) -> Rotates[P, T]:
        @functools.wraps(rotate)
        async def wrapped(store: DocumentStore, /, *args: P.args, **kwargs: P.kwargs) -> T:
            if not telemetry.on():
                return await rotate(store, *args, **kwargs)
            keys = [keyset.id for keyset in store.unsealed().body.deks]
            with telemetry.rotation(level=level, keys=keys):
                return await rotate(store, *args, **kwargs)

        return wrapped

    return decorate


def renewing(renew: RotatesSome[P, T]) -> RotatesSome[P, T]:
    """For a rotation of DEKs, by label."""

    @functools.wraps(renew)
    async def wrapped(
        store: DocumentStore, labels: Iterable[str], /, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        chosen = frozenset(labels)
        if not telemetry.on() or not chosen:
            return await renew(store, chosen, *args, **kwargs)
        by_label = store.unsealed().by_label
        keys = [by_label[label].id for label in chosen if label in by_label]
        with telemetry.rotation(level="dek", keys=keys):
            return await renew(store, chosen, *args, **kwargs)

    return wrapped


def reencrypting(move: Moves[P, T]) -> Moves[P, T]:
    """For a move of a section's records to other key versions."""

    @functools.wraps(move)
    async def wrapped(
        store: DocumentStore, section: str, /, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        if not telemetry.on():
            return await move(store, section, *args, **kwargs)
        with telemetry.step(names.REENCRYPT, {names.SECTION: section}):
            return await move(store, section, *args, **kwargs)

    return wrapped
