"""Figures of the source's style that must not get worse: python benchmarks/style.py prints them."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import ast

from style import LONG, Figures, code_and_comments, figures


@pytest.fixture(scope="module")
def found() -> Figures:
    return figures()


def test_nine_functions_in_ten_fit_on_half_a_screen(found: Figures) -> None:
    assert found.p90 <= 21


def test_every_function_fits_on_a_screen(found: Figures) -> None:
    assert found.longer(LONG) == []


def test_every_public_name_has_a_docstring(found: Figures) -> None:
    assert not found.undocumented


def test_there_is_enough_of_tests(found: Figures) -> None:
    assert found.tested >= 0.65


def test_reasons_stand_beside_the_lines(found: Figures) -> None:
    assert found.commented >= 0.06


def test_a_docstring_is_a_sentence_with_a_verb_or_a_noun_with_its_head(found: Figures) -> None:
    assert not found.headless


TEXT = '''"""What it is

in words."""

# a reason
x = """two
lines"""  # beside code

def f():
    """One."""
    return 1
'''


def test_lines_are_counted_as_the_figures_say() -> None:
    assert code_and_comments(TEXT, ast.parse(TEXT)) == (4, 2)
