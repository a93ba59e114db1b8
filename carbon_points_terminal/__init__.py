"""The reference terminal of carbon_points: a till on a bad network that never loses a point and never spends one twice.

It depends on nothing of the server. README.md says how to build it in.
"""

from carbon_points_terminal.call import (
    Call,
    Capture,
    Close,
    Offline,
    Outcome,
    Redemption,
    Refund,
    Sale,
    Totals,
    Void,
)
from carbon_points_terminal.course import Timing
from carbon_points_terminal.journal import Journal, JournalError
from carbon_points_terminal.over_http import OverHttp
from carbon_points_terminal.signing import Signer
from carbon_points_terminal.terminal import NotNow, Send, Terminal, differences
from carbon_points_terminal.wire import Answer, NoAnswer, Request, Response, Transport

__all__ = [
    "Answer",
    "Call",
    "Capture",
    "Close",
    "Journal",
    "JournalError",
    "NoAnswer",
    "NotNow",
    "Offline",
    "Outcome",
    "OverHttp",
    "Redemption",
    "Refund",
    "Request",
    "Response",
    "Sale",
    "Send",
    "Signer",
    "Terminal",
    "Timing",
    "Totals",
    "Transport",
    "Void",
    "differences",
]
