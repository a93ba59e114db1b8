"""What there is in every sandbox: a shop, residents with points, and payment codes that always mean the same.

The codes lead the ordinary way wherever it can lead there: their residents are in the log, with points that an
ordinary source reported, and so is what they spend. What is made up are the codes themselves, and residents who pick
up their phones.
"""

import logging
import secrets
import threading
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from decimal import Decimal

from msgspec import Struct

from carbon_points import codes
from carbon_points.api.orders import done
from carbon_points.codes import CodeExpired
from carbon_points.directory import Directory, Role
from carbon_points.directory.payers import Payer
from carbon_points.domain.account import (
    Account,
    ActionFacts,
    ConfirmHold,
    FreezeAccount,
    HoldPoints,
    OpenAccount,
    RecordAction,
)
from carbon_points.domain.event import Command
from carbon_points.domain.fund import ReceiveMoney
from carbon_points.domain.merchant import ChangeTerms, EnrolTerminal, RegisterMerchant
from carbon_points.domain.methodology import PublishMethodology
from carbon_points.domain.offer import PublishOffer
from carbon_points.domain.order import CONFIRM_SECONDS, OrderPlaced, PlaceOrder
from carbon_points.domain.source import RegisterSource
from carbon_points.domain.terminal import SuspendTerminal, TerminalIsSuspended
from carbon_points.journal.journal import Journal
from carbon_points.journal.partition import Write
from carbon_points.sandbox.clock import MovedClock

SOURCE, MERCHANT, BEHAVIOUR = "test-bus", "test-shop", "test_ride"
TERMINALS = ("t1", "t2")
SUSPENDED, EARLIER = "t8", "t9"  # a terminal that may do nothing, and the one where the used code was used
FEN_PER_POINT = 2
CONFIRM_ABOVE = 500  # points, from which on the shop has residents asked
POINTS = 1_000_000  # that a resident who can pay has at least, before each payment
RIDE_KM = 100_000  # ten times as many points: few rides are enough
ANSWER_SECONDS = 3  # until a resident has picked up the phone
EVERY_SECONDS = 0.5
_USED = "test:used"
_EARLIER_SALE = "rdm_" + "testcodeused".ljust(20, "a")
_TABLE = f"""\
id = "{BEHAVIOUR}"
version = "1"
title = {{ en = "A ride of the sandbox, made up", zh = "沙箱测试出行（虚构）" }}
adopted = {{ from = 2020-01-01 }}
formula = "quantity_times_factor"
quantity = {{ unit = "km", least = "0.01", most = "1000000" }}
factors.reduction = {{ value = "1", unit = "gCO2e/km", source = "made up, for tests" }}
rounding = {{ to = "1 mg", how = "half-even" }}
points.rule = {{ per = "1 km", points = 100 }}
points.expire = {{ months = 24, at = "month-end" }}
"""

_log = logging.getLogger(__name__)


class Fixed(Struct, frozen=True):
    """A payment code that always means the same. `pays`: its resident has points; `agrees`: what they say if asked."""

    code: str
    name: str
    means: str
    pays: bool = True
    agrees: bool | None = None


def _fixed(number: int, name: str, means: str, *, pays: bool = True, agrees: bool | None = None) -> Fixed:
    digits = f"{codes.PREFIX}{number:0{codes.HANDLE_DIGITS}}{0:0{codes.PASSWORD_DIGITS}}"
    return Fixed(digits + codes.check_digit(digits), name, means, pays, agrees)


FIXED = (
    _fixed(1, "ok", "held or captured, as often as you like", agrees=True),
    _fixed(2, "insufficient", "409 insufficient-points: the resident has none", pays=False),
    _fixed(3, "expired", "409 code-expired", pays=False),
    _fixed(4, "used", "409 code-used"),
    _fixed(5, "frozen", "409 account-frozen", pays=False),
    _fixed(6, "silent", "done and never answered; the same call again is answered, as a replay", agrees=True),
    _fixed(7, "suspended", "403 terminal-suspended, whichever terminal it is", pays=False),
    _fixed(8, "agrees", f"above {CONFIRM_ABOVE} points 202 confirming, agreed to after 3 s", agrees=True),
    _fixed(9, "refuses", f"above {CONFIRM_ABOVE} points 202 confirming, refused after 3 s", agrees=False),
    _fixed(10, "ignores", f"above {CONFIRM_ABOVE} points 202 confirming, declined after {CONFIRM_SECONDS} s"),
)
BY_CODE: Mapping[str, Fixed] = {fixed.code: fixed for fixed in FIXED}


