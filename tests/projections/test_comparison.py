"""What the command line hands the verifier of these rows is what its own replay of the log finds."""

from carbon_points.__main__ import Compared
from carbon_points.audit.verify import verify
from carbon_points.journal.journal import Journal
from carbon_points.projections.rows import Snapshot


def test_a_verifier_finds_the_rows_equal(at: Snapshot, journal: Journal) -> None:
    assert verify(journal, read_model=Compared(at)).read_model == "equal"


def test_and_tells_where_they_differ(at: Snapshot, journal: Journal) -> None:
    class Wrong(Compared):
        def trial_balance(self) -> dict[tuple[str, str], int]:
            return {**super().trial_balance(), ("fen", "fund"): 1}

    assert verify(journal, read_model=Wrong(at)).read_model.startswith("differs: fen fund stands at 1")
