"""Takes secrets out of what a service answers, while it comes.

Guarantee: what goes on of an answer (headers, their names, body) has no secret of the masks in
it, in any spelling that redaction knows: each is covered by as many ``*``, so that lengths,
ranges and frames stay true. A body goes on as it comes, but for an end of it that could begin a
secret. A compressed body is decoded, in windows of bounded size, and its headers say so. What
can't be searched goes no further: ``AnswerWithheldError``. No I/O.

Neither a secret that is shorter than ``SHORTEST`` bytes is searched for, nor one that a service
cuts into pieces, encrypts, or spells in a private way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from typing import Final
from urllib.parse import unquote_to_bytes

from apex_creds.errors import AnswerWithheldError
from apex_creds.redaction.content_coding import (
    Decoder,
    UndecodableError,
    accepted,
    codings,
    decoded,
    decoders,
)
from apex_creds.redaction.masks import COVER, Mask, MaskedStream, masked

RawHeaders = list[tuple[bytes, bytes]]
Headers = list[tuple[bytes, bytes, bytes]]
"""Their names in lower case; names and values as they are sent."""
OnFound = Callable[[str], object]
"""Gets the name of a credential whose secret was found, before what it was in goes on."""

_PARTIAL: Final = 206
_BODILESS: Final = frozenset({204, 304})
_FRAMING: Final = frozenset({b"content-length", b"content-encoding"})
_DEPTH: Final = 8
_NOTHING: Final[tuple[bytes, ...]] = ()


def ask(headers: Headers) -> None:
    """Has a request's headers ask for no compression that can't be searched.

    Of a range, none is: a piece of a compressed body can't be decoded.
    """
    places, piece = [], False
    for at, (lower, _, _) in enumerate(headers):
        if lower == b"accept-encoding":
            places.append(at)
        elif lower == b"range":
            piece = True
    for at in places:
        lower, name, value = headers[at]
        headers[at] = lower, name, b"identity" if piece else accepted(value)


class SearchedAnswer:
    """One answer.

    Args:
        masks: What to search for; at least one.
        status: Of the answer.
        headers: Of the answer.
        method: Of the request: an answer to ``HEAD`` has no body.
        on_found: Called once for each credential; what it raises keeps the answer back.

    Attributes:
        headers: Those that go on; the same object, if they are as they came.

    Raises:
        AnswerWithheldError: It can't be searched.
    """

    __slots__ = ("_found", "_layers", "_on_found", "_reported", "_stream", "headers")

    def __init__(
        self,
        masks: Sequence[Mask],
        *,
        status: int,
        headers: RawHeaders,
        method: str,
        on_found: OnFound,
    ) -> None:
        self._found: set[str] = set()
        self._reported: set[str] = set()
        self._on_found = on_found
        self._layers: list[Decoder] = []
        piece = status == _PARTIAL
        for name, value in headers:
            lower = name.lower()
            if lower == b"content-range":
                piece = True
            elif lower == b"content-type" and b"byteranges" in value.lower():
                raise _withheld("it has several ranges of bytes in it")
            elif lower == b"content-encoding" and method != "HEAD" and status not in _BODILESS:
                self._layers = _layers(headers)
        if self._layers:
            if piece:
                raise _withheld("it is a piece of a compressed body")
            headers = [each for each in headers if each[0].lower() not in _FRAMING]
        self._stream = MaskedStream(masks, self._found, piece=piece)
        self.headers = clean_headers(headers, masks, self._found)
        if self._found:
            self._report()

    def feed(self, chunk: bytes) -> Iterable[bytes]:
        """What can go on now that ``chunk`` has come, in pieces; to be taken at once.

        Raises:
            AnswerWithheldError: It can't be searched.
        """
        if self._layers:
            return self._decoded(chunk)
        try:
            clean = self._stream.feed(chunk)
        except ValueError:
            raise _ended() from None
        if self._found:
            self._report()
        return (clean,) if clean else _NOTHING

    def finish(self) -> bytes:
        """What was held back, when the last chunk has come; raises as ``feed``."""
        for layer in self._layers:
            if not layer.finished:
                raise _withheld("its compressed body is cut off")
        if not self._stream.held:
            return b""
        try:
            clean = self._stream.finish()
        except ValueError:
            raise _ended() from None
        if self._found:
            self._report()
        return clean

    def _decoded(self, chunk: bytes) -> Iterator[bytes]:
        try:
            for window in decoded(self._layers, chunk):
                clean = self._stream.feed(window)
                if self._found:
                    self._report()
                if clean:
                    yield clean
        except UndecodableError:
            raise _withheld("its compressed body can't be decoded") from None
        except ValueError:
            raise _ended() from None

    def _report(self) -> None:
        for name in sorted(self._found - self._reported):
            self._on_found(name)
            self._reported.add(name)


class SearchedMessages:
    """The messages of one connection, as of a WebSocket: in frames, or whole ones.

    Args:
        masks: What to search for.
        on_found: Called once for each credential, before what it was in goes on.
    """

    __slots__ = ("_found", "_masks", "_on_found", "_stream")

    def __init__(self, masks: Sequence[Mask], *, on_found: OnFound) -> None:
        self._masks = masks
        self._on_found = on_found
        self._found: set[str] = set()
        self._stream = MaskedStream(masks, self._found)

    def feed(self, frame: bytes) -> bytes:
        """What of the message can go on; the rest of the frame comes with the next ones.

        Raises:
            AnswerWithheldError: What is searched for was wiped: the lease has ended.
        """
        with self._searching():
            return self._stream.feed(frame)

    def finish(self, frame: bytes = b"") -> bytes:
        """The end of the message, with its last frame, as ``feed``; the next one may begin."""
        with self._searching():
            clean = self._stream.feed(frame) + self._stream.finish()
        self._stream = MaskedStream(self._masks, self._found)
        return clean

    def whole(self, message: str | bytes) -> str | bytes:
        """A whole message, as long as it was; the same object, if it has no secret.

        Text is searched as UTF-8: of a secret with other characters than ASCII, each byte is
        covered. Raises as ``feed``.
        """
        text = isinstance(message, str)
        data = message.encode("utf-8", "surrogatepass") if isinstance(message, str) else message
        with self._searching():
            clean = masked(data, self._masks, self._found)
        if clean is data:
            return message
        return clean.decode("utf-8", "surrogatepass") if text else clean

    @contextmanager
    def _searching(self) -> Iterator[None]:
        """Reports what is found within, before it goes on."""
        try:
            yield
        except ValueError:
            raise _ended() from None
        for name in sorted(self._found):
            self._on_found(name)
        self._found.clear()


def clean_headers(headers: RawHeaders, masks: Sequence[Mask], found: set[str]) -> RawHeaders:
    """Headers without secrets: names and values, in any case, under escapes of any depth.

    Also one that is cut into the values of headers that follow each other.
    """
    names, values = [], []
    for name, value in headers:
        names.append(name)
        values.append(value)
    whole = b"".join((*names, b"\n", *values))
    escaped = b"%" in whole or b"+" in whole
    twice = whole + whole.lower()

    def cleaned(texts: list[bytes]) -> list[bytes]:
        clean = _in_any_case(b"".join(texts), masks, found)
        if clean is None:
            return texts
        ends = list(accumulate(map(len, texts)))
        return [clean[end - len(text) : end] for text, end in zip(texts, ends, strict=True)]

    if any(mask.spans(twice) for mask in masks):
        headers = list(zip(cleaned(names), cleaned(values), strict=True))
    if not escaped:
        return headers
    return [(name, _unescaped(value, masks, found)) for name, value in headers]


def _in_any_case(text: bytes, masks: Sequence[Mask], found: set[str]) -> bytes | None:
    """``text`` without secrets; None: it has none."""
    lower = text.lower()
    covered, clean = masked(lower, masks, found), masked(text, masks, found)
    if covered is lower:
        return None if clean is text else clean
    # Where the text in lower case has changed, and only there, it is covered.
    letters = zip(clean, lower, covered, strict=True)
    return bytes([byte if there == was else there for byte, was, there in letters])


def _unescaped(value: bytes, masks: Sequence[Mask], found: set[str]) -> bytes:
    """The value; covered whole, if escapes hide a secret in it, or are too deep to say."""
    for plus in (b"+", b" "):
        text = value
        for _ in range(_DEPTH):
            plain = unquote_to_bytes(text.replace(b"+", plus))
            if plain == text:
                break
            if _in_any_case(plain, masks, found) is not None:
                return COVER * len(value)
            text = plain
        else:
            return COVER * len(value)
    return value


def _layers(headers: RawHeaders) -> list[Decoder]:
    named = codings(value for name, value in headers if name.lower() == b"content-encoding")
    try:
        return decoders(named)
    except UndecodableError:
        raise _withheld("its body is compressed in a way that is not known here") from None


def _ended() -> AnswerWithheldError:
    return _withheld("the lease that it came under has ended")


def _withheld(why: str) -> AnswerWithheldError:
    return AnswerWithheldError(
        f"The answer can't be searched for the secret that was sent, so it is withheld: {why}.",
        hint="Ask for it uncompressed and whole, or have manifest and grant say that its "
        "service's echoes are allowed.",
    )
