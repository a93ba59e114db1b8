"""An export is the log again: the same bytes each time, right without a database, and wrong when it is spoiled."""

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from carbon_points.audit.export import ExportBroken, export, read_export
from carbon_points.audit.merkle import includes, inclusion_proof
from carbon_points.audit.verify import Report, verify
from carbon_points.journal.entry import leaf_hash
from carbon_points.journal.journal import open_journal
from tests.audit.scenario import ANN, PARTITIONS
from tests.audit.stored import Stored


@pytest.fixture(scope="module")
def folder(whole: Stored, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scenario's export. To be read, never changed."""
    into = tmp_path_factory.mktemp("export") / "log"
    _export(whole, into)
    return into


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    """A copy to be spoiled."""
    return Path(shutil.copytree(folder, tmp_path / "log"))


def _export(stored: Stored, into: Path) -> None:
    journal = open_journal(stored.url)
    try:
        export(journal, into)
    finally:
        journal.close()


def _lines(folder: Path, partition: int) -> list[dict[str, Any]]:
    with gzip.open(folder / f"entries-{partition:03d}.ndjson.gz", "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def _write(folder: Path, partition: int, lines: list[dict[str, Any]]) -> None:
    with gzip.open(folder / f"entries-{partition:03d}.ndjson.gz", "wt", encoding="utf-8") as file:
        for line in lines:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def test_an_export_is_found_right_and_comes_to_the_same_as_the_journal(whole: Stored, folder: Path) -> None:
    of_export, of_journal = verify(read_export(folder)), whole.verify()
    assert of_export.first_wrong is None
    for field in Report.__struct_fields__:
        if field != "seconds":
            assert getattr(of_export, field) == getattr(of_journal, field), field


def test_the_same_log_makes_the_same_bytes(whole: Stored, folder: Path, tmp_path: Path) -> None:
    _export(whole, tmp_path / "again")
    names = sorted(path.name for path in folder.iterdir())
    assert names == [*(f"entries-{p:03d}.ndjson.gz" for p in range(PARTITIONS)), "manifest.json"]
    assert all((folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes() for name in names)


def test_a_line_holds_the_stored_bytes_and_the_manifest_their_root(whole: Stored, folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_bytes())
    assert (manifest["format"], manifest["partitions"]) == (1, PARTITIONS)
    for file in manifest["files"]:
        partition, lines = file["partition"], _lines(folder, file["partition"])
        leaves = [bytes.fromhex(line["leaf"]) for line in lines]
        for line in lines:
            state = line["state"].encode()
            assert leaf_hash(partition, line["stream"], line["version"], line["type"], state).hex() == line["leaf"]
        assert len(lines) == file["entries"] == manifest["heads"][str(partition)] == whole.head(partition)
        proof = inclusion_proof(leaves, 4)
        assert includes(bytes.fromhex(file["root"]), len(leaves), 4, leaves[4], proof)


def test_a_spoiled_log_is_not_exported(stored: Stored, tmp_path: Path) -> None:
    partition, position = stored.where("points-held/1", resident=ANN)
    stored.sql(partition, "UPDATE entries SET state = X'FF' WHERE notification_id = ?", position)
    with pytest.raises(ExportBroken, match=f"partition {partition}, position {position}"):
        _export(stored, tmp_path / "log")


# -- spoiled exports -------------------------------------------------------------------------------------------------


def _changed(folder: Path) -> int:
    lines = _lines(folder, 0)
    lines[40]["state"] = lines[40]["state"].replace("1", "2", 1)
    _write(folder, 0, lines)
    return 41


def _swapped(folder: Path) -> int:
    lines = _lines(folder, 0)
    lines[40]["position"], lines[41]["position"] = lines[41]["position"], lines[40]["position"]
    _write(folder, 0, lines)
    return 41


def _without_one(folder: Path) -> int:
    lines = _lines(folder, 0)
    _write(folder, 0, [*lines[:40], *lines[41:]])
    return 41


def _without_the_last(folder: Path) -> int:
    lines = _lines(folder, 0)
    _write(folder, 0, lines[:-1])
    return len(lines)


def _with_one_more(folder: Path) -> int:
    lines = _lines(folder, 0)
    _write(folder, 0, [*lines, lines[-1] | {"position": len(lines) + 1}])
    return len(lines) + 1


def _no_json(folder: Path) -> int:
    lines = _lines(folder, 0)
    with gzip.open(folder / "entries-000.ndjson.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines[:40])
        file.write("{\n")
    return 41


def _the_same_elsewhere(folder: Path) -> int:
    """Nothing is wrong with the entries, and yet it is not the file of the manifest."""
    _write(folder, 0, _lines(folder, 0))
    return 0


def _another_root(folder: Path) -> int:
    manifest = json.loads((folder / "manifest.json").read_bytes())
    manifest["files"][0]["root"] = "00" * 32
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return 0


def _missing(folder: Path) -> int:
    (folder / "entries-000.ndjson.gz").unlink()
    return 1


SPOILED = [
    _changed,
    _swapped,
    _without_one,
    _without_the_last,
    _with_one_more,
    _no_json,
    _the_same_elsewhere,
    _another_root,
    _missing,
]


@pytest.mark.parametrize("spoil", SPOILED, ids=[spoil.__name__.strip("_") for spoil in SPOILED])
def test_a_spoiled_export_is_found_and_the_entry_named(copy: Path, spoil: Callable[[Path], int]) -> None:
    position = spoil(copy)
    report = verify(read_export(copy))
    assert report.first_wrong is not None
    assert not report.ok
    assert (report.first_wrong.partition, report.first_wrong.position) == (0, position), report.first_wrong


@given(data=st.data())
def test_one_changed_byte_of_any_file_is_found(folder: Path, data: st.DataObject) -> None:
    spoiled = folder.parent / "spoiled"
    shutil.rmtree(spoiled, ignore_errors=True)
    shutil.copytree(folder, spoiled)
    file = spoiled / data.draw(st.sampled_from([f"entries-{p:03d}.ndjson.gz" for p in range(PARTITIONS)]), label="file")
    content = bytearray(file.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1), label="byte")] ^= data.draw(st.integers(1, 255), label="bits")
    file.write_bytes(content)
    assert not verify(read_export(spoiled)).ok


@pytest.mark.parametrize(
    "manifest",
    [
        None,
        b"",
        b"{}",
        b'{"format":2,"partitions":1,"heads":{"0":0},"files":[{"name":"x","partition":0,"entries":0,"sha256":"","root":""}]}',
        b'{"format":1,"partitions":2,"heads":{"0":0},"files":[{"name":"x","partition":0,"entries":0,"sha256":"","root":""}]}',
        b'{"format":1,"partitions":0,"heads":{},"files":[]}',
    ],
    ids=["missing", "empty", "nothing said", "another format", "a partition without a file", "no partition"],
)
def test_a_folder_without_a_manifest_that_says_what_is_there_is_refused(tmp_path: Path, manifest: bytes | None) -> None:
    if manifest is not None:
        (tmp_path / "manifest.json").write_bytes(manifest)
    with pytest.raises(ExportBroken):
        read_export(tmp_path)
