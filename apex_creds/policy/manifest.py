"""What a plugin declares that it needs, read from its metadata.

Guarantee: strict. An unknown field, a duplicate, a wrong type or an oversized list is an
``InvalidManifestError`` that names the field; nothing is silently ignored.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Final

import msgspec

from apex_creds.errors import InvalidInputError, InvalidManifestError
from apex_creds.model import Origin, check_name
from apex_creds.plain import plain_text, plain_texts, text_or_none
from apex_creds.policy.display import check_plugin, check_version

MAX_NEEDS: Final = 100
MAX_ITEMS: Final = 64
MAX_REASON: Final = 1000

REQUIRED: Final = "required"
"""What metadata says with ``isolation``, if it says something."""
LOGIN: Final = "LOGIN"
"""The method of what is not HTTP: the credential logs in to a server, and is not sent again."""
_BODILESS: Final = frozenset({"GET", "HEAD", "DELETE", "OPTIONS"})
_VARIABLE: Final = re.compile(
    r"(?!(?:LD|DYLD|PYTHON|NODE|BASH|GCONV)_|(?:PATH|HOME|TMPDIR|LANG|PWD|SHELL|IFS|ENV)$)"
    r"[A-Z][A-Z0-9_]{0,63}"
)
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", LOGIN})


class Access(StrEnum):
    """What is done with the secret.

    ``inject``: it is only ever added to requests. ``sign``: it makes signatures, and is itself
    never sent. ``reveal``: it may be read.
    """

    INJECT = "inject"
    SIGN = "sign"
    REVEAL = "reveal"


class Echoes(StrEnum):
    """What becomes of the secret in answers: it is covered, or ``allowed`` through."""

    COVERED = "covered"
    ALLOWED = "allowed"


class Need(msgspec.Struct, frozen=True, kw_only=True):
    """One declared credential.

    Empty ``origins``, ``methods`` or ``paths`` ask for no narrowing beyond what the
    credential itself allows. Requests with a method of ``bodies`` may have a body as well.
    Behind a wall each of ``variables`` has what stands for the key.
    """

    name: str
    scopes: tuple[str, ...] = ()
    origins: tuple[Origin, ...] = ()
    methods: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    bodies: tuple[str, ...] = ()
    access: Access = Access.INJECT
    echoes: Echoes = Echoes.COVERED
    reason: str = ""
    required: bool = True
    variables: tuple[str, ...] = ()


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """A plugin's identity and all that it declares.

    Attributes:
        checksum: Of its code, ``ALGORITHM:DIGEST``, where the metadata states one and it
            is right; ``unverified:…`` where it is wrong; empty where there is none.
        isolated: It is to run in a separate process, and is not run otherwise.
    """

    plugin: str
    version: str = ""
    needs: tuple[Need, ...] = ()
    checksum: str = ""
    isolated: bool = False

    def need(self, name: str) -> Need | None:
        """The declaration for ``name``, or None: undeclared."""
        return next((need for need in self.needs if need.name == name), None)

    @property
    def digest(self) -> str:
        """SHA-256 (64 hexadecimal digits) of what is declared, in canonical form."""
        needs = msgspec.to_builtins(self.needs)
        for need in needs:
            if need["echoes"] == Echoes.COVERED:  # as it was before there was the field
                del need["echoes"]
            for field in ("bodies", "variables"):
                if not need[field]:
                    del need[field]
        if self.isolated:  # a version that does not ask for it any more asks again
            needs = [*needs, {"isolation": REQUIRED}]
        return hashlib.sha256(msgspec.json.encode(needs, order="sorted")).hexdigest()


class _RawNeed(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    scopes: list[str] = []
    origins: list[str] = []
    methods: list[str] = []
    paths: list[str] = []
    bodies: list[str] = []
    access: Access = Access.INJECT
    echoes: Echoes = Echoes.COVERED
    reason: str = ""
    required: bool = True
    variables: list[str] = []


def parse_manifest(metadata: Mapping[str, object]) -> Manifest:
    """Reads ``id``, ``version``, ``credentials`` and ``isolation`` of a plugin's metadata.

    Args:
        metadata: The decoded plugin.json or metadata.json; other fields are the runtime's.

    Raises:
        InvalidManifestError: Anything about those four fields is not as specified.
    """
    if not isinstance(metadata, Mapping):
        raise _invalid("it must be an object")
    plugin = text_or_none(metadata.get("id"))
    version = text_or_none(metadata.get("version", ""))
    if plugin is None or version is None:
        raise _invalid("id and version must be strings")
    try:
        check_plugin(plugin)
        if version:
            check_version(version)
        raw = msgspec.convert(metadata.get("credentials", []), list[_RawNeed])
        needs = tuple(_need(entry) for entry in raw[: MAX_NEEDS + 1])
    except (msgspec.ValidationError, UnicodeError) as error:  # half of a surrogate pair
        raise _invalid(f"credentials: {str(error)[:200]}") from None
    except InvalidManifestError:
        raise
    except InvalidInputError as error:
        raise _invalid(error.message.rstrip(".")) from None
    if len(needs) > MAX_NEEDS:
        raise _invalid(f"more than {MAX_NEEDS} credentials")
    if len({need.name for need in needs}) != len(needs):
        raise _invalid("a credential is declared twice")
    isolated = _isolated(metadata.get("isolation"))
    return Manifest(plugin=plugin, version=version, needs=needs, isolated=isolated)


def _isolated(said: object) -> bool:
    if said is not None and text_or_none(said) != REQUIRED:
        raise _invalid(f'isolation is "{REQUIRED}", or left out')
    return said is not None


def _need(raw: _RawNeed) -> Need:
    # Texts of the exact type: metadata that a plugin's code made may have others.
    for field in ("scopes", "origins", "methods", "paths", "bodies", "variables"):
        setattr(raw, field, list(plain_texts(getattr(raw, field), what=field)))
    raw.name, raw.reason = (plain_text(t, what="name") for t in (raw.name, raw.reason))
    if (
        max(map(len, (raw.scopes, raw.origins, raw.methods, raw.paths, raw.variables)))
        > MAX_ITEMS
    ):
        raise _invalid(f"a list has more than {MAX_ITEMS} items")
    if len(raw.reason) > MAX_REASON:
        raise _invalid(f"a reason is longer than {MAX_REASON} characters")
    raw.reason.encode()  # it is hashed, and shown
    methods = tuple(method.upper() for method in raw.methods)
    if not set(methods) <= _METHODS:
        raise _invalid(f"methods must be among {', '.join(sorted(_METHODS))}")
    bodies = tuple(method.upper() for method in raw.bodies)
    if len(bodies) > len(_BODILESS) or not set(bodies) <= _BODILESS:
        raise _invalid(f"bodies must be among {', '.join(sorted(_BODILESS))}")
    if not all(path.startswith("/") and "*" not in path[:-1] for path in raw.paths):
        raise _invalid("paths start with / and have at most one *, at the end")
    if not all(map(_VARIABLE.fullmatch, raw.variables)):
        raise _invalid("variables are names of capitals, and none that systems use themselves")
    return Need(
        name=check_name(raw.name, what="credential name"),
        scopes=tuple(check_name(scope, what="scope") for scope in raw.scopes),
        origins=tuple(Origin.parse(origin) for origin in raw.origins),
        methods=methods,
        paths=tuple(check_name(path, what="path") for path in raw.paths),
        bodies=bodies,
        access=raw.access,
        echoes=raw.echoes,
        reason=raw.reason,
        required=raw.required,
        variables=tuple(raw.variables),
    )


def _invalid(what: str) -> InvalidManifestError:
    return InvalidManifestError(
        f"The plugin's metadata is not valid: {what}.",
        hint='See docs/PLUGINS.md for the fields of "credentials".',
    )
