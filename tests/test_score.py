"""One unlearner by a suite: who runs, what the card says, and what is refused."""

import copy
import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from conftest import TINY, command
from PIL import Image
from safetensors.torch import load_file, save_file

import marshtest
from marshtest.experiment.recipe import load_recipe
from marshtest.experiment.recorded import Recorded, RecordedNamed
from marshtest.experiment.states import ITSELF
from marshtest.metrics.membership_columns import EVERY_FORM
from marshtest.plumbing.errors import MarshtestError
from marshtest.plumbing.yaml_files import shipped
from marshtest.reporting.card import card_table, write_card
from marshtest.results.card import Card, card_of
from marshtest.results.kept_models import kept_models
from marshtest.results.leaderboard import CONTROLS, leaderboard
from marshtest.results.merging import differences, setting
from marshtest.results.suite import read_suite
from marshtest.results.summary import Results
from marshtest.sweeps.worker import Worker
from marshtest.unlearning.base import Custom
from marshtest.unlearning.gradient_descent import GradientDescent

TUNED = {"name": "retrain-tuned", "batch_size": 8, "lr": 0.05}
GAUSSIAN: dict[str, Any] = {**TINY, "unlearners": ["gd", TUNED]}
BADNETS: dict[str, Any] = {
    **GAUSSIAN,
    "attack": {"name": "badnets", "size": 2},
    "poison_budgets": 0.2,
}
MEASURES = ["test_accuracy", "forget_accuracy", "gus_dependence", "rank_dependence", "gus", "tpr"]


def untouched(model: Any, retain: Any, forget: Any, *, task: Any, budget: Any, seed: int) -> Any:
    return copy.deepcopy(model)


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tiny recipes, and rows of what is known on the first one."""
    folder = tmp_path_factory.mktemp("suites")
    for name, recipe in {"one": GAUSSIAN, "two": BADNETS}.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({**recipe, "name": name}))
    known = marshtest.run(folder / "one.yaml", out=folder / "run", keep_models=True, report=False)
    (folder / "mini").mkdir()
    (folder / "mini" / "one.parquet").write_bytes((known.folder / "rows.parquet").read_bytes())
    file = folder / "mini.yaml"
    file.write_text(
        "recipes: {one.yaml: {}, two.yaml: {seeds: 2}}\nunlearners: [{name: ga, lr: 0.5}]"
    )
    return file


Scored = Callable[..., Card]


@pytest.fixture(scope="module")
def scored(suite: Path) -> Scored:
    """Score by that suite on one store."""

    def score(target: Any, **options: Any) -> Card:
        return marshtest.score(target, suite=suite, store=suite.parent / "store", **options)

    return score


@pytest.fixture(scope="module")
def calls() -> Iterator[list[str]]:
    """Names of the users' unlearners that were called, as often as they were."""
    called: list[str] = []
    real = Custom.__call__

    def counting(unlearner: Custom, *given: Any, **more: Any) -> Any:
        called.append(unlearner.name)
        return real(unlearner, *given, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Custom, "__call__", counting)
        yield called


@pytest.fixture(scope="module")
def card(scored: Scored, suite: Path, calls: list[str]) -> Card:
    return scored(untouched, out=suite.parent / "card")


# Who runs


