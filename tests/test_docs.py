"""The documents hold: the README's Python runs, every command and column is described."""

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from marshtest.cli import app as cli
from marshtest.plumbing.yaml_files import shipped
from marshtest.results.summary import Results

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.mark.usefixtures("no_report")
def test_the_own_unlearner_example_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (example,) = blocks("python")
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "README.md", "exec"), {"__name__": "readme"})
    assert "readme:my_unlearner" in capsys.readouterr().out


def test_shell_blocks_name_commands_that_exist() -> None:
    commands = {c.name or c.callback.__name__ for c in cli.app.registered_commands}  # type: ignore[union-attr]
    makefile = (ROOT / "Makefile").read_text()
    used = set()
    for line in "\n".join(blocks("sh")).splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] == ["make"]:
            assert f"\n{words[1]}:" in makefile
        elif words:
            assert words[0] == "marshtest"
            used.add(words[1])
            assert CliRunner().invoke(cli.app, [words[1], "--help"]).exit_code == 0
    assert used == commands


def test_the_walk_through_names_commands_and_scripts_that_exist() -> None:
    commands = {c.name or c.callback.__name__ for c in cli.app.registered_commands}  # type: ignore[union-attr]
    page = (ROOT / "docs" / "audit.md").read_text()
    lines = "".join(re.findall(r"```sh\n(.*?)```", page, re.DOTALL)).replace("\\\n", " ")
    used = [shlex.split(line) for line in lines.splitlines()]
    assert (
        {words[1] for words in used if words[0] == "marshtest"}
        == {"plan", "dose", "test", "calibrate"}
        <= commands
    )
    for words in used:
        assert words[0] == "marshtest" or (ROOT / words[1]).exists()


def test_every_recipe_is_in_the_readme() -> None:
    for name in (*shipped(), *shipped("hypotheses"), *shipped("sweeps")):
        assert f"`{name}`" in README


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
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            assert target.startswith("https://") or (page.parent / target).exists(), (page, target)
