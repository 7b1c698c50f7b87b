"""Public names and commands: each is there, starts quickly, and answers to its old name for one version."""

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import TINY
from typer.testing import CliRunner

import marshtest
from marshtest.cli.app import RENAMED, app
from marshtest.data.load import load
from marshtest.results.summary import Results

SLOW = {"torch", "scipy.stats", "scipy.optimize", "pandas", "matplotlib", "altair"}


def imported_by(code: str) -> set[str]:
    """The libraries of note that a fresh process has imported after some code."""
    tell = f"import sys; print(*{SLOW} & sys.modules.keys())"
    command = [sys.executable, "-c", f"{code}\n{tell}"]
    said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=100)
    return set(said.stdout.splitlines()[-1].split())


def test_every_public_name_is_there_and_described() -> None:
    for name in marshtest.__all__:
        assert getattr(marshtest, name).__doc__, name


def test_the_package_is_imported_without_what_takes_long() -> None:
    assert imported_by("import marshtest") == set()


@pytest.mark.slow
def test_a_models_own_process_imports_torch_alone() -> None:
    assert imported_by("import marshtest.kit.open_model") == {"torch"}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of a finished sweep."""
    folder = tmp_path_factory.mktemp("swept")
    small = {**TINY, "seeds": 1, "unlearners": ["gd"]}
    marshtest.sweep(small, store=folder / "store", out=folder / "rows")
    return folder / "store"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "needed"),
    [
        ("--help", set()),
        ("list", set()),
        ("status --store STORE", set()),
        ("clean --dry-run --store STORE", set()),
        ("rows --store STORE", {"pandas"}),
        ("compare RUN RUN", {"pandas"}),
        ("leaderboard RUN", {"pandas"}),
        ("plan --gus 1", {"pandas", "matplotlib"}),
    ],
)
def test_commands_that_only_read_start_without_torch(
    command: str,
    needed: set[str],
    tiny_run: Results,
    store: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    words = command.replace("RUN", str(tiny_run.folder)).replace("STORE", str(store)).split()
    code = f"""
import sys
sys.argv = ["marshtest", *{words}]
from marshtest.cli.app import main
try: main()
except SystemExit as end: assert not end.code"""
    assert imported_by(code) == needed


@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_a_command_answers_to_its_old_name_and_says_the_new_one(old: str, new: str) -> None:
    before, now = (CliRunner().invoke(app, [name, "--help"]) for name in (old, new))
    (line,) = before.stderr.splitlines()
    assert f"`marshtest {old}` is now `marshtest {new}`" in line
    assert (before.exit_code, before.stdout) == (0, now.stdout)
    assert now.stderr == ""
    assert f" {old} " not in CliRunner().invoke(app, ["--help"]).stdout


@pytest.mark.slow
def test_old_names_in_python_warn_and_do_the_same(bare_rows: Path, tmp_path: Path) -> None:
    with pytest.warns(DeprecationWarning, match=r"marshtest\.report"):
        old = marshtest.report_rows(bare_rows, out=tmp_path / "old")
    new = marshtest.report(bare_rows, out=tmp_path / "new")
    assert old.said == new.said
    one, other = ((tmp_path / name / "report.html").read_bytes() for name in ("old", "new"))
    assert one == other
    with pytest.warns(DeprecationWarning, match="one by one"):
        listed = marshtest.load_recipe("digits-gaussian", ["seeds=2"])  # type: ignore[arg-type]
    assert listed == marshtest.load_recipe("digits-gaussian", "seeds=2")


def test_what_is_typed_at_a_prompt_answers_in_a_line(tiny_run: Results) -> None:
    data = load("digits")
    assert repr(data.train) == "Samples(1,400 samples, x uint8 [1400, 1, 8, 8])"
    assert "'digits', 10 classes, train Samples(1,400" in repr(data)
    assert repr(tiny_run) == f"Results('tiny', 10 rows in {str(tiny_run.folder)!r})"
