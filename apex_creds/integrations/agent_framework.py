"""Microsoft Agent Framework: ``Agent(…, middleware=[CredentialsMiddleware(creds)])``.

Guarantee: see ``tools``. A refusal is the function's result, in words for the model.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING

from agent_framework import FunctionMiddleware

from apex_creds.errors import ApexCredsError
from apex_creds.integrations.tools import ToolGuard, explain
from apex_creds.middleware import CredentialMiddleware

if TYPE_CHECKING:
    from agent_framework import FunctionInvocationContext

__all__ = ["CredentialsMiddleware"]


class CredentialsMiddleware(FunctionMiddleware):
    """Gives the functions of an agent handles for what they declare with ``needs``.

    Args:
        middleware: Open for as long as the agent runs.
        manifests: See ``ToolGuard``.
        principal: Who a call is for, as a user's id, of its context, such as
            ``context.kwargs``; see ``ToolGuard``.
    """

    def __init__(
        self,
        middleware: CredentialMiddleware,
        *,
        manifests: Mapping[str, Mapping[str, object]] | None = None,
        principal: Callable[[FunctionInvocationContext], str | None] | None = None,
    ) -> None:
        self._guard = ToolGuard(middleware, manifests=manifests, principal=principal)

    async def process(
        self, context: FunctionInvocationContext, call_next: Callable[[], Awaitable[None]]
    ) -> None:
        """See ``FunctionMiddleware``."""
        name = context.function.name

        async def call() -> object:
            await call_next()
            result, context.result = context.result, None
            return result

        try:
            manifest = self._guard.manifest(name, context.function)
            if manifest is None:
                await call_next()
            else:
                whom = self._guard.principal(context)
                context.result = await self._guard.middleware.invoke_action(
                    manifest, name, call, principal=whom
                )
        except ApexCredsError as error:
            context.result = explain(error)
