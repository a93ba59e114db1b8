"""Why a command was not carried out.

A refusal is an answer, not a failure: it has a stable `code`, a sentence, and the numbers that decided it.
Each module of the domain declares its own beside the decision that raises it.
"""

from typing import ClassVar


class Refusal(Exception):
    """A command is refused. `code` is stable for ever; `facts` are the numbers and names behind it."""

    code: ClassVar[str]
    title: ClassVar[str]

    def __init__(self, **facts: object) -> None:
        super().__init__(self.title, facts)
        self.facts = facts

    def __str__(self) -> str:
        shown = ", ".join(f"{name} {value}" for name, value in self.facts.items())
        return f"{self.title} ({shown})" if shown else self.title


class Conflict(Refusal):
    code = "identity-reused"
    title = "This id was used before with other content"


class Malformed(Refusal):
    code = "malformed"
    title = "The content does not have the right form"


class QuantityInvalid(Refusal):
    code = "quantity-invalid"
    title = 'A quantity is a plain decimal in quotes, such as "1.25"'


class QuantityNegative(Refusal):
    code = "quantity-negative"
    title = "A quantity is not below zero"


class QuantityTooLong(Refusal):
    code = "quantity-too-long"
    title = "A quantity has at most 9 digits before the point and 6 after it"


class TimeInvalid(Refusal):
    code = "time-invalid"
    title = "A time is RFC 3339, in the years 2000 to 2199"


class TimeWithoutOffset(Refusal):
    code = "time-without-offset"
    title = "A time says its offset from UTC"


def codes() -> dict[str, type[Refusal]]:
    """Every refusal that is declared, by its code."""
    found: dict[str, type[Refusal]] = {}
    waiting = [Refusal]
    while waiting:
        for kind in waiting.pop().__subclasses__():
            found[kind.code] = kind
            waiting.append(kind)
    return found
