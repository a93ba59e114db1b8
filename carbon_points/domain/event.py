"""What an event and a command are.

An event is a fact: past tense, frozen, with the inputs that it followed from; stored as JSON in field order under
`type_name`, a short name with a version, for ever. A default is left out of the bytes. A new shape is a new version.
A command is a wish: imperative, frozen, and refused or turned into events by a decision.
"""

from datetime import datetime
from typing import Annotated, ClassVar, dataclass_transform

from msgspec import Meta, Struct

from carbon_points.domain.refusal import Refusal

# `$` also matches before a last line end, which no name has: hence `(?!\n)`.
# What may be written in a command. Checked where a command is read from outside; events and states believe.
Id = Annotated[str, Meta(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9._:@-]*$(?!\n)")]
Word = Annotated[str, Meta(min_length=1, max_length=128, pattern=r"^[^\x00-\x1f\x7f]+$(?!\n)")]
Text = Annotated[str, Meta(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]+$(?!\n)")]
County = Annotated[str, Meta(pattern=r"^[0-9]{6}$(?!\n)", description="GB/T 2260 code", examples=["330523"])]
Month = Annotated[str, Meta(pattern=r"^2[01][0-9]{2}-(0[1-9]|1[0-2])$(?!\n)", examples=["2026-10"])]
Amount = Annotated[int, Meta(ge=0, le=10**15)]


@dataclass_transform(frozen_default=True, kw_only_default=True)
class Event(Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Base of every event. `recorded_at` is the journal's time (UTC), the same for the events of one command."""

    type_name: ClassVar[str]
    recorded_at: datetime


@dataclass_transform(frozen_default=True, kw_only_default=True)
class Command(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of every command. `claim` is what makes it once-only: the same again changes nothing."""

    claimed_everywhere: ClassVar[bool] = False  # whether its identity is one in all partitions, not in its own alone

    def claim(self) -> tuple[str, ...] | None:
        """The command's identity in its partition, or None where the state alone decides."""
        return None

    def uses_up(self) -> tuple[str, ...] | None:
        """Another identity that it takes for itself alone, in its partition: whoever comes second is `used_up`."""
        return None

    def used_up(self) -> Refusal:
        """Why it is refused, where another command took what it `uses_up`."""
        raise AssertionError("it uses nothing up")

    def differs(self, event: Event) -> list[str]:
        """The fields in which an earlier event of the same identity says something else."""
        return [f for f in self.__struct_fields__ if hasattr(event, f) and getattr(event, f) != getattr(self, f)]