def test_only_the_newcomer_runs_once_an_arm(
    card: Card, calls: list[str], scored: Scored, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two seeds without a clean twin, two with: 2 + 2 · 2 calls, and no unlearner that is known."""

    def not_asked(*_: Any, **__: Any) -> None:
        raise AssertionError("a known unlearner ran")

    assert calls == ["test_score:untouched"] * 6
    rows = pd.concat(pd.read_parquet(f) for f in (card.folder / "rows").iterdir())
    assert set(rows["unlearner"]) == {"none", "retrain (full)", "test_score:untouched"}
    monkeypatch.setattr(Worker, "_train", not_asked)  # the store has every model from scratch
    again = scored("ga", lr=0.25, out=tmp_path / "ga")
    assert "lr=0.25" in again.hyperparameters["one"]
    monkeypatch.setattr(GradientDescent, "__call__", not_asked)
    assert scored(untouched, out=tmp_path / "card").lines == card.lines
    assert len(calls) == 6


def test_the_newcomers_rows_are_those_of_a_run(card: Card, tmp_path: Path) -> None:
    run = marshtest.run({**GAUSSIAN, "unlearners": [untouched]}, out=tmp_path / "run", report=False)
    rows = Results.read(card.folder / "rows" / "one.parquet").rows
    own = rows["role"] == "updated"
    for column in MEASURES:
        assert rows[column].tolist() == run.rows[column].tolist()
    assert own.sum() == 2


def test_an_unlearner_that_does_nothing_leaves_all_and_loses(card: Card) -> None:
    line = card.lines[0]
    assert line.left == 1
    assert (line.verdict, card.verdict) == ("NOT REMOVED", "NOT REMOVED")
    assert line.standing == "loses"  # to tuned retraining, whose rows came with the suite
    assert set(line.known) == {"gd", "retrain-tuned"}
    assert card.lines[1].rank is None  # nobody is known there
    assert any("no rows of known unlearners lie beside" in line for line in card.said)


@pytest.mark.slow
def test_retraining_is_removed(tmp_path: Path) -> None:
    """By a test with power: what retraining never saw it cannot keep."""
    recipe = {
        **TINY, "name": "strong", "seeds": 8, "unlearners": [], "poison_budgets": 0.3,
        "training": {"epochs": 25, "batch_size": 32, "lr": 0.1},
        "data": {"name": "digits", "train": 400, "test": 100},
        "model": {"name": "mlp", "width": 128}, "attack": {"name": "gaussian", "variance": 6.0},
    }  # fmt: skip
    (tmp_path / "strong.yaml").write_text(yaml.safe_dump(recipe))
    (tmp_path / "suite.yaml").write_text("recipes: {strong.yaml: {}}")
    where = {"suite": tmp_path / "suite.yaml", "store": tmp_path / "store"}
    card = marshtest.score("retrain", **where, out=tmp_path / "retrain")
    assert card.verdict == "REMOVED"
    assert card.headline.startswith("retrain: REMOVED in one attack")
    assert marshtest.score("gd", **where, out=tmp_path / "gd").verdict == "NOT REMOVED"


# What the card says


def as_if(results: Results, **roles: str) -> Results:
    """Rows in which each unlearner measures what the control of a role does."""
    parts = [results.rows[results.rows["role"] != "updated"]]
    for name, role in roles.items():
        rows = results.rows[results.rows["role"] == role]
        own = {"role": "updated", "unlearner": name, "budget": 0.5, "spent": 0.5}
        parts.append(rows.assign(**own))
    entries = tuple((RecordedNamed(name=name),) for name in roles)
    recipe: Recorded = results.recipe.model_copy(update={"unlearners": entries})
    return replace(results, rows=pd.concat(parts, ignore_index=True)).placed(recipe)


def test_ranks_are_those_worked_out_by_hand(tiny_run: Results) -> None:
    """Known: one that leaves all, one that leaves what retraining does; a newcomer ties with either."""
    known = as_if(tiny_run, ga="initial", scrub="retrained")
    bad = card_of("bad", "mini", [(as_if(tiny_run, bad="initial"), known)], [])
    good = card_of("good", "mini", [(as_if(tiny_run, good="retrained"), known)], [])
    assert [(c.rank, c.ranked, c.lines[0].rank) for c in (bad, good)] == [(2, 3, 2), (1, 3, 1)]
    assert bad.lines[0].left == bad.lines[0].known["ga"] == 1
    assert bad.lines[0].known["scrub"] == abs(good.lines[0].left) < 0.5
    assert good.lines[0].cost == 0
    assert bad.headline.startswith("bad: NOT REMOVED in one attack; usable in ")
    assert ", rank 2 of 3" in bad.headline
    # Under its own name a newcomer takes the place of the one that is known.
    itself = card_of("ga", "mini", [(as_if(tiny_run, ga="retrained"), known)], [])
    assert (itself.rank, itself.ranked, set(itself.lines[0].known)) == (1, 2, {"scrub"})


def test_what_is_left_has_the_sign_that_its_reason_has(tiny_run: Results) -> None:
    """Who turns the effect round leaves as much as who leaves it, and the card says which."""
    turned = as_if(tiny_run, mine="initial")
    rows = turned.rows.copy()
    of_mine = rows["role"] == "updated"
    rows.loc[of_mine, ["gus_dependence", "rank_dependence"]] *= -0.5
    bad, mirror = (
        card_of("mine", "mini", [(replace(turned, rows=table), None)], [])
        for table in (turned.rows, rows)
    )
    assert bad.lines[0].left == 1
    assert mirror.lines[0].left == pytest.approx(-0.5)
    assert card_table(mirror)["left"][0].startswith("-50%")
    assert mirror.as_json()["lines"][0]["left"] == pytest.approx(-0.5)


def test_the_worst_stands_in_the_headline(tiny_run: Results) -> None:
    two = [as_if(tiny_run, mine=role) for role in ("initial", "retrained")]
    lines = card_of("mine", "mini", [(one, None) for one in two], []).lines
    for verdict, usable in (("REMOVED", "yes"), ("INCONCLUSIVE", "no")):
        other = replace(lines[1], verdict=verdict, usable=usable, attack="other", standing="beats")
        card = Card("mine", {}, "mini", [lines[0], other], 3, 9)
        assert card.headline == (
            f"mine: NOT REMOVED at worst (Gaussian); removed in {int(verdict == 'REMOVED')} of 2 attacks, "
            f"usable in {1 + (usable == 'yes') if lines[0].usable == 'yes' else int(usable == 'yes')} "
            "of 2, rank 3 of 9, against tuned retraining: beats 1."
        )


def of_copy(results: Results, content: str) -> Results:
    """The same rows as if their samples had been read from another copy of the data."""
    return replace(results, runs={k: {**run, "data": content} for k, run in results.runs.items()})


def test_rows_of_another_setting_give_no_rank_and_say_why(tiny_run: Results) -> None:
    known = as_if(tiny_run, ga="initial")
    training = known.recipe.training.model_copy(update={"epochs": 99})
    known = replace(known, recipe=known.recipe.model_copy(update={"training": training}))
    card = card_of("bad", "mini", [(as_if(tiny_run, bad="initial"), of_copy(known, "1"))], [])
    assert (card.rank, card.lines[0].rank) == (None, None)
    (said,) = card.said
    epochs = tiny_run.recipe.training.epochs
    start = "tiny: no ranks, as the known were run in another setting (training.epochs is "
    assert said.startswith(f"{start}{epochs}, not 99")


def test_the_known_elsewhere_are_measured_by_their_own_controls(tiny_run: Results) -> None:
    """On other data, and on a GPU, the effect may be ten times as large; shares of it are shares."""
    known = of_copy(as_if(tiny_run, ga="initial", scrub="retrained"), "1")
    rows = known.rows.assign(device="cuda")
    rows[["gus_dependence", "rank_dependence", "gus_error", "rank_error"]] *= 10
    elsewhere = replace(known, rows=rows)
    card = card_of("bad", "mini", [(as_if(tiny_run, bad="initial"), elsewhere)], [])
    (line,) = card.lines
    assert (card.rank, card.ranked, line.rank, line.ranked) == (2, 3, 2, 3)
    assert line.known["ga"] == 1
    assert line.known["scrub"] < 0.5
    assert card.said == (
        "tiny: the known were run on another copy of the data and with device cuda: each side's shares "
        "are of its own effect, and nothing is said against tuned retraining.",
    )
    assert set(differences(setting(elsewhere), setting(tiny_run))) == {
        "content of the data",
        "device",
    }


def test_nothing_is_said_against_tuned_retraining_elsewhere(tiny_run: Results) -> None:
    """There a seed's training is of other samples: no pair."""
    own, known = as_if(tiny_run, bad="initial"), as_if(tiny_run, **{"retrain-tuned": "retrained"})
    here = card_of("bad", "mini", [(own, known)], [])
    there = card_of("bad", "mini", [(own, of_copy(known, "1"))], [])
    assert [card.lines[0].standing for card in (here, there)] == ["loses", ""]
    tuned = card_of("retrain-tuned", "mini", [(known, of_copy(own, "1"))], [])
    assert tuned.lines[0].standing == ""


@pytest.mark.parametrize("name", ["ngd", "euk"])
def test_a_newcomer_and_a_known_one_are_measured_by_the_same_scores(name: str) -> None:
    """On the rows that ship GUS tells of the effect where one is judged alone, and not among 23."""
    known = replace(read_suite("digits").known("digits-gaussian"), scores=pd.DataFrame())
    known = replace(known, recipe=known.recipe.model_copy(update={"states": ()}))
    known = replace(known, rows=known.rows[known.rows["state"].isin(["", ITSELF])])
    of_name = known.rows["unlearner"].isin([name, *CONTROLS.values()])
    entries = tuple(trials for trials in known.recipe.unlearners if trials[0].name == name)
    recipe = known.recipe.model_copy(update={"unlearners": entries})
    own = replace(known, rows=known.rows[of_name], recipe=recipe).placed(recipe)
    share = known.poison_budget
    assert {*own.telling(share)} > {*known.telling(share)}
    board = leaderboard([known]).set_index("unlearner")
    here, there = (card_of(name, "digits", [(own, of)], []) for of in (known, of_copy(known, "1")))
    assert (here.rank, here.ranked) == (there.rank, there.ranked)
    for card in (here, there):
        assert abs(card.lines[0].left) == pytest.approx(board.loc[name, "left"])
        assert card.rank == board.loc[name, "rank"]


@pytest.mark.parametrize("where", [{}, {"budget": 0.25}, {"poison_budget": 0.01}])
def test_why_there_are_no_ranks_is_said(tiny_run: Results, where: dict[str, float]) -> None:
    """Rows of the known without a budget of the newcomer's; elsewhere, too, without a control."""
    known = as_if(tiny_run, ga="initial")
    rows = known.rows.assign(**where) if where else known.rows[known.rows["role"] != "initial"]
    known = of_copy(replace(known, rows=rows.reset_index(drop=True)), "1")
    card = card_of("bad", "mini", [(as_if(tiny_run, bad="initial"), known)], [])
    assert (card.rank, card.lines[0].rank) == (None, None)
    (said,) = card.said
    assert said.startswith(
        "tiny: no ranks, as an initial model shows no effect, nobody else is known"
    )


def test_controls_of_another_machine_do_not_keep_the_known_apart(tiny_run: Results) -> None:
    """Its initial model differs in the last digits: merging would refuse, ranking need not."""
    known = as_if(tiny_run, ga="initial", scrub="retrained")
    rows = known.rows.copy()
    control = rows["role"] != "updated"
    rows.loc[control, "rank_dependence"] *= 1 + 1e-9
    card = card_of("bad", "mini", [(as_if(tiny_run, bad="initial"), replace(known, rows=rows))], [])
    assert (card.rank, card.ranked) == (2, 3)


def test_states_after_care_and_membership_show_where_rows_have_them(card: Card) -> None:
    assert {"after-care", "RMIA"}.isdisjoint(card_table(card))
    line = replace(card.lines[0], after_care={"int8": "NOT REMOVED"}, membership={"RMIA": "PASSES"})
    table = card_table(replace(card, lines=[line, card.lines[1]]))
    assert table["after-care"].tolist() == ["int8: NOT REMOVED", "–"]
    assert table["RMIA"].tolist() == ["PASSES", "–"]


# Files


TYPES: dict[str, Any] = {
    "recipe": str, "attack": str, "poison_budget": float, "seeds": int, "verdict": str,
    "left": float | None, "left_error": float | None, "accuracy": float, "accuracy_sd": float,
    "cost": float, "usable": str, "spent": float, "rank": int | None, "ranked": int,
    "standing": str, "margin": float, "reasons": str, "known": dict, "membership": dict,
    "after_care": dict,
}  # fmt: skip


def test_the_json_has_the_fields_of_its_format(card: Card) -> None:
    def refuse(word: str) -> None:
        raise AssertionError(word)  # NaN is no JSON

    values = json.loads((card.folder / "card.json").read_text(), parse_constant=refuse)
    assert list(values) == [
        *("format", "headline", "verdict", "usable", "unlearner", "hyperparameters"),
        *("suite", "lines", "rank", "ranked", "said"),
    ]
    assert (values["format"], values["headline"]) == (1, card.headline)
    for line in values["lines"]:
        assert line.keys() == TYPES.keys()
        for name, value in line.items():
            assert isinstance(value, TYPES[name]), name


def test_latex_is_balanced(card: Card, tmp_path: Path) -> None:
    write_card(replace(card, unlearner="a_b%c&d#e$"), tmp_path)
    text = (tmp_path / "card.tex").read_text()
    assert text.isascii() or not set(text) - set(map(chr, range(128))) - set("ℓ")
    bare = re.sub(r"\\.", "", text)
    assert bare.count("{") == bare.count("}")
    begun, ended = (re.findall(rf"\\{word}{{(\w+)}}", text) for word in ("begin", "end"))
    assert sorted(begun) == sorted(ended)
    assert not re.search(r"(?<!\\)[%#_](?!.*usepackage)", "\n".join(text.splitlines()[1:]))
    parts = re.findall(r"\\begin{tabular}{(l+)}\n\\toprule\n(.*?)\\bottomrule", text, re.DOTALL)
    assert len(parts) == 2
    for columns, rows in parts:
        lines = [line for line in rows.splitlines() if "&" in line]
        assert len(lines) == 1 + len(card.lines)
        assert {len(re.findall(r"(?<!\\)&", line)) for line in lines} == {len(columns) - 1}


def test_latex_has_a_column_a_state_and_a_part_for_what_is_too_wide(
    card: Card, tmp_path: Path
) -> None:
    beside: dict[str, Any] = {
        "membership": dict.fromkeys(EVERY_FORM.values(), "PASSES"),
        "after_care": {"int8": "REMOVED", "trained_on 2": "NOT REMOVED"},
    }
    write_card(replace(card, lines=[replace(card.lines[0], **beside)]), tmp_path)
    text = (tmp_path / "card.tex").read_text()
    heads = [head.split(" & ") for head in re.findall(r"\\toprule\n(.*) \\\\", text)]
    assert [head[0] for head in heads] == ["attack"] * 3
    assert {"RMIA", "KLoM", "int8", r"trained\_on 2"} <= {name for head in heads for name in head}
    assert max(map(len, heads[1:])) == 6


def test_latex_shows_any_name_as_it_is(card: Card, tmp_path: Path) -> None:
    """A folder may be called so; nothing of it is a command, and no sign becomes another."""
    write_card(replace(card, unlearner="a~b^c\\d{e}<f>|ℓ"), tmp_path)
    name = r"a\textasciitilde{}b\textasciicircum{}c\textbackslash{}d\{e\}$<$f$>$\textbar{}$\ell$"
    assert rf"\caption{{{name}: " in (tmp_path / "card.tex").read_text()


def test_markdown_and_page_hold_the_table_and_nothing_from_elsewhere(
    card: Card, tmp_path: Path
) -> None:
    hostile = replace(card, unlearner="<script>alert(1)</script>|x")
    write_card(hostile, tmp_path)
    table = card_table(hostile)
    lines = [x for x in (tmp_path / "card.md").read_text().splitlines() if x.startswith("|")]
    assert len(lines) == 2 + len(table)
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {1 + table.shape[1]}
    page = (tmp_path / "card.html").read_text()
    assert "<script" not in page
    tags: list[tuple[str, dict[str, str | None]]] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            tags.append((tag, dict(attrs)))

    Reader().feed(page)
    assert [tag for tag, _ in tags].count("td") + len(table) == table.size
    assert all(not (of.get("src") or "data:").startswith("http") for _, of in tags)


def test_nothing_is_cut_off_the_picture(card: Card) -> None:
    """All ink lies inside: the rim is white on every side."""
    forms = dict.fromkeys(EVERY_FORM.values(), "UNSETTLED")
    states = dict.fromkeys(("int8", "int4", "trained_on 12"), "NOT REMOVED")
    beside: dict[str, Any] = {"rank": 10, "ranked": 26, "membership": forms, "after_care": states}
    long = replace(card.lines[0], attack="an attack with a very long title indeed", **beside)
    write_card(
        replace(card, unlearner="x" * 80, rank=10, ranked=26, lines=[long] * 5),
        card.folder / "long",
    )
    for file in (card.folder / "card.png", card.folder / "long" / "card.png"):
        with Image.open(file) as picture:
            pixels = np.asarray(picture.convert("L"))
        assert pixels.shape[1] == 1280
        for rim in (pixels[:4], pixels[-4:], pixels[:, :4], pixels[:, -4:]):
            assert (rim == 255).all(), file


def test_the_picture_shows_membership_and_after_care(card: Card, tmp_path: Path) -> None:
    """Each answer has its sign, in the order of the table; a card without them is as low as before."""
    beside = {"margin MIA": "PASSES", "RMIA": "FAILS"}, {"int8": "REMOVED", "int4": "INCONCLUSIVE"}
    line = replace(card.lines[0], membership=beside[0], after_care=beside[1])
    sizes = []
    for name, lines in {"with": [line], "without": [card.lines[0]]}.items():
        write_card(replace(card, lines=lines), tmp_path / name)
        with Image.open(tmp_path / name / "card.png") as picture:
            sizes.append(picture.size)
    said = re.findall(r"<!-- (.*) -->", (tmp_path / "with" / "card.svg").read_text())
    assert {"✓ margin  ✗ RMIA", "✓ int8  ? int4"} <= set(said)
    assert not any(
        "after-care" in text
        for text in re.findall(r"<!-- (.*) -->", (tmp_path / "without" / "card.svg").read_text())
    )
    assert sizes[0][0] == sizes[1][0]
    assert sizes[0][1] > sizes[1][1]


def test_the_picture_is_the_same_each_time(card: Card, tmp_path: Path) -> None:
    write_card(card, tmp_path)
    for name in ("card.svg", "card.png"):
        assert (tmp_path / name).read_bytes() == (card.folder / name).read_bytes()


def test_the_command_prints_the_card_and_lists_suites(
    suite: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--suite", str(suite), "--store", str(suite.parent / "store"), "--out", str(tmp_path)]
    assert command("score", "ga", "lr=0.25", *words) == 0
    said = capsys.readouterr().out
    assert re.search(r"ga: .*in.* attacks", said)
    assert "tuned retraining" in said
    assert command("list", "suites") == 0
    said = capsys.readouterr().out
    assert all(name in said for name in ("digits", "images", "texts", "paper"))


# Models that were unlearned elsewhere


@pytest.fixture(scope="module")
def kept(suite: Path) -> Path:
    """Runs of both recipes that keep the models of one unlearner, as of somebody elsewhere."""
    folder = suite.parent / "elsewhere"
    for name in ("one", "two"):
        recipe = suite.parent / f"{name}.yaml"
        changes = ["unlearners=[{name: gd, lr: 0.1}]"]
        marshtest.run(recipe, *changes, out=folder / name, keep_models=True, report=False)
    return folder


def test_kept_models_give_the_rows_of_their_own_run(
    kept: Path, scored: Scored, tmp_path: Path
) -> None:
    card = scored(kept, out=tmp_path)
    for name in ("one", "two"):
        theirs = Results.read(kept / name).rows
        own = Results.read(tmp_path / "rows" / f"{name}.parquet").rows
        assert len(own) == len(theirs)
        measures = ["test_accuracy", *own.filter(regex="dependence|success|twin_|^gus|tpr").columns]
        for column in measures:
            np.testing.assert_array_equal(own[column], theirs[column], column)
    assert card.unlearner == "elsewhere"
    assert np.isnan(card.lines[0].spent)  # nobody measured it
    assert not (tmp_path / "raised.log").exists()


def test_models_by_their_names_and_a_part_of_the_suite(
    kept: Path, scored: Scored, tmp_path: Path
) -> None:
    models = tmp_path / "mine" / "one" / "models"
    models.mkdir(parents=True)
    for seed in (0, 1):
        state = load_file(kept / "one" / "models" / f"0.2-{seed}-initial.safetensors")
        save_file(state, models / f"0.2-{seed}-initial.safetensors")
        save_file(state, models / f"0.2-{seed}-updated.safetensors")
    card = scored(tmp_path / "mine", out=tmp_path / "card")
    assert [line.recipe for line in card.lines] == ["one"]
    assert card.lines[0].left == 1
    assert card.said[0].startswith("two: not scored, as ")
    (models / "0.2-1-updated.safetensors").unlink()
    with pytest.raises(MarshtestError, match=r"0.2-1-updated.safetensors: there is no such model"):
        scored(tmp_path / "mine")
    save_file({"other": torch.ones(3)}, models / "0.2-1-updated.safetensors")
    with pytest.raises(MarshtestError, match=r"0.2-1-updated.safetensors: has other tensors"):
        scored(tmp_path / "mine")
    (models / "0.2-1-updated.safetensors").write_bytes(b"no model")
    with pytest.raises(MarshtestError, match=r"0.2-1-updated.safetensors: holds no weights"):
        scored(tmp_path / "mine")


def test_models_of_another_training_are_told(kept: Path, scored: Scored, tmp_path: Path) -> None:
    models = tmp_path / "mine" / "one" / "models"
    models.mkdir(parents=True)
    for seed in (0, 1):
        other = load_file(kept / "one" / "models" / f"0.2-{1 - seed}-initial.safetensors")
        for what in ("initial", "updated"):
            save_file(other, models / f"0.2-{seed}-{what}.safetensors")
    card = scored(tmp_path / "mine", out=tmp_path / "card")
    assert "is not the model that this recipe trains here" in card.lines[0].reasons
    assert (card.folder / "raised.log").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("training.lr=0.09", r"recipe.yaml: .* suite's one \(training.lr is 0.09, not 0.1\)"),
        ("attack.variance=0.9", r"recipe.yaml: .* suite's one \(attack.variance is 0.9, not [0-9.]+\)"),
        ("data.train=190", r"recipe.yaml: .* suite's one \(data.train is 190, not [0-9]+\)"),
    ],
)  # fmt: skip
def test_models_of_a_similar_recipe_are_refused_by_the_first_key_that_differs(
    change: str, said: str, suite: Path, scored: Scored, tmp_path: Path
) -> None:
    """Models of another rate lie nearer than half a norm: only the recipe beside them tells."""
    changes = [change, "unlearners=[{name: gd, lr: 0.1}]"]
    mine = tmp_path / "mine" / "one"
    marshtest.run(suite.parent / "one.yaml", *changes, out=mine, keep_models=True, report=False)
    with pytest.raises(MarshtestError, match=said) as raised:
        scored(tmp_path / "mine")
    assert "\n" not in str(raised.value)
    (mine / "recipe.yaml").write_text("data: [")
    with pytest.raises(MarshtestError, match=r"recipe.yaml: not YAML"):
        scored(tmp_path / "mine")
    if change.startswith("training"):
        (mine / "recipe.yaml").unlink()
        card = scored(tmp_path / "mine", out=tmp_path / "card")
        assert not (card.folder / "raised.log").exists()


