"""What else in a secret is secret: the parts that programs take out of it and use.

Guarantee: no Python ``bytes`` or ``str`` of the secret or of a part is made; each part is a
``SecretBytes`` that the caller closes. Public parts (names of fields, the lines around a
PEM key, addresses, what is shorter than ``SHORTEST_PART``) are left out: looking for them
would raise false alarms.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from apex_creds.crypto.encodings import collect
from apex_creds.crypto.memory import SecretBytes

SHORTEST_PART: Final = 8
MOST_PARTS: Final = 256
_DEPTH: Final = 4
_SHORTEST_LINE: Final = 12
_MANY_LINES: Final = 16
_SHORTEST_TOKEN: Final = 20
_LONGEST_NAME: Final = 64
_SPACE: Final = frozenset(b" \t\r\n\v\f\0")
_BINARY: Final = frozenset(range(0x20)) - _SPACE
_QUOTES: Final = frozenset(b"\"'`")
_MARKS: Final = (b"\xef\xbb\xbf", b"\xc2\xa0", b"\xe2\x80\x8b")  # BOM, no-break, zero width
_COMMENTS: Final = frozenset(b"#;[{}]/")
_NAME: Final = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-. ")
_LETTERS: Final = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")
_DIGITS: Final = frozenset(b"0123456789")
_SCHEMES: Final = (b"bearer ", b"basic ", b"token ", b"apikey ", b"bot ")
_SECRET_NAMES: Final = (
    "secret", "password", "passwd", "passphrase", "pwd", "token", "private", "credential",
    "apikey", "api_key", "api-key", "access_key", "accesskey", "auth", "sig", "session", "pass",
    "cookie", "seed", "mnemonic",
)  # fmt: skip
_PUBLIC_NAMES: Final = (
    "id", "ids", "type", "name", "email", "uri", "url", "host", "port", "region", "project",
    "domain", "scope", "scopes", "version", "endpoint", "issuer", "audience",
)  # fmt: skip
_BASE64: Final = {
    letter: value
    for value, letter in enumerate(
        b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    )
}
_BASE64_TEXT: Final = frozenset(_BASE64) | frozenset(b"=\r\n")
_PEM: Final = b"-----"
_ESCAPES: Final = {98: 8, 116: 9, 110: 10, 102: 12, 114: 13, 34: 34, 92: 92, 47: 47}


class Part(NamedTuple):
    """A secret that is in another.

    Attributes:
        secret: Its own copy, in locked memory.
        plain: Whether it shows up as it is only: a line of many, base64 already.
    """

    secret: SecretBytes
    plain: bool = False


def contents(secret: memoryview) -> list[Part]:
    """The secret parts inside of ``secret``, without the whole; ``MOST_PARTS`` at most.

    They are: it without white space, byte order mark and quotes around it, or without an
    authentication scheme (``Bearer``) before it; the lines of a text; of a PEM key the
    lines of its body, and what they encode; the strings of a JSON document that are secret
    by their name or look; the values of ``name=value`` lines likewise; the password in a
    URL; of base64 the JSON or PEM in it; and the same inside of each of these.
    """
    parts: list[Part] = []
    _gather(secret, parts, _DEPTH)
    return parts


def _gather(secret: memoryview, parts: list[Part], depth: int) -> None:
    if not depth:
        return
    for part in _inside(secret):
        if len(parts) >= MOST_PARTS or not len(part.secret):
            part.secret.close()
            continue
        parts.append(part)
        if not part.plain:
            with part.secret.view() as view:
                _gather(view, parts, depth - 1)


def _inside(secret: memoryview) -> Iterator[Part]:
    """The parts one level below."""
    start, end = _trimmed(secret)
    if start == end or any(byte in _BINARY for byte in secret):
        return
    if end - start < len(secret):
        yield _copy(secret[start:end])
        if secret[start - 1] == 0x22 and _find(secret, b"\\") >= 0:  # a string of JSON
            yield Part(collect(_unescaped(secret[start:end])))
        return
    if secret[0] in b"{[":
        yield from _json_strings(secret)
    lines = list(_lines(secret))
    yield from _in_base64(secret, lines)
    if _find(secret, _PEM) >= 0 and len(lines) > 1:
        yield from _pem(secret, lines)
    elif len(lines) > 1:
        yield from _in_lines(secret, lines)
    else:
        yield from _in_a_line(secret)


def _in_lines(secret: memoryview, lines: list[tuple[int, int]]) -> Iterator[Part]:
    many = len(lines) > _MANY_LINES
    for a, b in lines:
        if whole := b - a >= _SHORTEST_LINE and secret[a] not in _COMMENTS:
            yield _copy(secret[a:b], plain=many)
        if (many or not whole) and (value := _value(secret[a:b])) is not None:
            yield _copy(value)


def _in_base64(secret: memoryview, lines: list[tuple[int, int]]) -> Iterator[Part]:
    """The JSON or PEM that it encodes."""
    if len(secret) < SHORTEST_PART or not all(byte in _BASE64_TEXT for byte in secret):
        return
    decoded = collect(_decoded(secret, lines))
    with decoded.view() as view:
        text = bytes(view[:1]) in {b"{", b"[", b"-"} and not any(
            byte in _BINARY for byte in view
        )
    if text:
        yield Part(decoded)
    else:
        decoded.close()


def _in_a_line(line: memoryview) -> Iterator[Part]:
    with line[: max(map(len, _SCHEMES))] as beginning:
        lower = bytes(byte | 32 for byte in beginning)
    for scheme in _SCHEMES:
        if lower.startswith(scheme):
            yield _copy(line[len(scheme) :])
            return
    if (place := _find(line, b"://")) >= 0:
        yield from _userinfo(line[place + 3 :])
    elif (value := _value(line)) is not None:
        yield _copy(value)


def _userinfo(rest: memoryview) -> Iterator[Part]:
    """The password of ``user:password@host``; without a colon, all of it."""
    end = next((at for at, byte in enumerate(rest) if byte in b"/?#"), len(rest))
    at = max((place for place in range(end) if rest[place] == 0x40), default=-1)
    if at < 0:
        return
    colon = next((place for place in range(at) if rest[place] == 0x3A), -1)
    yield _copy(rest[colon + 1 : at])


def _value(line: memoryview) -> memoryview | None:
    """The secret value of ``name = value`` or ``name: value``, if it is one."""
    at = next((n for n, byte in enumerate(line[: _LONGEST_NAME + 1]) if byte in b"=:"), -1)
    if at <= 0 or not all(byte in _NAME for byte in line[:at]):
        return None
    rest = line[at + 1 :]
    start, end = _trimmed(rest)
    value = rest[start:end]
    name = bytes(line[:at]).decode("ascii").strip().lower()
    return value if _is_secret(name, value) else None


def _is_secret(name: str, value: memoryview) -> bool:
    """Whether a field is secret, by its name and by its look."""
    if len(value) < SHORTEST_PART:
        return False
    if _find(value, b"://") >= 0:
        return 0x40 in value  # a URL is, where it names a user
    if any(word in name for word in _SECRET_NAMES) or name.endswith("key"):
        return True
    last = name.replace("-", "_").rpartition("_")[2]
    return last not in _PUBLIC_NAMES and (_looks_random(value) or _find(value, _PEM) >= 0)


def _looks_random(value: memoryview) -> bool:
    if len(value) < _SHORTEST_TOKEN or any(byte in _SPACE or byte == 0x40 for byte in value):
        return False
    return any(b in _LETTERS for b in value) and any(b in _DIGITS for b in value)


def _pem(secret: memoryview, lines: list[tuple[int, int]]) -> Iterator[Part]:
    """The lines of each body, and what each encodes."""
    body: list[tuple[int, int]] | None = None
    for start, end in lines:
        edge = _is_at(secret, start, _PEM)
        if edge and body:
            long = ((a, b) for a, b in body if b - a >= SHORTEST_PART)
            yield from (_copy(secret[a:b], plain=True) for a, b in long)
            yield Part(collect(_decoded(secret, body)))
        if edge:
            body = [] if body is None else None
        elif body is not None and _find(secret[start:end], b": ") < 0:  # no header of the body
            body.append((start, end))


def _decoded(secret: memoryview, spans: list[tuple[int, int]]) -> Iterator[int]:
    """The bytes that lines of base64 stand for; what is none is passed over."""
    bits, held = 0, 0
    for start, end in spans:
        for letter in secret[start:end]:
            value = _BASE64.get(letter)
            if value is None:
                continue
            bits, held = (bits << 6 | value) & 0xFFFF, held + 6
            if held >= 8:
                held -= 8
                yield bits >> held & 0xFF


def _json_strings(secret: memoryview) -> Iterator[Part]:
    """The strings of a JSON document that are secret; not checked to be JSON."""
    name, at = "", 0
    while (start := _find(secret, b'"', at)) >= 0:
        end = _end_of_string(secret, start + 1)
        after = next((n for n in range(end + 1, len(secret)) if secret[n] not in _SPACE), -1)
        if after >= 0 and secret[after] == 0x3A:
            name = bytes(secret[start + 1 : min(end, start + 1 + _LONGEST_NAME)]).decode(
                "utf-8", "replace"
            ).lower()  # fmt: skip
        else:
            value = collect(_unescaped(secret[start + 1 : end]))
            with value.view() as view:
                secretive = _is_secret(name, view)
            if secretive:
                yield Part(value)
            else:
                value.close()
        at = end + 1


def _copy(part: memoryview, *, plain: bool = False) -> Part:
    return Part(SecretBytes.copy_of(part), plain)


def _end_of_string(secret: memoryview, at: int) -> int:
    while at < len(secret) and secret[at] != 0x22:
        at += 2 if secret[at] == 0x5C else 1
    return min(at, len(secret))


def _unescaped(text: memoryview) -> Iterator[int]:
    at, high = 0, 0
    while at < len(text):
        byte = text[at]
        if byte != 0x5C or at + 1 >= len(text):
            yield byte
            at += 1
            continue
        letter = text[at + 1]
        if letter != 0x75:
            yield _ESCAPES.get(letter, letter)
            at += 2
            continue
        unit = 0
        for digit in text[at + 2 : at + 6]:
            unit = unit << 4 | (digit & 15) + (9 if digit > 0x39 else 0)
        at += 6
        if 0xD800 <= unit < 0xDC00:
            high = unit
            continue
        if high and 0xDC00 <= unit < 0xE000:
            unit = 0x10000 + ((high - 0xD800) << 10 | unit - 0xDC00)
        high = 0
        yield from _utf_8(unit)


def _utf_8(point: int) -> Iterator[int]:
    if point < 0x80:
        yield point
        return
    more = 1 if point < 0x800 else 2 if point < 0x10000 else 3
    yield (0xC0, 0xE0, 0xF0)[more - 1] | point >> 6 * more
    for left in range(more - 1, -1, -1):
        yield 0x80 | point >> 6 * left & 0x3F


def _trimmed(text: memoryview) -> tuple[int, int]:
    """Where it begins and ends without white space, marks, and pairs of quotes around it."""
    start, end = 0, len(text)
    while True:
        before = (start, end)
        while start < end and text[start] in _SPACE:
            start += 1
        while start < end and text[end - 1] in _SPACE:
            end -= 1
        for mark in _MARKS:
            if _is_at(text, start, mark) and start + len(mark) <= end:
                start += len(mark)
            if end - len(mark) >= start and _is_at(text, end - len(mark), mark):
                end -= len(mark)
        if end - start > 1 and text[start] in _QUOTES and text[start] == text[end - 1]:
            start, end = start + 1, end - 1
        if (start, end) == before:
            return before


def _lines(text: memoryview) -> Iterator[tuple[int, int]]:
    """Where each line that is not empty lies, without white space and quotes around it."""
    at = 0
    while at < len(text):
        stop = next((n for n in range(at, len(text)) if text[n] in b"\r\n"), len(text))
        start, end = _trimmed(text[at:stop])
        if start < end:
            yield at + start, at + end
        at = stop + 1


def _find(text: memoryview, what: bytes, at: int = 0) -> int:
    """As ``bytes.find``, without a copy."""
    for place in range(at, len(text) - len(what) + 1):
        if text[place] == what[0] and _is_at(text, place, what):
            return place
    return -1


def _is_at(text: memoryview, at: int, what: bytes) -> bool:
    end = at + len(what)
    return end <= len(text) and all(a == b for a, b in zip(text[at:end], what, strict=True))
