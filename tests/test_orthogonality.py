"""Hypothesis 2: exact solutions with certificates, matched shifts, the statement, and bad input."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from marshtest.cli import app as cli
from marshtest.commands.study import Study, study
from marshtest.experiment.recipe import load_recipe
from marshtest.hypotheses.base import norms
from marshtest.hypotheses.orthogonality import Orthogonality, Problem
from marshtest.plumbing.errors import MarshtestError
from marshtest.plumbing.progress import silent
from marshtest.plumbing.seeds import generator
from marshtest.training.solvers import Moments, least_squares

SMALL: dict[str, Any] = {
    "name": "small",
    "hypothesis": "orthogonality",
    "samples": 600,
    "dimension": 30,
    "informative": 5,
    "ridge": 0.01,
    "poisons": 60,
    "canceling": {"radius": 0.4, "steps": 40},
    "descent": {"steps": 20},
    "seeds": 2,
}


def drawn(n: int, d: int) -> tuple[torch.Tensor, torch.Tensor]:
    draws = torch.Generator().manual_seed(0)
    scale = torch.logspace(0, -2, d, dtype=torch.float64)
    x = torch.randn(n, d, dtype=torch.float64, generator=draws) * scale
    return x, torch.randn(n, dtype=torch.float64, generator=draws)


@pytest.mark.parametrize("ridge", [0.0, 1e-3, 1.0])
def test_least_squares_is_the_qr_solution_and_its_certificate_covers_the_error(
    ridge: float,
) -> None:
    x, y = drawn(200, 20)
    found = least_squares(Moments.of(x, y), ridge)
    padded = torch.cat([x, (ridge * 200) ** 0.5 * torch.eye(20, dtype=x.dtype)])
    target = torch.cat([y, torch.zeros(20, dtype=y.dtype)])
    exact = torch.linalg.lstsq(padded, target).solution
    torch.testing.assert_close(found.theta, exact, rtol=1e-9, atol=1e-9)
    assert found.distance < 1e-10
    values = torch.linalg.eigvalsh(x.T @ x / 200)
    assert found.curvature == pytest.approx(float(values[0]) + ridge, rel=1e-6)


def test_moments_of_what_is_left_are_those_of_the_rest() -> None:
    x, y = drawn(200, 20)
    rest = Moments.of(x, y) - Moments.of(x[:50], y[:50])
    direct = Moments.of(x[50:], y[50:])
    assert rest.count == direct.count
    torch.testing.assert_close(rest.xx, direct.xx)
    torch.testing.assert_close(
        least_squares(rest).theta, least_squares(direct).theta, rtol=1e-7, atol=1e-7
    )
    with pytest.raises(MarshtestError, match="200 rows of features and 199 labels"):
        Moments.of(x, y[1:])


def test_a_singular_design_is_named_and_the_shortest_solution_offered() -> None:
    x, y = drawn(10, 20)
    with pytest.raises(MarshtestError, match=r"singular \(rank 10 of 20\).*minimum_norm"):
        least_squares(Moments.of(x, y))
    found = least_squares(Moments.of(x, y), minimum_norm=True)
    torch.testing.assert_close(found.theta, torch.linalg.pinv(x) @ y, rtol=1e-6, atol=1e-6)
    assert least_squares(Moments.of(x, y), 0.1).theta.shape == (20,)


def test_samples_are_drawn_as_c_2_says() -> None:
    settings = Orthogonality.parse(
        SMALL | {"samples": 20_000, "dimension": 40, "noise_variance": 0.04}, ""
    )
    problem = Problem.draw(settings)
    variances = problem.x.var(0)  # of 20,000 draws: a standard error of 1 %
    torch.testing.assert_close(variances[:5], torch.ones(5, dtype=torch.float64), rtol=0.05, atol=0)
    torch.testing.assert_close(
        variances[5:], torch.full((35,), 1e-4, dtype=torch.float64), rtol=0.05, atol=0
    )
    halves = [slice(None, 10_000), slice(10_000, None)]
    first, second = (
        least_squares(Moments.of(problem.x[half, :5], problem.y[half])).theta for half in halves
    )
    assert float(first @ second) == pytest.approx(0, abs=0.02)
    for half, w in zip(halves, (first, second)):
        assert float(w.norm()) == pytest.approx(1, abs=0.02)
        left = problem.y[half] - problem.x[half, :5] @ w
        assert float(left.var()) == pytest.approx(0.04, rel=0.08)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return study(SMALL, out=tmp_path_factory.mktemp("study") / "small")


def test_random_samples_are_the_fewest_that_shift_as_far(done: Study) -> None:
    problem, by_set = Problem.draw(done.settings), done.rows.groupby("set")
    wanted = by_set.get_group("poisons")["l1"].mean()
    matched = by_set.get_group("random")
    count = int(matched["count"].iloc[0])
    assert matched["l1"].mean() >= wanted
    fewer = []
    for seed in range(2):
        order = 300 + torch.randperm(300, generator=generator(seed, "random"))
        kept = torch.ones(600, dtype=torch.bool)
        kept[order[: count - 1]] = False
        after = problem.solve(Moments.of(problem.x[kept], problem.y[kept]))
        before = problem.solve(Moments.of(problem.x, problem.y))
        fewer.append(norms(before.theta - after.theta)["l1"])
    assert sum(fewer) / 2 < wanted
    paper = by_set.get_group("random, the paper's number")
    assert paper["count"].tolist() == [3200 * 600 // 10_000] * 2


@pytest.mark.slow
def test_poisons_weighted_by_size_put_the_minimum_at_the_radius() -> None:
    canceling = {"radius": 0.4, "steps": 1500, "weighting": "size"}
    settings = Orthogonality.parse(
        SMALL | {"canceling": canceling, "poisons": 200, "dimension": 5, "tail_variance": 1.0}, ""
    )
    line, _ = Problem.draw(settings).poisoned(0, silent)
    assert float(line["objective"]) < 0.1  # of the pull is left, so θ_low is all but the minimum
    assert float(line["l2"]) == pytest.approx(0.4, abs=0.1)  # from that of all, not of the rest


def test_on_round_data_clean_gradients_point_along_the_way() -> None:
    settings = Orthogonality.parse(
        SMALL
        | {"samples": 5000, "dimension": 5, "ridge": 0.0, "noise_variance": 0.0}
        | {"descent": {"batch_size": 2000, "steps": 5}},
        "",
    )
    problem = Problem.draw(settings)
    goal = problem.solve(Moments.of(problem.x, problem.y)).theta
    way = torch.ones(5, dtype=torch.float64)
    cosines = problem.descend(goal + way, way, torch.arange(5000), 0)
    assert min(cosines) > 0.99
    assert max(problem.descend(goal - way, way, torch.arange(5000), 0)) < -0.99


def test_a_study_is_whole_reproducible_and_not_done_twice(done: Study, tmp_path: Path) -> None:
    assert len(done.rows) == 3 * 2
    assert len(done.curves) == 3 * 2 * 2 * 20
    assert (done.rows["distance"] < 1e-9).all()
    means = done.curves.groupby(["set", "curve", "seed"])["cosine"].mean()
    for _, line in done.rows.iterrows():
        for curve in ("corrupted", "random"):
            mean = means[line["set"], curve, line["seed"]]
            assert line[f"cosine_{curve}"] == pytest.approx(mean)
    again = study(SMALL, out=tmp_path / "again")
    pd.testing.assert_frame_equal(done.rows, again.rows)
    pd.testing.assert_frame_equal(done.curves, again.curves)
    before = (done.folder / "rows.parquet").stat().st_mtime_ns
    study(SMALL, out=done.folder)
    assert (done.folder / "rows.parquet").stat().st_mtime_ns == before
    assert (done.folder / "figures" / "figure5.png").is_file()
    assert done.statement in (done.folder / "summary.md").read_text()


@pytest.mark.parametrize(
    ("poison", "random", "answer"),
    [
        ([0.01, 0.02, 0.05], [0.50, 0.55, 0.60], "holds"),
        ([0.80, 0.82, 0.89], [0.50, 0.55, 0.60], "does not hold"),
        ([0.10, 0.90, 0.50], [0.50, 0.55, 0.60], "is not settled"),
    ],
)
def test_the_statement_follows_the_cosines(
    poison: list[float], random: list[float], answer: str, done: Study
) -> None:
    lines = [
        {"set": name, "seed": seed, "cosine_corrupted": value, "cosine_random": 0.7 + seed / 100}
        for name, values in (("poisons", poison), ("random", random))
        for seed, value in enumerate(values)
    ]
    made = Study(done.folder, done.settings, pd.DataFrame(lines), done.curves)
    assert made.statement.startswith(f"Hypothesis 2 {answer} here")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("ridge=-1", "ridge: Input should be greater than or equal to 0"),
        ("informative=31", "informative: 31 coordinates of 30"),
        ("poisons=600", "poisons: 600 of 600 samples"),
        ("canceling.radios=1", "Did you mean 'radius'"),
        ("samples=20", "poisons: 60 of 20 samples"),
    ],
)
def test_bad_input_is_one_line(override: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(MarshtestError) as caught:
        study(SMALL, override, out=tmp_path / "bad")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("wanted", [1e-9, 1e9])
def test_a_norm_that_no_number_of_samples_gives_is_said(wanted: float, done: Study) -> None:
    with pytest.raises(MarshtestError, match="so none match. Change canceling.radius or ridge"):
        list(Problem.draw(done.settings).random(wanted))


def test_a_singular_design_without_a_ridge_is_refused_by_name(tmp_path: Path) -> None:
    flat = SMALL | {"samples": 20, "poisons": 5, "ridge": 0.0}
    with pytest.raises(MarshtestError, match="singular"):
        study(flat, out=tmp_path / "flat")


@pytest.mark.slow
def test_the_command_ends_with_the_statement(tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    made = CliRunner().invoke(
        cli.app, ["study", "hypothesis-orthogonality-small", "seeds=2", "--out", out]
    )
    assert made.exit_code == 0
    assert "Hypothesis 2" in made.stdout
    with pytest.raises(MarshtestError, match="unknown hypothesis 'orthogonal'"):
        study("orthogonal")
    with pytest.raises(MarshtestError, match="is a recipe, not a hypothesis. Use `marshtest run d"):
        study("digits-gaussian")
    with pytest.raises(MarshtestError, match="is a hypothesis, not a recipe. Use `marshtest stu"):
        load_recipe("hypothesis-orthogonality")