def test_models_that_were_handed_out_on_other_data_are_refused(
    kept: Path, scored: Scored, tmp_path: Path
) -> None:
    mine = Path(shutil.copytree(kept, tmp_path / "mine"))
    about = mine / "one" / "run.json"
    about.write_text(json.dumps({**json.loads(about.read_text()), "data": "1234"}))
    with pytest.raises(MarshtestError, match=r"other? .*data \(digest 1234, not None\)"):
        scored(mine)


def test_seeds_budgets_and_the_datas_place_make_no_other_recipe(
    kept: Path, scored: Scored, tmp_path: Path
) -> None:
    shutil.copytree(kept, tmp_path / "kept")
    file = tmp_path / "kept" / "one" / "recipe.yaml"
    values = yaml.safe_load(file.read_text())
    others = {
        "name": "theirs",
        "budgets": [0.7],
        "seeds": 9,
        "metrics": [],
        "unlearners": ["nobody"],
    }
    values["data"]["path"] = "elsewhere.npz"
    file.write_text(yaml.safe_dump({**values, **others}))
    assert scored(tmp_path / "kept", out=tmp_path / "card").lines[0].attack == "Gaussian"


# What is refused


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda models: models.drop(columns="path"), "has no column 'path'"),
        (lambda models: models.drop(columns="budget"), "has no column 'budget'"),
        (lambda models: models.assign(path=3), r"'path' .* holds 3 in row 0"),
        (lambda models: models.assign(path=None), r"'path' .* holds None in row 0"),
    ],
)
def test_a_list_of_kept_models_that_is_none_is_one_line(
    change: Any, says: str, kept: Path, tmp_path: Path
) -> None:
    change(pd.read_parquet(kept / "one" / "models.parquet")).to_parquet(tmp_path / "models.parquet")
    with pytest.raises(MarshtestError, match=rf"models.parquet: .*{says}"):
        kept_models(tmp_path)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["gdd"], "unknown unlearner 'gdd'. Did you mean 'gd'?"),
        (["gd", "lrr=1"], "unlearners.gd.lrr: unknown key 'lrr'. Did you mean 'lr'?"),
        (["gd", "lr=[1, 2]"], "score: gd is given several values to choose from. Give one of each."),
        (["gd", "--suite", "digit"], "unknown suite 'digit'. Did you mean 'digits'?"),
        (["gd", "--suite", "digits-gaussian"], "digits-gaussian: is a recipe, not a suite."),
        (["no/such"], "no/such: no such folder. Give the folder of the models."),
        (["empty"], "empty: holds no models of the suite digits."),
        (["empty", "lr=1"], "empty: a folder of models takes no options (lr). Leave them out."),
        (["elsewhere"], "elsewhere: is for models that are there already."),
        (["nobody:home"], "nobody"),
        (["gd", "--suite", "bare.yaml"], "bare.yaml: a suite has `recipes`"),
        (["gd", "--suite", "odd.yaml"], "odd.yaml.recipe: unknown key 'recipe'. Did you mean 'recipes'?"),
        (["gd", "--suite", "number.yaml"], "suite number, recipes.digits-gaussian.unlearners: 3 names no"),
        (["gd", "--suite", "unnamed.yaml"], "unnamed.yaml: unlearners: {'a': 1} names no unlearner."),
        (["gd", "--suite", "nested.yaml"], "nested.yaml: unlearners: ['gd'] names no unlearner."),
    ],
)  # fmt: skip
def test_bad_input_gets_one_line_and_nothing_is_trained(
    words: list[str],
    line: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "bare.yaml").write_text("description: nothing")
    (tmp_path / "odd.yaml").write_text("recipes: {digits-gaussian: {}}\nrecipe: 1")
    (tmp_path / "number.yaml").write_text("recipes: {digits-gaussian: {unlearners: 3}}")
    (tmp_path / "unnamed.yaml").write_text("recipes: {digits-gaussian: {}}\nunlearners: [{a: 1}]")
    (tmp_path / "nested.yaml").write_text("recipes: {digits-gaussian: {}}\nunlearners: [[gd]]")
    assert command("score", *words) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1
    assert line in said[0]
    assert not (tmp_path / "runs").exists()


