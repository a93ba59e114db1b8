"""The fund: what came in, what went out, and what is still to come."""

from carbon_points.domain.fund import MerchantPaid, MoneyReceived
from carbon_points.journal.journal import Journal
from carbon_points.projections.fund import fund, payments, receipts, sales_without_receipt
from carbon_points.projections.merchants import unpaid
from carbon_points.projections.read_model import ReadModel
from carbon_points.projections.rows import Snapshot
from tests.projections.events import of


def test_the_balance_is_what_came_in_less_what_went_out(at: Snapshot, journal: Journal) -> None:
    found = fund(at)
    assert found.in_fen == sum(e.amount_fen for e in of(journal, MoneyReceived)) == found.in_fen
    assert (found.from_sales_fen, found.from_sponsors_fen) == (1200, 70)
    assert found.out_fen == sum(e.amount_fen for e in of(journal, MerchantPaid))
    assert found.balance_fen == found.in_fen - found.out_fen == journal.state("fund").balance_fen


def test_what_is_to_come_is_sold_and_not_received(at: Snapshot) -> None:
    assert fund(at).due_fen == 600 == sum(row.price_fen - row.received_fen for row in sales_without_receipt(at))


def test_what_is_owed_is_settled_and_not_paid(journal: Journal) -> None:
    model, owed = ReadModel("sqlite://"), set[int]()
    for partition in journal.heads():
        for entry in journal.entries(partition):
            model.apply(partition, [entry])
            with model.snapshot() as at:
                if (waiting := unpaid(at)) and fund(at).out_fen == 0:
                    owed.add(fund(at).owed_fen)
                    assert fund(at).owed_fen == sum(row.amount_fen for row in waiting)
                    assert fund(at).queued == len(waiting)
                    assert fund(at).short_fen == max(fund(at).owed_fen - fund(at).balance_fen, 0)
    assert owed
    with model.snapshot() as at:
        assert fund(at).owed_fen == 0
        assert unpaid(at) == []
    model.close()


def test_receipts_and_payments_are_listed_in_order(at: Snapshot, journal: Journal) -> None:
    assert [row.receipt_id for row in receipts(at)] == [e.receipt_id for e in of(journal, MoneyReceived)]
    assert [row.settlement_id for row in payments(at)] == [e.settlement_id for e in of(journal, MerchantPaid)]
    first = payments(at, limit=1)
    assert [*first, *payments(at, after=first[-1].position)] == payments(at)
    assert [row.receipt_id for row in receipts(at, after=receipts(at, limit=1)[0].position)] == ["sale1"]


def test_an_empty_fund_is_nothing_of_everything(model: ReadModel) -> None:
    found = model.read(fund)
    assert {getattr(found, name) for name in found.__struct_fields__} == {0}
