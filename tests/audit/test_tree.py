"""The tree: vectors of the RFCs and of certificate transparency, proofs good and bad."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apex_creds.audit import tree
from apex_creds.audit.tree import Frontier
from apex_creds.errors import IntegrityError, InvalidInputError

# The eight leaves that RFC 6962's reference implementation is tested with.
ENTRIES = [
    bytes.fromhex(text)
    for text in (
        "", "00", "10", "2021", "3031", "40414243",
        "5051525354555657", "606162636465666768696a6b6c6d6e6f",
    )
]  # fmt: skip
LEAVES = [tree.leaf_hash(entry) for entry in ENTRIES]
ROOTS = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
A, B, C = (
    "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
    "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
    "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
)
D, E, F = (
    "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
    "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
    "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
)


def root_of(leaves: list[bytes]) -> bytes:
    """By the definition of RFC 9162, 2.1.1, word for word."""
    if not leaves:
        return tree.EMPTY_ROOT
    if len(leaves) == 1:
        return leaves[0]
    k = 1
    while k * 2 < len(leaves):
        k *= 2
    return tree.node_hash(root_of(leaves[:k]), root_of(leaves[k:]))


def proof(ranges: list[tuple[int, int]], leaves: list[bytes] = LEAVES) -> list[bytes]:
    return tree.hashes_of(ranges, leaves)


def test_roots_of_the_reference_leaves() -> None:
    edge = Frontier()
    for size, expected in enumerate(ROOTS):
        assert edge.root().hex() == expected
        edge.extend(LEAVES[size : size + 1])


@pytest.mark.parametrize(
    ("index", "size", "expected"),
    [
        (0, 1, []),
        (0, 8, [A, B, C]),
        (5, 8, [D, E, ROOTS[4]]),
        (2, 3, [ROOTS[2]]),
        (1, 5, [ROOTS[1], B, D]),
    ],
)
def test_inclusion_proofs_of_the_reference_leaves(
    index: int, size: int, expected: list[str]
) -> None:
    made = proof(tree.inclusion_ranges(index, size))
    assert [each.hex() for each in made] == expected


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (1, 1, []),
        (1, 8, [A, B, C]),
        (6, 8, [F, E, ROOTS[4]]),
        (2, 5, [B, D]),
        (6, 7, [F, tree.leaf_hash(ENTRIES[6]).hex(), ROOTS[4]]),
    ],
)
def test_consistency_proofs_of_the_reference_leaves(
    old: int, new: int, expected: list[str]
) -> None:
    made = proof(tree.consistency_ranges(old, new))
    assert [each.hex() for each in made] == expected


def test_the_example_tree_of_rfc_9162() -> None:
    """Section 2.1.5: seven leaves a..f, j; nodes named as there."""
    a, b, c, d, e, f, j = LEAVES[:7]
    g, h, i = tree.node_hash(a, b), tree.node_hash(c, d), tree.node_hash(e, f)
    k = tree.node_hash(g, h)
    l = tree.node_hash(i, j)  # noqa: E741 - the RFC's name
    assert proof(tree.inclusion_ranges(0, 7)) == [b, h, l]
    assert proof(tree.inclusion_ranges(3, 7)) == [c, g, l]
    assert proof(tree.inclusion_ranges(4, 7)) == [f, j, k]
    assert proof(tree.inclusion_ranges(6, 7)) == [i, k]
    assert proof(tree.consistency_ranges(3, 7)) == [c, d, g, l]
    assert proof(tree.consistency_ranges(4, 7)) == [l]
    assert proof(tree.consistency_ranges(6, 7)) == [i, j, k]


@given(st.integers(1, 70), st.data())
def test_proofs_verify_and_altered_ones_do_not(size: int, data: st.DataObject) -> None:
    leaves = [tree.leaf_hash(bytes([n])) for n in range(size)]
    root = root_of(leaves)
    index, old = data.draw(st.integers(0, size - 1)), data.draw(st.integers(1, size))
    there = proof(tree.inclusion_ranges(index, size), leaves)
    tree.verify_inclusion(leaves[index], index=index, size=size, proof=there, root=root)
    begins = proof(tree.consistency_ranges(old, size), leaves)
    ends = {"old_root": root_of(leaves[:old]), "new_root": root}
    tree.verify_consistency(old=old, new=size, proof=begins, **ends)
    for bad in altered(there):
        with pytest.raises(IntegrityError):
            tree.verify_inclusion(leaves[index], index=index, size=size, proof=bad, root=root)
    for bad in altered(begins):
        with pytest.raises(IntegrityError):
            tree.verify_consistency(old=old, new=size, proof=bad, **ends)


def altered(path: list[bytes]) -> list[list[bytes]]:
    other = bytes(32)
    changed = [[*path[:i], other, *path[i + 1 :]] for i in range(len(path))]
    return [*changed, [*path, other], *([path[:-1], path[1:]] if path else [])]


@given(st.integers(0, 300), st.integers(0, 300))
def test_a_frontier_goes_on_where_it_was(size: int, more: int) -> None:
    leaves = [tree.leaf_hash(str(n).encode()) for n in range(size + more)]
    first = Frontier()
    first.extend(leaves[:size])
    again = Frontier(first.size, first.hashes)
    copied = first.copy()
    again.extend(leaves[size:])
    assert again.root() == root_of(leaves)
    assert copied.root() == root_of(leaves[:size])


@pytest.mark.parametrize(("size", "hashes"), [(1, 0), (3, 1), (-1, 1), (2, 2)])
def test_an_edge_that_does_not_fit_is_refused(size: int, hashes: int) -> None:
    with pytest.raises(InvalidInputError):
        Frontier(size, [bytes(32)] * hashes)


def test_there_is_no_proof_of_what_is_not_there() -> None:
    for bad in ((1, 1), (-1, 1), (0, 0)):
        with pytest.raises(InvalidInputError):
            tree.inclusion_ranges(*bad)
    for bad in ((0, 3), (4, 3)):
        with pytest.raises(InvalidInputError):
            tree.consistency_ranges(*bad)
    with pytest.raises(InvalidInputError):
        tree.hashes_of([(0, 9)], LEAVES)
