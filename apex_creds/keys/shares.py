"""A master key in words: k of n shares restore it (SLIP-0039, Shamir's scheme).

Guarantee: fewer than k shares say nothing about the key; up to three wrong words in a share
are always noticed (RS1024 checksum), more with a chance of missing one in 10^9; shares of
different sets are never combined. No message repeats a word.

The scheme is that of the package ``shamir-mnemonic``, by the authors of SLIP-0039. It works
on ``bytes`` and ``str``, which can't be wiped: it is for the rare act of recovery, in a
process that ends soon after.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, NoReturn

from apex_creds.crypto.memory import SecretBytes
from apex_creds.errors import InvalidInputError, NotInstalledError, SecretMisuseError
from apex_creds.keys.provider import MASTER_KEY_BYTES

__all__ = ["MAX_SHARES", "WORDS", "Share", "combine", "parse_share", "split"]

MAX_SHARES: Final = 16
WORDS: Final = 33
"""Words of a share of 32 bytes."""

_PREFIX: Final = 4
"""The words differ in their first four letters, so no more need be written down."""


@dataclass(frozen=True, slots=True)
class Share:
    """One share that was read: its checksum is right.

    Attributes:
        set_id: Common to the shares of one set, and to those of no other (nearly).
        index: Which of the set, from 0.
        threshold: How many of the set restore the key.
    """

    set_id: tuple[int, ...]
    index: int
    threshold: int
    mnemonic: str = field(repr=False)

    def __reduce__(self) -> NoReturn:
        raise SecretMisuseError("A share can't be pickled or copied.")


def split(key: SecretBytes, *, threshold: int, shares: int) -> list[str]:
    """Splits a master key; returns the shares, 33 words each.

    Args:
        key: 32 bytes.
        threshold: How many shares restore it, from 2.
        shares: How many there are, up to 16.

    Raises:
        InvalidInputError: Those numbers don't go together.
        NotInstalledError: The package is not there.
    """
    if len(key) != MASTER_KEY_BYTES or not 2 <= threshold <= shares <= MAX_SHARES:
        raise InvalidInputError(
            "There can't be such shares.",
            hint=f"2 <= threshold <= shares <= {MAX_SHARES}, like 3 of 5.",
        )
    _require()
    from shamir_mnemonic import generate_mnemonics

    # No passphrase: its encryption step costs 80 ms and hides nothing. Exponent 0.
    groups = [(threshold, shares)]
    made = generate_mnemonics(1, groups, key.expose_bytes(), iteration_exponent=0)
    return list(map(str, made[0]))


def parse_share(text: str) -> Share:
    """Reads a share: 33 words, or the first four letters of each, in any case.

    Raises:
        InvalidInputError: A word is not in the list, or the checksum is wrong.
        NotInstalledError: The package is not there.
    """
    _require()
    from shamir_mnemonic.share import Share as Slip39
    from shamir_mnemonic.utils import MnemonicError

    mnemonic = " ".join(_words(text))
    try:
        found = Slip39.from_mnemonic(mnemonic)
    except MnemonicError:
        found = None
    if found is None:
        raise InvalidInputError(
            "The share's checksum is wrong: a word is wrong, or in the wrong place.",
            hint="Compare it word by word with what is written down.",
        )
    if found.group_count != 1 or len(found.value) != MASTER_KEY_BYTES:
        raise InvalidInputError("The share is not one of a master key of apex-creds.")
    set_id = (
        found.identifier,
        int(found.extendable),
        found.iteration_exponent,
        found.member_threshold,
        found.group_threshold,
    )
    return Share(set_id, found.index, found.member_threshold, mnemonic)


def combine(shares: Sequence[Share]) -> SecretBytes:
    """The key that shares of one set restore; the caller closes it.

    More than are needed are used, too: all must agree.

    Raises:
        InvalidInputError: Too few, of several sets, or not agreeing.
    """
    if len({share.set_id for share in shares}) > 1:
        raise InvalidInputError(
            "The shares are of different sets.",
            hint="Use shares that begin with the same two words.",
        )
    by_index = {share.index: share.mnemonic for share in shares}
    if any(by_index[share.index] != share.mnemonic for share in shares):
        raise InvalidInputError("Two different shares have the same number.")
    needed = shares[0].threshold if shares else 2
    if len(by_index) < needed:
        raise InvalidInputError(
            f"{len(by_index)} of {needed} shares: that is too few.",
            hint=f"{needed} different shares are needed.",
        )
    mnemonics = [by_index[index] for index in sorted(by_index)]
    last = len(mnemonics) - needed
    key = _combined(mnemonics[:needed])
    for start in (*range(needed, last, needed), *([last] if last else [])):
        with _combined(mnemonics[start : start + needed]) as other:
            if not key.equals(other):
                key.close()
                raise _disagree()
    return key


def _combined(mnemonics: list[str]) -> SecretBytes:
    from shamir_mnemonic import combine_mnemonics
    from shamir_mnemonic.utils import MnemonicError

    try:
        return SecretBytes.from_bytes(combine_mnemonics(mnemonics))
    except MnemonicError:
        pass
    raise _disagree()


def _disagree() -> InvalidInputError:
    return InvalidInputError(
        "The shares don't belong together.", hint="They are of different sets."
    )


def _words(text: str) -> list[str]:
    from shamir_mnemonic.wordlist import WORDLIST

    known = {word[:_PREFIX]: word for word in WORDLIST}
    typed = unicodedata.normalize("NFKC", text).lower().split()
    if len(typed) != WORDS:
        raise InvalidInputError(
            f"A share has {WORDS} words; there are {len(typed)}.",
            hint="Type all of its words, with spaces between them.",
        )
    words = []
    for number, word in enumerate(typed, start=1):
        found = known.get(word[:_PREFIX])
        if found is None or (len(word) > _PREFIX and word != found):
            raise InvalidInputError(f"Word {number} is not in the list of words.")
        words.append(found)
    return words


def _require() -> None:
    try:
        import shamir_mnemonic  # noqa: F401
    except ImportError:
        raise NotInstalledError(
            "Shares need the package shamir-mnemonic, which is not installed.",
            hint="Run: pip install 'apex-creds[recovery]'",
        ) from None
