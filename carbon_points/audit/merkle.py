"""Merkle trees of RFC 6962 over leaf hashes: the root, a proof that a leaf is in it, and the check of that proof.

A leaf hash is SHA-256 of 0x00 and the leaf bytes, a node's of 0x01 and its two children. Nothing here knows what a
leaf is.
"""

import hashlib
from collections.abc import Iterable, Sequence

_NODE_PREFIX = b"\x01"
EMPTY_ROOT = hashlib.sha256().digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(_NODE_PREFIX + left + right).digest()


class Frontier:
    """A tree that only grows: the `roots` of its complete subtrees, largest first, one for each bit of `size`."""

    def __init__(self, size: int = 0, roots: Sequence[bytes] = ()) -> None:
        if size.bit_count() != len(roots):
            raise ValueError(f"a tree of {size} leaves has {size.bit_count()} complete subtrees, not {len(roots)}")
        self.size = size
        self.roots = list(roots)

    def append(self, leaf: bytes) -> None:
        self.size += 1
        size = self.size
        while size & 1 == 0:
            leaf = node_hash(self.roots.pop(), leaf)
            size >>= 1
        self.roots.append(leaf)

    def root(self) -> bytes:
        if not self.roots:
            return EMPTY_ROOT
        *left, root = self.roots
        for subtree in reversed(left):
            root = node_hash(subtree, root)
        return root


def root_of(leaves: Iterable[bytes]) -> bytes:
    frontier = Frontier()
    for leaf in leaves:
        frontier.append(leaf)
    return frontier.root()


def inclusion_proof(leaves: Sequence[bytes], index: int) -> list[bytes]:
    """The siblings on the way from a leaf to the root, lowest first (RFC 6962, 2.1.1). Needs 0 <= index < size."""
    if not 0 <= index < len(leaves):
        raise IndexError(f"the tree has no leaf {index}: its size is {len(leaves)}")
    if len(leaves) == 1:
        return []
    half = 1 << (len(leaves) - 1).bit_length() - 1  # the largest power of two below the size
    if index < half:
        return [*inclusion_proof(leaves[:half], index), root_of(leaves[half:])]
    return [*inclusion_proof(leaves[half:], index - half), root_of(leaves[:half])]


def includes(root: bytes, size: int, index: int, leaf: bytes, proof: Sequence[bytes]) -> bool:
    """Whether the proof shows the leaf at that index of the tree of that size (RFC 9162, 2.1.3.2).

    False for an index outside the tree and for a proof that is longer or shorter than its way.
    """
    if not 0 <= index < size:
        return False
    found, last = leaf, size - 1
    for sibling in proof:
        if last == 0:
            return False
        if index & 1 or index == last:
            found = node_hash(sibling, found)
            while index and not index & 1:
                index >>= 1
                last >>= 1
        else:
            found = node_hash(found, sibling)
        index >>= 1
        last >>= 1
    return last == 0 and found == root
