"""Any k of n shares restore the key; fewer, mixed and mistyped ones are refused."""

from __future__ import annotations

import copy
import pickle
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apex_creds.crypto.memory import SecretBytes
from apex_creds.errors import InvalidInputError, NotInstalledError, SecretMisuseError
from apex_creds.keys.shares import MAX_SHARES, WORDS, Share, combine, parse_share, split

KEY = bytes(range(32))
numbers = st.integers(2, 6).flatmap(lambda k: st.tuples(st.just(k), st.integers(k, 8)))


def shares_of(data: bytes, k: int, n: int) -> list[str]:
    with SecretBytes.from_bytes(data) as key:
        return split(key, threshold=k, shares=n)


def restored(texts: list[str]) -> bytes:
    with combine([parse_share(text) for text in texts]) as key:
        return key.expose_bytes()


@settings(max_examples=40, deadline=None)
@given(st.binary(min_size=32, max_size=32), numbers, st.randoms(use_true_random=False))
def test_any_k_of_n_restore_in_any_order_and_fewer_do_not(
    data: bytes, sizes: tuple[int, int], chance: random.Random
) -> None:
    k, n = sizes
    made = shares_of(data, k, n)
    assert len(made) == n
    assert all(len(text.split()) == WORDS for text in made)
    assert restored(chance.sample(made, k)) == data
    assert restored(chance.sample(made, chance.randint(k, n))) == data
    with pytest.raises(InvalidInputError, match="too few"):
        restored(chance.sample(made, k - 1))
    again = chance.choice(made)
    with pytest.raises(InvalidInputError, match="too few"):
        restored([again] * k)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 3),
    st.randoms(use_true_random=False),
)
def test_up_to_three_wrong_words_are_always_found(wrong: int, chance: random.Random) -> None:
    from shamir_mnemonic.wordlist import WORDLIST

    words = MADE[0].split()
    for place in chance.sample(range(WORDS), wrong):
        words[place] = chance.choice([word for word in WORDLIST if word != words[place]])
    with pytest.raises(InvalidInputError) as refused:
        parse_share(" ".join(words))
    assert "checksum" in refused.value.message
    assert not set(words) & set(str(refused.value).split())


@settings(max_examples=30, deadline=None)
@given(st.randoms(use_true_random=False))
def test_two_words_exchanged_are_found(chance: random.Random) -> None:
    words = MADE[0].split()
    one, two = chance.sample(range(WORDS), 2)
    if words[one] == words[two]:
        return
    words[one], words[two] = words[two], words[one]
    with pytest.raises(InvalidInputError):
        parse_share(" ".join(words))


MADE = shares_of(KEY, 3, 5)
OTHER = shares_of(KEY, 3, 5)


def test_sets_are_never_mixed() -> None:
    with pytest.raises(InvalidInputError, match="different sets"):
        restored([MADE[0], MADE[1], OTHER[2]])
    with pytest.raises(InvalidInputError, match="different sets"):
        restored([*MADE[:3], OTHER[3]])


def test_sets_that_pass_for_one_are_told_by_their_digest() -> None:
    """Two sets share an identifier once in 32768."""
    mixed = [parse_share(text) for text in (MADE[0], MADE[1], OTHER[2])]
    forged = [Share(mixed[0].set_id, s.index, s.threshold, s.mnemonic) for s in mixed]
    with pytest.raises(InvalidInputError, match="belong together"):
        combine(forged)


def test_the_first_four_letters_are_enough_in_any_case() -> None:
    short = [" ".join(word[:4] for word in text.split()).upper() for text in MADE[:3]]
    assert restored(short) == KEY
    assert restored([text.replace(" ", "\n\t ") for text in MADE[2:]]) == KEY


@pytest.mark.parametrize(
    "text",
    ["", "academic", "zzzz " * WORDS, " ".join(["academic"] * WORDS), "\0" * 99, "é " * 33],
)
def test_other_text_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(InvalidInputError) as refused:
        parse_share(text)
    assert "zzzz" not in str(refused.value)
    assert "academic" not in str(refused.value)


def test_a_word_that_only_begins_right_is_refused() -> None:
    words = MADE[0].split()
    place = next(i for i, word in enumerate(words) if len(word) > 4)
    words[place] += "x"
    with pytest.raises(InvalidInputError, match=f"Word {place + 1} "):
        parse_share(" ".join(words))


@pytest.mark.parametrize("sizes", [(1, 1), (1, 3), (0, 2), (4, 3), (2, MAX_SHARES + 1)])
def test_numbers_that_protect_nothing_are_refused(sizes: tuple[int, int]) -> None:
    with pytest.raises(InvalidInputError):
        shares_of(KEY, *sizes)


def test_a_share_shows_nothing_of_itself() -> None:
    share = parse_share(MADE[0])
    assert not set(MADE[0].split()) & set(repr(share).replace("'", " ").split())
    for escape in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(SecretMisuseError):
            escape(share)


def test_slip39s_own_vectors() -> None:
    """Numbers 1 and 4 of SLIP-0039; of another length than a master key's."""
    from shamir_mnemonic import combine_mnemonics

    one = (
        "duckling enlarge academic academic agency result length solution fridge kidney coal "
        "piece deal husband erode duke ajar critical decision keyboard"
    )
    four = [
        (
            "shadow pistol academic always adequate wildlife fancy gross oasis cylinder "
            "mustang wrist rescue view short owner flip making coding armed"
        ),
        (
            "shadow pistol academic acid actress prayer class unknown daughter sweater depict "
            "flip twice unkind craft early superior advocate guest smoking"
        ),
    ]
    assert combine_mnemonics([one], b"TREZOR").hex() == "bb54aac4b89dc868ba37d9cc21b2cece"
    assert combine_mnemonics(four, b"TREZOR").hex() == "b43ceb7e57a0ea8766221624d01b0864"
    with pytest.raises(InvalidInputError):
        parse_share(one)


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "shamir_mnemonic", None)
    with pytest.raises(NotInstalledError, match=r"apex-creds\[recovery\]"):
        parse_share(MADE[0])
