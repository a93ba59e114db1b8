"""The terminal stands alone: a merchant takes its folder, and nothing of the server comes along."""

import ast
import sys
from pathlib import Path

import carbon_points_terminal

ROOT = Path(carbon_points_terminal.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
MAY = {"httpx", "cryptography", "msgspec", "carbon_points_terminal"}
SHOWS = {"rich", "rich_click"}  # the command line alone
# Decisions: time, chance and transport arrive as arguments.
PURE = {"wire.py", "call.py", "course.py", "offline.py", "terminal.py"}
IMPURE = {"httpx", "os", "random", "secrets", "socket", "sqlite3", "subprocess", "threading", "time", "asyncio", "uuid"}


def imported(file: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(str(node.module))
    return {name.partition(".")[0] for name in found}


def test_it_imports_nothing_of_the_server_and_three_libraries() -> None:
    for file in FILES:
        more = SHOWS if file.name == "__main__.py" else set()
        wrong = imported(file) - MAY - more - set(sys.stdlib_module_names)
        assert not wrong, f"{file.name} imports {wrong}: a till has no room for it"


def test_decisions_ask_nobody_for_time_chance_or_a_network() -> None:
    for file in FILES:
        if file.name in PURE:
            assert not imported(file) & IMPURE, f"{file.name}: pass it as an argument"
            asked = {
                node.attr for node in ast.walk(ast.parse(file.read_text("utf-8"))) if isinstance(node, ast.Attribute)
            }
            assert not asked & {"now", "utcnow", "today", "monotonic"}, f"{file.name}: the clock is an argument"


def test_the_server_does_not_know_the_terminal() -> None:
    for file in (ROOT.parent / "carbon_points").rglob("*.py"):
        assert "carbon_points_terminal" not in file.read_text("utf-8"), f"{file}: it speaks HTTP to whatever terminal"
