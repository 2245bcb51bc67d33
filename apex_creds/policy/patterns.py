"""Patterns of names and origins, compiled into a tree that finds rules without a scan.

Guarantee: what matches is what docs/POLICY.md says, and nothing else; the set of rules for
a value is found in time that grows with the value's length, not with the number of rules.

A name is split at ``.``, ``/`` and ``:``; a separator only ever matches itself. In a
pattern, ``*`` at the end of a segment stands for the rest of that segment (so a segment
``*`` is any one segment), and a last segment ``**`` for one or more segments. ``*`` or
``**`` alone match everything, and a value that is absent.
"""

from __future__ import annotations

import re
from contextlib import suppress
from typing import Final, NamedTuple

from apex_creds.concurrency import BoundedCache
from apex_creds.errors import InvalidInputError
from apex_creds.model import Origin, check_name

_SEGMENTS: Final = re.compile(r"[./:]?[^./:]*")
_MANY: Final = 1024


class Specificity(NamedTuple):
    """How narrow a pattern is, compared from left to right; sums compare rules.

    A pattern whose matches are some of another's is never less specific than it.
    """

    exact: int = 0
    literal: int = 0
    partial: int = 0
    prefix: int = 0
    bounded: int = 0
    segments: int = 0

    def plus(self, other: Specificity) -> Specificity:
        """The sum, field by field."""
        return Specificity(*(a + b for a, b in zip(self, other, strict=True)))


ANYTHING: Final = Specificity()


class Pattern(NamedTuple):
    """A pattern, as the segments that its tree is walked by.

    Attributes:
        text: As it was written.
        segments: Each with the separator before it; empty: matches everything.
    """

    text: str
    segments: tuple[str, ...]

    @property
    def specificity(self) -> Specificity:
        """How narrow it is."""
        if not self.segments:
            return ANYTHING
        texts = [segment.lstrip("./:") for segment in self.segments]
        wild = [text for text in texts if text.endswith("*")]
        if not wild:
            return Specificity(exact=1)
        partial = [len(text) - 1 for text in wild if text not in ("*", "**")]
        return Specificity(
            literal=len(texts) - len(wild),
            partial=len(partial),
            prefix=sum(partial),
            bounded=int(texts[-1] != "**"),
            segments=len(texts),
        )


def split_name(name: str) -> list[str]:
    """A name's segments, each with the separator before it."""
    return [part for part in _SEGMENTS.findall(name) if part]


def name_pattern(text: str) -> Pattern:
    """Reads a pattern of names.

    Raises:
        InvalidInputError: It could match no name, or has a ``*`` that is not at the end of
            a segment, or a ``**`` that is not the last one.
    """
    check_name(text, what="pattern")
    if text in ("*", "**"):
        return Pattern(text, ())
    segments = tuple(split_name(text))
    for number, segment in enumerate(segments):
        last = number == len(segments) - 1
        bare = segment.lstrip("./:")
        if "*" in bare[:-1] and not (last and bare == "**"):
            raise InvalidInputError(
                f"{text[:80]!r} is not a pattern.",
                hint="* stands at the end of a segment, ** is the last segment.",
            )
    return Pattern(text, segments)


def split_origin(origin: Origin) -> list[str]:
    """An origin's segments: scheme, port, and the host's labels from the last one on."""
    host = origin.host
    # An address is one label: its parts are no hierarchy that reads from the right.
    address = ":" in host or host.replace(".", "").isdigit()
    labels = [host] if address else reversed(host.split("."))
    return [f":{origin.scheme}", f":{origin.port}", *(f".{label}" for label in labels)]


def origin_pattern(text: str) -> Pattern:
    """Reads a pattern of origins: ``https://host``, with ``*.`` or ``**.`` before the host.

    Raises:
        InvalidInputError: It is not an origin in that form.
    """
    if text in ("*", "**"):
        return Pattern(text, ())
    scheme, mark, rest = text.partition("://")
    wild = next((w for w in ("**.", "*.") if rest.startswith(w)), "")
    host = rest.removeprefix(wild).removesuffix(":*")
    origin: Origin | None = None
    if mark and "*" not in host:
        with suppress(InvalidInputError):
            origin = Origin.parse(f"{scheme}://{host}")
    if origin is None:
        raise InvalidInputError(
            f"{text[:80]!r} is not a pattern of origins.",
            hint="Write https://api.example.com[:port], https://*.example.com or *.",
        )
    segments = split_origin(origin)
    if rest.endswith(":*"):
        segments[1] = ":*"
    if wild:
        segments.append(f".{wild[:-1]}")
    return Pattern(text, tuple(segments))


class _Node:
    """A place in the tree; sets of rules are integers with one bit for each."""

    __slots__ = ("end", "prefixes", "rest", "segments")

    def __init__(self) -> None:
        self.segments: dict[str, _Node] = {}
        self.prefixes: dict[str, _Node] = {}
        self.rest: dict[str, int] = {}
        self.end = 0


class Matcher:
    """Which rules have a pattern that matches a value; answers are remembered.

    Args:
        patterns: For each rule its alternatives; none: it matches everything.
    """

    __slots__ = ("_always", "_known", "_root", "trivial")

    def __init__(self, patterns: list[tuple[Pattern, ...]]) -> None:
        self._root = _Node()
        self._always = 0
        self._known: BoundedCache[object, int] = BoundedCache(_MANY)
        for number, alternatives in enumerate(patterns):
            bit = 1 << number
            if not alternatives:
                self._always |= bit
            for pattern in alternatives:
                self._add(pattern.segments, bit)
        self.trivial = self._always + 1 == 1 << len(patterns)

    def _add(self, segments: tuple[str, ...], bit: int) -> None:
        if not segments:
            self._always |= bit
            return
        node = self._root
        for segment in segments:
            if segment.endswith("**"):
                key = segment[:-2]
                node.rest[key] = node.rest.get(key, 0) | bit
                return
            if segment.endswith("*"):
                node = node.prefixes.setdefault(segment[:-1], _Node())
            else:
                node = node.segments.setdefault(segment, _Node())
        node.end |= bit

    def name(self, name: str) -> int:
        """The set of rules for a name; an empty one is absent."""
        found = self._known.get(name)
        if found is None:
            found = self._known.remember(name, self._walk(split_name(name)))
        return found

    def origin(self, origin: Origin | None) -> int:
        """The set of rules for an origin; None is absent."""
        found = self._known.get(origin)
        if found is None:
            segments = split_origin(origin) if origin else []
            found = self._known.remember(origin, self._walk(segments))
        return found

    def _walk(self, segments: list[str]) -> int:
        found, at = self._always, [self._root]
        for segment in segments:
            separator = segment[:1] if segment[:1] in ("", ".", "/", ":") else ""
            after: list[_Node] = []
            for node in at:
                found |= node.rest.get(separator, 0)
                literal = node.segments.get(segment)
                if literal is not None:
                    after.append(literal)
                if node.prefixes:
                    lengths = range(len(separator), len(segment) + 1)
                    beginnings = (node.prefixes.get(segment[:length]) for length in lengths)
                    after += [each for each in beginnings if each is not None]
            at = after
            if not at:
                return found
        for node in at if segments else ():
            found |= node.end
        return found
