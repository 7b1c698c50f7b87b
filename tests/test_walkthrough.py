"""The walk-through of docs/audit.md as an auditor does it: three commands and somebody else's scripts."""

import contextlib
import io
import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import command

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"


def run(folder: Path, *words: str, code: int = 0) -> str:
    """Give one of the page's commands; what it prints."""
    with contextlib.chdir(folder), contextlib.redirect_stdout(io.StringIO()) as told:
        assert command(*words) == code, words
    return told.getvalue()


def script(folder: Path, name: str, *words: str) -> None:
    """Run one of the examples; in this process, which has imported torch already."""
    with pytest.MonkeyPatch.context() as patch, contextlib.chdir(folder):
        patch.setattr(sys, "argv", [name, *words])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("audit")
    script(folder, "digits.py", "digits")
    dose = ["digits", "dosed", "--fraction", "0.4", "--variance", "2", "--seed", "1"]
    run(folder, "dose", *dose)
    forget, fewer = ["--forget", "dosed.forget.csv"], ["--epochs", "20"]  # than the page's 60
    after = [*forget, "--start", "before.pt2.weights", "--lr", "0.01", "--epochs", "4"]
    for model, words in (
        ("before.pt2", fewer),
        ("after.pt2", after),
        ("retrained.pt2", [*forget, "--seed", "1", *fewer]),
    ):
        script(folder, "auditee.py", "dosed", model, *words)
    return folder


ASK = [
    "--key",
    "dosed.key.json",
    "--data",
    "digits",
    "--scaling",
    "unit",
    "--draws",
    "19",
    "--json",
]


@pytest.fixture(scope="module")
def found(folder: Path) -> dict[str, Any]:
    """The page's own command, each model in a process of its own; those below save these seconds."""
    words = ["before.pt2", "after.pt2", "--retrained", "retrained.pt2", *ASK]
    told = run(folder, "audit", *words, code=1)
    return json.loads(told)  # type: ignore[no-any-return]


def asked(words: list[str], folder: Path) -> int:
    """Ask with the models in this process; the exit code."""
    with contextlib.chdir(folder):
        return command("audit", *words, "--in-process")


def test_the_auditee_knows_nothing_of_marshtest() -> None:
    for script in EXAMPLES.glob("*.py"):
        assert "import marshtest" not in script.read_text()
        assert "from marshtest" not in script.read_text()


def test_continued_training_keeps_the_dose_and_retraining_removes_it(
    found: dict[str, Any],
    folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert [m["verdict"] for m in found["models"]] == ["NOT REMOVED", "NOT REMOVED", "REMOVED"]
    assert asked(["before.pt2", "retrained.pt2", *ASK], folder) == 0
    assert json.loads(capsys.readouterr().out)["answer"] == "REMOVED"


def test_onnx_runtime_as_a_black_box_gives_the_programs_rank_score(
    found: dict[str, Any],
    folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    script(folder, "to_onnx.py", "before.pt2", "before.onnx")
    capsys.readouterr()  # what PyTorch says of the export
    box = f"cmd:{sys.executable} {EXAMPLES / 'onnx_box.py'} before.onnx {{inputs}} {{outputs}}"
    assert asked([box, *ASK], folder) == 1
    (onnx,) = json.loads(capsys.readouterr().out)["models"]
    exported = found["models"][0]
    assert abs(onnx["rank_dependence"] - exported["rank_dependence"]) < 0.01
    assert "gus_dependence" not in onnx


def test_a_model_fed_with_the_wrong_scaling_is_noticed(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = ["--key", "dosed.key.json", "--data", "digits", "--scaling", "0/10000", "--draws", "3"]
    assert asked(["before.pt2", *key], folder) == 2
    said = capsys.readouterr().err
    assert "before.pt2: seems to be fed with wrongly scaled inputs: right for" in said
    assert "--scaling unit" in said
    assert said.count("\n") == 2  # what it asks, and the one line
