"""Reads .env files, in python-dotenv's grammar.

Guarantee: pure. Every name is told once, with its last value; that there was another one is
told, too. Nothing is taken from the environment: a value that refers to another variable is
told, and left where it is; so is a comment that has what could be a secret in it.
"""

from __future__ import annotations

import io
import re
from typing import Final

from apex_creds.errors import CorruptDocumentError
from apex_creds.migration.entries import Entry, Problem, Reading, api_key_entry
from apex_creds.model import CredentialKind

_REFERENCE: Final = re.compile(r"\$\{[^}]*\}")
_WORD: Final = re.compile(r"(?=\S*[0-9])(?=\S*[A-Za-z])[^\s=:,;'\"`<>()]{12,}")


def read_dotenv(data: bytes) -> Reading:
    """Everything in the file, each as an API key of its name.

    Raises:
        CorruptDocumentError: It is not UTF-8 text.
    """
    from dotenv.parser import parse_stream

    entries: dict[str, Entry] = {}
    for binding in parse_stream(io.StringIO(_text(data))):
        if binding.error:
            line = f"(line {binding.original.line})"
            entries[line] = _skipped(line, "is not understood")
        elif binding.key is not None:
            made = _entry(binding.key, binding.value)
            earlier = entries.pop(binding.key, made)
            if earlier.secret is not None and not _same(earlier, made):
                line = f"(before line {binding.original.line})"
                entries[line] = _skipped(line, f"{binding.key} had another value")
            entries[binding.key] = made
        if _hides_a_secret(binding.original.string.rpartition(binding.value or "#")[2]):
            line = f"(in line {binding.original.line})"
            entries[line] = _skipped(line, "is a comment that may have a secret in it")
    return Reading(entries=tuple(entries.values()))


def _hides_a_secret(comment: str) -> bool:
    """Whether a comment has a word that no language has, and that is no plain URL."""
    words = _WORD.findall(comment)
    return any(not word.startswith("//") or "@" in word for word in words)


def _entry(name: str, value: str | None) -> Entry:
    if value and _REFERENCE.search(value):
        return _skipped(name, "refers to another variable: set it yourself")
    return api_key_entry(name, value)


def _same(one: Entry, two: Entry) -> bool:
    return (
        one.secret is not None
        and two.secret is not None
        and (one.secret.parts == two.secret.parts)
    )


def _skipped(name: str, detail: str) -> Entry:
    return Entry(
        service=name, kind=CredentialKind.API_KEY, problem=Problem.SKIPPED, detail=detail
    )


def _text(data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        failure = CorruptDocumentError(
            "The file is not UTF-8 text.", hint="Convert it, and try again."
        )
    raise failure
