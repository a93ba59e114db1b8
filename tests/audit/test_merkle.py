"""The Merkle tree is that of RFC 6962, and a proof shows what it says and nothing else."""

import base64
import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from carbon_points.audit.merkle import EMPTY_ROOT, Frontier, includes, inclusion_proof, node_hash, root_of

# The inputs, roots and proofs that Certificate Transparency's own tests use.
INPUTS = ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"]
ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]


def _leaf(data: bytes) -> bytes:
    return hashlib.sha256(b"\x00" + data).digest()


LEAVES = [_leaf(bytes.fromhex(text)) for text in INPUTS]


def _slow_root(leaves: list[bytes]) -> bytes:
    """RFC 6962, 2.1, word by word."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return leaves[0]
    half = 1
    while half * 2 < len(leaves):
        half *= 2
    return hashlib.sha256(b"\x01" + _slow_root(leaves[:half]) + _slow_root(leaves[half:])).digest()


def test_the_root_of_an_empty_tree_is_the_hash_of_nothing() -> None:
    assert root_of([]) == EMPTY_ROOT == hashlib.sha256(b"").digest()


@pytest.mark.parametrize("size", range(1, 9))
def test_roots_are_those_of_certificate_transparency(size: int) -> None:
    assert root_of(LEAVES[:size]).hex() == ROOTS[size - 1]


def test_a_tree_that_grows_has_every_root_on_the_way() -> None:
    tree, leaves = Frontier(), [_leaf(bytes([n])) for n in range(70)]
    for size, leaf in enumerate(leaves):
        assert tree.root() == _slow_root(leaves[:size])
        tree.append(leaf)
    assert (tree.size, tree.root()) == (70, _slow_root(leaves))


@pytest.mark.parametrize("size", [*range(1, 18), 31, 32, 33])
def test_every_leaf_has_a_proof_and_no_other_place(size: int) -> None:
    leaves = [_leaf(bytes([n])) for n in range(size)]
    root = root_of(leaves)
    for index, leaf in enumerate(leaves):
        proof = inclusion_proof(leaves, index)
        assert includes(root, size, index, leaf, proof)
        assert not any(includes(root, size, other, leaf, proof) for other in range(-1, size + 2) if other != index)
        assert not includes(root, size, index, _leaf(b"other"), proof)
        assert not includes(_leaf(b"other"), size, index, leaf, proof)


@given(size=st.integers(1, 40), data=st.data())
def test_a_changed_longer_or_shorter_proof_shows_nothing(size: int, data: st.DataObject) -> None:
    leaves = [_leaf(bytes([n])) for n in range(size)]
    index = data.draw(st.integers(0, size - 1))
    root, proof = root_of(leaves), inclusion_proof(leaves, index)
    assert not includes(root, size, index, leaves[index], [*proof, root])
    assert not includes(root, size, index, leaves[index], [root, *proof])
    if proof:
        assert not includes(root, size, index, leaves[index], proof[:-1])
        at = data.draw(st.integers(0, len(proof) - 1))
        assert not includes(root, size, index, leaves[index], [*proof[:at], _leaf(b"x"), *proof[at + 1 :]])


@pytest.mark.parametrize("index", [-1, 3])
def test_there_is_no_proof_for_a_leaf_outside_the_tree(index: int) -> None:
    with pytest.raises(IndexError):
        inclusion_proof(LEAVES[:3], index)


# -- a published log -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def published() -> Path:
    for parent in Path(__file__).resolve().parents:
        if (folder := parent / "shared" / "vectors" / "tessera-log").is_dir():
            return folder
    pytest.skip("the published log lies in shared/vectors beside the project, and that folder is not here")


@pytest.mark.parametrize("size", range(16))
def test_roots_are_those_of_a_log_that_others_published(published: Path, size: int) -> None:
    _, said, root, *_ = (published / f"checkpoint.{size}").read_text().split("\n")
    tile = (published / "tile" / "0" / "000.p" / str(size)).read_bytes() if size else b""
    leaves = [tile[n : n + 32] for n in range(0, len(tile), 32)]
    assert (int(said), base64.b64decode(root)) == (len(leaves), root_of(leaves))


def test_leaf_hashes_are_those_of_its_entries(published: Path) -> None:
    bundle = (published / "tile" / "entries" / "000.p" / "15").read_bytes()
    leaves: list[bytes] = []
    while bundle:
        length = int.from_bytes(bundle[:2])
        leaves.append(_leaf(bundle[2 : 2 + length]))
        bundle = bundle[2 + length :]
    assert b"".join(leaves) == (published / "tile" / "0" / "000.p" / "15").read_bytes()


def test_a_node_is_not_a_leaf() -> None:
    left, right = LEAVES[:2]
    assert node_hash(left, right) != _leaf(left + right)
