"""The log as a folder that anyone can keep and check, without a database and without us.

`entries-000.ndjson.gz` holds one entry a line, its state as the stored text; `manifest.json` names the files with
their hashes, sizes and Merkle roots. The same log makes the same bytes.
"""

import gzip
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec
from msgspec import Struct

from carbon_points.audit.finding import Found
from carbon_points.audit.log import Journal, Log, gapless, log_of
from carbon_points.audit.merkle import Frontier
from carbon_points.audit.survey import Survey
from carbon_points.journal.entry import Entry

FORMAT = 1
MANIFEST = "manifest.json"
_LEVEL = 6


class Line(Struct, frozen=True, forbid_unknown_fields=True):
    """One entry. `leaf` is in hex; the bytes that it commits to are those of `state`, unescaped, in UTF-8."""

    position: int
    stream: str
    version: int
    type: str
    state: str
    leaf: str


class File(Struct, frozen=True, forbid_unknown_fields=True):
    """One partition's entries. `sha256` is of the compressed file, `root` the Merkle root of its leaves; in hex."""

    name: str
    partition: int
    entries: int
    sha256: str
    root: str


class Manifest(Struct, frozen=True, forbid_unknown_fields=True):
    format: int
    partitions: int
    heads: dict[int, int]
    files: tuple[File, ...]


class ExportBroken(ValueError):
    """The folder holds no export that this program can read, or the log none that it could write."""


def export(readable: Log | Journal, folder: Path) -> Manifest:
    """Write a consistent cut of the log. Raises ExportBroken, naming the entry, where the log is not well-formed."""
    log = log_of(readable)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        heads = Survey(log).heads
        files = tuple(_write(log, partition, heads[partition], folder) for partition in range(log.partitions))
    except Found as error:
        f = error.finding
        raise ExportBroken(f"partition {f.partition}, position {f.position}: {f.reason}") from error
    manifest = Manifest(FORMAT, log.partitions, dict(heads), files)
    (folder / MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode(manifest)) + b"\n")
    return manifest


def _write(log: Log, partition: int, head: int, folder: Path) -> File:
    name, tree = f"entries-{partition:03d}.ndjson.gz", Frontier()
    encode = msgspec.json.Encoder().encode
    with (
        (folder / name).open("wb") as file,
        # Neither a name nor a time goes into the file: the same entries are the same bytes.
        gzip.GzipFile(filename="", mode="wb", compresslevel=_LEVEL, fileobj=file, mtime=0) as lines,
    ):
        for e in gapless(log, partition, 0, head):
            try:
                line = Line(e.position, e.stream, e.version, e.type, e.state.decode(), e.leaf.hex())
            except (AttributeError, UnicodeDecodeError) as error:
                raise ExportBroken(f"partition {partition}, position {e.position}: {error}") from error
            lines.write(encode(line) + b"\n")
            tree.append(e.leaf)
    return File(name, partition, tree.size, _sha256(folder / name), tree.root().hex())


def read_export(folder: Path) -> "ExportedLog":
    """The log in a folder, to be verified. Raises ExportBroken where there is no manifest that says what is there."""
    try:
        manifest = msgspec.json.decode((folder / MANIFEST).read_bytes(), type=Manifest)
    except (OSError, msgspec.DecodeError) as error:
        raise ExportBroken(f"{folder / MANIFEST}: {error}") from error
    named = [(file.partition, manifest.heads.get(file.partition)) for file in manifest.files]
    if manifest.format != FORMAT:
        raise ExportBroken(f"the export has format {manifest.format}; this program reads format {FORMAT}")
    if named != [(p, manifest.heads.get(p, -1)) for p in range(manifest.partitions)] or not named:
        raise ExportBroken("the manifest does not name one file and one head for each partition")
    return ExportedLog(folder, manifest)


class ExportedLog:
    """The log in a folder. It has no claims and no states: the verifier finds the claims again by itself."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self._folder, self._manifest = folder, manifest

    @property
    def partitions(self) -> int:
        return self._manifest.partitions

    def heads(self) -> Mapping[int, int]:
        return self._manifest.heads

    def entries(self, partition: int, after: int, until: int) -> Iterator[Entry]:
        decode = msgspec.json.Decoder(Line).decode
        with gzip.open(self._path(partition), "rb") as lines:
            for text in lines:
                line = decode(text)
                if line.position > until:
                    return
                if line.position > after:
                    yield Entry(
                        partition,
                        line.position,
                        line.stream,
                        line.version,
                        line.type,
                        line.state.encode(),
                        bytes.fromhex(line.leaf),
                    )

    def claims(self, partition: int) -> None:
        """An export holds no claims."""

    def states(self, partition: int) -> None:
        """An export holds no states."""

    def disagrees(self, partition: int, size: int, root: bytes) -> str | None:
        file = self._manifest.files[partition]
        if (file.entries, file.root) != (size, root.hex()):
            return f"the manifest says {file.entries} entries, root {file.root}; there are {size}, root {root.hex()}"
        if _sha256(self._path(partition)) != file.sha256:
            return f"{file.name} is not the file that the manifest names"
        return None

    def _path(self, partition: int) -> Path:
        # The name follows from the number: a manifest cannot lead the reader out of its folder.
        return self._folder / f"entries-{partition:03d}.ndjson.gz"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
