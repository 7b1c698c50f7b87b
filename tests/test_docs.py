"""The documents hold: their Python runs, every command, recipe and column is described."""

import re
import shlex
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY
from typer.testing import CliRunner

import marshtest
from marshtest.cli import app as cli
from marshtest.plumbing.yaml_files import shipped
from marshtest.results.summary import Results
from marshtest.unlearning import UNLEARNERS as ALL_UNLEARNERS
from marshtest.unlearning import parse_trials

ROOT = Path(__file__).parents[1]
UNLEARNERS = ROOT / "docs" / "unlearners.md"
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
COMMANDS = {
    c.name or c.callback.__name__  # type: ignore[union-attr]
    for c in cli.app.registered_commands
    if not c.hidden
}


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)


def shell_lines(page: Path) -> Iterator[list[str]]:
    """The words of each command in a page's shell blocks."""
    for line in "".join(blocks(page, "sh")).replace("\\\n", " ").splitlines():
        if words := shlex.split(line, comments=True):
            yield words


@pytest.mark.slow
@pytest.mark.usefixtures("no_report")
def test_the_own_unlearner_example_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (example,) = blocks(ROOT / "README.md", "python")
    monkeypatch.chdir(tmp_path)
    assert '"seeds=2"' in example
    quick = example.replace('"seeds=2"', '"seeds=1", "unlearners=[]"')
    exec(compile(quick, "README.md", "exec"), {"__name__": "readme"})
    assert "readme:my_unlearner" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.usefixtures("no_report")
def test_the_first_hours_unlearners_run_and_only_the_one_that_starts_anew_removes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, call = blocks(ROOT / "docs" / "first-hour.md", "python")
    (tmp_path / "mine.py").write_text(module)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    found: dict[str, Results] = {}
    both = call.replace("import ascend", "import ascend, start_anew").replace(
        "[ascend]", "[ascend, start_anew]"
    )
    exec(both.replace('"seeds=3"', '"seeds=1", "unlearners=[]"'), found)
    summary = found["results"].summary.set_index("unlearner")
    assert summary.loc["mine:ascend", "verdict"] == "NOT REMOVED"
    assert summary.loc["mine:start_anew", "verdict"] == "REMOVED"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_shell_blocks_name_commands_and_files_that_exist(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for words in shell_lines(page):
        if words[0] == "make":
            assert f"\n{words[1]}:" in makefile, words
        elif words[0] == "marshtest":
            assert words[1] in COMMANDS, words
        elif words[0] == "python" and words[1].endswith(".py"):
            assert (ROOT / words[1]).exists(), words


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_has_help_and_a_place_in_the_guide(command: str) -> None:
    assert CliRunner().invoke(cli.app, [command, "--help"]).exit_code == 0
    assert f"| `marshtest {command}" in (ROOT / "docs" / "which-command.md").read_text()


def test_no_page_names_a_command_that_is_not_there() -> None:
    for page in PAGES:
        if page.name != "CHANGELOG.md":  # which names old ones
            named = set(re.findall(r"`marshtest ([a-z]+)", page.read_text()))
            assert named <= COMMANDS, (page, named - COMMANDS)


def test_every_recipe_is_described() -> None:
    described = (ROOT / "docs" / "recipes.md").read_text()
    for name in (*shipped(), *shipped("hypotheses"), *shipped("sweeps")):
        assert f"`{name}`" in described


def test_every_unlearner_is_described_with_the_hyper_parameters_that_it_has() -> None:
    """A value in the tables is the default; what is not told is as the page says it is of all."""
    every = {"momentum": 0.9, "weight_decay": 5e-4, "batch_size": 128}
    rows = re.findall(r"^\| `([^`]+)` \| .* \| ([^|]*) \|$", UNLEARNERS.read_text(), re.MULTILINE)
    told = {name: cell for name, cell in rows if name in ALL_UNLEARNERS}
    beside = {"outside", "elsewhere"}  # which take files, and have sections of their own
    assert told.keys() == ALL_UNLEARNERS.keys() - beside
    for name, cell in told.items():
        (unlearner,) = parse_trials(name)
        given = re.findall(r"`(\w+)`(?: \([^)]*\))? ([\d.e/-]*\d)", cell)
        values = every | {key: float(Fraction(value)) for key, value in given}
        for key, default in unlearner.hyperparameters.items():
            if isinstance(default, float | int) and not isinstance(default, bool):
                expected = values.get(key)
                # Those of another method, which the cell refers to, stand in that one's row.
                if expected is None and name == "undo":
                    continue
                assert default == pytest.approx(expected), f"{name}: {key}"


def test_every_column_of_the_rows_is_described(tiny_run: Results) -> None:
    described = (ROOT / "docs" / "rows.md").read_text()
    ends = ("_error", "_low", "_high", "_p", "_poisons", "_undefined", "_hidden", "_cells", "_sd")
    for column in [*tiny_run.rows.columns, *tiny_run.summary.columns]:
        plain = {column, *(column.removesuffix(end) for end in ends if column.endswith(end))}
        plain |= {f"{name}_dependence" for name in plain}
        if column.endswith(("_trainings", "_trainings_low", "_trainings_high")):
            plain.add(f"{column.partition('_trainings')[0]}_trainings_error")
        if column != "seeds":
            assert any(f"`{name}`" in described for name in plain), column


def test_links_of_the_documents_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            assert target.startswith("https://") or (page.parent / target).exists(), (page, target)


@pytest.mark.slow
def test_the_examples_of_contributing_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unlearner that passes; an attack, a metric and a data set, through a run to its page."""
    unlearner, *others = blocks(ROOT / "CONTRIBUTING.md", "python")
    found: dict[str, Any] = {"__name__": "contributing"}
    exec(unlearner, found)
    assert all(fact.holds for fact in marshtest.check_unlearner(found["LastStep"](), ["features"]))
    for name, block in zip(("flips", "member", "mydata"), others, strict=True):
        (tmp_path / f"{name}.py").write_text(block)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    recipe = TINY | {
        "data": {"name": "mydata:load", "samples": 400},
        "attack": {"name": "flips:LabelFlips"},
        "metrics": ["member:LossGap"],
        "unlearners": ["gd"],
    }
    results = marshtest.run(recipe, out=tmp_path / "run")
    assert {"flip_probability", "loss_gap"} <= set(results.rows.columns)
    page = (results.folder / "report.html").read_text()
    assert "wrong labels" in page
    assert "Loss gap: mean loss of test samples" in page
