"""The command line: what it prints, and that bad input is one line and exit code 2."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import LOOKUP, TINY

from marshtest.attacks import ATTACKS
from marshtest.cli import app as cli
from marshtest.cli import screen
from marshtest.cli.catalogue import KINDS
from marshtest.data.load import LOADERS
from marshtest.data.texts import TEXTS
from marshtest.experiment.row_file import read_file, write_rows
from marshtest.metrics.presentation import Column
from marshtest.models.table import MODELS
from marshtest.plumbing.yaml_files import shipped
from marshtest.results.summary import Results
from marshtest.unlearning import UNLEARNERS


class Said:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def marshtest(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Any:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))

    def call(*arguments: str) -> Said:
        monkeypatch.setattr(sys, "argv", ["marshtest", *arguments])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        printed = capsys.readouterr()
        return Said(code, printed.out, printed.err)

    return call


@pytest.mark.slow
def test_run_writes_all_it_promises_and_prints_the_verdicts(marshtest: Any, tmp_path: Path) -> None:
    said = marshtest("run", "tiny.yaml", "seeds=1", "--out", "here")
    assert said.code == 0
    for word in ("no unlearning", "retrain (full)", "GD", "EUk", "SCRUB", "NOT REMOVED"):
        assert word in said.out
    files = {str(f.relative_to(tmp_path / "here")) for f in (tmp_path / "here").rglob("*.*")}
    figures = {
        f"figures/{name}.{kind}"
        for name in ("dependence", "shift", "figure2", "figure6", "figure7")
        for kind in ("png", "pdf")
    }
    tables = {"rows.parquet", "rows.csv", "scores.parquet", "summary.csv", "summary.md"}
    tables |= {"shifts.parquet", "shifts.csv", "examples.parquet"}
    assert files == {"recipe.yaml", "run.json", "report.html"} | tables | figures
    again = marshtest("run", "tiny.yaml", "seeds=1", "--out", "here")
    note = "100% note: here: is done already; nothing was run.\n"
    assert (again.code, again.out, again.err) == (0, said.out, note)


@pytest.mark.slow
def test_report_draws_what_rows_hold_into_one_folder(
    marshtest: Any, tiny_run: Results, tmp_path: Path
) -> None:
    said = marshtest("report", str(tiny_run.folder), "--out", "told")
    assert (said.code, said.err) == (0, "")
    files = {str(f.relative_to(tmp_path / "told")) for f in (tmp_path / "told").rglob("*.*")}
    tables = {
        f"tables/tiny-{what}" for what in ("summary.csv", "table.csv", "table.md", "table.tex")
    }
    assert {"report.html", "rows/tiny.parquet", "figures/tiny-figure2.pdf"} | tables <= files
    again = marshtest("report", "told/rows/tiny.parquet", "--out", "again")
    assert again.code == 0
    first, second = (tmp_path / name / "tables/tiny-table.csv" for name in ("told", "again"))
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.slow
def test_report_of_incomplete_rows_is_drawn_and_exits_2(
    marshtest: Any, tiny_run: Results, tmp_path: Path
) -> None:
    rows = read_file(tiny_run.folder)
    of_gd = rows.frame["unlearner"] == "gd"
    gone = (of_gd & (rows.frame["seed"] == 1)) | (rows.frame["role"] == "retrained")
    write_rows(rows.frame[~gone], tmp_path / "part.parquet", rows.runs)
    said = marshtest("report", "part.parquet", "--out", "told")
    assert said.code == 2
    (line,) = said.err.splitlines()
    assert "part.parquet: rows are missing: poison budget 0.2: there is no retrained model" in line
    assert "(and 1 more)" in line
    page = (tmp_path / "told" / "report.html").read_text()
    assert "Missing – poison budget 0.2: there is no retrained model." in page
    assert "gd at compute budget 0.5: seed 1 missing" in page


@pytest.mark.slow
def test_compare_and_leaderboard_print_and_write_their_tables(
    marshtest: Any, tiny_run: Results, tmp_path: Path
) -> None:
    folder = str(tiny_run.folder)
    said = marshtest("compare", folder, folder, "--out", "both")
    assert said.code == 0
    assert "gd: neither is shown to be better." in said.out
    files = {file.name for file in (tmp_path / "both").iterdir()}
    assert {"compare.csv", "compare-table.tex", "compare-seeds.png", "compare-poisons.pdf"} <= files
    rows = read_file(tiny_run.folder)
    write_rows(rows.frame.query("role == 'updated'"), tmp_path / "part.parquet", rows.runs)
    said = marshtest("leaderboard", "part.parquet")
    assert (said.code, "nothing can be ranked" in said.err) == (2, True)
    said = marshtest("leaderboard", folder, "--out", "board")
    assert said.code == 0
    table = pd.read_csv(tmp_path / "board" / "leaderboard.csv")
    assert set(table["unlearner"]) == {"GD", "EUk", "SCRUB", "no unlearning", "retrain (full)"}


def test_list_names_everything(marshtest: Any) -> None:
    entries = json.loads(marshtest("list", "--json").out)
    named = {(entry["kind"], entry["name"], entry["source"]) for entry in entries}
    tables: dict[str, dict[str, Any]] = {
        "attack": ATTACKS,
        "unlearner": UNLEARNERS,
        "data": LOADERS | TEXTS,
        "model": MODELS,
    }
    for kind, table in tables.items():
        of_kind = {(name, source) for k, name, source in named if k == kind}
        assert of_kind == {(name, thing.__module__) for name, thing in table.items()}
    for kind, folder in (("recipe", "recipes"), ("sweep", "sweeps"), ("hypothesis", "hypotheses")):
        assert {name for k, name, _ in named if k == kind} == set(shipped(folder))
    assert {"none", "retrain (full)", "gus", "rank"} <= {name for _, name, _ in named}
    lines = {(entry["kind"], entry["name"]): entry["what"] for entry in entries}
    assert all(lines.values())
    for name, cls in UNLEARNERS.items():
        assert lines["unlearner", name] == (cls.__doc__ or "").splitlines()[0]


def test_list_is_grouped_and_fits_80_columns(marshtest: Any) -> None:
    lines = marshtest("list").out.splitlines()
    assert max(map(len, lines)) <= 80
    heads = [line for line in lines if line and not line.startswith(" ")]
    assert heads == [kind.capitalize() for kind in KINDS]
    for kind, singular in KINDS.items():
        said = marshtest("list", kind)
        start = lines.index(kind.capitalize())
        assert said.out.splitlines() == lines[start : start + len(said.out.splitlines())]
        of_kind = json.loads(marshtest("list", kind, "--json").out)
        assert {entry["kind"] for entry in of_kind} == {singular}
        assert of_kind[0]["name"] in said.out


@pytest.mark.slow
def test_explain_shows_the_recipe_and_its_cost(marshtest: Any) -> None:
    said = marshtest("explain", "tiny.yaml", "budgets=0.25")
    assert said.code == 0
    assert "budgets:\n- 0.25" in said.out
    assert "momentum: 0.9" in said.out  # defaults are resolved
    for kind in ("train", "unlearn", "score", "In all about"):
        assert kind in said.out


@pytest.mark.usefixtures("quick_start")
def test_explain_expects_as_many_stages_as_run_does() -> None:
    from marshtest.commands.explain import expected_cost
    from marshtest.sweeps.planned import plan_sweep
    from marshtest.sweeps.settings import read_sweep

    costs, ruled_out, takes = expected_cost(plan_sweep(read_sweep(TINY)))
    assert "store comes to 10 models of" in takes[0]
    cost = costs.set_index("stage")
    (said,) = ruled_out
    assert "80 poisons in all are few for REMOVED of 3 unlearners" in said
    counts = {"start": 1, "train": 4, "unlearn": 6, "score": 10, "report": 5}
    assert cost["count"].to_dict() == counts
    # scoring of 10 models: K + 1 forwards, and one forward and backward, for each of 40 poisons; the
    # accuracy on 100 test samples and on the poisons
    assert cost.loc["score", "passes"] == 10 * (40 * (20 + 3) + 100 + 40)
    multiplied = 64 * 32 + 32 * 10  # weights of the network; a multiplication and an addition each
    assert cost.loc["score", "flops"] == cost.loc["score", "passes"] * 2 * multiplied


def test_sweep_status_rows_and_clean_tell_of_one_store(marshtest: Any, tmp_path: Path) -> None:
    asked = ("sweep", "tiny.yaml", "seeds=1", "grid.attack.variance=[4.0, 1.0]")
    said = marshtest(*asked)
    assert (said.code, said.err.count("\n")) == (0, 1)
    assert "14 jobs done, 0 were done before" in said.out
    folder = tmp_path / said.out.split()[-1]
    assert len(pd.read_parquet(folder)) == 10
    assert "all is done already" in marshtest(*asked).out
    assert "14 were done before" in marshtest(*asked, "--out", "elsewhere").out
    status = marshtest("status").out
    assert [line.split()[:2] for line in status.splitlines() if line.split()[:1] == ["train"]] == [
        ["train", "4"]
    ]
    found = marshtest("rows", "unlearner=gd", "attack.variance=1").out.splitlines()
    assert len(found) == 2
    assert found[0].startswith("attack.variance,recipe,")
    assert marshtest("rows", "tiny", "--out", "rows.json").code == 0
    assert len(json.loads((tmp_path / "rows.json").read_text())) == 10
    assert marshtest("clean").out == "0 removed.\n"
    said = marshtest("clean", "tiny", "--dry-run")
    assert said.out.endswith("41 would be removed.\n")  # records and files of 20 stages; the sweep
    assert "all is done already" in marshtest(*asked).out
    assert marshtest("clean", "tiny").code == 0
    assert {path.name for path in (tmp_path / "runs" / "store").rglob("*.*")} == {"store.json"}


def test_a_failed_job_is_told_with_exit_code_1(marshtest: Any) -> None:
    said = marshtest("sweep", "tiny.yaml", "seeds=1", "grid.training.lr=[0.1, 1.0e30]")
    assert said.code == 1
    assert said.out.count("failed: train") == 2
    assert "training: diverged in epoch" in said.out
    assert "--retry-failed tries again" in said.out
    shown = marshtest("status", "--failures").out
    assert shown.count("Traceback") == 2


@pytest.mark.usefixtures("quick_start")
def test_explain_tells_what_a_sweep_shares(marshtest: Any) -> None:
    said = marshtest("explain", "tiny.yaml", "grid.attack.draws=[9, 19]", "--gpu-tflops", "1")
    assert said.code == 0
    for words in (
        "attack.draws=9",
        "20 rows from 24 jobs; if nothing were shared, 28 jobs",
        "sustains 1",
    ):
        assert words in " ".join(said.out.split())


UNLEARNER = """
import copy, torch
def fine(model, retain, forget, *, task, budget, seed):
    model = copy.deepcopy(model).train()
    params = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(params, lr=1e-3, momentum=0.9, weight_decay=5e-4)
    for batch in budget.stream(task.batches(retain, 64, seed)):
        optimizer.zero_grad()
        task.loss(model, batch).mean().backward()
        optimizer.step()
    return model
