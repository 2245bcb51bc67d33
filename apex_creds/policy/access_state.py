"""What access control must remember, as the document ``access`` stores it.

Guarantee: immutable values without a secret in clear: seeds and keys are envelopes,
recovery codes are digests. Every field of ``AccessState`` has a default, so that a feature
can add its own; an unknown field is an error, since to drop it could widen access.
"""

from __future__ import annotations

from typing import Final

import msgspec

from apex_creds.clocks import Moment
from apex_creds.policy.consent import ConsentAnswer, ConsentRequest

OPERATOR: Final = "operator"
"""The principal of everything that a person decides, where no other is named."""


class Factor(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A second factor that was enrolled.

    Attributes:
        id: 32 hexadecimal digits.
        kind: ``totp``, or what another ``SecondFactor`` calls itself.
        principal: Whose it is.
        label: What its owner calls it.
        created: Unix seconds.
        sealed: Its secret, in an envelope.
        settings: Its kind's parameters.
        counter: The counter that was accepted last (of TOTP: the time step).
        runs: From which to which counters were accepted; see ``counters``. Empty where
            ``counter`` is the only one.
    """

    id: str
    kind: str
    principal: str = OPERATOR
    label: str = ""
    created: float
    sealed: bytes
    settings: dict[str, str] = {}
    counter: int = -1
    runs: tuple[tuple[int, int], ...] = ()

    @property
    def spent(self) -> tuple[tuple[int, int], ...]:
        """``runs``, as a factor of an earlier program has them, too."""
        return self.runs or (((self.counter, self.counter),) if self.counter >= 0 else ())


class RecoverySet(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The recovery codes of a principal that are not used yet.

    Attributes:
        id: 32 hexadecimal digits.
        sealed: The key of the digests, in an envelope.
        digests: HMAC-SHA256 of each code, 32 bytes.
    """

    id: str
    principal: str = OPERATOR
    created: float
    sealed: bytes
    digests: tuple[bytes, ...]


class Lockout(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Failures of a principal since it last passed.

    Attributes:
        last: When the last one was, Unix seconds.
        until: When it may try again, if the clock is right.
        moment: ``last`` on both clocks; None where an earlier program wrote it.
    """

    principal: str
    failures: int
    last: float
    until: float
    moment: Moment | None = None


class Passed(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A principal showed a second factor, for this plugin and that credential, then.

    Attributes:
        at: Unix seconds.
        moment: The same on both clocks; None where an earlier program wrote it.
    """

    principal: str
    plugin: str
    credential: str
    at: float
    moment: Moment | None = None

    def at_by(self, now: Moment) -> float:
        """When it was, by the wall clock as it is now."""
        return self.at if self.moment is None else self.moment.wall_by(now)


class Client(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A program that may answer challenges.

    Attributes:
        id: 32 hexadecimal digits, made from the public key.
        public: Ed25519, 32 bytes.
        credentials: Names it may answer for; ``*``: all that take a challenge.
        created: Unix seconds; so is ``expires`` (None: without end).
    """

    id: str
    name: str
    public: bytes
    credentials: tuple[str, ...]
    created: float
    expires: float | None = None


class OpenChallenge(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A challenge that was given out and not answered yet; the bytes that are signed."""

    nonce: bytes
    client: str
    expires: float
    message: bytes
    made: Moment | None = None


class PendingRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A question that waits for a person; from ``asked`` to ``expires``, Unix seconds.

    Attributes:
        id: 8 hexadecimal digits.
        answer: None: not yet.
        moment: ``asked`` on both clocks; None where an earlier program wrote it.
    """

    id: str
    request: ConsentRequest
    asked: float
    expires: float
    answer: ConsentAnswer | None = None
    moment: Moment | None = None

    def seconds_left(self, now: Moment) -> float:
        """How long it can still be answered; 0 if it can't.

        One from far ahead was asked while the clock was wrong.
        """
        life = self.expires - self.asked
        asked = self.asked if self.moment is None else self.moment.wall_by(now)
        left = asked + life - now.wall
        return min(left, life) if 0.0 < left <= 2 * life else 0.0


class AccessState(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """The document. Add fields of your own at the end, with defaults."""

    factors: tuple[Factor, ...] = ()
    recovery: tuple[RecoverySet, ...] = ()
    lockouts: tuple[Lockout, ...] = ()
    passed: tuple[Passed, ...] = ()
    clients: tuple[Client, ...] = ()
    challenges: tuple[OpenChallenge, ...] = ()
    requests: tuple[PendingRequest, ...] = ()


def takes_away(before: AccessState, after: AccessState) -> bool:
    """Whether a change used something up, took it back, or counted a failure.

    A new factor, challenge or question does not; a code that was shown, a challenge that
    was answered, a client that was revoked do.
    """
    if before.lockouts != after.lockouts:
        return True
    return any(
        item not in getattr(after, field)
        for field in AccessState.__struct_fields__
        for item in getattr(before, field)
    )
