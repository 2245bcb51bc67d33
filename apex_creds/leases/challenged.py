"""Redeems of credentials that are marked for it: each takes a nonce that a client signed.

Guarantee: a signature is asked for only after everything else permits the use, and counts
for that one use: by the plugin that makes it, of that credential, in its scopes. Who is
asked is named by the runtime, never by the handle; no client, no answer in time, an answer
by another, and any failure on the way to it are a refusal that is in the log.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from weakref import WeakKeyDictionary

from apex_creds.errors import ChallengeError
from apex_creds.leases.gates import ChallengeGate, Responder, current_responder
from apex_creds.leases.invocation import Invocation
from apex_creds.leases.use import Use
from apex_creds.policy.access_state import Client
from apex_creds.policy.factors import Subject
from apex_creds.vault import Vault

if TYPE_CHECKING:
    from apex_creds.leases.lease import Lease

_HINT: Final = (
    "Use it with `async with`, in an invocation within answering(…); see docs/CHALLENGE.md."
)


class Challenges:
    """The challenges of one broker.

    Args:
        vault: Its vault.

    Attributes:
        responder: Who answers where an invocation names nobody; None: nobody does.
    """

    def __init__(self, vault: Vault) -> None:
        self._vault = vault
        self._gate: ChallengeGate | None = None
        self._named: WeakKeyDictionary[Invocation, Responder] = WeakKeyDictionary()
        self.responder: Responder | None = None

    def note(self, invocation: Invocation) -> None:
        """An invocation begins that has a lease on a marked credential.

        Its stream may be consumed where nobody is named any more.
        """
        named = current_responder()
        if named is not None:
            self._named[invocation] = named

    async def answered(self, lease: Lease, invocation: Invocation, use: Use) -> Client:
        """The client that signed for this use by ``invocation``.

        Raises:
            ChallengeError: None did.
        """
        subject = Subject(
            plugin=invocation.manifest.plugin,
            plugin_version=invocation.manifest.version,
            action=invocation.action,
            invocation=invocation.id,
            credential=lease.need.name,
            scopes=lease.scopes if use.scope is None else (use.scope,),
        )
        client = await self._gated().require_challenge(subject, self._who(lease, invocation))
        await self._vault.store.look()  # it may have taken a minute
        return client

    def _who(self, lease: Lease, invocation: Invocation) -> Responder | None:
        """The client of this call, or else of the nearest one that it was made from."""
        found, step = current_responder(), invocation
        while found is None:
            found = self._named.get(step)
            if step.parent is None:
                break
            step = step.parent
        return found or self._named.get(lease.invocation) or self.responder

    def _gated(self) -> ChallengeGate:
        if self._gate is None:
            from apex_creds.vault.challenger import Challenger

            self._gate = ChallengeGate(Challenger(self._vault))
        return self._gate


def unanswered() -> ChallengeError:
    """The refusal of a use that can't be, or was not, signed for."""
    return ChallengeError("Each use of this credential takes a signed challenge.", hint=_HINT)
