"""Formulas as MathML, made when the site is built: to show them takes no JavaScript and no network."""

import re
from html import unescape
from typing import Any

from latex2mathml.converter import convert

FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)
TILDE = "<mi>&#x0007E;</mi>"  # what \sim becomes: an accent where a relation is meant
RELATION = "<mo>&#x0223C;</mo>"


def on_page_content(html: str, **_: Any) -> str:
    """Put MathML in the place of each formula that arithmatex has marked."""
    return FORMULA.sub(_mathml, html)


def _mathml(found: re.Match[str]) -> str:
    tag, opening, latex = found.groups()
    display = "block" if opening == "[" else "inline"
    formula = convert(unescape(latex), display=display).replace(TILDE, RELATION)
    return f'<div class="formula">{formula}</div>' if tag == "div" else formula
