"""Text from outside before a person's eyes: what is seen is what there is. Pure.

Guarantee: ``escaped`` leaves no character that can't be seen, moves others or hides in the
one before; ``shown`` besides no gap that looks like a new line, and what is ``quoted`` can't
end its quotation. A plugin's id that passes ``check_plugin`` has no invisible characters and
letters of one script only.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from typing import Final

from apex_creds.errors import InvalidNameError
from apex_creds.model import check_name

# Default_Ignorable_Code_Point (Unicode 16) where Python calls it printable, and blanks.
_INVISIBLE: Final = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0"
    "\U00016fe4\U0001d159\U000e0000-\U000e0fff]"
)
_VERSION: Final = re.compile(r"[0-9A-Za-z.+_~!-]{1,64}", re.ASCII)
_PLAIN: Final = re.compile(r"[^\s\",()\[\]]+")
_TOGETHER: Final = {"BOPOMOFO", "HANGUL", "HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA"}
"""Scripts that are written with Chinese characters, and each other."""


def check_plugin(plugin: str) -> str:
    """Returns ``plugin`` if it can be a plugin's id, and be told from others by eye.

    Raises:
        InvalidNameError: It is no name, or has invisible characters, two spaces together,
            backslashes, look-alike forms (NFKC), or mixed scripts.
    """
    check_name(plugin, what="plugin id")
    hint = "Use letters of one script, digits, dots and dashes."
    if escaped(plugin) != plugin or "  " in plugin or "\\" in plugin:
        raise InvalidNameError("The plugin id has characters that deceive.", hint=hint)
    if not unicodedata.is_normalized("NFKC", plugin) or len(_scripts(plugin)) > 1:
        raise InvalidNameError("The plugin id mixes scripts or forms of letters.", hint=hint)
    return plugin


def check_version(version: str) -> str:
    """Returns ``version`` if it is 1 to 64 ASCII letters, digits and ``. + _ ~ ! -``.

    Raises:
        InvalidNameError: It is not.
    """
    if _VERSION.fullmatch(version) is None:
        hint = "Use at most 64 ASCII letters, digits and . + _ ~ ! -"
        raise InvalidNameError("The plugin version is not one.", hint=hint)
    return version


def escaped(text: str) -> str:
    """``text`` with every character that is not plainly seen as a Python escape."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(_escaped(text))


def shown(text: str, *, longest: int = 1000) -> str:
    """``text`` safe on a line or in a field of its own, and no longer."""
    cut = text if len(text) <= longest else text[:longest] + "…"
    return re.sub(" {2,}", _gap, escaped(cut))


def quoted(text: str) -> str:
    """``text`` in quotation marks, within a line of ours."""
    inside = shown(text).replace('"', "\\x22")
    return f'"{inside}"'


def named(text: str) -> str:
    """A name within a line of ours: in quotation marks, unless it is one plain word."""
    return shown(text) if _PLAIN.fullmatch(text) else quoted(text)


def _gap(spaces: re.Match[str]) -> str:
    return " " + "\\x20" * (len(spaces[0]) - 1)


def _escaped(text: str) -> Iterable[str]:
    carries = False  # whether a mark would be drawn on a letter
    for c in text:
        mark = unicodedata.category(c)[0] == "M"
        seen = c.isprintable() and _INVISIBLE.match(c) is None and (carries or not mark)
        carries = seen and (mark or c.isalpha())
        yield c if seen else ascii(c)[1:-1]


def _scripts(text: str) -> set[str]:
    return {_script(c) for c in text if c.isalpha()}


def _script(letter: str) -> str:
    """The first word of the letter's name, as scripts of one writing count as one."""
    word = unicodedata.name(letter, "").partition(" ")[0]
    return "CJK" if word in _TOGETHER else word