def idle(model, retain, forget, *, task, budget, seed):
    return copy.deepcopy(model)
"""


def test_plan_names_the_poisons_and_runs_for_every_score(marshtest: Any, tmp_path: Path) -> None:
    said = marshtest("plan", "--gus", "0.5", "--rank", "1", "--samples", "2000", "--out", "plan")
    assert said.code == 0
    for word in ("GUS", "rank score", "verdict", "1,083", "271", "runs to show removal"):
        assert word in said.out  # (2 z_0.95 / 0.1)² = 1,083 and a quarter of it
    assert (tmp_path / "plan" / "plan.csv").exists()


def test_check_passes_a_sound_unlearner_and_fails_an_idle_one(
    marshtest: Any, tmp_path: Path
) -> None:
    (tmp_path / "mine_for_check.py").write_text(UNLEARNER)
    fine = marshtest("check", "mine_for_check:fine")
    assert (fine.code, fine.out.count("FAIL")) == (0, 0)
    idle = marshtest("check", "mine_for_check:idle")
    assert idle.code == 1
    assert "images\n  ok    runs and returns a model\n" in idle.out
    assert "  FAIL  changes the model\n        what it returned has the weights of" in idle.out
    assert max(map(len, idle.out.splitlines())) <= 80


def test_check_takes_hyper_parameters_and_kinds_of_data(marshtest: Any, tmp_path: Path) -> None:
    said = marshtest("check", "gd", "lr=0.05", "batch_size=128", "--on", "features")
    assert said.code == 0
    assert "gd (unlearner)\nfeatures\n" in said.out
    assert said.out.endswith("11 of 11 facts hold on features.\nNot asked: images, text.\n")
    far = marshtest("check", "gd", "lr=1e-12", "batch_size=320", "--on", "features")
    assert far.code == 1
    assert "its rate is far from usual" in " ".join(far.out.split())


@pytest.mark.slow
def test_check_tells_an_exception_whatever_it_is(marshtest: Any, tmp_path: Path) -> None:
    (tmp_path / "mine_that_ends.py").write_text(
        "def ends(model, retain, forget, *, task, budget, seed):\n"
        "    if retain.x.dim() == 2:\n"
        "        raise SystemExit(0)\n"
        "    return task.train(retain, seed, budget)\n"
    )
    said = marshtest("check", "mine_that_ends:ends")
    assert said.code == 1
    assert "raised SystemExit: 0" in said.out
    assert "If it is not made for features and text, check it with --on images." in said.out


KEY = ["--key", "dosed.npz.key.json"]


@pytest.fixture
def dosed(marshtest: Any, tmp_path: Path) -> None:
    """A small dosed data set, and a JSON file that is no key."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 1, 4, 4), dtype=np.uint8)
    np.savez(tmp_path / "set.npz", x=pixels, y=np.arange(40) % 2)
    (tmp_path / "tiny.json").write_text("{}")
    dosing = ["dose", "set.npz", "dosed.npz", "--fraction", "0.5", "--seed", "1"]
    assert marshtest(*dosing).code == 0


