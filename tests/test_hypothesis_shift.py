"""Hypothesis 1: shifts against independent solutions, poisons of one's own, features, bad input."""

import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy.optimize import minimize
from torch import Tensor
from torch.nn import functional as F
from typer.testing import CliRunner

from marshtest.attacks.base import choose
from marshtest.cli import app as cli
from marshtest.commands.study import study
from marshtest.data.load import load, save_dataset
from marshtest.data.samples import Dataset
from marshtest.experiment.row_file import read_file, write_rows
from marshtest.hypotheses.shift import Problem, Shift
from marshtest.hypotheses.statements import STATEMENTS, of_shift
from marshtest.hypotheses.studied import Study
from marshtest.hypotheses.table import parse_hypothesis
from marshtest.plumbing.errors import MarshtestError
from marshtest.plumbing.seeds import derive
from marshtest.reporting.hypotheses import _rounded_up

SMALL: dict[str, Any] = {
    "name": "small",
    "hypothesis": "shift",
    "data": "tensors",
    "sets": {
        "indiscriminate": {
            "name": "gradient-canceling",
            "radius": 1,
            "weighting": "mean",
            "steps": 100,
        },
        "targeted": {"name": "gradient-matching", "epsilon": 2, "restarts": 1, "steps": 50},
    },
    "poisons": 30,
    "betas": [0, 0.5, 1],
    "weight_decay": 1e-2,
    "smaller": [1e-3],
    "error": 1e-5,
    "seeds": 3,
}


@pytest.fixture(scope="module")
def data() -> Dataset:
    draws = torch.Generator().manual_seed(0)
    means = torch.randn(3, 8, generator=draws)
    y = torch.randint(3, (900,), generator=draws)
    x = means[y] + torch.randn(900, 8, generator=draws)
    x = (x - x.mean(0)) / x.std(0)
    return Dataset.from_tensors((x[:600], y[:600]), (x[600:], y[600:]))


