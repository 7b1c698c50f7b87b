"""Data flows one way, and so do imports: wings that read as a sentence, each knowing those to its left."""

import ast
from pathlib import Path

import marshtest

WINGS = [
    "plumbing",
    "data",
    "models",
    "training",
    "metrics",
    "unlearning",
    "attacks",
    "experiment",
    "sweeps",
    "hypotheses",
    "results",
    "reporting",
    "commands",
    "kit",
    "cli",
]
PACKAGE = Path(marshtest.__file__).parent
DECISIONS = Path(__file__).parents[1] / "docs" / "decisions.md"


def imported(file: Path) -> set[str]:
    """Dotted names of the project's modules that a file imports from, below the package."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "marshtest":
            below = (node.module or "").split(".")[1:]
            names |= {".".join([*below, alias.name]) for alias in node.names}
        elif isinstance(node, ast.Import):
            assert not any(alias.name.startswith("marshtest") for alias in node.names), file
    return names


def test_a_wing_knows_only_those_to_its_left() -> None:
    for file in PACKAGE.glob("*/**/*.py"):
        own = WINGS.index(file.relative_to(PACKAGE).parts[0])
        for name in imported(file):
            assert WINGS.index(name.split(".")[0]) <= own, f"{file} imports {name}"


def test_no_two_modules_need_each_other() -> None:
    modules = {
        ".".join(file.relative_to(PACKAGE).with_suffix("").parts): file
        for file in PACKAGE.rglob("*.py")
    }
    needs = {}
    for name, file in modules.items():
        found = {n if n in modules else n.rpartition(".")[0] for n in imported(file)}
        needs[name] = (found & modules.keys()) - {name}
    while free := {name for name, of in needs.items() if not of & needs.keys()}:
        for name in free:
            del needs[name]
    assert not needs, f"a circle among {sorted(needs)}"


def test_every_module_stands_in_a_wing() -> None:
    files = {path.name for path in PACKAGE.iterdir() if path.is_file()}
    assert files == {"__init__.py", "__init__.pyi", "__main__.py", "py.typed"}
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir()}
    assert folders - {"__pycache__"} == {*WINGS, "shipped"}


def test_no_wing_hides_a_public_function() -> None:
    assert not {*WINGS, "shipped"} & set(marshtest.__all__)


def test_the_documents_say_the_same() -> None:
    assert " → ".join(WINGS) in " ".join(DECISIONS.read_text().split())
