"""docs/reproduce.md is what its rows say; the figures can be drawn from them, and look as they did."""

import importlib
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import matplotlib
import pytest
from matplotlib.figure import Figure
from matplotlib.testing.compare import compare_images

from marshtest.merging import read_all
from marshtest.report.figures import STYLE, figures_by_size, figures_of
from marshtest.report.hypotheses import SHOWN
from marshtest.rows import read_file, write_rows

ROOT = Path(__file__).parents[1]
PAGE, FOLDER = ROOT / "docs" / "reproduce.md", ROOT / "docs" / "reproduce"
IMAGES = Path(__file__).parent / "images"
TOLERANCE = 6  # RMS of pixel values: text may be set a little differently, a bar may not move


@pytest.fixture(scope="module")
def claims() -> Iterator[ModuleType]:
    sys.path.insert(0, str(FOLDER))
    yield importlib.import_module("claims")
    sys.path.remove(str(FOLDER))
    del sys.modules["claims"]


def test_the_page_is_what_its_rows_say() -> None:
    options = ["-P", "-I", "docs/reproduce", "-p", "from claims import *"]
    command = [sys.executable, "-m", "cogapp", "--check", *options, "docs/reproduce.md"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"run `make reproduce`: {done.stdout}{done.stderr}"
    assert PAGE.read_text().count("**Here: ") == PAGE.read_text().count("print(claim(")


def test_every_claim_has_its_place_in_the_page(claims: ModuleType) -> None:
    text = PAGE.read_text()
    for name in claims.CLAIMS:
        assert f'print(claim("{name}"))' in text
        assert f"\n### {name[0].upper()}{name[1:]}\n" in text


def test_other_rows_give_another_answer(
    claims: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GD's poisons taken out, as if it had worked: three claims of it no longer hold."""
    before = {name: claims.CLAIMS[name]()[1] for name in ("no silver bullet", "GD by attack")}
    assert before["no silver bullet"] == claims.AGREE
    shutil.copytree(FOLDER, tmp_path / "rows")
    for name in claims.ALL:
        rows = read_file(tmp_path / "rows" / name)
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
    monkeypatch.setattr(claims, "ROWS", tmp_path / "rows")
    claims.results.cache_clear()
    try:
        assert claims.cell("digits-gaussian", "gd").verdict == "REMOVED"
        assert claims.CLAIMS["GD by attack"]()[1] == claims.DISAGREE
        assert claims.CLAIMS["none removes"]()[1] == claims.DISAGREE
    finally:
        claims.results.cache_clear()


@pytest.fixture(scope="module")
def drawn() -> dict[str, Figure]:
    """By experiment and name, every figure that the rows of the page give."""
    found: dict[str, Figure] = {}
    with matplotlib.rc_context(STYLE):
        for folder in (path for path in sorted(FOLDER.iterdir()) if path.is_dir()):
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


def test_every_figure_of_the_paper_is_drawn(drawn: dict[str, Figure]) -> None:
    names = {name.rpartition("-")[2] for name in drawn}
    assert {f"figure{number}" for number in range(2, 11)} <= names


@pytest.mark.parametrize("expected", sorted(IMAGES.glob("*.png")), ids=lambda path: path.stem)
def test_figures_look_as_they_did(expected: Path, drawn: dict[str, Figure], tmp_path: Path) -> None:
    """Made anew by `draw` below; look at them before they are committed."""
    draw(drawn, expected.stem, tmp_path)
    difference = compare_images(str(expected), str(tmp_path / expected.name), TOLERANCE)
    assert difference is None, difference


def draw(drawn: dict[str, Figure], name: str, folder: Path) -> None:
    with matplotlib.rc_context(STYLE):
        box = drawn[name].get_tightbbox().padded(0.1)
        drawn[name].savefig(folder / f"{name}.png", dpi=60, bbox_inches=box)


def test_there_is_an_image_of_each_figure_of_the_paper() -> None:
    names = {path.stem.rpartition("-")[2] for path in IMAGES.glob("*.png")}
    assert {f"figure{number}" for number in range(2, 11)} <= names