@pytest.fixture(scope="module")
def done(data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Study:
    return study(SMALL, out=tmp_path_factory.mktemp("study") / "small", data=data)


def minimum(x: Tensor, y: Tensor, weight_decay: float) -> Tensor:
    """[C, F + 1] by SciPy's BFGS."""
    inputs = torch.cat([x.double(), torch.ones(len(x), 1, dtype=torch.float64)], 1)

    def value(flat: Any) -> Any:
        theta = torch.from_numpy(flat).view(3, -1).requires_grad_()
        loss = F.cross_entropy(inputs @ theta.T, y) + weight_decay / 2 * theta.square().sum()
        loss.backward()
        assert theta.grad is not None
        return loss.item(), theta.grad.flatten().numpy()

    start = torch.zeros(3 * inputs.shape[1], dtype=torch.float64).numpy()
    found = minimize(value, start, jac=True, method="BFGS", options={"gtol": 1e-9})
    return torch.from_numpy(found.x).view(3, -1)


@pytest.mark.parametrize("name", ["random", "indiscriminate"])
@pytest.mark.parametrize("weight_decay", [1e-2, 1e-3])
def test_shifts_are_those_of_independent_solutions(
    name: str, weight_decay: float, data: Dataset, done: Study
) -> None:
    asked = parse_hypothesis(done.about["values"])
    assert isinstance(asked, Shift)
    poisoned = Problem(asked, data).poisoned(name, 0)
    samples, rest = poisoned.samples, poisoned.retain
    shift = samples.perturbation()
    x = samples.x if shift is None else samples.x + shift
    before = minimum(x, samples.y, weight_decay)
    after = minimum(rest.x, rest.y, weight_decay)
    rows = done.rows.set_index(["set", "seed", "weight_decay"])
    line = rows.loc[name, 0, weight_decay]
    assert line["count"] == 30
    assert line["l1"] == pytest.approx(float((before - after).norm(1)), rel=1e-3)
    assert line["l2"] == pytest.approx(float((before - after).norm(2)), rel=1e-3)
    assert line["size_before"] == pytest.approx(float(before.norm()), rel=1e-4)
    assert line["size"] == pytest.approx(float(after.norm()), rel=1e-4)
    logits = data.test.x.double() @ after[:, :-1].T + after[:, -1]
    right = float((logits.argmax(1) == data.test.y).double().mean())
    assert line["accuracy"] == pytest.approx(right, abs=1 / 300 + 1e-9)


def test_a_share_beta_of_each_set_is_taken_out(done: Study) -> None:
    main = done.curves[done.curves["weight_decay"] == 1e-2]
    assert len(main) == 3 * 3 * 3
    for _, own in main.groupby(["set", "seed"]):
        assert own["beta"].tolist() == [0, 0.5, 1]
        assert own["count"].tolist() == [0, 15, 30]
        assert own["l1"].iloc[0] == 0
        assert (own["l1"].iloc[1:] > 0).all()
    smaller = done.curves[done.curves["weight_decay"] == 1e-3]
    assert set(smaller["seed"]) == {0}
    assert len(smaller) == 3 * 2
    assert (done.curves["distance"] <= 2.001e-5).all()
    assert (done.curves["gradient_norm"] <= 1e-5 * done.curves["weight_decay"]).all()


def test_every_column_is_described(done: Study) -> None:
    described = (Path(__file__).parent.parent / "docs" / "rows.md").read_text()
    for column in {*done.rows.columns, *done.curves.columns}:
        assert f"`{column}`" in described, column


def test_the_random_set_is_clean_and_its_samples_are_the_seeds(data: Dataset, done: Study) -> None:
    asked = parse_hypothesis(done.about["values"])
    assert isinstance(asked, Shift)
    poisoned = Problem(asked, data).poisoned("random", 1)
    assert poisoned.samples.perturbations is None
    assert torch.equal(poisoned.forget_ids, choose(data.train, 30, derive(1, "random")))


def test_the_target_is_hit_until_the_poisons_are_out(done: Study) -> None:
    targeted = done.rows[(done.rows["set"] == "targeted") & (done.rows["weight_decay"] == 1e-2)]
    assert (targeted["target_probability_before"] > targeted["target_probability"]).all()
    assert done.rows.loc[done.rows["set"] != "targeted", "target_probability"].isna().all()


def test_rows_that_lack_a_set_or_a_column_are_refused_in_one_line(
    done: Study, tmp_path: Path
) -> None:
    own = read_file(done.folder)
    shutil.copy(done.folder / "curves.parquet", tmp_path)
    without = {
        "has no rows of set 'random'": own.frame[own.frame["set"] != "random"],
        "has no column 'l1'": own.frame.drop(columns="l1"),
    }
    for said, frame in without.items():
        path = tmp_path / "rows.parquet"
        write_rows(frame, path, own.runs, kind="hypothesis")
        with pytest.raises(MarshtestError, match=said):
            Study.of(read_file(path))


def test_seeds_without_a_pair_are_left_out_and_one_seed_has_no_test(done: Study) -> None:
    main = done.rows["weight_decay"] == done.rows["weight_decay"].iloc[0]
    unpaired = main & (done.rows["set"] == "random") & (done.rows["seed"] > 0)
    told = of_shift(done.rows[~unpaired])
    assert "nan" not in told
    assert "no test, for want of a second seed" in told


@pytest.mark.parametrize(
    ("bound", "told"), [(1.247e-3, "2e-03"), (1e-3, "1e-03"), (9.02e-4, "1e-03"), (0.0, "0e+00")]
)
def test_a_bound_is_rounded_up(bound: float, told: str) -> None:
    assert _rounded_up(bound) == told


def test_a_study_is_reproducible_kept_and_reported(
    data: Dataset, done: Study, tmp_path: Path
) -> None:
    again = study(SMALL, out=tmp_path / "again", data=data)
    pd.testing.assert_frame_equal(done.curves, again.curves)
    before = (done.folder / "rows.parquet").stat().st_mtime_ns
    study(SMALL, out=done.folder, data=data)
    assert (done.folder / "rows.parquet").stat().st_mtime_ns == before
    assert (done.folder / "figures" / "figure4.png").is_file()
    assert done.statement in (done.folder / "summary.md").read_text()
    page = (done.folder / "report.html").read_text()
    assert "Figure 4" in page
    assert "What a verdict does not prove" not in page
    other = Dataset.from_tensors((data.train.x + 1, data.train.y), (data.test.x + 1, data.test.y))
    with pytest.raises(MarshtestError, match="holds results of this recipe on other data"):
        study(SMALL, out=done.folder, data=other)


@pytest.mark.parametrize(
    ("poison", "answer"),
    [
        ([30.0, 32.0, 36.0], "holds"),
        ([3.0, 3.2, 3.6], "does not hold"),
        ([1.0, 40.0, 20.0], "is not settled"),
        ([30.0], "is not settled"),
    ],
)
def test_the_statement_follows_the_shifts(poison: list[float], answer: str) -> None:
    lines = [
        {"set": name, "seed": seed, "weight_decay": 1e-3, "l1": value}
        for name, values in (("mine", poison), ("random", [10.0, 11.0, 10.5]))
        for seed, value in enumerate(values[: len(poison)])
    ]
    ignored = [
        {"set": name, "seed": 0, "weight_decay": 1e-9, "l1": 1.0} for name in ("mine", "random")
    ]
    said = STATEMENTS["shift"](pd.DataFrame(lines + ignored))
    assert said.startswith(f"Hypothesis 1 {answer} here for mine")


def test_poisons_and_features_of_ones_own(data: Dataset, done: Study, tmp_path: Path) -> None:
    asked = parse_hypothesis(done.about["values"])
    assert isinstance(asked, Shift)
    made = Problem(asked, data).poisoned("indiscriminate", 0)
    forget = made.forget
    shift = forget.perturbation()
    assert shift is not None
    mine, features = tmp_path / "mine.safetensors", tmp_path / "features.safetensors"
    save_file({"ids": forget.ids, "x": forget.x + shift}, str(mine))
    save_dataset(data, features)
    settings = SMALL | {"sets": {"mine": {"path": str(mine)}}, "seeds": 1, "smaller": []}
    own = study(settings, f"data={{name: tensors, path: {features}}}", out=tmp_path / "own")
    rows = done.rows.set_index(["set", "seed", "weight_decay"])
    assert own.rows["l1"].iloc[0] == pytest.approx(
        rows.loc["indiscriminate", 0, 1e-2]["l1"], rel=1e-4
    )
    save_file({"ids": forget.ids, "x": forget.x}, str(mine))
    with pytest.raises(MarshtestError, match="holds results of another recipe"):
        study(settings, f"data={{name: tensors, path: {features}}}", out=tmp_path / "own")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"ids": torch.arange(29)}, "holds 29 poisons; `poisons` says 30"),
        ({"ids": torch.arange(30) + 590}, "no training sample has id 600"),
        ({"ids": torch.zeros(30, dtype=torch.int64)}, "an id comes twice"),
        ({"x": torch.zeros(30, 7)}, r"x is \[30, 7\]"),
        ({"x": torch.full((30, 8), torch.nan)}, "finite x"),
        ({"y": torch.zeros(29, dtype=torch.int64)}, r"y \[29\]"),
        ({"y": torch.full((30,), 3)}, "a label that no training sample has"),
    ],
)
def test_bad_poisons_of_ones_own_are_refused(
    change: dict[str, Tensor], said: str, data: Dataset, tmp_path: Path
) -> None:
    path = tmp_path / "mine.safetensors"
    save_file({"ids": torch.arange(30), "x": torch.zeros(30, 8)} | change, str(path))
    with pytest.raises(MarshtestError, match=said):
        study(SMALL | {"sets": {"mine": {"path": str(path)}}}, out=tmp_path / "out", data=data)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("betas=[0, 1.5]", "betas.1: Input should be less than or equal to 1"),
        ("betas=[-0.1]", "betas.0: Input should be greater than or equal to 0"),
        ("weight_decay=0", "weight_decay: Input should be greater than 0"),
        ("smaller=[0.1]", "smaller: 0.1 is no smaller than weight_decay 0.01"),
        ("poisons=600", "poisons: 600 of 600 samples"),
        ("sets.random=gaussian", "sets.random: the name of the clean samples"),
        ("sets.x=gradient-matchin", "sets.x.name: unknown attack"),
        ("sets.x={name: gaussian, varians: 1}", "Did you mean 'variance'"),
        ("sets.x={path: nowhere}", "sets: no file 'nowhere'"),
        ("sets={}", "sets: Value should have at least 1 item"),
        ("hypothesis=shft", "Did you mean 'shift'"),
        ("hypothesis=null", "hypothesis: unknown hypothesis 'None'"),
    ],
)
def test_bad_input_is_one_line(override: str, said: str, data: Dataset, tmp_path: Path) -> None:
    with pytest.raises(MarshtestError) as caught:
        study(SMALL, override, out=tmp_path / "bad", data=data)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_pixels_are_not_features(tmp_path: Path) -> None:
    with pytest.raises(
        MarshtestError, match=r"\[1400, 1, 8, 8\] of torch.uint8. Set data.features"
    ):
        study(SMALL, "data=digits", out=tmp_path / "bad")


@pytest.mark.slow
def test_the_command_trains_a_network_once_and_ends_with_the_statement(tmp_path: Path) -> None:
    out = tmp_path / "out"
    quick = ["seeds=2", "smaller=[]", "betas=[1]", "data.features.training.epochs=8"]
    command = ["study", "hypothesis-shift-small", *quick, "--out", str(out)]
    made = CliRunner().invoke(cli.app, command)
    assert made.exit_code == 0
    assert "Hypothesis 1" in made.stdout
    kept = out / "features.safetensors"
    features = load_file(kept)
    assert features["train_x"].shape == (1400, 64)
    moved = load("tensors", str(kept))
    assert float(moved.train.x.mean(0).abs().max()) < 1e-5
    (out / "rows.parquet").unlink()
    before = kept.stat().st_mtime_ns
    assert CliRunner().invoke(cli.app, command).exit_code == 0
    assert kept.stat().st_mtime_ns == before
