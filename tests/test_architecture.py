"""Arrows point inward: who may import whom. A test that fails here says what to do instead."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import carbon_points
from carbon_points.domain import account, fund, lot, merchant, methodology, offer, order, source, terminal
from carbon_points.domain.event import Command

ROOT = Path(carbon_points.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
STANDARD = frozenset(sys.stdlib_module_names)
OURS = "carbon_points"

# What a package may import besides the standard library, and what to do where it wants more.
MAY = {
    "domain": (
        {"msgspec", f"{OURS}.domain"},
        "the domain decides from its arguments alone: pass what it needs as a fact, and keep the tool outside",
    ),
    "methodologies": (
        {"msgspec", f"{OURS}.domain.methodology", f"{OURS}.domain.quantity", f"{OURS}.domain.refusal"},
        "methodologies are data with one loader: move the code to domain/methodology.py or to who calls it",
    ),
    "journal": (
        {"msgspec", "eventsourcing", "psycopg", f"{OURS}.domain", f"{OURS}.journal"},
        "the journal knows events and storage only: who needs more reads its entries from outside",
    ),
    "projections": (
        {
            "msgspec",
            "sqlalchemy",
            "redis",
            f"{OURS}.domain",
            f"{OURS}.projections",
            *(f"{OURS}.journal.{name}" for name in ("codec", "entry", "journal")),
        },
        "a projection turns entries into rows: what it needs beyond them belongs in an event, or to the API",
    ),
    "audit": (
        {
            "msgspec",
            "cryptography",
            "duckdb",
            "pyarrow",
            f"{OURS}.domain",
            f"{OURS}.audit",
            *(f"{OURS}.journal.{name}" for name in ("codec", "entry", "streams")),
        },
        "the auditor must not trust what it checks: derive it again from the entries",
    ),
    "webhooks": (
        {
            "msgspec",
            "sqlalchemy",
            "cryptography",
            "httpcore",
            "standardwebhooks",
            f"{OURS}.domain",
            f"{OURS}.webhooks",
            *(f"{OURS}.journal.{name}" for name in ("codec", "entry", "journal")),
            *(f"{OURS}.projections.{name}" for name in ("read_model", "rows")),
        },
        "webhooks tell what is in the log to who asked for it: what they need beyond an entry belongs in the event",
    ),
}
MAY_ALL = {"api", "__init__.py", "__main__.py"}
MAY_ALL |= {"codes.py", "demo.py", "directory", "grants.py", "ingest.py", "judges.py", "settings.py"}
MAY_ALL |= {"listen.py", "sandbox"}
ONLY_IN = {
    "eventsourcing": ("journal/", "the library stays behind journal/recorder.py: import the journal's own names"),
    "litestar": ("api/", "HTTP lives in api/ only"),
    "sqlalchemy": (
        "projections/",
        "SQL lives in projections/, directory/ and webhooks/: add a function there",
    ),
    "redis": ("projections/", "Redis holds only what may vanish, behind one file of projections/"),
}
# Where a file outside its package may import the tool all the same: names of errors and no more.
ALSO = {
    # who is told, and what is to be told, are no read models: they cannot be made again from the log
    "sqlalchemy": {
        "directory/__init__.py",
        "directory/allowances.py",
        "directory/payers.py",
        "directory/terminals.py",
        "sandbox/clock.py",
        "webhooks/endpoints.py",
        "webhooks/deliveries.py",
    },
    "sqlalchemy.exc": {
        "__main__.py",
        "api/problems.py",
        "directory/__init__.py",
        "directory/payers.py",
        "sandbox/clock.py",
        "webhooks/deliverer.py",
        "webhooks/endpoints.py",
    },
}


def place(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


def package(file: Path) -> str:
    return file.relative_to(ROOT).parts[0]


def imports(file: Path) -> Iterator[tuple[int, str]]:
    """Every module that a file imports, wherever in it, with the line. `from a import b` is `a.b` where that is one."""
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, name.name) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{place(file)}:{node.lineno} imports relatively: name the package"
            for name in node.names:
                inner = f"{node.module}.{name.name}"
                ours = (ROOT.parent / Path(*inner.split("."))).with_suffix(".py").exists()
                yield node.lineno, inner if ours else str(node.module)


def within(module: str, allowed: set[str] | frozenset[str]) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in allowed)


def tool(module: str) -> str:
    return module.partition(".")[0]


def test_every_package_has_its_place_in_the_house() -> None:
    found = {package(file) for file in FILES}
    assert found <= set(MAY) | MAY_ALL, "a new package: say here what it may import"


@pytest.mark.parametrize("name", MAY)
def test_a_package_imports_only_what_the_house_allows(name: str) -> None:
    allowed, remedy = MAY[name]
    wrong = [
        f"{place(file)}:{line} imports {module}"
        for file in FILES
        if package(file) == name
        for line, module in imports(file)
        if tool(module) not in STANDARD and not within(module, allowed)
    ]
    assert not wrong, f"{wrong}: {remedy}"


@pytest.mark.parametrize("name", ONLY_IN)
def test_a_tool_stays_in_its_own_package(name: str) -> None:
    home, remedy = ONLY_IN[name]
    wrong = [
        f"{place(file)}:{line} imports {module}"
        for file in FILES
        for line, module in imports(file)
        if tool(module) == name
        and not place(file).startswith(home)
        and place(file) not in ALSO.get(module, ALSO.get(name, set()))
    ]
    assert not wrong, f"{wrong}: {remedy}"


def test_redis_is_known_to_one_file_only() -> None:
    using = {place(file) for file in FILES for _, module in imports(file) if tool(module) == "redis"}
    assert len(using) <= 1, f"{using}: Redis may vanish at any moment: keep it behind one file"


def test_only_the_composition_root_and_the_command_line_import_the_whole_house() -> None:
    """`app.py` puts the parts together and `__main__.py` starts them: nobody imports them but each other."""
    roots = {f"{OURS}.api.app", f"{OURS}.__main__"}
    wrong = [
        f"{place(file)}:{line} imports {module}"
        for file in FILES
        for line, module in imports(file)
        if module in roots and place(file) not in ("__main__.py", "api/app.py")
    ]
    assert not wrong, f"{wrong}: the root imports you, not you the root: take what you need as an argument"


# -- the domain is pure ----------------------------------------------------------------------------------------------

IMPURE = {
    "asyncio", "concurrent", "glob", "http", "importlib", "io", "logging", "multiprocessing", "os", "pathlib",
    "random", "requests", "secrets", "shutil", "signal", "socket", "sqlite3", "subprocess", "sys", "tempfile",
    "threading", "time", "urllib", "uuid", "warnings",
}  # fmt: skip
ASKS_THE_WORLD = {"now", "today", "utcnow", "fromtimestamp", "monotonic", "perf_counter", "getenv", "environ"}
BUILT_IN = {"open", "print", "input", "eval", "exec", "__import__"}


def domain() -> list[Path]:
    return [file for file in FILES if package(file) == "domain"]


def test_the_domain_imports_no_clock_no_chance_and_no_files() -> None:
    wrong = [f"{place(f)}:{line} imports {m}" for f in domain() for line, m in imports(f) if tool(m) in IMPURE]
    assert not wrong, f"{wrong}: time, ids and tables arrive as arguments"


def test_the_domain_asks_nobody_what_time_it_is_and_opens_nothing() -> None:
    wrong: list[str] = []
    for file in domain():
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Attribute) and node.attr in ASKS_THE_WORLD:
                wrong.append(f"{place(file)}:{node.lineno} asks for {ast.unparse(node)}")
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in BUILT_IN:
                wrong.append(f"{place(file)}:{node.lineno} calls {node.func.id}")
    assert not wrong, f"{wrong}: pass the moment or the text as an argument"


def test_the_domain_has_no_float() -> None:
    wrong = [
        f"{place(file)}:{node.lineno}"
        for file in domain()
        for node in ast.walk(ast.parse(file.read_text("utf-8")))
        if (isinstance(node, ast.Constant) and isinstance(node.value, float))
        or (isinstance(node, ast.Name) and node.id == "float")
        or (isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div))
    ]
    assert not wrong, f"{wrong}: integers in the smallest unit, or Decimal with a named rounding"


def test_no_module_of_the_domain_holds_state_of_its_own() -> None:
    wrong = [
        f"{place(file)}:{node.lineno}"
        for file in domain()
        for node in ast.walk(ast.parse(file.read_text("utf-8")))
        if isinstance(node, ast.Global | ast.Nonlocal)
    ]
    assert not wrong, f"{wrong}: state is an argument and what happened is the result"


# -- who decides -----------------------------------------------------------------------------------------------------

COMMANDS = {
    name
    for module in (account, fund, lot, merchant, methodology, offer, order, source, terminal)
    for name, kind in vars(module).items()
    if isinstance(kind, type) and issubclass(kind, Command)
}


@pytest.mark.parametrize("name", ["projections", "audit"])
def test_who_reads_neither_commands_nor_decides(name: str) -> None:
    wrong: list[str] = []
    for file in (file for file in FILES if package(file) == name):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            named = {alias.name for alias in node.names} if isinstance(node, ast.ImportFrom) else set[str]()
            if isinstance(node, ast.Attribute):
                named = {node.attr}
            wrong += [f"{place(file)}:{node.lineno} {n}" for n in named & (COMMANDS | {"decide"})]
    assert not wrong, f"{wrong}: what happened is in the events; a decision belongs behind the journal"


def test_only_the_journal_appends() -> None:
    """A recorder's `append` and `insert_events` are the journal's own: everyone else sends commands."""
    wrong = [
        f"{place(file)}:{node.lineno}"
        for file in FILES
        if package(file) != "journal"
        for node in ast.walk(ast.parse(file.read_text("utf-8")))
        if isinstance(node, ast.Attribute)
        and (node.attr == "insert_events" or (node.attr == "append" and "recorder" in ast.unparse(node.value)))
    ]
    assert not wrong, f"{wrong}: send a command to the journal; nothing else appends"


# -- words -----------------------------------------------------------------------------------------------------------

EMPTY_WORDS = {"utils", "util", "common", "base", "service", "services", "manager", "managers", "helper", "helpers"}


def test_no_file_or_folder_has_a_name_that_says_nothing() -> None:
    wrong = [
        place(file) for file in FILES if EMPTY_WORDS & {part.removesuffix(".py").strip("_") for part in file.parts[-3:]}
    ]
    assert not wrong, f"{wrong}: name it after what it is about, in the trade's words"
