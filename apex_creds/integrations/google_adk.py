"""Google ADK: ``App(…, plugins=[CredentialsPlugin(creds)])``.

Guarantee: see ``tools``. A refusal is a response with ``error``, in words for the model. What a
tool leaves in the session's state and in its event's actions is cleaned before the event is
made, and what it saves as an artifact or memory before it is saved.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from google.adk.plugins import BasePlugin
from google.adk.tools import ToolContext

from apex_creds.errors import ApexCredsError
from apex_creds.integrations.outlets import clean, clean_items, outlet
from apex_creds.integrations.tools import Guarding, explain

if TYPE_CHECKING:
    from google.adk.tools import BaseTool

__all__ = ["CredentialsPlugin"]


class CredentialsPlugin(Guarding[ToolContext], BasePlugin):
    """Gives the tools of a runner's agents handles for what they declare with ``needs``.

    ``principal`` is given the tool's context, such as for ``context.user_id``; see
    ``Guarding``.
    """

    _base: ClassVar = {"name": "apex_creds"}

    async def before_tool_callback(
        self, *, tool: BaseTool, tool_args: dict[str, Any], tool_context: ToolContext
    ) -> dict[str, Any] | None:
        """Runs a tool that declares credentials, in the runner's place."""
        try:
            manifest = self._guard.manifest(tool.name, tool)
            if manifest is None:
                return None

            async def call() -> object:
                try:
                    context = outlet(tool_context)
                    return await tool.run_async(args=tool_args, tool_context=context)
                finally:
                    _clean_actions(tool_context)

            result = await self._guard.middleware.invoke_action(
                manifest, tool.name, call, principal=self._guard.principal(tool_context)
            )
        except ApexCredsError as error:
            return {"error": explain(error)}
        return result if isinstance(result, dict) and result else {"result": result}


def _clean_actions(context: ToolContext) -> None:
    actions, state = context.actions, context.state
    changed = {name: state[name] for name in actions.state_delta}
    before = dict(changed)
    clean_items(changed)
    state.update({name: new for name, new in changed.items() if new is not before[name]})
    for name in type(actions).model_fields.keys() - {"state_delta"}:
        if (new := clean(old := getattr(actions, name))) is not old:
            setattr(actions, name, new)