@pytest.mark.slow
def test_dose_says_where_all_lies_and_audit_answers_for_machines(
    marshtest: Any, dosed: None, tmp_path: Path
) -> None:
    said = marshtest("dose", "set.npz", "o.npz", "--fraction", "0.5", "--variance", "4")
    for word in (
        "20 of 40 samples",
        "rounding and clipping left",
        "o.npz.forget.csv",
        "o.npz.key.json",
    ):
        assert word in said.out
    (tmp_path / "mine_for_test.py").write_text(LOOKUP)
    called = ["audit", "mine_for_test:load", *KEY, "--data", "set.npz", "--draws", "9"]
    said = marshtest(*called, "--json", "--out", "audit")
    assert (said.code, json.loads(said.out)["answer"]) == (3, "INCONCLUSIVE")
    assert json.loads((tmp_path / "audit" / "audit.json").read_text()) == json.loads(said.out)
    said = marshtest(*called, "--in-process")
    assert said.code == 3
    assert "INCONCLUSIVE" in said.out
    assert marshtest("plan", "--pilot", "audit/audit.json").code in (0, 2)


@pytest.mark.parametrize("width", [80, 120, 200])
def test_the_verdict_is_beside_the_model_and_all_that_matters_fits_the_terminal(
    marshtest: Any, dosed: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    (tmp_path / "mine_for_width.py").write_text(LOOKUP)
    monkeypatch.setattr(screen.console, "width", width)
    model = "mine_for_width:load"
    asked = ["audit", model, model, *KEY, "--data", "set.npz", "--draws", "9", "--in-process"]
    said = marshtest(*asked)
    lines = said.out.splitlines()
    assert max(map(len, lines)) <= width
    (heads,) = (line.split() for line in lines if line.split()[:1] == ["model"])
    assert heads[1] == "verdict"
    assert " ".join(heads).startswith("model verdict accuracy usable GUS rank score")
    assert " ".join(heads).endswith("ε ≥ if Gaussian" if width >= 120 else "ε ≥")
    assert ("TPR" in heads) == (width == 200)
    table = lines[: next(n for n, line in enumerate(lines) if line.startswith("before "))]
    assert sum("INCONCLUSIVE" in line for line in table) == 2  # neither cut nor folded


@pytest.mark.parametrize(("width", "titles"), [(99, ["model"]), (100, ["model", "mine"])])
def test_a_column_is_left_out_of_a_terminal_without_the_room_that_it_asks_for(
    width: int,
    titles: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(screen.console, "width", width)
    frame = pd.DataFrame({"model": ["a"], "mine": ["0.5"]})
    screen.show(frame, "-", [Column(title="mine", room=100)])
    lines = capsys.readouterr().out.splitlines()
    (heads,) = (line for line in lines if "model" in line)
    assert heads.split() == titles
    assert ("A wider terminal shows more: mine." in lines) == ("mine" not in titles)


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_a_table_with_more_columns_than_fit_shows_models_and_verdicts_and_breaks_no_number(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(screen.console, "width", width)
    first = {"model": ["retrain in budget", "GD"], "accuracy": ["0.382±0.051", "0.912±0.024"]}
    further = {f"score {n}": ["-0.001±0.012 (±0.034)", f"FAILS 0.4{n:02}±0.026"] for n in range(12)}
    frame = pd.DataFrame({**first, **further, "verdict": ["INCONCLUSIVE", "NOT REMOVED"]})
    screen.show(frame, "-")
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= width
    table, _, left_out = out.partition("A wider terminal shows more: ")
    whole = {part for row in [[*frame], *frame.to_numpy()] for text in row for part in text.split()}
    assert {word for word in table.split() if word.strip("─")} - {"-"} <= whole
    assert {"retrain", "GD", "INCONCLUSIVE", "0.382±0.051"} <= set(table.split())
    assert table.count("score") + left_out.count("score") == 12


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_an_answer_that_cannot_be_saved_is_printed_all_the_same(
    marshtest: Any, dosed: None, tmp_path: Path, form: list[str]
) -> None:
    # A file comes to lie where the answer was to go, while the model is asked.
    late = "_load = load\ndef load():\n    open('late', 'w').close()\n    return _load()\n"
    (tmp_path / "mine_for_save.py").write_text(LOOKUP + late)
    called = ["audit", "mine_for_save:load", *KEY, "--data", "set.npz", "--draws", "9", *form]
    called.append("--in-process")
    said = marshtest(*called, "--out", "late")
    assert (said.code, said.out) == (2, marshtest(*called).out)
    assert "INCONCLUSIVE" in said.out
    assert "late" in said.err.splitlines()[-1]
    assert "Traceback" not in said.err


def test_what_is_quoted_moves_no_cursor_and_forges_no_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A tensor's name, or a server's words, may hold a terminal's commands."""
    evil = "x\x1b[2J\x1b[8m\rREMOVED\x9b1m\u202e"
    screen.say(evil)
    screen.say_whole(evil)
    screen.show(pd.DataFrame({"model": [evil]}), "-")
    screen.warn(evil)
    printed = "".join(capsys.readouterr())
    assert all(character.isprintable() or character == "\n" for character in printed)
    assert printed.count("x\\x1b[2J\\x1b[8m\\rREMOVED") >= 3
    plain = "a\u00a0b, 5\u202f%, \u062e\u0637\u200c, \U0001f469\u200d\U0001f469"
    screen.say_whole(plain)
    assert plain in capsys.readouterr().out


MATCHING = "{name: gradient-matching"
FEATURES = "{model: mlp, training: {epochs: 1}, train: 5000}"


@pytest.mark.usefixtures("dosed")
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["plan", "--gus", "1", "--out", "set.npz"], "set.npz is a file, not a folder"),
        (
            ["score", "gd", "--suite", "digits", "--out", "set.npz"],
            "set.npz is a file, not a folder",
        ),
        (["run", "digit-gaussian"], "unknown recipe 'digit-gaussian'. Did you mean"),
        (["run", "tiny.yaml", f"seeds=0x{4000 * 'f'}"], "no number of a recipe is as large"),
        (["sweep", "tiny.yaml", "name=.demo"], "no dot in front"),
        (["run", "tiny.yaml", "bugdets=1"], "unknown key 'bugdets'. Did you mean 'budgets'"),
        (["run", "tiny.yaml", "training.lr=fast"], "training.lr: Input should be a valid number"),
        (["run", "tiny.yaml", "unlearners=[forgetful]"], "unknown unlearner 'forgetful'"),
        (["run", "tiny.yaml", "budgets=2"], "budgets.0: Input should be less than or equal to 1"),
        (
            ["run", "tiny.yaml", "poison_budgets=0.999"],
            "poison_budgets: 0.999 leaves no training sample to retain. Lower it.",
        ),
        (["run", "tiny.yaml", "unlearners=[{name: euk, k: 7}]"], "7 is more than the model's 2"),
        (["run", "tiny.yaml", "data=cifar10", "data.path=/none"], "no folder '/none'"),
        (["run", "tiny.yaml", "data=cifar10", "data.path=."], "holds neither train"),
        (["run", "tiny.yaml", "training.lr=1e30"], "training: diverged in epoch"),
        (["run", "tiny.yaml", "training.augment=[crop]", "model=nomodule:f"], "cannot import"),
        (
            ["run", "tiny.yaml", f"attack={MATCHING}, epsilon: 0}}"],
            "attack.epsilon: Input should be",
        ),
        (
            ["run", "tiny.yaml", f"attack={MATCHING}, adversarial_label: 12}}"],
            "has label 12; there",
        ),
        (
            ["run", "tiny.yaml", f"attack={MATCHING}, adversarial_label: 3, target_class: 3}}"],
            "3 is the target's own class; choose another",
        ),
        (["run", "tiny.yaml", "poison_budgets=0.5", f"attack={MATCHING}}}"], "poisons of class"),
        (["run", "tiny.yaml", "training.lr=1e-9", f"attack={MATCHING}}}"], "at chance (test accur"),
        (
            ["run", "tiny.yaml", "attack={name: gradient-canceling, radius: 0}"],
            "attack.radius: Input should be greater than 0",
        ),
        (
            ["run", "tiny.yaml", f"data.features={FEATURES}"],
            "data.features.train: asks for 5000 rows beside the experiment's own",
        ),
        (
            ["run", "digits-budgets"],
            "is a sweep, not a recipe. Use `marshtest sweep digits-budgets`",
        ),
        (
            ["sweep", "digit-budgets"],
            "unknown sweep 'digit-budgets'. Did you mean 'digits-budgets'",
        ),
        (
            ["sweep", "tiny.yaml", "grid.bugdets=[1]"],
            "unknown key 'bugdets'. Did you mean 'budgets'",
        ),
        (["sweep", "tiny.yaml", "grid.budgets=[]"], "grid.budgets: holds no value"),
        (["sweep", "tiny.yaml", "grid.seeds=[1, 1]"], "differ in nothing"),
        (["sweep", "tiny.yaml", "--engine", "cloud"], "unknown engine 'cloud'"),
        (["sweep", "tiny.yaml", "--store", "."], "store: . is not empty and holds no store"),
        (["status"], "store: runs/store holds no sweep. Start one"),
        (["rows", "--store", "nowhere"], "store: nowhere holds no sweep"),
        (["clean", "--store", "nowhere"], "store: nowhere holds no store"),
        (["list", "unlearner"], "unknown kind 'unlearner'. Did you mean 'unlearners'"),
        (["check", "nowhere:f"], "cannot import 'nowhere'"),
        (["check", "forgetful"], "unknown name 'forgetful'"),
        (["check", "gd", "rate=1"], "unlearners.gd.rate: unknown key 'rate'"),
        (["check", "gd", "lr=[0.1, 0.2]"], "an option has one value here"),
        (["check", "gd", "--on", "sound"], "unknown kind of data 'sound'"),
        (["explain", "tiny.yaml", "model=resnet"], "unknown model 'resnet'"),
        (["report", "nowhere", "--out", "o"], "nowhere: holds no finished run"),
        (["report", "set.npz", "--out", "o"], "set.npz: not a readable Parquet file"),
        (["report", ".", "--out", "o"], ".: holds no rows (no rows.parquet"),
        (["compare", "nowhere", "nowhere"], "nowhere: holds no finished run"),
        (["leaderboard", "."], ".: holds no rows"),
        (["plan"], "give an expected effect"),
        (["plan", "--gus", "1", "--power", "1"], "power must lie between 0 and 1"),
        (["plan", "--gus", "1", "--samples", "10", "--fraction", "0"], "makes no poison"),
        (["plan", "--pilot", "nowhere"], "nowhere: holds no finished run"),
        (
            ["plan", "--pilot", "tiny.json"],
            "is not the audit.json that `marshtest audit --out` wrote",
        ),
        (["dose", "nowhere", "out", "--fraction", "0.5"], "nowhere: no such file or folder"),
        (["dose", ".", "out", "--fraction", "0.5"], "not a data set of images in a known layout"),
        (["dose", "set.npz", "out.npz", "--fraction", "0.001"], "at least two and leave"),
        (["dose", "set.npz", "set.npz", "--fraction", "0.5"], "set.npz: exists already"),
        (["dose", "set.npz", "o.npz", "--fraction", "0.5", "--scaling", "half"], "--scaling: must"),
        (
            ["dose", "set.npz", "o.npz", "--fraction", "0.5", "--variance", "inf"],
            "above 0 and finite",
        ),
        (
            ["dose", "set.npz", "o.npz", "--fraction", "0.5", "--seed", "-1"],
            "the seed must lie in 0",
        ),
        (
            ["dose", "set.npz", "o.npz", "--fraction", "0.5", "--key", "k", "--forget", "k"],
            "two names",
        ),
        (["audit", "m.pt2", "--key", "no.json", "--data", "set.npz"], "no.json: no such key file"),
        (["audit", "m.pt2", "--key", "tiny.json", "--data", "set.npz"], "is not a marshtest key"),
        (["audit", "m.pt2", *KEY, "--data", "nowhere"], "nowhere: no such file or folder"),
        (
            ["audit", "m.pt2", *KEY, "--data", "dosed.npz"],
            "is not the data set that this key dosed",
        ),
        (["audit", "m.pt2", *KEY, "--data", "set.npz"], "m.pt2: no such file"),
        (["audit", "m", *KEY, "--data", "set.npz", "--draws", "1"], "audit.draws: Input should be"),
        (
            ["audit", "m", *KEY, "--data", "set.npz", "--device", "tpu"],
            "device: unknown device 'tpu'",
        ),
        (["calibrate", "m.pt2", *KEY, "--data", "set.npz"], "m.pt2: no such file"),
        (["check", "gd", "name=ga"], "check: name is no option of what is asked about"),
        (["check", "gd", "on=images"], "check: on is no option of what is asked about"),
        (["score", "gd", "name=ga"], "score: name is no option"),
        (["score", "gd", "suite=digits"], "score: suite is no option"),
        (["calibrate", "m.pt2", *KEY, "--data", "set.npz", "--keys", "0"], "at least one null key"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    marshtest: Any, arguments: list[str], says: str
) -> None:
    said = marshtest(*arguments)
    lines = [line for line in said.err.splitlines() if line.startswith("marshtest: ")]
    assert said.code == 2, said
    assert len(lines) == 1
    assert says in lines[0]
    assert "Traceback" not in said.err + said.out


def test_every_command_has_help_with_an_example(marshtest: Any) -> None:
    for command in cli.app.registered_commands:
        name = command.name or command.callback.__name__  # type: ignore[union-attr]
        assert f"Example: marshtest {name}" in " ".join(marshtest(name, "--help").out.split())


@pytest.mark.slow
def test_a_run_keeps_models_and_leaves_the_report_out_where_asked(
    marshtest: Any, tmp_path: Path
) -> None:
    asked = ("run", "tiny.yaml", "seeds=1", "unlearners=[gd]", "--out", "here")
    said = marshtest(*asked, "--keep-models", "--no-report")
    assert said.code == 0
    assert said.out.splitlines()[-2:] == ["  here/rows.parquet", "  here/models"]
    assert not (tmp_path / "here" / "report.html").exists()
    assert marshtest(*asked).out.splitlines()[-1] == "  here/report.html"
    assert (tmp_path / "here" / "report.html").exists()


def test_check_says_what_it_checked(marshtest: Any) -> None:
    said = marshtest("check", "digits")
    assert (said.code, said.out.splitlines()[0]) == (0, "digits (data)")
    assert "tests on samples that it does not train on" in said.out
