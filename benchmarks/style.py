"""Figures of the source's style: python benchmarks/style.py

Lines of a function are its signature and body, without the docstring. A code line is one that holds more
than a comment or a docstring; comments are counted by the line, beside code or alone. A public function,
class or method has no leading underscore in its path; a method that another class documents under the same
name, one of a library's, or one of a protocol's that has no body, need not say so again.
"""

import ast
import io
import math
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
HEADLESS = (
    "Of",
    "By",
    "As",
    "All",
    "Those",
    "Where",
)  # no docstring begins with these: no sentence does
LONG = 57  # lines; no function is longer
OF_LIBRARIES = {"forward", "invoke"}  # of torch's modules and of typer's groups
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


@dataclass(frozen=True)
class Figures:
    """What style is measured by.

    Attributes:
        lines, test_lines: of source and tests, blank ones too.
        code, comments: lines of source that hold code, and comments.
        functions: lines and name of each function, shortest first.
        undocumented: public names without a docstring.
        headless: names whose docstring begins with one of HEADLESS.
    """

    lines: int
    test_lines: int
    code: int
    comments: int
    functions: list[tuple[int, str]]
    undocumented: list[str]
    headless: list[str]

    @property
    def p90(self) -> int:
        """Lines that nine functions in ten do not exceed."""
        return self.functions[math.ceil(0.9 * len(self.functions)) - 1][0]

    def longer(self, lines: int) -> list[str]:
        """The functions of more lines."""
        return [f"{name}, {length} lines" for length, name in self.functions if length > lines]

    @property
    def commented(self) -> float:
        """Comments by lines of code."""
        return self.comments / self.code

    @property
    def tested(self) -> float:
        """Lines of tests by lines of source."""
        return self.test_lines / self.lines


def figures(root: Path = ROOT) -> Figures:
    """The figures of a working tree."""
    source = sorted((root / "src").rglob("*.py"))
    trees = {path: ast.parse(path.read_text()) for path in source}
    counts = [code_and_comments(path.read_text(), trees[path]) for path in source]
    named = [
        (f"{path.relative_to(root)}:{node.lineno} {name}", node, public)
        for path, tree in trees.items()
        for name, node, public in definitions(tree)
        if ast.unparse(node.body[0]) != "..."
    ]
    functions = [(name, node) for name, node, _ in named if not isinstance(node, ast.ClassDef)]
    explained = OF_LIBRARIES | {node.name for _, node in functions if ast.get_docstring(node)}
    modules = [(f"{path.relative_to(root)}:1", tree, True) for path, tree in trees.items()]
    documented = [(name, ast.get_docstring(node), public) for name, node, public in named + modules]
    return Figures(
        lines=sum(len(path.read_text().splitlines()) for path in source),
        test_lines=sum(len(p.read_text().splitlines()) for p in (root / "tests").rglob("*.py")),
        code=sum(code for code, _ in counts),
        comments=sum(comments for _, comments in counts),
        functions=sorted(
            (length(node) - len(docstring_lines(node)), name) for name, node in functions
        ),
        undocumented=[
            name
            for name, text, public in documented
            if public and not text and name.rpartition(".")[2] not in explained
        ],
        headless=[name for name, text, _ in documented if (text or "").split(" ")[0] in HEADLESS],
    )


def code_and_comments(text: str, tree: ast.Module) -> tuple[int, int]:
    """Numbers of lines with code, and of lines with a comment."""
    code: set[int] = set()
    comments: set[int] = set()
    nothing = {tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            comments.add(token.start[0])
        elif token.type not in nothing:
            code |= set(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(tree):
        if isinstance(node, Definition | ast.Module):
            code -= set(docstring_lines(node))
    return len(code), len(comments)


def length(node: ast.stmt) -> int:
    return (node.end_lineno or 0) - node.lineno + 1


def docstring_lines(node: Definition | ast.Module) -> range:
    """Numbers of the lines of a docstring; none without one."""
    if ast.get_docstring(node) is None:
        return range(0)
    first = node.body[0]
    return range(first.lineno, first.lineno + length(first))


def definitions(tree: ast.Module) -> Iterator[tuple[str, Definition, bool]]:
    """Functions, methods and classes with their dotted names, and whether they are public."""

    def within(node: ast.AST, path: str, public: bool) -> Iterator[tuple[str, Definition, bool]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, Definition):
                shown = public and not child.name.startswith("_")
                yield f"{path}{child.name}", child, shown
                yield from within(
                    child, f"{path}{child.name}.", shown and isinstance(child, ast.ClassDef)
                )
            else:
                yield from within(child, path, public)

    return within(tree, "", True)


def main() -> None:
    found = figures()
    print(f"source lines            {found.lines:,}")
    print(f"functions               {len(found.functions):,}")
    print(f"lines, nine in ten      ≤ {found.p90}")
    print(f"lines, longest          {found.functions[-1][0]}")
    print(f"comments by code lines  {found.commented:.1%}")
    print(f"tests by source lines   {found.tested:.2f}")
    print(f"public, no docstring    {len(found.undocumented)}")
    print(f"headless docstrings     {len(found.headless)}")
    for name in [*found.longer(LONG), *found.undocumented, *found.headless]:
        print(f"  {name}")


if __name__ == "__main__":
    main()
