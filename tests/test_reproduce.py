"""README.md and pages of docs are what the rows in docs/reproduce/ say; figures too.

Run as a script, it draws the expected images anew: look at them before they are committed.
"""

import importlib
import json
import math
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import matplotlib
import numpy as np
import pytest
from cogapp import Cog
from matplotlib.figure import Figure
from matplotlib.testing.compare import compare_images
from scipy import stats

from marshtest.experiment.recipe import load_recipe
from marshtest.experiment.row_file import read_file, write_rows
from marshtest.metrics.rank import rank_scores
from marshtest.reporting.figures import STYLE, figures_by_size, figures_of
from marshtest.reporting.hypotheses import SHOWN
from marshtest.results.merging import differences, read_all

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "reproduce"
COG, WRITTEN = (ROOT / "Makefile").read_text().partition("cog -r")[2].splitlines()[:2]
PAGES = [ROOT / name for name in WRITTEN.split()]
DOCS = sorted((ROOT / "docs").glob("*.md"))
REPRODUCE = ROOT / "docs" / "reproduce.md"
IMAGES = Path(__file__).parent / "images"
LOOKS = {**STYLE, "font.family": "DejaVu Sans"}  # which comes with matplotlib: the same everywhere
TOLERANCE = 6  # RMS of pixel values: text may be set a little differently, a bar may not move
MODULES = (
    "claims",
    "evidence",
    "tables",
    "rivals",
    "membership",
    "marks",
    "walkthrough",
    "compared",
    "scale",
    "devices",
    "pictures",
    "experiments",
    "cli_reference",
)
NAMES = {  # by experiment, the figures that must look as they did
    "digits-gaussian": ["dependence", "figure2", "figure6", "figure7"],
    "digits-targeted": ["dependence", "figure3"],
    "digits-indiscriminate": ["figure9"],
    "digits-budgets": ["figure8"],
    "imdb-tiny-trigger": ["figure3"],
    "imdb-tiny-sizes": ["figure10"],
    "hypothesis-shift-small": ["figure4"],
    "hypothesis-orthogonality": ["figure5"],
}
FIGURES = [(experiment, name) for experiment, names in NAMES.items() for name in names]


@pytest.fixture(scope="module")
def experiments() -> Iterator[ModuleType]:
    sys.path.insert(0, str(FOLDER))
    yield importlib.import_module("experiments")
    sys.path.remove(str(FOLDER))
    for name in MODULES:
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def claims(experiments: ModuleType) -> ModuleType:
    return importlib.import_module("claims")


@pytest.fixture(scope="module")
def tables(experiments: ModuleType) -> ModuleType:
    return importlib.import_module("tables")


@pytest.fixture(scope="module")
def scale(experiments: ModuleType) -> ModuleType:
    return importlib.import_module("scale")


