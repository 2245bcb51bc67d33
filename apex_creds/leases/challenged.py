"""Redeems of credentials that are marked for it: each takes a nonce that a client signed.

Guarantee: a signature is asked for only after everything else permits the use, and counts
for that one use: by the plugin that makes it, of that credential, in its scopes. Who is
asked was named by the runtime before the plugin's code began, never by the handle or by
what runs in an invocation; no client, no answer in time, an answer
by another, and any failure on the way to it are a refusal that is in the log.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from apex_creds.auth.access_document import Client
from apex_creds.auth.second_factor import Subject
from apex_creds.auth.step_up import ChallengeGate, Responder, nobody
from apex_creds.errors import ChallengeError
from apex_creds.leases.invocation import Invocation
from apex_creds.leases.use import Use
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
        self.responder: Responder | None = None

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
        client = await self._gated().require_challenge(subject, self._who(invocation))
        await self._vault.store.refresh()  # it may have taken a minute
        return client

    def _who(self, invocation: Invocation) -> Responder:
        """The client that the runtime named for this call, or for that which led to it."""
        first = invocation
        while first.parent is not None:
            first = first.parent
        found = self.responder if first.responder is None else first.responder
        if found is None or first.ended:
            raise nobody()
        return found

    def _gated(self) -> ChallengeGate:
        if self._gate is None:
            from apex_creds.auth.challenge_issuer import Challenger

            self._gate = ChallengeGate(Challenger(self._vault))
        return self._gate


def unanswered() -> ChallengeError:
    """The refusal of a use that can't be, or was not, signed for."""
    return ChallengeError("Each use of this credential takes a signed challenge.", hint=_HINT)
