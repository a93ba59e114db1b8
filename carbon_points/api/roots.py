"""Merkle roots of the log at work, to be told beside what follows from it: settlements, and whoever wants to pin it."""

import logging
import threading
from collections.abc import Mapping
from pathlib import Path

import msgspec
from msgspec import Struct

from carbon_points.audit.merkle import Frontier
from carbon_points.journal.journal import Journal

ROOTS_KNOWN = 10_000

log = logging.getLogger(__name__)


class _Kept(Struct, frozen=True):
    """A tree as it was left: of `leaf` we know that it is still the same log."""

    size: int
    leaf: str
    roots: tuple[str, ...]


class Roots:
    """Merkle roots of the log as far as some positions. Each time costs what came since the time before.

    How far it came is also kept in a file, which may be deleted whenever one likes: the next time is slower.
    """

    def __init__(self, journal: Journal, file: Path) -> None:
        self._journal, self._file = journal, file
        self._trees: dict[int, Frontier] = {}
        self._known: dict[tuple[int, int], str] = {}
        self._lock = threading.Lock()

    def at(self, through: Mapping[str, int]) -> dict[str, str]:
        """By partition, in hex; partitions of which nothing is covered are left out."""
        with self._lock:
            wanted = sorted((int(partition), position) for partition, position in through.items() if position)
            missing = [place for place in wanted if place not in self._known]
            if missing:
                trees = self._trees or self._read()
                if len(self._known) + len(missing) > ROOTS_KNOWN:
                    self._known = {place: root for place, root in self._known.items() if place in wanted}
                self._known |= {place: self._root(trees, *place) for place in missing}
                self._trees = trees
                self._write()
            return {str(partition): self._known[partition, position] for partition, position in wanted}

    def _root(self, trees: dict[int, Frontier], partition: int, position: int) -> str:
        tree = trees.get(partition, Frontier())
        if tree.size > position:
            tree = Frontier()
        for entry in self._journal.entries(partition, tree.size, position):
            tree.append(entry.leaf)
        if tree.size >= trees.get(partition, tree).size:
            trees[partition] = tree
        return tree.root().hex()

    def _read(self) -> dict[int, Frontier]:
        try:
            kept = msgspec.json.decode(self._file.read_bytes(), type=dict[int, _Kept])
            return {
                partition: Frontier(k.size, [bytes.fromhex(root) for root in k.roots])
                for partition, k in kept.items()
                if k.size and self._leaf(partition, k.size) == k.leaf
            }
        except (OSError, ValueError):  # it was never there, or is nothing that we wrote
            return {}

    def _write(self) -> None:
        kept = {
            partition: _Kept(tree.size, self._leaf(partition, tree.size), tuple(root.hex() for root in tree.roots))
            for partition, tree in self._trees.items()
        }
        beside = self._file.with_name(f"{self._file.name}.{threading.get_native_id()}")
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            beside.write_bytes(msgspec.json.encode(kept))
            beside.replace(self._file)
        except OSError as error:
            log.warning("the roots of the log are not kept: %s", error)

    def _leaf(self, partition: int, position: int) -> str:
        if partition >= len(self._journal.partitions):
            return ""
        entry = next(self._journal.entries(partition, position - 1, position), None)
        return entry.leaf.hex() if entry else ""
