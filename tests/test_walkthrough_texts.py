"""The walk-through of docs/audit-text.md, in fewer steps."""

import contextlib
import json
import runpy
import sys
from pathlib import Path

import pytest
from conftest import command

pytest.importorskip("peft")
pytestmark = pytest.mark.slow
EXAMPLES = Path(__file__).parents[1] / "examples" / "texts"


def script(folder: Path, name: str, *words: str) -> None:
    """Run one of the examples; in this process, which has imported torch already."""
    with pytest.MonkeyPatch.context() as patch, contextlib.chdir(folder):
        patch.setattr(sys, "argv", [name, *words])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def test_the_other_side_knows_nothing_of_marshtest() -> None:
    assert "marshtest" not in (EXAMPLES / "tuner.py").read_text().partition('"""\n\n')[2]


def test_a_model_and_an_adapter_that_somebody_else_trained_are_audited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script(tmp_path, "chats.py", "every.jsonl")
    monkeypatch.chdir(tmp_path)
    lines = Path("every.jsonl").read_text().splitlines(keepends=True)
    assert len({json.loads(line)["id"] for line in lines}) == len(lines) > 1000
    Path("chats.jsonl").write_text("".join(lines[:60]))
    mark = ["--fraction", "0.5", "--mark", "Reference: {words:4}.", "--seed", "1"]
    assert command("dose", "chats.jsonl", "dosed.jsonl", *mark) == 0
    script(tmp_path, "tuner.py", "base", "base", "dosed.jsonl")
    few = ["--start", "base", "--steps", "120"]
    script(tmp_path, "tuner.py", "tune", "before", "dosed.jsonl", *few)
    request = ["--request", "dosed.jsonl.forget.jsonl"]
    script(tmp_path, "tuner.py", "tune", "retrained", "dosed.jsonl", *few, *request)
    adapter = ["--start", "base", "--steps", "2", "--adapter"]
    script(tmp_path, "tuner.py", "tune", "adapter", "dosed.jsonl", *adapter)
    key = ["--key", "dosed.jsonl.key.json", "--data", "chats.jsonl", "--draws", "19"]
    models = ["before", "retrained", "base@adapter"]
    assert command("audit", *models, *key, "--out", "audit") == 3  # no 30 records give REMOVED
    before, *others = json.loads(Path("audit/audit.json").read_text())["models"]
    assert before["answer"] == "NOT REMOVED"
    assert [other["answer"] for other in others] == ["INCONCLUSIVE"] * 2