def test_a_suite_that_lacks_data_says_which_and_how_to_give_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MARSHTEST_DATA", raising=False)
    for suite, hub in (("images", "uoft-cs/cifar10"), ("texts", "imdb")):
        assert command("score", "gd", "--suite", suite) == 2
        (said,) = capsys.readouterr().err.strip().splitlines()
        assert f"suite {suite}, " in said
        assert hub in said
        assert "MARSHTEST_DATA" in said
    assert not (tmp_path / "runs").exists()


# What ships


@pytest.mark.parametrize("name", sorted(shipped("suites")))
def test_shipped_suites_name_recipes_that_can_be_run(name: str) -> None:
    suite = read_suite(name)
    described = (Path(__file__).parents[1] / "docs" / "score.md").read_text()
    assert f"`{name}`" in described
    for recipe in suite.recipes:
        assert recipe in shipped("recipes")
        loaded = load_recipe(suite.values(recipe))
        assert len(loaded.poison_budgets) == len(loaded.budgets) == 1


@pytest.mark.parametrize(
    "name", [name for name in sorted(shipped("suites")) if read_suite(name).rows.is_dir()]
)
def test_the_rows_that_ship_are_of_the_suites_recipes_and_of_all_its_unlearners(name: str) -> None:
    suite = read_suite(name)
    size = sum(file.stat().st_size for file in suite.rows.iterdir())
    assert size < 600_000
    for recipe in suite.recipes:
        known = suite.known(recipe)
        assert known is not None
        asked = load_recipe(suite.values(recipe))
        names = {trials[0].name for trials in asked.unlearners}
        assert names <= set(known.rows.loc[known.rows["role"] == "updated", "unlearner"])
        about = {**next(iter(known.runs.values())), "values": asked.model_dump(mode="json")}
        now = replace(known, recipe=Recorded.of(asked.hash, about, "now"))
        assert not differences(setting(known), setting(now))
