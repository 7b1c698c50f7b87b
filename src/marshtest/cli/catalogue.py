"""The command `list`: everything that a recipe or a command can name, read without importing any of it."""

import ast
import json
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated

import typer
import yaml

from marshtest.cli import screen
from marshtest.plumbing.errors import MarshtestError, unknown
from marshtest.plumbing.yaml_files import shipped

# Read as text by `ast`: importing all modules to read their docstrings would load PyTorch for seconds.
PACKAGE = Path(__file__).parents[1]
KINDS = {  # as one asks for several, and as JSON names one
    "unlearners": "unlearner",
    "attacks": "attack",
    "data": "data",
    "models": "model",
    "metrics": "metric",
    "references": "reference",
    "recipes": "recipe",
    "sweeps": "sweep",
    "hypotheses": "hypothesis",
    "suites": "suite",
}
CLASSES = {"unlearners": "unlearning", "attacks": "attacks", "models": "models"}  # and their wings
METRICS = ("accuracy", "gus", "membership", "privacy", "rank", "tradeoff", "verdict")  # modules
REFERENCES = {
    "none": "The initial model as it is: no unlearning; must come out NOT REMOVED.",
    "shuffled": "Trained on crafted poisons' perturbations in random order: what blind noise does.",
    "retrain (full)": "From scratch on the retain set at full compute; must come out REMOVED.",
}
WIDTH = 80
Entry = tuple[str, str, str]  # name, what it is, where it stands


def list_(
    kind: Annotated[
        str | None, typer.Argument(help=f"Kind to list: {', '.join(KINDS)}; default: all.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="JSON is printed instead, for machines.")
    ] = False,
) -> None:
    """Name the unlearners, attacks, data, recipes and all the rest.

    Example: marshtest list unlearners
    """
    if kind is not None and kind not in KINDS:
        raise MarshtestError(f"list: {unknown('kind', kind, KINDS)}")
    kinds = {kind: sorted(entries(kind)) for kind in ([kind] if kind else KINDS)}
    if as_json:
        print(json.dumps(_records(kinds), indent=2))
    else:
        screen.say(*_lines(kinds))


def entries(kind: str) -> Iterator[Entry]:
    """Everything of one of KINDS."""
    if kind in CLASSES:
        yield from _classes(CLASSES[kind])
    elif kind == "data":
        yield from _loaders()
    elif kind == "metrics":
        for name in METRICS:
            tree = ast.parse((PACKAGE / "metrics" / f"{name}.py").read_text())
            yield name, _first_line(tree), f"marshtest.metrics.{name}"
    elif kind == "references":
        for name, what in REFERENCES.items():
            yield name, what, "marshtest.experiment.protocol"
    else:
        for name, text in shipped(kind).items():
            # The loader in C is many times as fast, where there is one; these files are our own.
            what = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
            yield name, str(what.get("description", "")), f"{kind}/{name}.yaml"


def _classes(wing: str) -> Iterator[Entry]:
    """The classes of a wing that a recipe can name: those whose field `name` has a default."""
    for module, tree in _modules(wing):
        for node in tree.body:
            if isinstance(node, ast.ClassDef):
                for field in node.body:
                    match field:
                        case ast.AnnAssign(
                            target=ast.Name(id="name"), value=ast.Constant(value=str(name))
                        ):
                            yield name, _first_line(node), module


def _loaders() -> Iterator[Entry]:
    """The data sets: the names in a table of functions of its own module."""
    for module, tree in _modules("data"):
        functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
        for table in (node for node in tree.body if isinstance(node, ast.Assign)):
            match table.value:
                case ast.Dict(keys=keys, values=values):
                    for key, value in zip(keys, values, strict=True):
                        if isinstance(key, ast.Constant) and isinstance(value, ast.Name):
                            yield str(key.value), _first_line(functions[value.id]), module


def _modules(wing: str) -> Iterator[tuple[str, ast.Module]]:
    for file in sorted((PACKAGE / wing).glob("*.py")):
        yield f"marshtest.{wing}.{file.stem}", ast.parse(file.read_text())


def _first_line(node: ast.Module | ast.ClassDef | ast.FunctionDef) -> str:
    return (ast.get_docstring(node) or "").partition("\n")[0]


def _records(kinds: Mapping[str, list[Entry]]) -> list[dict[str, str]]:
    """What JSON says."""
    return [
        {"kind": KINDS[kind], "name": name, "what": what, "source": source}
        for kind, found in kinds.items()
        for name, what, source in found
    ]


def _lines(kinds: Mapping[str, list[Entry]]) -> Iterator[str]:
    """A heading for each kind, and below it the names with what they are, within WIDTH columns."""
    for kind, found in kinds.items():
        yield kind.capitalize()
        indent = max(len(name) for name, _, _ in found) + 4
        for name, what, _ in found:
            head = f"  {name}".ljust(indent)
            yield textwrap.fill(what, WIDTH, initial_indent=head, subsequent_indent=" " * indent)
        yield ""
