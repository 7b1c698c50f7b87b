"""The walk-through of docs/audit-tables.md: what it printed, and which models remember at which dose."""

import importlib
import json
import re
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest

ROOT = Path(__file__).parents[1]
PAGE = "audit-tables"


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "reproduce"))
    return importlib.import_module("walkthrough")


def test_the_transcript_is_of_the_pages_commands_and_fast(page: ModuleType) -> None:
    transcript = json.loads(page.transcript(PAGE).read_text())
    commands = [block["commands"] for block in transcript["blocks"]]
    assert commands == page.commands(PAGE)
    assert transcript["processor_minutes"] < 3


def test_the_dose_shows_and_fitting_anew_removes_it(page: ModuleType) -> None:
    said = [page.said(number, page=PAGE) for number in range(4)]
    forest, others, program = said[1:]
    assert re.search(r"before \S*forest: NOT REMOVED", forest)
    assert re.search(r"after \S*forest: REMOVED", forest)
    assert re.search(r"before \S*boosted: NOT REMOVED", others)
    assert re.search(r"before: before.pt2 +NOT REMOVED .* \S+±\S+ +\S+±\S+", others)
    assert not re.search(r"after \S+: NOT REMOVED", others)
    assert re.search(r"before: cmd:.* NOT REMOVED", program)


def test_forests_remember_most_and_no_model_fitted_anew_is_accused(page: ModuleType) -> None:
    lines = pd.read_csv(page.DOSES)
    assert len(lines) == 2 * 3 * 3
    assert set(lines["variance"]) == {0.05, 0.32, 2.0}
    ranks = lines.pivot_table(index=["table", "variance"], columns="model", values="before_rank")
    assert (ranks["forest"] > ranks[["boosted", "network"]].max(axis=1)).all()
    assert "NOT REMOVED" not in set(lines["after_verdict"])
    assert (lines.loc[lines["model"] == "forest", "before_verdict"] == "NOT REMOVED").all()
    z = lines["after_rank"] / lines["after_error"]
    assert z.abs().max() < 3.5


def test_the_other_side_knows_nothing_of_marshtest() -> None:
    for file in (ROOT / "examples" / "tables").glob("*.py"):
        assert "marshtest" not in file.read_text().partition('"""\n\n')[2]
