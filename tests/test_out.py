"""One folder, one command: what two of them, odd names and a full disk do to what is written."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from conftest import TINY, at_once, command, in_a_small_disk

import marshtest
from marshtest.plumbing import whole_files
from marshtest.plumbing.errors import MarshtestError
from marshtest.plumbing.whole_files import LOCK, alone
from marshtest.results.summary import Results

ONE = {**TINY, "seeds": 1, "unlearners": ["gd"]}


@pytest.mark.usefixtures("no_report")
def test_a_folder_that_a_command_holds_is_refused_to_a_second(tmp_path: Path) -> None:
    with alone(tmp_path / "run"):
        with pytest.raises(MarshtestError, match="run: another command is at work on it"):
            marshtest.run(ONE, out=tmp_path / "run")
        with pytest.raises(MarshtestError, match="run: another command is at work on it"):
            marshtest.study("hypothesis-orthogonality-small", out=tmp_path / "run")
    marshtest.run(ONE, out=tmp_path / "run")


def test_a_lock_file_that_was_removed_as_it_was_opened_keeps_nobody_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who held it before removes its name; what is locked then must be the file that stands there."""
    real, flocked = whole_files.fcntl.flock, list[int]()

    def late(file: Any, how: int) -> None:
        if not flocked:  # the other command ends between this one's opening and its lock
            (tmp_path / LOCK).unlink()
        flocked.append(how)
        real(file, how)

    monkeypatch.setattr(whole_files.fcntl, "flock", late)
    with alone(tmp_path):
        assert len(flocked) == 2
        with pytest.raises(MarshtestError, match="another command"), alone(tmp_path):
            pass


@pytest.mark.parametrize("content", ["[]", '"x"', "3"])
def test_a_runs_record_of_another_shape_is_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(MarshtestError, match=r"run.json: cannot be read"):
        marshtest.run(ONE, out=tmp_path, report=False)


@pytest.mark.slow
@pytest.mark.usefixtures("no_report")
@pytest.mark.parametrize("seeds", [(1, 1), (1, 2)])
def test_two_runs_at_once_end_well_or_in_one_line(seeds: tuple[int, int], tmp_path: Path) -> None:
    """Of one recipe, and of two."""
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(ONE))
    commands = [f"run r.yaml --out here --no-report seeds={n}" for n in seeds]
    codes, said = at_once(*commands, folder=tmp_path)
    assert codes[0] == 0
    assert codes[1] == 2 or (codes == [0, 0] and seeds[0] == seeds[1])
    assert "Traceback" not in said
    rows = Results.read(tmp_path / "here").rows
    assert set(rows["seed"]) in [set(range(n)) for n in seeds]
    alone_rows = marshtest.run(ONE, f"seeds={rows['seed'].nunique()}", out=tmp_path / "alone").rows
    for column in ("rank_dependence", "test_accuracy"):
        pd.testing.assert_series_equal(rows[column], alone_rows[column], check_exact=True)


@pytest.mark.slow
def test_two_reports_at_once_end_well(bare_rows: Path, tmp_path: Path) -> None:
    codes, _ = at_once(*2 * [f"report {bare_rows} --out report"], folder=tmp_path)
    assert codes == [0, 0]
    assert (tmp_path / "report" / "report.html").read_text().rstrip().endswith("</html>")
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.slow
def test_brackets_in_a_path_are_printed_as_they_are(
    bare_rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "[red]a[/red] [b a[/]b :smile: [link=x]y"  # three folders
    assert command("report", str(bare_rows), "--out", str(folder)) == 0
    assert str(folder / "report.html") in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(
    "commands", ["report RUN --out $DISK/report", "leaderboard RUN --out $DISK/board"]
)
def test_a_report_on_a_full_disk_is_one_line(
    commands: str, bare_rows: Path, tmp_path: Path
) -> None:
    command = commands.replace("RUN", str(bare_rows))
    said = in_a_small_disk(
        f"cat /dev/zero > $DISK/full 2> /dev/null || true; $RUN {command} || echo full $?; "
        "find $DISK -name '*.tmp' | wc -l",
        tmp_path,
    )
    assert "full 2\n0\n" in said.stdout, said
    (line,) = [line for line in said.stderr.splitlines() if line.startswith("marshtest: ")]
    assert "cannot be written (No space left on device)" in line
    assert "Traceback" not in said.stderr


@pytest.mark.usefixtures("no_report")
def test_a_run_whose_record_was_cut_short_is_one_line(tmp_path: Path) -> None:
    marshtest.run(ONE, out=tmp_path / "run")
    record = tmp_path / "run" / "run.json"
    record.write_text(record.read_text()[:50])
    with pytest.raises(MarshtestError, match="run.json: cannot be read .* Restore it"):
        marshtest.run(ONE, out=tmp_path / "run")


def test_out_may_be_no_file(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("mine")
    with pytest.raises(MarshtestError, match="run: is a file, not a folder"):
        marshtest.run(ONE, out=tmp_path / "run")


def named(results: Results, name: str, folder: Path) -> Path:
    """A run's controls under another name, of other settings, so that they are not merged."""
    from marshtest.experiment.row_file import write_rows

    alpha = 0.05 if results.recipe.name == "tiny" and len(results.seeds) == 2 else 0.04
    runs: dict[str, Any] = {
        of: {**about, "values": {**about["values"], "name": name, "verdict": {"alpha": alpha}}}
        for of, about in results.runs.items()
    }
    controls = results.rows[results.rows["role"] != "updated"].reset_index(drop=True)
    write_rows(controls, folder / "rows.parquet", runs)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("names", [("a.0", "A.1"), ("x y", "x_y")])
def test_names_that_are_nearly_alike_keep_all_their_tables(
    names: tuple[str, str], tiny_run: Results, ablated: Results, tmp_path: Path
) -> None:
    folders = [
        named(of, name, tmp_path / str(place))
        for place, (of, name) in enumerate(zip((tiny_run, ablated), names, strict=True))
    ]
    marshtest.report(*folders, out=tmp_path / "out")
    made = [path.name.casefold() for path in (tmp_path / "out" / "tables").iterdir()]
    assert len(set(made)) == len(made)
    for kind in ("-table.csv", "-table.md", "-table.tex", "-summary.csv"):
        assert len([name for name in made if name.endswith(kind)]) == 2, (kind, made)
    assert len(list((tmp_path / "out" / "rows").iterdir())) == 2
