"""The calibration counts errors at the promised rates, and would see a test that lies."""

from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from subjects import SOUND, audited

from marshtest.kit.calibration import Calibration, calibrate, cheats
from marshtest.kit.judging import Question
from marshtest.kit.measure import Measured
from marshtest.kit.noise import Scaling
from marshtest.plumbing.errors import MarshtestError


@cache
def calibrated(keys: int) -> Calibration:
    case = audited()
    return calibrate(
        case.done.key,
        case.source,
        "subjects:before",
        keys=keys,
        draws=9,
        scaling=Scaling(),
        in_process=True,
    )


@pytest.mark.slow
def test_false_answers_come_at_most_as_often_as_promised(tmp_path: Path) -> None:
    found = calibrated(40)
    table = found.table().set_index("false answer")
    assert list(table["n"]) == [40] * 9
    table = table[table["promised"].notna()]  # the dose is too small to see who pushes poisons away
    for times, promised in zip(table["times"], table["promised"], strict=True):
        assert times <= stats.binom.ppf(1 - 1e-4, 40, promised)
    assert min(found.uniformity().values()) > 1e-4
    verdicts = found.keys.groupby("case")["verdict"].value_counts()
    assert verdicts["null"]["REMOVED"] > 33  # it has the power to acquit
    found.save(tmp_path / "out")
    assert len(pd.read_csv(tmp_path / "out" / "keys.csv")) == 40 * 6
    assert (tmp_path / "out" / "p-values.png").exists()


@pytest.mark.slow
def test_a_lying_test_would_be_seen() -> None:
    """The dependence of the margin keys really is the margin, on average."""
    found = calibrated(40)
    margin = found.keys[found.keys["case"] == "margin"]["rank_dependence"]
    null = found.keys[found.keys["case"] == "null"]["rank_dependence"]
    assert margin.mean() > null.mean() + 0.1
    lies = found.keys.assign(verdict="NOT REMOVED", epsilon=1.0)
    table = Calibration(lies, Question()).table()
    assert table["share"].tolist()[:7] == [1, 0, 0, 0, 0, 0, 1]
    assert table["low"].iloc[0] > 0.05


def test_no_key_is_refused() -> None:
    with pytest.raises(MarshtestError, match="at least one null key"):
        calibrated(0)


def test_cheats_keep_the_poison_that_they_say() -> None:
    """By the true key's scores and a null key's, for one random draw."""
    rng = np.random.default_rng(0)
    classes = np.arange(200) % 4
    true, null = (measured(rng.normal(mean, 1, 200), classes) for mean in (-1.3, 0.0))
    made = {case: of["rank"] for case, of in cheats(true, null, 0.2, rng)}
    kept = {case: values == true.scores["rank"] for case, values in made.items()}
    assert {case: int(of.sum()) for case, of in kept.items()} == {
        "margin": 40,
        "half": 100,
        "pushed": 40,
        "class": 50,
        "classes": 100,
    }
    assert made["pushed"].mean() == pytest.approx(0, abs=1e-12)
    assert len(set(classes[kept["class"]])) == 1
    assert len(set(classes[kept["classes"]])) == 2
    for mirrored in ("half", "classes"):
        others = ~kept[mirrored]
        assert (made[mirrored][others] == -true.scores["rank"][others]).all()


def measured(rank: np.ndarray, classes: np.ndarray) -> Measured:
    scores = {"rank": rank, "rank_ties": np.zeros(len(rank))}
    return Measured("model", scores, {}, 1.0, np.zeros(len(rank)), SOUND, classes, 0.01)
