"""Which stream a command belongs to, which decisions it obeys, and in which partition it lies."""

import zlib
from collections.abc import Callable
from datetime import datetime
from typing import Any

import msgspec
from msgspec import Struct

from carbon_points.domain import account, fund, lot, merchant, methodology, offer, order, source, terminal
from carbon_points.domain.event import Command, Event

State = Any  # the state of one of the kinds below: a mutable Struct of its domain module
METHODOLOGIES, SOURCES, FUND = "methodologies", "sources", "fund"


class Kind(Struct, frozen=True):
    """A domain module as the journal sees it. `parted` are the fields of the state that are kept part by part."""

    name: str
    new: Callable[[str], State]
    state_type: type
    decide: Callable[..., list[Event]]
    evolve: Callable[[State, Event], None]
    parts: Callable[..., list[tuple[str, str]]]
    due: Callable[[State, datetime], list[Event]]
    parted: dict[str, Any]


def _whole(*_: object) -> list[tuple[str, str]]:
    return []


def _never(_state: State, _now: datetime) -> list[Event]:
    return []


def _plain(name: str, state_type: type, module: Any, new: Callable[[str], State]) -> Kind:
    """A kind without parts or dues, whose decisions need facts."""
    return Kind(name, new, state_type, module.decide, module.evolve, _whole, _never, {})


def _factless(name: str, state_type: type, module: Any, new: Callable[[str], State]) -> Kind:
    """A kind that decides from its state and the command alone."""

    def decide(state: State, command: Command, *, now: datetime, facts: object) -> list[Event]:
        assert facts is None, "nobody looks up facts for it"
        return module.decide(state, command, now=now)

    return Kind(name, new, state_type, decide, module.evolve, _whole, _never, {})


KINDS = {
    "resident": Kind(
        "resident",
        account.Account,
        account.Account,
        account.decide,
        account.evolve,
        account.parts,
        account.due,
        {"usage": dict[str, methodology.Used], "redemptions": account.Redemption},
    ),
    "merchant": Kind(
        "merchant",
        merchant.Merchant,
        merchant.Merchant,
        merchant.decide,
        merchant.evolve,
        merchant.parts,
        _never,
        {
            "orders": order.Order,
            "tills": order.Till,
            "offers": offer.Offer,
            "uses": offer.Use,
            "identities": terminal.Identity,
        },
    ),
    "pool": _plain("pool", lot.Pool, lot, lot.Pool),
    FUND: _factless(FUND, fund.Fund, fund, lambda _: fund.Fund()),
    SOURCES: _factless(SOURCES, source.Sources, source, lambda _: source.Sources()),
    METHODOLOGIES: _factless(
        METHODOLOGIES, methodology.Methodologies, methodology, lambda _: methodology.Methodologies()
    ),
}

_MERCHANTS = {
    merchant.RegisterMerchant,
    merchant.ChangePrice,
    merchant.ChangeTerms,
    merchant.EnrolTerminal,
    merchant.CloseSettlement,
    order.PlaceOrder,
    order.ReverseOrder,
    order.FollowOrder,
    offer.PublishOffer,
    offer.ChangeOffer,
    offer.OpenCampaign,
    offer.ChangeCampaign,
    terminal.AddTerminalKey,
    terminal.SuspendTerminal,
    order.CloseBatch,
}
_MERCHANT = "merchant"
_FIXED: dict[type[Command], str] = {
    methodology.PublishMethodology: METHODOLOGIES,
    source.RegisterSource: SOURCES,
    source.ChangeSource: SOURCES,
    fund.ReceiveMoney: FUND,
    fund.PayMerchant: FUND,
}


def stream_of(command: Command) -> str:
    """The stream that a command writes to: a resident's is their id; others are named `kind/id`, or by kind alone."""
    if type(command) in _MERCHANTS:  # an order names a resident, too
        return f"merchant/{getattr(command, _MERCHANT)}"
    if resident := getattr(command, "resident", None):
        return resident
    if fixed := _FIXED.get(type(command)):
        return fixed
    if pool := getattr(command, "pool_id", None):
        return f"pool/{pool}"
    raise AssertionError(f"no stream for {type(command).__name__}")


def kind_of(stream: str) -> Kind:
    return KINDS["resident"] if stream.startswith("res_") else KINDS[stream.partition("/")[0]]


def new_state(stream: str) -> State:
    return kind_of(stream).new(stream.partition("/")[2] or stream)


def partition_of(stream: str, partitions: int) -> int:
    """CRC-32 of the stream's UTF-8 name, modulo the number of partitions: the same on every machine, for ever."""
    return zlib.crc32(stream.encode()) % partitions


# -- state to bytes and back -----------------------------------------------------------------------------------------

_encoder = msgspec.json.Encoder(decimal_format="string")
_decoders: dict[object, msgspec.json.Decoder[Any]] = {}


def encode_main(kind: Kind, state: State) -> bytes:
    """The state without its parted fields."""
    if not kind.parted:
        return _encoder.encode(state)
    kept = {field: getattr(state, field) for field in kind.parted}
    try:
        for field in kept:
            setattr(state, field, {})
        return _encoder.encode(state)
    finally:
        for field, parts in kept.items():
            setattr(state, field, parts)


def encode_part(state: State, field: str, key: str) -> bytes | None:
    part = getattr(state, field).get(key)
    return None if part is None else _encoder.encode(part)


def decode_state(of_type: object, state: bytes) -> State:
    if of_type not in _decoders:
        _decoders[of_type] = msgspec.json.Decoder(of_type)
    return _decoders[of_type].decode(state)
