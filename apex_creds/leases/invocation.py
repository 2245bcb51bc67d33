"""One call of one plugin: what its leases, and the redaction of its output, belong to.

Guarantee: the current invocation is found through a context variable only, so it follows
tasks, worker threads started with their context, and stream steps; a handle never refers
to it. An invocation keeps the sealed records of what was redeemed in it, never plaintext.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING

from apex_creds.audit.line import Actor
from apex_creds.auth.step_up import RESPONDER
from apex_creds.documents.records import Record
from apex_creds.model import new_id
from apex_creds.policy.manifest import Manifest

if TYPE_CHECKING:
    from apex_creds.auth.step_up import Responder
    from apex_creds.leases.broker import LeaseBroker
    from apex_creds.leases.handle import CredentialMap
    from apex_creds.leases.lease import Lease

_current: ContextVar[Invocation | None] = ContextVar("apex_creds_invocation", default=None)
_bare: ContextVar[str] = ContextVar("apex_creds_bare_plugin", default="")
"""The plugin that is called without an invocation, as it has nothing to do with credentials."""


class Invocation:
    """A call in progress.

    Attributes:
        id: 32 hexadecimal digits.
        actor: Begins the audit events of this plugin and action.
        used: Sealed records redeemed in it, by credential name and version.
        responder: The client that the runtime named when it began; None: nobody, or it was
            called from within another, whose client counts.
        ended: Whether it is over; then nothing is released to what still runs in it.
    """

    __slots__ = (
        "__weakref__",
        "action",
        "actor",
        "broker",
        "credentials",
        "ended",
        "id",
        "leases",
        "manifest",
        "parent",
        "responder",
        "used",
    )

    def __init__(
        self,
        manifest: Manifest,
        *,
        action: str,
        actor: Actor,
        parent: Invocation | None,
        broker: LeaseBroker,
    ) -> None:
        self.id = new_id()
        self.manifest = manifest
        self.action = action
        self.actor = actor
        self.parent = parent
        self.broker = broker
        self.leases: set[Lease] = set()
        self.used: dict[tuple[str, int], Record] = {}
        self.credentials: CredentialMap | None = None
        self.responder: Responder | None = RESPONDER.get() if parent is None else None
        self.ended = False

    def shown(self, text: str) -> str:
        """``text`` that the plugin chose, as it may be logged and told."""
        return text

    def is_live_within(self, other: Invocation) -> bool:
        """Whether this was called from within ``other``, and none on the way is over."""
        step: Invocation | None = self
        while step is not None and not step.ended:
            if step is other:
                return True
            step = step.parent
        return False


def current_invocation() -> Invocation | None:
    """The invocation that the calling code runs in, or None."""
    return _current.get()


def current_credentials() -> CredentialMap:
    """The handles of the current invocation, by credential name.

    Returns:
        A mapping; empty outside of any invocation.
    """
    from apex_creds.leases.handle import CredentialMap

    invocation = _current.get()
    if invocation is None or invocation.credentials is None:
        return CredentialMap({})
    return invocation.credentials


def caller() -> str:
    """The id of the plugin that is running; empty: none that is known."""
    invocation = _current.get()
    return _bare.get() if invocation is None else invocation.manifest.plugin


enter = _current.set
leave = _current.reset
enter_bare = _bare.set
leave_bare = _bare.reset
