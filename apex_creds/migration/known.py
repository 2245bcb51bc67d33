"""Where the keys of well-known services may be sent, and how.

Guarantee: pure data; the API hosts that a service's own documentation names. A service whose
host differs from customer to customer (Azure OpenAI, Bedrock, a self-hosted one) is not here:
its origin is for the operator to say.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from apex_creds.model import CredentialKind, Delivery, Origin


@dataclass(frozen=True, slots=True)
class Sending:
    """Where a credential may be sent; how, where that is not the kind's default."""

    origins: tuple[Origin, ...] = ()
    delivery: Delivery | None = None


_HOSTS: Final = {
    "anthropic": "api.anthropic.com",
    "cohere": "api.cohere.com",
    "deepseek": "api.deepseek.com",
    "discord": "discord.com",
    "elevenlabs": "api.elevenlabs.io",
    "gemini": "generativelanguage.googleapis.com",
    "github": "api.github.com",
    "gitlab": "gitlab.com",
    "google": "generativelanguage.googleapis.com",
    "google_calendar": "www.googleapis.com",
    "google_drive": "www.googleapis.com",
    "google_gemini": "generativelanguage.googleapis.com",
    "gmail": "gmail.googleapis.com",
    "groq": "api.groq.com",
    "huggingface": "huggingface.co router.huggingface.co api-inference.huggingface.co",
    "hubspot": "api.hubapi.com",
    "mistral": "api.mistral.ai",
    "notion": "api.notion.com",
    "openai": "api.openai.com",
    "openrouter": "openrouter.ai",
    "perplexity": "api.perplexity.ai",
    "replicate": "api.replicate.com",
    "sendgrid": "api.sendgrid.com",
    "slack": "slack.com",
    "stripe": "api.stripe.com",
    "tavily": "api.tavily.com",
    "together": "api.together.xyz",
    "together_ai": "api.together.xyz",
}
_OF_TOKENS: Final = {"google": "www.googleapis.com", "gemini": "", "google_gemini": ""}
"""Where a service's tokens are for other hosts than its keys; none is known for the empty."""

_DELIVERIES: Final = {
    "anthropic": "header:x-api-key",
    "elevenlabs": "header:xi-api-key",
    "gemini": "header:x-goog-api-key",
    "gitlab": "header:PRIVATE-TOKEN",
    "google": "header:x-goog-api-key",
    "google_gemini": "header:x-goog-api-key",
}
"""Of API keys; tokens are sent as bearer."""

_ENDING: Final = re.compile(r"(_api)?(_(access_)?token|_(secret_|api_)?key|_api)$")


def sending(service: str, kind: CredentialKind) -> Sending:
    """What is known of a service; nowhere, if nothing is.

    Args:
        service: By its name, or as a variable is called (``OPENAI_API_KEY``).
        kind: What its credential is; known are API keys and OAuth tokens.
    """
    name = re.sub(r"[\s-]", "_", service.strip().lower())
    name = name if name in _HOSTS else _ENDING.sub("", name)
    hosts = _HOSTS.get(name, "")
    delivery = _DELIVERIES.get(name) if kind is CredentialKind.API_KEY else None
    if kind is CredentialKind.OAUTH_TOKEN:
        hosts = _OF_TOKENS.get(name, hosts)
    if not hosts or kind not in (CredentialKind.API_KEY, CredentialKind.OAUTH_TOKEN):
        return Sending()
    origins = tuple(Origin.parse(f"https://{host}") for host in hosts.split())
    return Sending(origins, None if delivery is None else Delivery.parse(delivery))