class Sandbox:
    """The made-up part of an installation that is a sandbox. One per installation; `payer` is for threads."""

    def __init__(self, journal: Journal, directory: Directory, clock: MovedClock) -> None:
        self._journal, self._directory, self.clock = journal, directory, clock
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    # -- codes -------------------------------------------------------------------------------------------------------

    def payer(self, code: str, redemption_id: str, till: str) -> Payer | None:
        """Whose a code is that always means the same, for a call; None for any other code.

        Its step is of the call, as if it were shown anew each time. Refusals: CodeExpired, TerminalIsSuspended.
        """
        fixed = BY_CODE.get(code)
        if fixed is None:
            return None
        if fixed.name == "expired":
            raise CodeExpired
        if fixed.name == "suspended":
            raise TerminalIsSuspended(terminal=till)
        resident = self.resident(fixed.name)
        if fixed.pays:
            self._top_up(fixed.name, resident)
        return Payer(resident, _USED if fixed.name == "used" else f"test:{fixed.name}:{redemption_id}")

    def unanswered(self, code: object) -> bool:
        """Whether the call that first comes with this code is left without an answer."""
        fixed = BY_CODE.get(code) if isinstance(code, str) else None
        return fixed is not None and fixed.name == "silent"

    def resident(self, name: str) -> str:
        """The resident of a code."""
        return self._directory.resident(SOURCE, f"card-{name}")

    def _top_up(self, name: str, resident: str) -> None:
        """Have the source report another ride, where points are short: spent, or run out with the time."""
        known: Account = self._journal.state(resident)
        now = self.clock()
        if known.opened and known.available(now) >= POINTS:
            return
        rules = self._journal.rules()
        facts = ActionFacts(rules.methodologies, rules.sources.reporting(SOURCE, BEHAVIOUR))
        ride = RecordAction(
            resident=resident,
            source=SOURCE,
            record_id=f"{name}-{secrets.token_hex(8)}",
            behaviour=BEHAVIOUR,
            quantity=Decimal(RIDE_KM),
            unit="km",
            occurred_at=now,
        )
        done(self._journal.commit([Write(ride, facts)])[0])

    # -- residents who are asked -------------------------------------------------------------------------------------

    def start(self) -> None:
        """Make what is missing, and have residents answer."""
        self.found()
        self._stopping.clear()
        self._thread = threading.Thread(target=self._run, name="sandbox", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        while not self._stopping.wait(EVERY_SECONDS):
            try:
                self.answer()
            except Exception:  # noqa: BLE001  # whatever it is, they are asked again
                _log.exception("residents of the sandbox do not answer; trying again")

    def answer(self) -> int:
        """Have residents say what they always say, where they were asked long enough ago; how many did."""
        said: list[Command] = []
        for fixed in FIXED:
            if fixed.agrees is not None:
                said += self._answers(self.resident(fixed.name), accept=fixed.agrees)
        if said:
            self._journal.commit([Write(command) for command in said])  # who was answered for meanwhile refuses it
        return len(said)

    def _answers(self, resident: str, *, accept: bool) -> list[ConfirmHold]:
        known: Account = self._journal.state(resident)
        asked_for = timedelta(seconds=CONFIRM_SECONDS - ANSWER_SECONDS)
        now = self.clock()
        return [
            ConfirmHold(resident=resident, redemption_id=redemption_id, accept=accept)
            for redemption_id, held in known.holds.items()
            if held.unconfirmed and held.expires_at - asked_for <= now < held.expires_at
        ]

    # -- what is there -----------------------------------------------------------------------------------------------

    def found(self) -> None:
        """Make the shop, its offers, the source and the residents. The last of it says that all is there."""
        if self._journal.find(("code", _USED)) is not None:
            return
        self._commit(_PLACES)
        self._journal.rules_changed()
        if self._journal.state(f"merchant/{MERCHANT}").confirm_above is None:
            self._commit([ChangeTerms(merchant=MERCHANT, confirm_above=CONFIRM_ABOVE)])
        self._commit([SuspendTerminal(merchant=MERCHANT, terminal=SUSPENDED, suspended=True, reason="sandbox")])
        standing = self._journal.state(f"merchant/{MERCHANT}", [("identities", SUSPENDED)]).identity(SUSPENDED)
        self._directory.terminals.copy(f"{MERCHANT}/{SUSPENDED}", standing, self.clock())
        for fixed in FIXED:
            resident = self.resident(fixed.name)
            if fixed.pays or fixed.name == "frozen":
                self._top_up(fixed.name, resident)
            else:
                self._commit([OpenAccount(resident=resident)])
        frozen = self.resident("frozen")
        if not self._journal.state(frozen).frozen:
            self._commit([FreezeAccount(resident=frozen, frozen=True, reason="sandbox")])
        self._use_up()

    def _use_up(self) -> None:
        """The used code was used, at a terminal of its own: so it counts in nobody's batch."""
        order = PlaceOrder(
            merchant=MERCHANT,
            terminal=EARLIER,
            redemption_id=_EARLIER_SALE,
            resident=self.resident("used"),
            hold_seconds=300,
            points=1,
            capture=True,
            code=_USED,
        )
        placed = done(self._journal.commit([Write(order)])[0]).events[-1]
        assert isinstance(placed, OrderPlaced)
        hold = HoldPoints(
            resident=placed.resident,
            redemption_id=placed.redemption_id,
            merchant=placed.merchant,
            terminal=placed.terminal,
            points=placed.points,
            amount_fen=placed.amount_fen,
            hold_seconds=placed.hold_seconds,
            code_step=placed.code,
            capture=placed.capture,
        )
        self._commit([hold])

    def _commit(self, commands: Sequence[Command]) -> None:
        for outcome in self._journal.commit([Write(command) for command in commands]):
            done(outcome)

    def keys(self) -> "Ready":
        """A key of each role, made now: like all keys they are told once. And keys that are taken no more."""
        owners: tuple[tuple[Role, str], ...] = (
            ("operator", "sandbox"),
            ("app", "test-app"),
            ("source", SOURCE),
            ("buyer", "test-buyer"),
            ("auditor", "sandbox"),
        )
        made = {role: self._directory.issue_key(role, owner)[1] for role, owner in owners}
        tills = {name: self._directory.issue_key("terminal", f"{MERCHANT}/{name}")[1] for name in TERMINALS}
        suspended = self._directory.issue_key("terminal", f"{MERCHANT}/{SUSPENDED}")[1]
        revoked, secret = self._directory.issue_key("terminal", f"{MERCHANT}/{TERMINALS[0]}")
        self._directory.revoke_key(revoked.key_id)
        return Ready(
            made | {f"terminal {MERCHANT}/{name}": till for name, till in tills.items()},
            {f"terminal {MERCHANT}/{SUSPENDED}, suspended": suspended, "revoked": secret},
            MERCHANT,
            self.resident("ok"),
            f"card-{FIXED[0].name}",
            {offer.offer: offer.points for offer in _OFFERS},
            {fixed.code: fixed.means for fixed in FIXED},
            self.clock(),
        )


class Ready(Struct, frozen=True):
    """All that a first call needs. `resident` is the one of the code that is `ok`, `subject` the source's word for
    them; `offers` with their points."""

    keys: dict[str, str]
    refused_keys: dict[str, str]
    merchant: str
    resident: str
    subject: str
    offers: dict[str, int]
    codes: dict[str, str]
    time: datetime


_OFFERS = (
    PublishOffer(merchant=MERCHANT, offer="tea", title="一碗茶", points=50, amount_fen=100),
    PublishOffer(merchant=MERCHANT, offer="sold-out", title="售罄的茶点", points=20, amount_fen=40, stock=0),
)
_PLACES: tuple[Command, ...] = (
    PublishMethodology(methodology=BEHAVIOUR, version="1", table=_TABLE),
    RegisterSource(source=SOURCE, name="沙箱公交", behaviours=(BEHAVIOUR, "bus"), opens_accounts=True),
    RegisterMerchant(merchant=MERCHANT, name="沙箱小店", fen_per_point=FEN_PER_POINT, county="330503"),
    *(EnrolTerminal(merchant=MERCHANT, terminal=name) for name in (*TERMINALS, SUSPENDED, EARLIER)),
    *_OFFERS,
    ReceiveMoney(receipt_id="test-sponsor", origin="sponsor", payer="沙箱赞助", amount_fen=1_000_000),
)
