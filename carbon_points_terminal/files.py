"""Files that nobody else may read, and that a power cut leaves whole."""

import os
from contextlib import suppress
from pathlib import Path

OTHERS = 0o077  # of a file's mode: what its owner alone must have


class KeyUnusable(Exception):
    """A key's file is not there, not a key, or open to others. `code` is stable."""

    code = "key-unusable"


def write_secret(path: Path, content: bytes) -> None:
    """Write a file of mode 0600 that appears whole, and is on the disk when this returns."""
    making = path.with_name(path.name + ".new")
    making.unlink(missing_ok=True)
    number = os.open(making, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(number, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    making.replace(path)
    to_disk(path.parent)


def read_secret(path: Path) -> bytes:
    """The content of such a file. Raises KeyUnusable where it is missing, or others may read it."""
    try:
        if os.name == "posix" and path.stat().st_mode & OTHERS:
            raise KeyUnusable(f"others may read {path}: chmod 600, and activate the terminal anew if somebody has")
        return path.read_bytes()
    except OSError as error:
        raise KeyUnusable(f"{path} cannot be read: {error}") from error


def to_disk(path: Path) -> None:
    """What a rename or a new file needs to outlive a power cut. Where a folder cannot be opened, the system does it."""
    with suppress(PermissionError):
        number = os.open(path, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)
