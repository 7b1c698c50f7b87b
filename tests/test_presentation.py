"""What rows say of their attack and metrics is all that a report needs: no class, and no torch."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from marshtest.attacks import ATTACKS
from marshtest.attacks.presentation import Presentation
from marshtest.metrics.presentation import Column, Score
from marshtest.plumbing.errors import MarshtestError
from marshtest.reporting.charts import charts
from marshtest.reporting.figures import figures_of
from marshtest.reporting.tables import legend, markdown, plus_minus, ranking_table, table
from marshtest.reporting.write import write_all
from marshtest.results.merging import read_all, read_one
from marshtest.results.summary import Results
from marshtest.sweeps.ledger import Ledger, PlannedJob, made_by
from marshtest.sweeps.store import Store

REPRODUCED = Path(__file__).parents[1] / "docs" / "reproduce"
HARM = Presentation(
    title="flips", kind="flipped labels", scores={"harm": Score(title="harm done", column="harm")}
)
METRICS = {
    "exposure": Column(title="exposure", low=0, high=10, digits=1, legend="bits of a canary"),
    "leak": Column(title="leaked", low=0, high=1, interval="wilson", count=50),
}
Told = dict[str, Any]


def rewritten(
    name: str, folder: Path, change: Callable[[pd.DataFrame, Told], pd.DataFrame]
) -> Path:
    """Rows of the project as another attack's; `change` may alter the frame and what its run says."""
    frame = pd.read_parquet(REPRODUCED / name / "rows.parquet")
    told = json.loads(json.dumps(frame.attrs["marshtest"]))
    (run,) = told["runs"].values()
    frame = change(frame, run)
    frame.attrs = {"marshtest": told}
    folder.mkdir(parents=True)
    frame.to_parquet(folder / "rows.parquet")
    return folder


def presented(frame: pd.DataFrame, run: Told) -> pd.DataFrame:
    """The rows as this version writes them."""
    shown = ATTACKS[run["values"]["attack"]["name"]].presentation.filled(run["values"]["attack"])
    run["presentation"] = shown.model_dump(mode="json", exclude_defaults=True)
    return frame


def strangers(frame: pd.DataFrame, run: Told) -> pd.DataFrame:
    """The same numbers, of an attack that nobody here has."""
    run["values"]["attack"] = {"name": "my.flips:Flips", "share": 0.5}
    run["presentation"] = HARM.model_dump(mode="json", exclude_defaults=True)
    of_target = [c for c in frame if c.startswith("target_") and c != "target_probability"]
    names = {"target_probability": "harm", "twin_target_probability": "twin_harm"}
    return frame.drop(columns=of_target).rename(columns=names)


def measured(frame: pd.DataFrame, run: Told) -> pd.DataFrame:
    """The rows with two metrics beside the attack's scores."""
    run["metrics"] = {name: column.model_dump(mode="json") for name, column in METRICS.items()}
    draws = np.random.default_rng(0)
    exposure, leak = 10 * draws.random(len(frame)), draws.integers(0, 51, len(frame)) / 50
    return presented(frame, run).assign(exposure=exposure, leak=leak)


@pytest.mark.slow
def test_an_attack_that_nobody_here_has_is_reported_as_one_of_ours(tmp_path: Path) -> None:
    ours = read_one(REPRODUCED / "digits-targeted")
    theirs = read_one(rewritten("digits-targeted", tmp_path / "rows", strangers))
    same = ["verdict", "p_removed", "p_not_removed", "needed", "usable", "removed_in"]
    pd.testing.assert_frame_equal(ours.summary[same], theirs.summary[same])
    assert table(theirs)["harm done"].tolist() == table(ours)["adversarial probability"].tolist()
    assert "Harm done: difference to the clean twin" in legend(theirs)
    figures = figures_of(theirs, theirs.poison_budget)
    assert set(figures) == {"dependence"}  # it names no figure of its own
    assert figures["dependence"].axes[0].get_xlabel() == "dependence, harm done"
    assert charts(theirs)[0].title == "What is left, by harm done"
    assert "flips" in ranking_table([ours, theirs])
    page = write_all(read_all([tmp_path / "rows"]), tmp_path / "report").read_text()
    assert "flips (flipped labels); digits" in page  # title and kind
    assert '<th scope="col">harm done</th>' in page


def test_a_strangers_attack_without_a_presentation_is_refused_in_one_line(tmp_path: Path) -> None:
    def bare(frame: pd.DataFrame, run: Told) -> pd.DataFrame:
        frame = strangers(frame, run)
        del run["presentation"]
        return frame

    folder = rewritten("digits-targeted", tmp_path / "rows", bare)
    with pytest.raises(MarshtestError, match=r"attack 'my.flips:Flips' .* run the recipe again"):
        Results.read(folder)


