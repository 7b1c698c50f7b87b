"""The page beside other tools: what it says of marshtest is there, and its rows are sound."""

import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from scipy import stats

from marshtest.attacks import ATTACKS
from marshtest.cli import app as cli
from marshtest.experiment.recipe import Recipe
from marshtest.unlearning import UNLEARNERS

ROOT = Path(__file__).parents[1]
DOCS, REPRODUCE = ROOT / "docs", ROOT / "docs" / "reproduce"
COMMANDS = {command.name or command.callback.__name__ for command in cli.app.registered_commands}  # type: ignore[union-attr]


@pytest.fixture(scope="module")
def compared() -> Iterator[ModuleType]:
    sys.path.insert(0, str(REPRODUCE))
    yield importlib.import_module("compared")
    sys.path.remove(str(REPRODUCE))
    for name in ("compared", "experiments"):
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def ours(compared: ModuleType) -> list[tuple[str, str, str]]:
    tables = compared.read_peers()["tables"].values()
    return [compared.parts(cells["marshtest"]) for table in tables for cells in table.values()]


def heading(line: str) -> str:
    """The anchor of a heading."""
    return re.sub(r"[^\w\- ]", "", line.lstrip("#").strip().lower().replace("*", "")).replace(
        " ", "-"
    )


def test_what_marshtest_is_said_to_have_is_described_where_the_cell_leads(
    ours: list[tuple[str, str, str]],
) -> None:
    for answer, file, _ in ours:
        page, _, anchor = file.partition("#")
        assert page or answer == "no"
        if anchor:
            lines = (DOCS / page).read_text().splitlines()
            assert anchor in {heading(line) for line in lines if line.startswith("#")}, file


def test_what_its_cells_name_is_there(ours: list[tuple[str, str, str]]) -> None:
    named = {name for _, _, note in ours for name in re.findall(r"`([^`]+)`", note)}
    there = {f"marshtest {command}" for command in COMMANDS} | ATTACKS.keys()
    there |= Recipe.model_fields.keys() | {"FOLDER@ADAPTER"}
    assert named
    assert named <= there
    assert "FOLDER@ADAPTER" in (DOCS / "audit-text.md").read_text()


def test_unlearners_are_counted_without_retraining(compared: ModuleType) -> None:
    count = int(compared.parts("{unlearners}")[0])
    listed = {*UNLEARNERS} - {"retrain", "retrain-tuned", "elsewhere", "outside"}
    assert count == len(listed)


def test_every_cell_has_an_answer_and_a_tool_that_was_read(compared: ModuleType) -> None:
    read = compared.read_peers()
    tools = {"marshtest", *read["tools"]}
    for table in read["tables"].values():
        for what, cells in table.items():
            assert "marshtest" in cells, what
            assert cells.keys() <= tools, what
            for cell in cells.values():
                answer, file, _ = compared.parts(cell)
                assert answer in ("yes", "partly", "no", "-") or answer.isdigit(), (what, cell)
                assert file or answer in ("no", "-"), (what, cell)
    for of in read["tools"].values():
        assert re.fullmatch(r"[0-9a-f]{40}", of["commit"])
        assert re.fullmatch(r"20\d\d-\d\d-\d\d", of["date"])


def test_a_cell_leads_to_the_file_at_the_commit_that_was_read(compared: ModuleType) -> None:
    commit = compared.read_peers()["tools"]["LeakPro"]["commit"]
    link = f"https://github.com/aidotse/LeakPro/blob/{commit[:10]}/a/b.py"
    assert compared.shown("LeakPro", "partly; a/b.py; so") == f"[partly]({link}): so"
    assert compared.shown("marshtest", "yes; audit.md#x") == "[yes](audit.md#x)"
    assert (compared.shown("LeakPro", "no"), compared.shown("LeakPro", "-")) == ("no", "–")


def test_the_answers_are_counts_of_their_repetitions(compared: ModuleType) -> None:
    rows = compared.rows("answers")
    verdicts = rows[["REMOVED", "INCONCLUSIVE", "NOT REMOVED"]].sum(axis=1)
    assert (verdicts == rows["repetitions"]).all()
    assert (rows[["ks_passes", "mia_passes"]].max(axis=1) <= rows["repetitions"]).all()
    assert {*rows["model"]} == {*compared.MODELS} < {*compared.rows("models")["model"]}


def test_a_share_has_clopper_and_pearsons_interval(compared: ModuleType) -> None:
    low, high = (stats.beta.ppf(q, *ab) for q, ab in ((0.025, (7, 994)), (0.975, (8, 993))))
    assert compared.share(7, 1000) == f"0.7 % [{100 * low:.1f}, {100 * high:.1f}]"
    assert compared.share(0, 1000).startswith("0.0 % [0.0, ")


def test_a_ks_test_is_the_same_for_losses_and_for_truth_ratios() -> None:
    """Of a classifier they rise and fall together, as the page says."""
    rng = np.random.default_rng(0)
    one, other = rng.uniform(0.01, 0.99, 300), rng.uniform(0.2, 0.99, 200)
    ratio = [(1 - p) / 9 / p for p in (one, other)]  # mean of the wrong answers over the right one
    losses = [-np.log(p) for p in (one, other)]
    assert stats.ks_2samp(*ratio).pvalue == pytest.approx(stats.ks_2samp(*losses).pvalue)


def test_a_strong_test_and_no_effect_are_told_apart_by_no_p_value_alone(
    compared: ModuleType,
) -> None:
    """The page's claim: p > 0.05 is said of a model that holds poison, and not of one that never saw it."""
    rows = compared.rows("answers").set_index(["model", "poisons"])
    assert rows.loc[("shrink-perturb", 50), ["ks_passes", "mia_passes"]].min() > 500
    assert rows.loc[("shrink-perturb", 200), "ks_passes"] < 100
    assert rows.loc[("retrain-tuned", 200), "ks_passes"] > 900
    assert rows.loc[("retrain-tuned", 400), "ks_passes"] < 500
    assert rows.loc["retrain-tuned", "mia_passes"].min() > 900
    assert rows.loc["shrink-perturb", "REMOVED"].max() < 10
    assert rows.loc[("retrain-tuned", 400), "REMOVED"] > 900


def test_models_of_other_seeds_are_told_apart_the_surer_the_more_samples(
    compared: ModuleType,
) -> None:
    rows = compared.rows("seeds")
    assert (rows["rejected"] <= rows["repetitions"]).all()
    shares = (rows["rejected"] / rows["repetitions"]).groupby(rows["images"]).mean()
    assert shares.is_monotonic_increasing
    assert shares.iloc[-1] > 0.5