@pytest.fixture
def copied(
    experiments: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """A copy of the rows, which tables and claims are then written from."""
    shutil.copytree(FOLDER, tmp_path / "rows")
    monkeypatch.setattr(experiments, "ROWS", tmp_path / "rows")
    experiments.results.cache_clear()
    yield tmp_path / "rows"
    experiments.results.cache_clear()


@pytest.mark.slow
def test_the_pages_are_what_their_rows_say(
    experiments: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prologue = COG.split('"')[1]
    command = ["cog", "--check", "-P", "-I", "docs/reproduce", "-p", prologue]
    monkeypatch.chdir(ROOT)
    code = Cog().main([*command, *(str(page.relative_to(ROOT)) for page in PAGES)])
    assert code == 0, f"run `make reproduce`: {capsys.readouterr()}"
    assert {*PAGES} == {
        page for page in [ROOT / "README.md", *DOCS] if "[[[cog" in page.read_text()
    }
    text = REPRODUCE.read_text()
    assert text.count("**Here: ") == text.count("print(claim(")


def test_what_the_paper_asks_for_is_counted_as_by_hand(experiments: ModuleType) -> None:
    """Passes of training: 3 a sample and epoch, two models, three poison budgets, each seed."""
    devices = importlib.import_module("devices")
    both = (49_000 + 49_000 - np.array([735, 980, 1225])).sum()
    assert devices.counted()["paper-cifar10-gaussian"]["train"] == 8 * 3 * 100 * both
    assert devices.counted()["cifar10-gaussian"]["train"] == 3 * 3 * 30 * both
    header, _, *lines, last = devices.at_full_scale().splitlines()
    place = header.split(" | ").index("hours")
    hours = {line.split("`")[1]: int(line.split(" | ")[place]) for line in lines}
    in_all = devices.estimate().splitlines()[-1].split(" | ")[3]
    assert round(float(in_all)) == hours["paper-cifar10-gaussian"]
    assert {*hours} == {*devices.FULL}
    # The sum of what is not rounded.
    assert abs(sum(hours.values()) - int(last.split(" | ")[place])) <= 0.5 * len(hours)


def test_no_table_of_measured_numbers_is_pasted() -> None:
    """Beside what is written from rows, no table's cell is a verdict or has a deviation."""
    for page in PAGES:
        written = False
        for line in page.read_text().splitlines():
            written = (written or line.startswith("<!-- [[[cog")) and "[[[end]]]" not in line
            if line.startswith("|") and not written:
                assert "±" not in line, (page, line)
                assert not {"REMOVED", "NOT REMOVED"} & set(line.split(" | ")), (page, line)


@pytest.mark.parametrize(
    ("holds", "fails", "answer", "told"),
    [
        (0.05, 1.0, "agrees", "p-values: 0.05 for *agrees*, 1 for *disagrees*."),
        (0.051, 0.049, "disagrees", "p-values: 0.051 for *agrees*, 0.049 for *disagrees*."),
        (0.2, 0.3, "is not settled", "would settle it: 1,200 of `a`, 3 of `b`."),
        (0.2, None, "is not settled", "would settle it: 9 of `a`."),
        (None, None, "is not settled", "more seeds would not settle it."),
        (0.01, 0.01, "is not settled", "p-values: 0.01 for *agrees*, 0.01 for *disagrees*."),
    ],
)
def test_a_claim_is_answered_at_its_level(
    claims: ModuleType, holds: float | None, fails: float | None, answer: str, told: str
) -> None:
    """The cheaper of both ways to settle it is told; one that no rows can go is none."""

    def statement(p: float | None, **seeds: float) -> object:
        if p is None:
            return claims.UNSHOWN
        return claims.Statement(p, lambda level: {} if p <= level else seeds)

    ways = (
        (statement(holds, a=9), claims.UNSHOWN)
        if fails is None
        else (statement(holds, a=1_200, b=3), statement(fails, a=5_000))
    )
    of = claims.Claim("it is so", lambda: ("table", *ways), (("digits-gaussian",),))
    text, found = of.told()
    assert found == answer
    assert text.startswith("table\n\n")
    assert text.endswith(told)
    missing = claims.Claim("it is so", lambda: ("", *ways), (("digits-gaussian",), ("none",)))
    assert missing.told()[1] != claims.AGREE  # which is said of whole rows alone


def test_every_claim_has_its_place_in_the_page(claims: ModuleType) -> None:
    text = REPRODUCE.read_text()
    for name in claims.CLAIMS:
        assert f'print(claim("{name}"))' in text
        assert f"\n### {name[0].upper()}{name[1:]}\n" in text


@pytest.mark.slow
def test_other_rows_give_other_answers(
    experiments: ModuleType, claims: ModuleType, tables: ModuleType, copied: Path
) -> None:
    """GD's poisons taken out, as if it had worked: claims of it no longer hold, and tables say so."""
    assert claims.CLAIMS["no silver bullet"].told()[1] == claims.AGREE
    before = tables.changed()
    for name in filter(experiments.there, experiments.ALL):
        rows = read_file(copied / name)
        gd = rows.frame["unlearner"] == "gd"
        retrained = rows.frame[rows.frame["role"] == "retrained"].set_index(
            ["poison_budget", "seed"]
        )
        for column in rows.frame.select_dtypes("float"):
            if column not in ("budget", "spent", "poison_budget"):
                at = rows.frame.loc[gd, ["poison_budget", "seed"]]
                keys = list(at.itertuples(index=False, name=None))
                rows.frame.loc[gd, column] = retrained.loc[keys, column].to_numpy()
        write_rows(rows.frame, rows.path, rows.runs)
    experiments.results.cache_clear()
    digits = list(filter(experiments.there, experiments.DIGITS))
    assert {experiments.cell(name, "gd").verdict for name in digits} == {"REMOVED"}
    # Three trainings on CIFAR-10 are too few to show by both scores that next to nothing is left.
    assert claims.CLAIMS["GD by attack"].told()[1] == claims.OPEN
    assert claims.CLAIMS["none removes"].told()[1] != claims.AGREE
    assert f"| GD |{' REMOVED |' * len(digits)}" in tables.three_answers()
    assert tables.changed() != before
    assert "| digits, Gaussian | 30 % | GD | NOT REMOVED | REMOVED |" in tables.changed()


@pytest.mark.slow
def test_what_has_no_rows_is_named(
    experiments: ModuleType, claims: ModuleType, tables: ModuleType, copied: Path
) -> None:
    shutil.rmtree(copied / "digits-gaussian")
    assert "No rows of `marshtest run digits-gaussian`." in tables.section("digits-gaussian")
    assert "`marshtest run digits-gaussian`" in claims.claim("no silver bullet")
    for name in experiments.SHORT:
        shutil.rmtree(copied / name, ignore_errors=True)
    experiments.results.cache_clear()
    for name, of in claims.CLAIMS.items():
        assert of.told()[1] == (claims.AGREE if "hypothesis" in name else claims.UNKNOWN)
        assert claims.claim(name)
    for told in (tables.three_answers(), tables.by_rate(), tables.changed(), claims.table_2()):
        assert "No rows of" in told


def test_the_command_beside_rows_is_of_their_recipe(experiments: ModuleType) -> None:
    for name in filter(experiments.there, experiments.SHORT):
        _, verb, recipe, *changes = shlex.split(experiments.command(name).strip("`"))
        if verb == "run":
            told = load_recipe(recipe, *changes).model_dump(mode="json")
            of = experiments.results(name)
            of_rows = of.recipe.model_dump(mode="json")
            # Rows may be of several runs.
            of_rows |= {"seeds": len(of.seeds), "first_seed": of.seeds[0]}
            differing = differences(told, of_rows).keys() - {"name", "description"}
            assert not differing, f"{name}: {differing}"


@pytest.mark.parametrize("name", ["paper-cifar10-gaussian", "imdb-gaussian", "digits-gaussian"])
def test_an_unlearner_is_told_as_a_recipe_writes_it(experiments: ModuleType, name: str) -> None:
    given = load_recipe(name).model_dump(mode="json")["unlearners"]
    told = json.dumps([experiments._entry(trials) for trials in given])
    assert load_recipe(name, f"unlearners={told}").model_dump(mode="json")["unlearners"] == given


def test_the_slope_on_one_axis_is_that_of_scipy(scale: ModuleType) -> None:
    rng = np.random.default_rng(0)
    places, values = rng.normal(size=12), rng.normal(size=12)
    ((slope, error),), (_, middle, _) = scale.foretell(places[:, None], values, np.array([2.0]))
    told = stats.linregress(places, values)
    assert (slope, error) == pytest.approx((told.slope, told.stderr))
    assert middle == pytest.approx(told.intercept + 2 * told.slope)


@pytest.mark.parametrize("draws", [9, 29, 199])
def test_the_most_that_a_rank_score_can_be_is_that_of_the_lowest_rank(
    scale: ModuleType, draws: int
) -> None:
    """Every poison ranks before all of its draws: the scores of losses that are so, averaged."""
    poisons, fresh = -np.ones(40_000), np.zeros((40_000, draws))
    scores, _ = rank_scores(poisons, fresh, np.random.default_rng(0))
    error = scores.std() / math.sqrt(len(scores))
    assert -scores.mean() == pytest.approx(scale.most(draws), abs=4 * error)


def test_logits_between_bounds_go_back_to_their_values(scale: ModuleType) -> None:
    trend = scale.Trend("", lambda own: 0.0, "{}", (-1.0, 3.0))
    values = np.array([-0.9, 0.0, 1.0, 2.9])
    logits = trend.stretched(values)
    assert logits[2] == 0  # half the way
    assert trend.back(logits) == pytest.approx(values)
    assert trend.back(trend.stretched(np.array([-5.0, 5.0]))) == pytest.approx([-0.98, 2.98])


def test_what_is_foretold_is_right_in_95_of_100(scale: ModuleType) -> None:
    """Two trainings a variant of a star, a plane with normal errors, one more training far outside."""
    rng, far, repetitions = np.random.default_rng(0), np.array([3.0, 3.0, 2.0]), 4000
    places = np.repeat(np.vstack([np.zeros(3), np.eye(3), -np.eye(3)]), 2, axis=0)
    slopes = np.array([0.3, -0.2, 0.5])
    covered = 0
    for _ in range(repetitions):
        values = 1 + places @ slopes + rng.normal(0, 0.1, len(places))
        _, (low, _, high) = scale.foretell(places, values, far)
        covered += bool(low <= 1 + far @ slopes + rng.normal(0, 0.1) <= high)
    # The count is binomial: outside these ends it is in one of ten thousand versions of this test.
    low, high = stats.binom.interval(1 - 1e-4, repetitions, 0.95)
    assert low <= covered <= high


def test_the_rows_are_small() -> None:
    assert sum(file.stat().st_size for file in FOLDER.rglob("*.parquet")) <= 2 * 2**20


def test_poisons_of_an_older_algorithm_are_those_of_the_newer_one() -> None:
    """Algorithm 3 took a smaller ball for some, of 0.4 times the radius or less."""
    for file in FOLDER.rglob("rows.parquet"):
        rows = read_file(file)
        for recipe, about in rows.runs.items():
            attack = about["values"].get("attack", {})
            if attack.get("name") != "gradient-canceling" or attack.get("radius"):
                continue
            radii = rows.frame.loc[rows.frame["recipe"] == recipe, "crafting_radius"].dropna()
            assert about["algorithm"] > 3 or radii.min() > 0.9 * radii.max(), file


@pytest.mark.slow
def test_pictures_of_the_documents_are_drawn_from_rows(
    experiments: ModuleType, tmp_path: Path
) -> None:
    pictures = importlib.import_module("pictures")
    there = {n for n, (name, _) in pictures.PICTURES.items() if experiments.there(name)}
    there |= pictures.OTHERS.keys()
    walked_through = {"certificate"}  # by benchmarks/walkthrough.py
    assert {file.stem for file in (ROOT / "docs").glob("*.png")} == there | walked_through
    for name in there:
        pictures.draw(name, tmp_path / f"{name}.png")
        files = (ROOT / "docs" / f"{name}.png", tmp_path / f"{name}.png")
        difference = compare_images(*map(str, files), TOLERANCE)
        assert difference is None, f"run `make reproduce`: {difference}"


@pytest.fixture(scope="module")
def drawn() -> dict[str, Figure]:
    return draw_all()


def draw_all() -> dict[str, Figure]:
    """By experiment and name, every figure that the rows of these experiments give."""
    found: dict[str, Figure] = {}
    with matplotlib.rc_context(LOOKS):
        for folder in (FOLDER / name for name in NAMES if any(FOLDER.glob(f"{name}/*.parquet"))):
            merged = read_all([folder])
            for results in merged.results:
                figures = figures_of(results, results.poison_budget)
                if len(results.poison_budgets) > 1:
                    figures |= figures_by_size(results)
                found |= {f"{folder.name}-{name}": of for name, of in figures.items()}
            for study in merged.studies:
                told = SHOWN[study.settings.hypothesis]
                found[f"{folder.name}-{told.name}"] = told.figure(study.curves)
    return found


@pytest.mark.parametrize(("experiment", "name"), FIGURES)
def test_figures_look_as_they_did(
    experiment: str, name: str, drawn: dict[str, Figure], tmp_path: Path
) -> None:
    if not (FOLDER / experiment / "rows.parquet").exists():
        pytest.skip(f"{experiment} has no rows")
    expected = IMAGES / f"{experiment}-{name}.png"
    draw(drawn, expected.stem, tmp_path)
    difference = compare_images(str(expected), str(tmp_path / expected.name), TOLERANCE)
    assert difference is None, difference


def test_there_is_an_image_of_each_figure_of_the_paper() -> None:
    assert {f"figure{number}" for number in range(2, 11)} <= {name for _, name in FIGURES}
    with_rows = [n for n in FIGURES if (FOLDER / n[0] / "rows.parquet").exists()]
    assert {path.stem for path in IMAGES.glob("*.png")} == {"-".join(of) for of in with_rows}


def draw(drawn: dict[str, Figure], name: str, folder: Path) -> None:
    with matplotlib.rc_context(LOOKS):
        box = drawn[name].get_tightbbox().padded(0.1)
        drawn[name].savefig(folder / f"{name}.png", dpi=60, bbox_inches=box)


if __name__ == "__main__":
    for file in IMAGES.glob("*.png"):
        file.unlink()
    every = draw_all()
    for name in map("-".join, FIGURES):
        if name in every:
            draw(every, name, IMAGES)