def present(*path: str, **values: Any) -> Callable[[Told], None]:
    """Other values in a part of the presentation."""

    def change(shown: Told) -> None:
        for key in path:
            shown = shown[key]
        shown.update(values)

    return change


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (present(scores={}), "scores: .*at least 1"),
        (present(title=7), "title: .*string. Got 7"),
        (present(title="1 $ a line"), "title: .*pattern"),
        (present(titel="x"), "titel"),
        (present("scores", **{"a b": {"title": "x"}}), "scores.a b: .*pattern"),
        (present("scores", other={"title": "x"}), "must be the only one"),
        (present("scores", "harm", column="role"), "column that every row has"),
        (present("scores", "harm", column="harm_of"), "no column 'harm_of'"),
        (present(columns={"harm_error": {"title": "x"}}), "'harm_error' is a column of a score's"),
        (present(columns={"absent": {"title": "x"}}), "no column 'absent'"),
        (present(columns={"harm": {"title": "x"}}), "'harm' is a column of a score's"),
        (present(columns={"chanced": {"title": "x", "interval": "exact"}}), "needs a count"),
        (present(effect={"axis": "x", "columns": {"absent": "x"}}), "'absent' is not among"),
        (present(fpr="share_of"), "'share_of' names no number"),
        (present(draws="name"), "'name' names no number"),
    ],
)
def test_what_strangers_write_in_metadata_is_looked_at(
    change: Callable[[Told], None], says: str, tmp_path: Path
) -> None:
    def spoilt(frame: pd.DataFrame, run: Told) -> pd.DataFrame:
        frame = strangers(frame, run)
        change(run["presentation"])
        return frame

    folder = rewritten("digits-targeted", tmp_path / "rows", spoilt)
    with pytest.raises(MarshtestError, match=says) as refused:
        Results.read(folder)
    assert "\n" not in str(refused.value)
    assert str(folder) in str(refused.value)


def test_values_outside_a_metrics_range_are_named(tmp_path: Path) -> None:
    def beyond(frame: pd.DataFrame, run: Told) -> pd.DataFrame:
        frame = measured(frame, run)
        frame.loc[3, "exposure"] = 11.0
        return frame

    says = r"'exposure' .*11.0 in row 3; it must be a finite number from 0 to 10"
    with pytest.raises(MarshtestError, match=says):
        Results.read(rewritten("digits-gaussian", tmp_path / "rows", beyond))


@pytest.mark.slow
def test_metrics_of_all_attacks_are_shown_wherever_scores_are(tmp_path: Path) -> None:
    results = read_one(rewritten("digits-gaussian", tmp_path / "rows", measured))
    for _, line in results.summary.iterrows():
        own = results.chosen(line["poison_budget"])
        own = own[(own["role"] == line["role"]) & (own["unlearner"] == line["unlearner"])]
        own = own[own["hyperparameters"] == line["hyperparameters"]]
        assert line["exposure"] == pytest.approx(own["exposure"].mean())
        assert line["exposure_sd"] == pytest.approx(own["exposure"].std(ddof=1))
        assert line["leak_low"] < own["leak"].mean() < line["leak_high"]
    cells, first = table(results), results.summary.iloc[0]
    assert cells["exposure"][0] == f"{first['exposure']:.1f}±{first['exposure_sd']:.1f}"
    assert {"leaked", "TPR"} < set(cells)
    assert "Exposure: bits of a canary, mean ± s.d. over seeds." in legend(results)
    assert "| exposure |" in markdown(results)
    panel = figures_of(results, results.poison_budget)["metrics"].axes[0]
    assert panel.get_xlim() == (0, 10)
    points = panel.lines[0].get_xdata()
    assert np.allclose(points, results.summary["exposure"])
    page = write_all(read_all([tmp_path / "rows"]), tmp_path / "report").read_text()
    assert page.count("exposure</th>") == 1
    assert "metrics.png" in page


def test_rows_with_and_without_a_metric_are_merged(tmp_path: Path) -> None:
    def later(frame: pd.DataFrame, run: Told) -> pd.DataFrame:
        run["values"] |= {"first_seed": 100, "metrics": ["my.metrics:Exposure"]}
        return measured(frame, run).assign(seed=frame["seed"] + 100)

    sources = [
        rewritten("digits-gaussian", tmp_path / name, change)
        for name, change in (("plain", presented), ("measured", later))
    ]
    (both,) = read_all(sources).results
    assert len(both.rows) == 2 * len(read_one(sources[0]).rows)
    assert {"exposure", "leak"} < set(both.columns_shown)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows with presentations, and a store with a sweep."""
    folder = tmp_path_factory.mktemp("shared")
    rewritten("digits-gaussian", folder / "ours", measured)
    rewritten("digits-targeted", folder / "theirs", strangers)
    store = Store(folder / "store")
    store.prepare()
    jobs = [PlannedJob("train", "train", ("initial-1",), ())]
    Ledger("mine-1", made_by(), [{}], ["aaaaaaaa"], {}, [], jobs).write(store)
    return folder


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(["report", "ours", "theirs", "--out", "report"], marks=pytest.mark.slow),
        ["leaderboard", "ours", "theirs"],
        ["rows", "--store", "store"],
    ],
)
def test_commands_that_read_rows_do_without_torch_and_scipys_laws(
    command: list[str], shared: Path
) -> None:
    code = (
        "import sys\n"
        "from marshtest.cli.app import app\n"
        f"app({command}, standalone_mode=False)\n"
        "drawn = {'matplotlib', 'altair'} if sys.argv[1] != 'report' else set()\n"
        "print('loaded:', ({'torch', 'scipy.stats', *drawn} & set(sys.modules)) or 'none')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, command[0]],
        cwd=shared,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "loaded: none"


def test_numbers_of_models_that_diverged_are_told_by_their_order_of_magnitude() -> None:
    assert plus_minus(470272825847451520.0, 377886242510160128.0, 3) == "4.70e+17±3.78e+17"
    assert plus_minus(999_999.5, 0.25, 1) == "999999.5±0.2"


@pytest.mark.parametrize("length", [60, 61])
def test_a_title_has_room_in_a_line(length: int) -> None:
    """A figure's axis of 900 characters made a picture of 9,392 pixels."""
    title = "t" * length
    if length == 60:
        assert Column(title=title).title == title
        return
    with pytest.raises(MarshtestError, match="title: String should have at most 60 characters"):
        Column.parse({"title": title}, "column")
