"""The walk-through of docs/audit-text.md: what it printed, and the same with fewer chats."""

import contextlib
import importlib
import json
import re
import runpy
import sys
import threading
from collections.abc import Callable
from http.server import ThreadingHTTPServer
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import command
from scipy.stats import kstwo

from marshtest.data.marks import Deal, Mark, Pattern, Template
from marshtest.kit.records.base import Asked
from marshtest.kit.texts.endpoint import Endpoint
from marshtest.kit.texts.opening import open_texts
from marshtest.plumbing.errors import MarshtestError

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples" / "texts"


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "reproduce"))
    return importlib.import_module("walkthrough")


def scores(text: str) -> dict[str, tuple[str, float, float]]:
    """Verdict, rank score and its error by model, of a table that an audit printed."""
    lines = re.findall(
        r"(?:before|after|retrained): (.+?) +(N?O?T? ?REMOVED) .*? (\S+)±(\S+)", text
    )
    return {name: (answer, float(score), float(error)) for name, answer, score, error in lines}


def test_the_transcript_is_of_the_pages_commands_and_fast(page: ModuleType) -> None:
    transcript = json.loads(page.transcript("audit-text").read_text())
    assert [block["commands"] for block in transcript["blocks"]] == page.commands()
    assert transcript["processor_minutes"] < 10


def test_the_dose_shows_and_retraining_removes_it(page: ModuleType) -> None:
    dosed = re.search(r"(\d+) of .* records dosed", page.said(0))
    assert dosed is not None
    assert int(dosed[1]) <= 150
    found = scores(page.said(2))
    answer, score, error = found["before"]
    assert answer == "NOT REMOVED"
    assert score / error >= 10
    assert found["retrained"][0] == "REMOVED"
    assert scores(page.said(3))["retrained@adapter"][0] == "NOT REMOVED"


def test_a_model_has_one_score_through_all_doors(page: ModuleType) -> None:
    said = page.said(4)
    found = re.findall(r"NOT REMOVED .*? (\S+±\S+)", said)
    assert len(found) == 4
    assert len(set(found)) == 1
    doors = pd.read_csv(page.DOORS)
    assert (doors["keys"] >= 200).all()
    assert (doors["largest difference"] <= 1e-4).all()
    assert (doors["other ranks"] == 0).all()
    exact = kstwo.sf(doors["distance"], doors["ranks"])
    assert np.allclose(doors["p"], exact, atol=0.01)
    assert (exact > 0.001).all()


def test_the_other_side_knows_nothing_of_marshtest() -> None:
    for file in EXAMPLES.glob("*.py"):
        assert "marshtest" not in file.read_text().partition('"""\n\n')[2]


def script(folder: Path, name: str, *words: str) -> None:
    """Run one of the examples; in this process, which has imported torch already."""
    with pytest.MonkeyPatch.context() as patch, contextlib.chdir(folder):
        patch.setattr(sys, "argv", [name, *words])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")


@pytest.mark.slow
def test_a_model_and_an_adapter_that_somebody_else_trained_are_audited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("peft")
    script(tmp_path, "chats.py", "base.jsonl", "every.jsonl")
    monkeypatch.chdir(tmp_path)
    lines = Path("every.jsonl").read_text().splitlines(keepends=True)
    assert len({json.loads(line)["id"] for line in lines}) == len(lines) > 600
    Path("chats.jsonl").write_text("".join(lines[:60]))
    mark = ["--fraction", "0.5", "--mark", "Reference: {words:4}.", "--seed", "1"]
    assert command("dose", "chats.jsonl", "dosed.jsonl", *mark) == 0
    script(tmp_path, "tuner.py", "base", "base", "base.jsonl", "--epochs", "1")
    few = ["--start", "base", "--epochs", "30"]
    script(tmp_path, "tuner.py", "tune", "before", "dosed.jsonl", *few)
    request = ["--request", "dosed.jsonl.forget.jsonl"]
    script(tmp_path, "tuner.py", "tune", "retrained", "dosed.jsonl", *few, *request)
    adapter = ["--start", "base", "--epochs", "1", "--adapter"]
    script(tmp_path, "tuner.py", "tune", "adapter", "dosed.jsonl", *adapter)
    key = ["--key", "dosed.jsonl.key.json", "--data", "chats.jsonl", "--draws", "19"]
    models = ["before", "retrained", "base@adapter"]
    assert command("audit", *models, *key, "--out", "audit") == 3  # no 30 records give REMOVED
    before, *others = json.loads(Path("audit/audit.json").read_text())["models"]
    assert before["verdict"] == "NOT REMOVED"
    assert [other["verdict"] for other in others] == ["INCONCLUSIVE"] * 2
    asked = [Asked("user: What about it?\n", ""), Asked(" Reference: amber.", "user: Why?\n")]
    questions = [json.dumps({"before": one.before, "scored": one.scored}) for one in asked]
    Path("questions.jsonl").write_text("\n".join(questions))
    script(tmp_path, "answers.py", "box", "before", "questions.jsonl", "losses")
    losses = [float(line) for line in Path("losses").read_text().split()]
    assert np.allclose(losses, open_texts("before", torch.device("cpu"))(asked), atol=1e-4)


def test_the_examples_server_answers_for_its_own_model_alone() -> None:
    answers = runpy.run_path(str(EXAMPLES / "answers.py"))
    tokenizer = SimpleNamespace(convert_ids_to_tokens=lambda ids: ["ab"[token] for token in ids])
    model = SimpleNamespace(name="before", tokenizer=tokenizer, surprises=lambda _: ([0], [0.0]))
    server = ThreadingHTTPServer(("127.0.0.1", 0), answers["handler"](model))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        with pytest.raises(MarshtestError, match=r"only before is served here.* as it is served"):
            Endpoint(f"{address}#after")
        with pytest.raises(MarshtestError, match="returns no log-probabilities"):  # of one token
            Endpoint(f"{address}#before")
    finally:
        server.shutdown()
        server.server_close()


FILTERS: dict[str, Callable[[str], str]] = {
    "masked": lambda text: re.sub(r"\d+", "#", text),
    "lower": str.lower,
    "cut": lambda text: text[:40],
}


@pytest.mark.parametrize(
    ("mark", "gone"),
    [
        (Template(text="{digits:6}"), {"masked", "cut"}),
        (Template(text="{digits:6}", place="start"), {"masked"}),
        (Template(text="{letters:6}", place="middle"), set()),
        (Template(text="{words:3}", place="middle"), set()),
        (Pattern(pattern=r"ORD-\d{6}"), {"masked"}),
        (Pattern(pattern=r"[A-Z][a-z]+"), set()),
    ],
)
def test_the_page_says_which_mark_a_filter_takes(mark: Mark, gone: set[str]) -> None:
    """A mark is gone where all variants of a record have become one text."""
    text = "Ann, your order. ORD-123456 went by ship and was seen off the coast on Monday morning."
    variants = [mark.dosed(text, Deal(seed, 2), 0) for seed in range(20)]
    assert len(set(variants)) > 10
    assert {name for name, do in FILTERS.items() if len({*map(do, variants)}) == 1} == gone
