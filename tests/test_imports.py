"""Data flows one way, and so do imports."""

import ast
from pathlib import Path

import marshtest

ORDER = [
    "errors",
    "foreign",
    "identity",
    "files",
    "memory",
    "device",
    "documents",
    "seeds",
    "settings",
    "arrays",
    "data",
    "sealed",
    "language",
    "models",
    "flops",
    "budget",
    "tasks",
    "metrics",
    "training",
    "features",
    "attacks",
    "unlearning",
    "gate",
    "recipe",
    "sources",
    "protocol",
    "store",
    "claims",
    "grid",
    "ledger",
    "stages",
    "engines",
    "examples",
    "prospects",
    "columns",
    "rows",
    "results",
    "hypotheses",
    "merging",
    "comparison",
    "ranking",
    "report",
    "plan",
    "kit",
    "runs",
    "studies",
    "driving",
    "explain",
    "cli",
    "__main__",
]
PACKAGE = Path(marshtest.__file__).parent


def imported(file: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "marshtest":
            parts = (node.module or "").split(".")
            names |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            assert not any(alias.name.startswith("marshtest") for alias in node.names), file
    return names


def test_a_module_imports_only_from_modules_to_its_left() -> None:
    for file in PACKAGE.rglob("*.py"):
        own = file.relative_to(PACKAGE).with_suffix("").parts[0]
        if own == "__init__":
            continue
        for name in imported(file):
            assert ORDER.index(name) <= ORDER.index(own), f"{file} imports {name}"


def test_every_module_has_its_place() -> None:
    found = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert found - {"__init__", "__pycache__", "recipes", "sweeps", "py"} == set(ORDER)
