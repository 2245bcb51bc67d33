"""Short-lived, scoped credential handles for the plugins of asyncio agent runtimes."""

from __future__ import annotations

TYPE_CHECKING = False  # typing's own would be an import
if TYPE_CHECKING:
    from apex_creds.crypto.memory import SecretBytes, harden_process
    from apex_creds.errors import AccessDeniedError, ApexCredsError
    from apex_creds.leases import (
        CredentialHandle,
        CredentialMap,
        acting_for,
        current_credentials,
    )
    from apex_creds.middleware import CredentialMiddleware, OnLeak, OnOpaque
    from apex_creds.model import (
        ApiKey,
        AwsKey,
        BasicAuth,
        CredentialInfo,
        CredentialKind,
        GenericSecret,
        OAuthToken,
    )
    from apex_creds.policy.grants import Grant
    from apex_creds.policy.manifest import Manifest, parse_manifest
    from apex_creds.vault import Deletion, Vault

__version__ = "0.1.0"

__all__ = [
    "AccessDeniedError",
    "ApexCredsError",
    "ApiKey",
    "AwsKey",
    "BasicAuth",
    "CredentialHandle",
    "CredentialInfo",
    "CredentialKind",
    "CredentialMap",
    "CredentialMiddleware",
    "Deletion",
    "GenericSecret",
    "Grant",
    "Manifest",
    "OAuthToken",
    "OnLeak",
    "OnOpaque",
    "SecretBytes",
    "Vault",
    "acting_for",
    "current_credentials",
    "harden_process",
    "parse_manifest",
]

# A name's module is imported when the name is first asked for: `import apex_creds`, and with
# it every command, costs what it uses. Type checkers read the imports above.
if not TYPE_CHECKING:
    import sys

    class _Older:
        """Asked last, about a module that there is not: whether it has another name now."""

        @staticmethod
        def find_spec(name: str, *_: object) -> object:
            if not name.startswith("apex_creds.") or name == "apex_creds.lazy":
                return None
            from apex_creds.lazy import spec_of

            return spec_of(name)

    sys.meta_path.append(_Older)

    _HOMES = {
        "apex_creds.crypto.memory": ("SecretBytes", "harden_process"),
        "apex_creds.errors": ("AccessDeniedError", "ApexCredsError"),
        "apex_creds.leases": (
            *("CredentialHandle", "CredentialMap", "acting_for", "current_credentials"),
        ),
        "apex_creds.middleware": ("CredentialMiddleware", "OnLeak", "OnOpaque"),
        "apex_creds.model": (
            *("ApiKey", "AwsKey", "BasicAuth", "CredentialInfo", "CredentialKind"),
            *("GenericSecret", "OAuthToken"),
        ),
        "apex_creds.policy.grants": ("Grant",),
        "apex_creds.policy.manifest": ("Manifest", "parse_manifest"),
        "apex_creds.vault": ("Deletion", "Vault"),
    }

    def __getattr__(name: str) -> object:
        from importlib import import_module

        for module, names in _HOMES.items():
            if name in names:
                found = globals()[name] = getattr(import_module(module), name)
                return found
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
