"""What else in a secret is secret: the parts that programs take out of it and use.

Guarantee: no Python ``bytes`` or ``str`` of the secret or of a part is made; each part is a
``SecretBytes`` that the caller closes. Public parts (names of fields, the lines around a
PEM key, addresses, what is shorter than ``SHORTEST_PART``) are left out: looking for them
would raise false alarms.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from itertools import pairwise
from typing import Final, NamedTuple

from apex_creds.crypto.memory import SecretBytes
from apex_creds.redaction.spellings import collect

SHORTEST_PART: Final = 8
MOST_PARTS: Final = 256
_DEPTH: Final = 6
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
    "secret", "password", "passwd", "passphrase", "pwd", "token", "private", "apikey",
    "api_key", "api-key", "access_key", "accesskey", "seed", "mnemonic",
)  # fmt: skip
_UNSURE_NAMES: Final = ("auth", "sig", "session", "pass", "cookie", "credential")
"""In ``author`` and ``session_driver``, too: the value has to be more than words."""
_NEVER_SECRET: Final = frozenset({"type", "method", "mode", "driver", "file", "path"})
_PUBLIC_NAMES: Final = (
    "id", "ids", "name", "email", "uri", "url", "host", "port", "region", "project", "domain",
    "scope", "scopes", "version", "endpoint", "issuer", "audience", *_NEVER_SECRET,
)  # fmt: skip
_WORDS: Final = _LETTERS | frozenset(b"_-./ ")
_BETWEEN: Final = frozenset(b";&?, \t")
"""What is between the fields of a connection string, a query or a line of ``.netrc``."""
_BASE64: Final = {
    letter: value
    for alphabet in (b"+/", b"-_")
    for value, letter in enumerate(
        b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789" + alphabet
    )
}
_BASE64_TEXT: Final = frozenset(_BASE64) | frozenset(b"=\r\n")
_BEGIN: Final = b"-----BEGIN "
_END: Final = b"-----END "
_RESOURCES: Final = (b"arn:", b"urn:")
_HEX: Final = b"0123456789abcdefABCDEF"
_ESCAPES: Final = {98: 8, 116: 9, 110: 10, 102: 12, 114: 13, 34: 34, 92: 92, 47: 47}


class Part(NamedTuple):
    """A secret that is in another.

    Attributes:
        secret: Its own copy, in locked memory.
        plain: Whether it shows up as it is, or in JSON: a line of many, base64 already.
    """

    secret: SecretBytes
    plain: bool = False


def contents(secret: memoryview) -> list[Part]:
    """The secret parts inside of ``secret``, without the whole; ``MOST_PARTS`` at most.

    They are: it without white space, byte order mark and quotes around it, or without an
    authentication scheme (``Bearer``) before it; the lines of a text that don't read as
    public settings; of a PEM key the lines of its body, and what they encode; the strings
    of a JSON document that are secret by their name or form; the values in ``name=value``
    lines, connection strings and queries likewise; the password in a URL or behind a name
    and a colon, and a URL's own token; of base64 the text in it; and the same inside of
    each of these.
    """
    parts: list[Part] = []
    _gather(secret, parts, _DEPTH)
    return parts


def _gather(secret: memoryview, parts: list[Part], depth: int) -> None:
    if not depth:
        return
    for part in _inside(secret):
        known = any(
            each.plain <= part.plain and each.secret.equals(part.secret) for each in parts
        )
        if len(parts) >= MOST_PARTS or not len(part.secret) or known:
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
    lines = list(_lines(secret))
    yield from _in_base64(secret, lines)
    if secret[0] in b"{[" and secret[-1] in b"]}":
        yield from _json_strings(secret)
    elif len(lines) > 1:
        yield from _in_lines(secret, lines)
    else:
        yield from _in_a_line(secret)


def _in_lines(secret: memoryview, lines: list[tuple[int, int]]) -> Iterator[Part]:
    """PEM keys, and other lines that are secret or have a secret in them."""
    keys, others = _keys_among(secret, lines)
    for key in keys:
        yield from (_copy(secret[a:b], plain=True) for a, b in key if b - a >= SHORTEST_PART)
        yield Part(collect(_decoded(secret, key)))
    many = len(others) > _MANY_LINES
    for line in others:
        public, long = _is_public(line), len(line) >= _SHORTEST_LINE
        if long and not public:
            yield _copy(line, plain=many)
        if public:
            yield from _fields(line)
        elif many or not long:
            yield from _in_a_line(line)


def _keys_among(
    secret: memoryview, lines: list[tuple[int, int]]
) -> tuple[list[list[tuple[int, int]]], list[memoryview]]:
    """The bodies of PEM keys, and the lines that are in none."""
    keys: list[list[tuple[int, int]]] = []
    others: list[memoryview] = []
    body: list[tuple[int, int]] | None = None
    for start, end in lines:
        line = secret[start:end]
        last = _find(line, _END) >= 0
        if _find(line, _BEGIN) >= 0 and not last:
            keys.append(body := [])
        elif body is None:
            others.append(line)
        elif last:
            body = None
        elif _find(line, b": ") < 0:  # no header of the body
            body.append((start, end))
    return keys, others


def _is_public(line: memoryview) -> bool:
    """Whether it is a comment, a heading, or a setting that says nothing secret."""
    if line[0] in _COMMENTS:
        return True
    field = _field(line)
    if field is None or _is_secret(*field):
        return False
    name, value = field
    return (
        len(value) < SHORTEST_PART
        or _last_word(name) in _PUBLIC_NAMES
        or all(byte in _WORDS for byte in value)
        or (_find(value, b"://") >= 0 and 0x40 not in value and 0x3F not in value)
    )


def _in_base64(secret: memoryview, lines: list[tuple[int, int]]) -> Iterator[Part]:
    """The text that it encodes."""
    if len(secret) < SHORTEST_PART or not all(byte in _BASE64_TEXT for byte in secret):
        return
    decoded = collect(_decoded(secret, lines))
    with decoded.view() as view:
        document = bytes(view[:1]) in {b"{", b"[", b"-"}
        text = len(view) >= SHORTEST_PART and not any(
            byte in _BINARY or (byte > 0x7E and not document) for byte in view
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
    if _find(line, _BEGIN) >= 0 and _find(line, b"\\n") >= 0:  # a key in one line
        yield Part(collect(_unescaped(line)))
    yield from _fields(line)
    if (place := _find(line, b"://")) >= 0:
        yield from _in_url(line, place)
    elif not any(byte in _SPACE or byte == 0x3D for byte in line):
        # The password of ``user:password``, also with more before it.
        colon = max((n for n, byte in enumerate(line) if byte == 0x3A), default=0)
        if colon and len(line) - colon > SHORTEST_PART and bytes(line[:4]) not in _RESOURCES:
            yield _copy(line[colon + 1 :])


def _fields(line: memoryview) -> Iterator[Part]:
    """The values that are secret, of a line that is one field or several."""
    pieces = [line, *_split(line, _BETWEEN)]
    for piece in pieces:
        if (field := _field(piece)) is not None and _is_secret(*field):
            value = field[1]
            yield _copy(value)
            # What is quoted, or before a blank and ``#``.
            if value[0] in _QUOTES:
                end = _find(value, bytes(value[:1]), 1)
                if end > SHORTEST_PART:
                    yield _copy(value[1:end])
            elif (end := _find(value, b" #")) >= SHORTEST_PART:
                yield _copy(value[:end])
    for name, value in pairwise(pieces[1:]):  # as .netrc has it
        if bytes(name[:9]) == b"password" and len(value) >= SHORTEST_PART:
            yield _copy(value)


def _in_url(line: memoryview, place: int) -> Iterator[Part]:
    """The password of ``user:password@host``, without a colon all of it; its own token."""
    rest = line[place + 3 :]
    end = next((at for at, byte in enumerate(rest) if byte in b"/?#"), len(rest))
    at = max((place for place in range(end) if rest[place] == 0x40), default=-1)
    if at >= 0:
        colon = next((place for place in range(at) if rest[place] == 0x3A), -1)
        password = rest[colon + 1 : at]
        yield _copy(password)
        if 0x25 in password:
            yield Part(collect(_unquoted(password)))
    elif all(byte in _LETTERS for byte in line[:place]):
        path = rest[end : next((n for n, b in enumerate(rest) if b in b"?#"), len(rest))]
        yield from (_copy(piece) for piece in _split(path, b"/") if _looks_random(piece))


def _field(line: memoryview) -> tuple[str, memoryview] | None:
    """The name and the value of ``name = value`` or ``name: value``."""
    at = next((n for n, byte in enumerate(line[: _LONGEST_NAME + 1]) if byte in b"=:"), -1)
    if at <= 0 or not all(byte in _NAME for byte in line[:at]):
        return None
    rest = line[at + 1 :]
    if line[at] == 0x3A and bytes(rest[:2]) == b"//":
        return None  # a URL
    start, end = _trimmed(rest)
    return bytes(line[:at]).decode("ascii").strip().lower(), rest[start:end]


def _is_secret(name: str, value: memoryview) -> bool:
    """Whether a field is secret, by its name and by its form."""
    if len(value) < SHORTEST_PART:
        return False
    if _find(value, b"://") >= 0:
        return 0x40 in value  # a URL is, where it names a user
    last = _last_word(name)
    if last not in _NEVER_SECRET:
        if not name or last == "pass" or last.endswith("key"):
            return True
        if any(word in name for word in _SECRET_NAMES):
            return True
        if any(word in name for word in _UNSURE_NAMES):
            return not all(byte in _WORDS for byte in value)
    return last not in _PUBLIC_NAMES and (_looks_random(value) or _find(value, _BEGIN) >= 0)


def _last_word(name: str) -> str:
    return name.replace("-", "_").rpartition("_")[2]


def _looks_random(value: memoryview) -> bool:
    if len(value) < _SHORTEST_TOKEN or any(byte in _SPACE or byte == 0x40 for byte in value):
        return False
    return any(b in _LETTERS for b in value) and any(b in _DIGITS for b in value)


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
        end = start + 1
        while end < len(secret) and secret[end] != 0x22:
            end += 2 if secret[end] == 0x5C else 1
        end = min(end, len(secret))
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


def _unquoted(text: memoryview) -> Iterator[int]:
    """Without the escapes of a URL."""
    at = 0
    while at < len(text):
        digits = bytes(text[at + 1 : at + 3])
        if text[at] == 0x25 and len(digits) == 2 and all(d in _HEX for d in digits):
            yield int(digits, 16)
            at += 3
        else:
            yield text[at]
            at += 1


def _split(text: memoryview, between: Container[int]) -> Iterator[memoryview]:
    start = 0
    for at, byte in enumerate(text):
        if byte in between:
            if at > start:
                yield text[start:at]
            start = at + 1
    if start < len(text):
        yield text[start:]


def _copy(part: memoryview, *, plain: bool = False) -> Part:
    return Part(SecretBytes.copy_of(part), plain)


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
        # A string of one character says nothing of the secret.
        yield from chr(unit).encode("utf-8", "surrogatepass")


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
