"""What the verifier finds: the first entry that is wrong, and why."""

from msgspec import Struct

from carbon_points.journal.entry import Entry

_REASON_MOST, _NAME_MOST = 500, 200


class Finding(Struct, frozen=True, kw_only=True):
    """Where, and why. `position` is 0 for a row beside the entries that names no entry of the log."""

    partition: int
    position: int
    stream: str = ""
    version: int = 0
    type: str = ""
    reason: str


class Wrong(Exception):
    """A check does not hold. The message is the reason; whoever knows the entry names it."""


class Found(Exception):
    """The finding that ends a verification."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(finding.reason)
        self.finding = finding


def must(holds: bool, reason: str) -> None:
    if not holds:
        raise Wrong(reason)


def same(name: str, said: object, found: object) -> None:
    """What the entry says is what the verifier found by itself."""
    if said != found:
        raise Wrong(f"{name}: the log says {said}, recomputed {found}")


def reason_of(error: Exception) -> str:
    """The sentence of a failed check; of any other error its kind too: the bytes led where no right log leads."""
    told = str(error) if isinstance(error, Wrong) else f"cannot be replayed: {type(error).__name__}: {error}"
    return told[:_REASON_MOST].encode(errors="replace").decode()


def found(entry: Entry, error: Exception) -> Found:
    """The finding that names an entry. What stands in its columns may be anything."""
    return Found(
        Finding(
            partition=entry.partition,
            position=number(entry.position),
            stream=text(entry.stream),
            version=number(entry.version),
            type=text(entry.type),
            reason=reason_of(error),
        )
    )


def number(value: object) -> int:
    return value if isinstance(value, int) else 0


def text(value: object) -> str:
    return str(value)[:_NAME_MOST].encode(errors="replace").decode()
