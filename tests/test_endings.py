"""How commands end: 0, 1 and 3 are answers, and nothing that somebody else wrote can give them."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import LOOKUP, TINY, wait_until_it_hangs

from marshtest.cli import app as cli
from marshtest.kit.dose import dose
from marshtest.plumbing.errors import MarshtestError
from marshtest.plumbing.imports import load_object

PATH = os.pathsep.join([str(Path(cli.__file__).parents[2]), str(Path(__file__).parent)])
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": PATH}
TEST = ["audit", "vendor:load", "--key", "dosed.npz.key.json", "--data", "set.npz", "--draws", "9"]

VENDOR = f"""
import sys
print("a banner on standard output")
assert not sys.stdin.read()
{LOOKUP}"""
UNLEARNERS = """
import sys
def exits(model, retain, forget, *, task, budget, seed):
    sys.exit(0)
def interrupts(model, retain, forget, *, task, budget, seed):
    raise KeyboardInterrupt
"""
HIDING = "open('executed', 'a').write(__name__ + ' '); raise SystemExit(0)"
LIBRARIES = ["torch", "yaml", "numpy", "json", "datasets", "pandas", "random", "signal", "rich"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder as a vendor might deliver it, with modules that hide libraries of ours."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    pixels = np.random.default_rng(0).integers(0, 256, (40, 1, 4, 4), dtype=np.uint8)
    np.savez(tmp_path / "set.npz", x=pixels, y=np.arange(40) % 2)
    dose(tmp_path / "set.npz", tmp_path / "dosed.npz", fraction=0.5, seed=1)
    (tmp_path / "vendor.py").write_text(VENDOR)
    (tmp_path / "theirs.py").write_text(UNLEARNERS)
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY | {"seeds": 1, "unlearners": ["gd"]}))
    for name in LIBRARIES:
        (tmp_path / f"{name}.py").write_text(HIDING)
    return tmp_path


def said(folder: Path, *arguments: str, **rest: Any) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "marshtest", *arguments],
        cwd=folder,
        env=ENVIRONMENT,
        stderr=subprocess.PIPE,
        text=True,
        timeout=120,
        **({"stdout": subprocess.PIPE, "input": "what the user types"} | rest),
    )


@pytest.mark.slow
def test_the_verdicts_code_and_nothing_but_json_on_standard_output(folder: Path) -> None:
    done = said(folder, *TEST, "--json")
    assert (done.returncode, json.loads(done.stdout)["answer"]) == (3, "INCONCLUSIVE")
    assert "a banner" in done.stderr
    assert not (folder / "executed").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["list", "--json"], 0),
        (["dose", "set.npz", "new.npz", "--fraction", "0.5"], 0),
        (["check", "theirs:exits"], 1),
        (["check", "theirs:interrupts", "--on", "features"], 1),
        (["check", "datasets:exits"], 2),
        (["sweep", "tiny.yaml", "--engine", "processes", "--workers", "1"], 0),
        (["report", "nowhere", "--out", "page"], 2),
    ],
)
def test_no_command_executes_what_hides_a_library(
    folder: Path, arguments: list[str], code: int
) -> None:
    done = said(folder, *arguments)
    assert not (folder / "executed").exists(), (folder / "executed").read_text()
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    if code == 2 and arguments[0] == "check":
        assert f"goes before {folder / 'datasets.py'}; rename the latter" in done.stderr


def test_a_module_of_the_working_folder_is_found_there_alone(folder: Path) -> None:
    before = list(sys.path)
    assert load_object("json:loads", "here") is json.loads
    with pytest.raises(MarshtestError, match="cannot import 'nowhere_to_be_found'"):
        load_object("nowhere_to_be_found:f", "here")
    assert sys.path == before
    assert load_object("theirs:exits", "here").__name__ == "exits"
    assert sys.path == [*before, str(folder)]
    (folder / "leaving.py").write_text("raise SystemExit(0)")
    with pytest.raises(MarshtestError, match=r"cannot import 'leaving' \(SystemExit: 0\)"):
        load_object("leaving:f", "here")


@pytest.mark.parametrize(
    ("raised", "code", "says"),
    [
        (SystemExit(0), 2, "tried to end the command"),
        (SystemExit(1), 2, "tried to end the command"),
        (ZeroDivisionError("oh"), 2, "a fault of marshtest itself (ZeroDivisionError: oh)"),
        (OSError(5, "Input/output error"), 2, "output: Input/output error."),
        (EOFError(), 2, "a fault of marshtest itself"),
        (MemoryError(), 2, "out of memory"),
        (KeyboardInterrupt(), 130, "marshtest: stopped."),
    ],
)
def test_whatever_else_ends_a_command_is_no_answer(
    raised: BaseException,
    code: int,
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def ends(*_: Any, **__: Any) -> None:
        raise raised

    monkeypatch.setattr("marshtest.kit.audit.audit", ends)
    monkeypatch.setattr(sys, "argv", ["marshtest", *TEST])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == code
    assert says in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.slow
def test_an_answer_that_cannot_be_written_is_none(folder: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = said(folder, *TEST, "--json", stdout=full)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == "marshtest: output: No space left on device."


def test_a_closed_output_is_no_fault(folder: Path) -> None:
    command = f"{sys.executable} -m marshtest list recipes >&-"
    done = subprocess.run(
        ["sh", "-c", command],
        cwd=folder,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    "arguments",
    [
        ["list", "recipes"],
        ["list", "--json"],
        ["list", "--help"],
        pytest.param(["explain", "digits-gaussian", "data.train=50"], marks=pytest.mark.slow),
    ],
)
def test_a_closed_pipe_ends_a_command_quietly(folder: Path, arguments: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as closed:
        done = said(folder, *arguments, stdout=closed)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.slow
def test_ctrl_c_in_a_test_promises_nothing(folder: Path) -> None:
    asking = subprocess.Popen(
        [sys.executable, "-m", "marshtest", TEST[0], "vendors:hangs", *TEST[2:]],
        cwd=folder,
        env=ENVIRONMENT,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    wait_until_it_hangs(folder, asking)
    asking.send_signal(signal.SIGINT)
    _, told = asking.communicate(timeout=30)
    assert asking.returncode == 130
    assert told.splitlines()[-1] == "marshtest: stopped."
