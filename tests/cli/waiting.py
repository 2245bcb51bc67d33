"""A runtime in a process of its own: invokes a plugin, and says what became of it.

Arguments: the vault's directory, and who is asked (``queue`` or ``terminal``).
"""

from __future__ import annotations

import sys

import anyio

from apex_creds import AccessDeniedError, CredentialMiddleware, Vault, current_credentials
from apex_creds.auth.consent_queue import QueueConsent
from apex_creds.auth.terminal import TerminalConsent
from apex_creds.policy.manifest import parse_manifest

MANIFEST = {
    "id": "weather",
    "version": "1.2.0",
    "credentials": [
        {
            "name": "openai",
            "scopes": ["read"],
            "reason": "to ask\x1b[2J the model",
            "access": "inject",
        }
    ],
}


async def use() -> bool:
    return current_credentials()["openai"].active


async def main(home: str, who: str) -> None:
    async with await Vault.unseal(home) as vault:
        consent = QueueConsent(vault) if who == "queue" else TerminalConsent()
        async with CredentialMiddleware(vault, consent=consent) as middleware:
            for _ in range(2):
                try:
                    done = await middleware.invoke(parse_manifest(MANIFEST), use)
                except AccessDeniedError:
                    done = "denied"
                print(f"result: {done}", flush=True)


if __name__ == "__main__":
    anyio.run(main, *sys.argv[1:])
