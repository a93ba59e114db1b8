"""Opening an account, and what its consents allow."""

from datetime import timedelta

import pytest

from carbon_points.domain import account
from carbon_points.domain.account import (
    AccountOpened,
    AccountUnknown,
    ActionCredited,
    ConsentGiven,
    ConsentMissing,
    ConsentSpanInvalid,
    ConsentUnknown,
    GiveConsent,
    OpenAccount,
    WithdrawConsent,
)
from carbon_points.domain.event import Command
from tests.given import (
    DAY,
    NOON,
    Life,
    capturing,
    consent,
    holding,
    pooling,
    refunding,
    reversal,
    ride,
    source,
    voiding,
)


def giving(name: str = "c1", **said: object) -> GiveConsent:
    return GiveConsent(resident="res_1", consent=consent(name, **said))


def withdrawing(name: str = "c1") -> WithdrawConsent:
    return WithdrawConsent(resident="res_1", consent_id=name)


# -- opening ---------------------------------------------------------------------------------------------------------


def test_an_account_is_opened_once_and_again_changes_nothing() -> None:
    life = Life(opened=False)
    [opened] = life.do(OpenAccount(resident="res_1", county="330502"))
    assert isinstance(opened, AccountOpened)
    assert life.account.opened
    assert life.do(OpenAccount(resident="res_1", county="330502")) == []
    assert life.account.county == "330502"


@pytest.mark.parametrize(
    "command",
    [
        giving(),
        withdrawing(),
        reversal(),
        holding(points=0),
        capturing(points=0),
        voiding(),
        refunding(points=0),
        pooling(),
        account.FreezeAccount(resident="res_1", frozen=False, reason="-"),
        account.LapseDue(resident="res_1"),
    ],
)
def test_nothing_is_decided_for_an_account_that_nobody_opened(command: Command) -> None:
    with pytest.raises(AccountUnknown):
        Life(opened=False).do(command)


def test_a_source_that_may_opens_the_account_with_the_consent_that_it_holds() -> None:
    life = Life(opened=False)
    opened, given, credited = life.do(ride(county="440304"))
    assert isinstance(opened, AccountOpened)
    assert isinstance(given, ConsentGiven)
    assert isinstance(credited, ActionCredited)
    assert (opened.opened_by, opened.county) == ("szt", "440304")
    assert (given.consent.source, given.consent.asserted_by, given.consent.purpose) == ("szt", "szt", "record")
    assert credited.consent_id == given.consent.id


def test_a_source_s_own_county_is_the_account_s_where_the_report_says_none() -> None:
    life = Life(opened=False, sources=[source(county="440300")])
    _, _, credited = life.do(ride())
    assert life.account.county == "440300"
    assert credited.county == "440300"


def test_a_source_that_may_not_open_accounts_is_refused() -> None:
    with pytest.raises(AccountUnknown):
        Life(opened=False, sources=[source(opens_accounts=False)]).do(ride())


def test_the_consent_of_one_source_covers_no_other_source() -> None:
    life = Life(opened=False, sources=[source(), source("hello-bike")])
    life.do(ride())
    with pytest.raises(ConsentMissing):
        life.do(ride("2", source="hello-bike"))


def test_an_account_that_a_source_opened_may_be_opened_by_its_resident_without_effect() -> None:
    life = Life(opened=False)
    life.do(ride())
    assert life.do(OpenAccount(resident="res_1")) == []


# -- giving and withdrawing ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("span", [timedelta(0), timedelta(seconds=-1)])
def test_a_consent_that_does_not_end_after_it_begins_is_refused(span: timedelta) -> None:
    with pytest.raises(ConsentSpanInvalid):
        Life().do(giving("c2", from_=NOON, until=NOON + span))
    assert Life().do(giving("c2", from_=NOON, until=NOON + timedelta(seconds=1)))


def test_a_consent_that_was_never_given_or_is_withdrawn_cannot_be_withdrawn() -> None:
    life = Life()
    with pytest.raises(ConsentUnknown):
        life.do(withdrawing("c9"))
    life.do(withdrawing())
    with pytest.raises(ConsentUnknown):
        life.do(withdrawing())


def test_without_consent_an_action_is_refused_and_with_a_new_one_it_counts() -> None:
    life = Life()
    life.do(withdrawing())
    with pytest.raises(ConsentMissing) as refused:
        life.do(ride())
    assert refused.value.facts == {"purpose": "record", "source": "szt", "behaviour": "bus"}
    life.do(giving("c2"))
    [credited] = life.do(ride())
    assert credited.consent_id == "c2"


@pytest.mark.parametrize(
    ("said", "covered"),
    [
        ({"from_": NOON}, True),
        ({"from_": NOON + timedelta(seconds=1)}, False),
        ({"until": NOON}, True),
        ({"until": NOON - timedelta(seconds=1)}, False),
        ({"source": "szt"}, True),
        ({"source": "other"}, False),
        ({"behaviours": ("walk", "bus")}, True),
        ({"behaviours": ("walk",)}, False),
        ({"purpose": "trade"}, False),
    ],
)
def test_the_consent_must_cover_the_moment_the_source_and_the_behaviour(said: dict[str, object], covered: bool) -> None:
    life = Life()
    life.do(withdrawing())
    life.do(giving("c2", **said))
    if covered:
        assert life.do(ride())
    else:
        with pytest.raises(ConsentMissing):
            life.do(ride())


def test_a_late_report_counts_by_the_consent_of_the_day_it_happened() -> None:
    life = Life()
    life.do(withdrawing())
    life.do(giving("c2", from_=NOON - 10 * DAY, until=NOON - 5 * DAY))
    assert life.do(ride(occurred_at=NOON - 7 * DAY))
    with pytest.raises(ConsentMissing):
        life.do(ride("2", occurred_at=NOON - 3 * DAY))


def test_withdrawing_leaves_what_was_recorded() -> None:
    life = Life()
    life.do(ride())
    life.do(withdrawing())
    assert life.available == 10
