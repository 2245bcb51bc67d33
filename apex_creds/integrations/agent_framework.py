"""Microsoft Agent Framework: ``Agent(…, middleware=[CredentialsMiddleware(creds)])``.

Guarantee: see ``tools``. A refusal is the function's result, in words for the model. What
a function leaves in the session's state is cleaned when it ends.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from agent_framework import FunctionInvocationContext, FunctionMiddleware

from apex_creds.errors import ApexCredsError
from apex_creds.integrations.outlets import clean_items
from apex_creds.integrations.tools import Guarding, explain

__all__ = ["CredentialsMiddleware"]


class CredentialsMiddleware(Guarding[FunctionInvocationContext], FunctionMiddleware):
    """Gives the functions of an agent handles for what they declare with ``needs``.

    ``principal`` is given the call's context, such as for ``context.kwargs``; see ``Guarding``.
    """

    async def process(
        self, context: FunctionInvocationContext, call_next: Callable[[], Awaitable[None]]
    ) -> None:
        """See ``FunctionMiddleware``."""
        name = context.function.name

        async def call() -> object:
            try:
                await call_next()
            finally:
                if context.session is not None:
                    clean_items(context.session.state)
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
