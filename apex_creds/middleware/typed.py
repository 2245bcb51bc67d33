"""What ``invoke`` takes, to type checkers; nothing imports it at run time.

A parameter can't be taken out of a ``ParamSpec`` unless it is the first, so that a function
with ``credentials`` is known by where that stands: its result keeps its type, its arguments
are not compared.
"""

from __future__ import annotations

from typing import Any, ParamSpec, Protocol, TypeVar

from apex_creds.leases.handle import CredentialMap

P = ParamSpec("P")
T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class _After0(Protocol[T_co]):
    def __call__(self, *, credentials: CredentialMap) -> T_co: ...


class _After1(Protocol[T_co]):
    def __call__(self, a: Any, /, *, credentials: CredentialMap) -> T_co: ...


class _After2(Protocol[T_co]):
    def __call__(self, a: Any, b: Any, /, *, credentials: CredentialMap) -> T_co: ...


class _After3(Protocol[T_co]):
    def __call__(self, a: Any, b: Any, c: Any, /, *, credentials: CredentialMap) -> T_co: ...


class _After4(Protocol[T_co]):
    def __call__(
        self, a: Any, b: Any, c: Any, d: Any, /, *, credentials: CredentialMap
    ) -> T_co: ...


TakesCredentials = _After0[T_co] | _After1[T_co] | _After2[T_co] | _After3[T_co] | _After4[T_co]
"""A function with a parameter ``credentials`` after at most four others, to type checkers."""
