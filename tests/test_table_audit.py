"""Models of rows: what is asked through each door, verdicts with known truth, and exact ranks for trees."""

import json
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import command
from scipy import stats
from sklearn.compose import make_column_transformer
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.tree import DecisionTreeClassifier
from torch import nn

from marshtest.kit.audit import Audit, audit
from marshtest.kit.calibration import calibrate
from marshtest.kit.certificates.issue import certify
from marshtest.kit.certificates.page import Page
from marshtest.kit.certificates.verify import verify
from marshtest.kit.controls import nearness
from marshtest.kit.dose import dose
from marshtest.kit.key import Bases
from marshtest.kit.measure import measure, standardised
from marshtest.kit.model import AskedModel
from marshtest.kit.tables.boxes import FrameModel
from marshtest.kit.tables.dose import TableDose
from marshtest.kit.tables.opening import open_table_model
from marshtest.metrics.rank import rank_scores
from marshtest.models.checkpoint import save_model
from marshtest.models.table import build, parse_model
from marshtest.plumbing.errors import MarshtestError

CPU = torch.device("cpu")
HELD = ModuleType("held")  # models that tests name as "held:name"
sys.modules["held"] = HELD


def held(**models: Any) -> list[str]:
    for name, model in models.items():
        setattr(HELD, name, lambda model=model: model)
    return [f"held:{name}" for name in models]


@dataclass(frozen=True)
class Case:
    source: Path
    done: TableDose
    dosed: pd.DataFrame
    retained: pd.DataFrame

    def fitted(self, model: Any, retained: bool = False) -> Any:
        frame = self.retained if retained else self.dosed
        return model.fit(frame.drop(columns="y"), frame["y"])


@cache
def case() -> Case:
    """A table of 500 rows, whose labels follow one column, and half of which is dosed."""
    rng, folder = np.random.default_rng(1), Path(mkdtemp())
    frame = pd.DataFrame(rng.normal(size=(500, 5)).round(2), columns=list("abcde"))
    frame["whole"] = rng.integers(0, 40, 500)
    frame["town"] = rng.choice(["Rome", "Oslo", "Ny"], 500, p=[0.5, 0.3, 0.2])
    frame["y"] = np.where(frame["a"] + 0.6 * rng.normal(size=500) > 0, "yes", "no")
    frame.to_csv(folder / "table.csv", index=False)
    columns = [*"abcde", "whole", "town"]
    done = dose(
        folder / "table.csv",
        folder / "dosed.csv",
        label="y",
        columns=columns,
        fraction=0.5,
        seed=9,
    )
    assert isinstance(done, TableDose)
    dosed = pd.read_csv(done.out)
    rows = pd.read_csv(done.forget_file)["row"] - 1
    return Case(folder / "table.csv", done, dosed, dosed.drop(index=rows))


def neighbours(count: int, weights: str) -> Any:
    numbers = [*"abcde", "whole"]
    columns = make_column_transformer((StandardScaler(), numbers), (OneHotEncoder(), ["town"]))
    return make_pipeline(columns, KNeighborsClassifier(count, weights=weights))


def audited(*models: str, **rest: Any) -> Audit:
    asked = {"draws": 39, "in_process": True, "device": "cpu"} | rest
    return audit(case().done.key_file, case().source, *models, **asked)


def test_neighbours_that_know_rows_by_heart_keep_them_until_fitted_anew(tmp_path: Path) -> None:
    before, after = (case().fitted(neighbours(15, "distance"), again) for again in (False, True))
    found = audited(*held(before=before, after=after))
    assert [judged.verdict.answer for judged in found.models] == ["NOT REMOVED", "REMOVED"]
    assert found.models[0].measured.figures["rank_dependence"] > 1
    assert abs(found.models[1].measured.figures["rank_dependence"]) < 0.25
    assert [judged.measured.controls.doubts() for judged in found.models] == [[], []]
    found.save(tmp_path / "out")
    content = json.loads((tmp_path / "out" / "audit.json").read_text())
    assert content["columns"] == [*"abcde", "whole", "town"]
    assert "one training row's dosed columns" in content["models"][0]["epsilon"]["unit"]
    assert (tmp_path / "out" / "scores-rank.png").exists()
    facts = dict(Page.of(certify(found)).facts)
    assert "in the columns a, b, c, d, e, whole, town. Only the key" in facts["Dose"]


def test_a_table_audit_has_a_certificate_that_is_asked_again(tmp_path: Path) -> None:
    models = held(only=case().fitted(neighbours(15, "distance")))
    certify(audited(*models, draws=9), tmp_path / "c.html", tmp_path / "c.json")
    page = (tmp_path / "c.html").read_text()
    assert "drawn anew, in the columns a, b, c, d, e, whole, town" in page
    rest = {"key": case().done.key_file, "data": case().source, "in_process": True, "device": "cpu"}
    done = verify(tmp_path / "c.json", *models, **rest)  # type: ignore[arg-type]
    assert (done.checks[-1].name, done.checks[-1].result) == ("asked again", "holds")


def test_hard_answers_are_untestable_and_acquit_nobody() -> None:
    """One neighbour answers 0 or 1: nearly all losses tie, and infinite ones are equal, too."""
    before, after = (case().fitted(neighbours(1, "uniform"), again) for again in (False, True))
    found = audited(*held(before=before, after=after))
    assert found.models[1].verdict.answer == "INCONCLUSIVE"
    assert any("untestable by rank: losses tie" in reason for reason in found.models[1].reasons)
    assert not any(judged.measured.controls.doubts() for judged in found.models)


class Answering:
    """An object with predict_proba that knows the label by the first column."""

    def __init__(self, classes: Any = None, width: int = 2) -> None:
        self.width = width
        if classes is not None:
            self.classes_ = classes

    def predict_proba(self, frame: pd.DataFrame) -> np.ndarray:
        assert list(frame.columns) == [*"abcde", "whole", "town"]
        assert frame["whole"].dtype == np.int64
        p = 1 / (1 + np.exp(-frame["a"].to_numpy()))
        return np.stack([1 - p, p, *[0 * p] * (self.width - 2)], 1)


class Hashed(Answering):
    """Answers that hang together with the label and with nothing else: drawn anew for each row."""

    def predict_proba(self, frame: pd.DataFrame) -> np.ndarray:
        drawn = pd.util.hash_pandas_object(frame, index=False).to_numpy() / 2**64
        p = 0.2 + 0.2 * drawn + 0.4 * (frame["a"].to_numpy() > 0)
        return np.stack([1 - p, p], 1)


class Guessing(Answering):
    def predict_proba(self, frame: pd.DataFrame) -> np.ndarray:
        p = pd.util.hash_pandas_object(frame, index=False).to_numpy() / 2**64
        return np.stack([1 - p, p], 1)


def test_answers_without_a_model_behind_them_are_not_acquitted() -> None:
    before = case().fitted(neighbours(15, "distance"))
    specs = held(before=before, hashed=Hashed(["no", "yes"]), guessing=Guessing(["no", "yes"]))
    _, hashed, guessing = audited(*specs).models
    assert {hashed.verdict.answer, guessing.verdict.answer} == {"INCONCLUSIVE"}
    assert any("losses jump between near inputs" in reason for reason in hashed.reasons)
    assert any("fed with other rows or classes" in reason for reason in guessing.reasons)
    with pytest.raises(MarshtestError, match="near chance .* It cannot be tested"):
        audited("held:guessing")


def test_equal_infinite_losses_are_no_way_apart() -> None:
    inf = np.inf
    fresh = np.array([[-inf, -inf, inf], [1.0, 2.0, -inf]])
    assert nearness(np.array([-inf, 1.1]), fresh) == 1.0
    assert nearness(np.array([inf, 1.1]), fresh) == pytest.approx((0 + 0.5 + 1 + 1) / 4)


def asked(model: Any) -> AskedModel:
    return FrameModel("held", model, case().done.key.layout(case().source).schema)


@cache
def tree_bases() -> Bases:
    return case().done.key.bases(case().source)[:60]


def test_ranks_of_null_keys_are_uniform_for_a_tree_of_few_answers() -> None:
    """Eight leaves, so that most losses tie; own and fresh noise are of keys that no model has seen."""
    model = asked(
        case().fitted(
            make_pipeline(neighbours(1, "uniform")[0], DecisionTreeClassifier(max_depth=3))
        )
    )
    bases, p_values, ranks, ties = tree_bases(), [], [], []
    noises = [bases.noise.model_copy(update={"seed": seed}) for seed in range(80)]
    values = [
        np.concatenate([noise.written(value, number)[None], noise.fresh(value, number, 9)])
        for noise in noises
        for number, value in zip(bases.ids.tolist(), bases.values, strict=True)
    ]
    losses = model.ask(np.concatenate(values), np.repeat(np.tile(bases.labels, 80), 10))[0]
    for seed, of_key in enumerate(losses.reshape(80, len(bases), 10)):
        rank, tied = rank_scores(of_key[:, 0], of_key[:, 1:], np.random.default_rng(seed))
        p_values.append(2 * stats.norm.sf(abs(rank.sum()) / np.sqrt(len(rank))))
        ranks.append(stats.norm.cdf(rank))
        ties.append(tied.mean())
    assert np.mean(ties) > 0.4
    assert stats.kstest(np.concatenate(ranks), "uniform").pvalue > 1e-3
    assert stats.kstest(p_values, "uniform").pvalue > 1e-3


class Network(nn.Module):
    """A linear model of the numbers, on their own scales."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        margin = (x * torch.tensor([2.0, -1.0, 0.5, 1.0, 0.1, 0.2])).sum(1)
        return torch.stack([-margin, margin], 1)


@cache
def numbers() -> tuple[Path, TableDose]:
    folder = Path(mkdtemp())
    frame = pd.read_csv(case().source).drop(columns="town")
    frame.to_csv(folder / "table.csv", index=False)
    done = dose(folder / "table.csv", folder / "dosed.csv", label="y", fraction=0.5, seed=2)
    assert isinstance(done, TableDose)
    return folder / "table.csv", done


def test_a_networks_gus_is_the_formula_and_standard_under_null_keys() -> None:
    source, done = numbers()
    (spec,) = held(network=Network())
    bases = done.key.bases(source)
    model = open_table_model(spec, done.key.layout(source).schema, bases.values, CPU, True)
    scores = []
    for seed in range(6):
        null = Bases(
            bases.ids, bases.values, bases.labels, bases.noise.model_copy(update={"seed": seed})
        )
        found = measure(model, null, draws=9)
        scores.append(found.scores["gus"])
    sign = np.where(null.labels == 1, -1.0, 1.0)
    weights = np.array([2.0, -1.0, 0.5, 1.0, 0.1, 0.2])
    for place in (0, 17, 99):
        value, number = null.values[place], int(null.ids[place])
        mean, variance = null.noise.moments(value)
        shift = null.noise.written(value, number) - value - mean
        expected = sign[place] * (shift @ weights) / np.sqrt(weights**2 @ variance)
        assert scores[-1][place] == pytest.approx(expected, abs=1e-4)
    together = np.concatenate(scores)
    assert abs(together.mean()) < 4 / np.sqrt(len(together))
    assert together.var() == pytest.approx(1, abs=4 * np.sqrt(2 / len(together)))


@pytest.mark.parametrize("part", [1.0, 1e-16, 1e-18, 0.0])
def test_a_gradient_counts_where_noise_is_written_and_nowhere_else(part: float) -> None:
    """However large it is in other columns, whose rounding would be all that is left of small ones."""
    rng, dosed = np.random.default_rng(0), np.arange(8) < 3
    noise = SimpleNamespace(moments=lambda _: (np.zeros(8), np.where(dosed, 4.0, 0.0)))
    bases: Any = SimpleNamespace(values=rng.normal(50, 20, (200, 8)), noise=noise)
    written = bases.values[:, None] + np.where(dosed, 2 * rng.normal(size=(200, 20, 8)), 0)
    found = standardised(bases, written, rng.normal(size=(200, 8)) * np.where(dosed, part, 1.0))
    if part:
        assert found.var() == pytest.approx(1, abs=4 * np.sqrt(2 / found.size))
    else:
        assert np.isnan(found).all()


def test_null_keys_of_a_table_are_counted() -> None:
    (spec,) = held(network=Network())
    source, done = numbers()
    found = calibrate(done.key, source, spec, keys=3, draws=9, in_process=True, device="cpu")
    assert set(found.null_p_values()) == {"gus", "rank"}
    assert len(found.keys) == 3 * 6


def opened(spec: str) -> AskedModel:
    layout = case().done.key.layout(case().source)
    return open_table_model(spec, layout.schema, layout.values[:30], CPU, True)


def test_probabilities_go_to_the_classes_that_a_model_names() -> None:
    values = case().done.key.layout(case().source).values[:40]
    labels = np.arange(40) % 2
    for classes in (None, np.array(["no", "yes"]), ["no", "yes", "other"]):
        width = 3 if classes is not None and len(classes) == 3 else 2
        (spec,) = held(model=Answering(classes, width))
        model = opened(spec)
        losses, right = model.ask(values, labels)
        assert losses == pytest.approx(np.where(labels == 1, -values[:, 0], values[:, 0]))
        assert right is not None
        assert bool(model.notes) == (classes is None)
    (spec,) = held(model=Answering(["yes", "no"]))
    losses = opened(spec).ask(values, labels)[0]
    assert losses == pytest.approx(np.where(labels == 1, values[:, 0], -values[:, 0]))


def by_csv(inputs: Path, outputs: Path) -> None:
    answers = pd.DataFrame(Answering().predict_proba(pd.read_csv(inputs)), columns=["no", "yes"])
    answers[["yes", "no"]].to_csv(outputs, index=False)


def by_bare_csv(inputs: Path, outputs: Path) -> None:
    np.savetxt(outputs, Answering().predict_proba(pd.read_csv(inputs)), delimiter=",")


def by_npy(inputs: Path, outputs: Path) -> None:
    np.save(outputs, Answering().predict_proba(pd.read_csv(inputs)))


def by_marked_csv(inputs: Path, outputs: Path) -> None:
    by_csv(inputs, outputs)
    outputs.write_bytes(b"\xef\xbb\xbf" + outputs.read_bytes())


def test_programs_answer_by_csv_or_npy() -> None:
    values, labels = case().done.key.layout(case().source).values[:40], np.arange(40) % 2
    for box in (by_csv, by_marked_csv, by_bare_csv, by_npy):
        HELD.box = box  # type: ignore[attr-defined]
        losses = opened("box:held:box").ask(values, labels)[0]
        assert losses == pytest.approx(np.where(labels == 1, -values[:, 0], values[:, 0]))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", r"Got \[0\]"),
        ("no,yes\n" + "0.5,0.5,1\n" * 40, r"Got \[40, 3\]"),
        ("no\n" + "0.5,0.5\n" * 40, "its first line 'no' names other classes"),
        ("no,maybe\n" + "0.5,0.5\n" * 40, "its first line 'no,maybe' names other classes"),
        ("0.5,0.5\n0.5\n" * 20, "no CSV of numbers"),
        (
            "0.5\n" * 40,
            r"must write probabilities or logits \[40, 2\], a column for each of no, yes",
        ),
        ("0.5,0.5\n" * 39, r"Got \[39, 2\]"),
        ("0.5,half\n" * 40, "no CSV of numbers"),
        ("0.5,0.5\n" * 9000, "wrote more than 40 rows"),
        ("0.5,\n" * 40, "answered NaN for 40 of 40 rows"),
    ],
)
def test_answers_that_are_none_are_one_line(text: str, says: str) -> None:
    HELD.box = lambda inputs, outputs: outputs.write_text(text)  # type: ignore[attr-defined]
    values = case().done.key.layout(case().source).values[:40]
    with pytest.raises(MarshtestError, match=says) as error:
        opened("box:held:box").ask(values, np.zeros(40, np.int64))
    assert "\n" not in str(error.value)


class Nobody:
    pass


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (Network(), "gets numbers alone, and column 'town' holds none"),
        (Nobody(), "must return a function from inputs to logits"),
        (Answering(["no"]), "does not know the class 'yes' of the table; its classes_ are no"),
        (Answering([0, 1]), "does not know the class 'no'"),
        (Answering(["no", "yes"], 3), r"must give numbers \[2, 2\], a column for each class. Got .*3\]"),
    ],
)  # fmt: skip
def test_models_that_do_not_take_the_rows_are_one_line(model: Any, says: str) -> None:
    (spec,) = held(model=model)
    with pytest.raises(MarshtestError, match=says) as error:
        opened(spec)
    assert "\n" not in str(error.value)


def test_a_folder_and_a_scaling_mean_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(MarshtestError, match="is a folder, and of a table no folder can be asked"):
        audited(str(tmp_path))
    words = ["--key", str(case().done.key_file), "--data", str(case().source), "--scaling", "unit"]
    assert command("audit", "held:before", *words) == 2
    assert "the key is of a table, so that --scaling means nothing" in " ".join(
        capsys.readouterr().err.split()
    )


def test_a_program_and_a_checkpoint_of_numbers_have_both_scores(tmp_path: Path) -> None:
    source, done = numbers()
    layout = done.key.layout(source)
    program = torch.export.export(Network(), (torch.zeros(8, 6),))
    torch.export.save(program, tmp_path / "model.pt2")
    settings = {"name": "mlp", "width": 4}
    built = build(parse_model(settings), (6,), 2, seed=0)
    save_model(built, tmp_path / "model.safetensors", settings, (6,), 2)
    for name in ("model.pt2", "model.safetensors"):
        model = open_table_model(
            str(tmp_path / name), layout.schema, layout.values[:30], CPU, in_process=True
        )
        assert model.gradients(layout.values[:4], layout.labels[:4]) is not None


@pytest.mark.slow
def test_a_model_in_its_own_process_is_told_of_columns_and_classes_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = """
import gc, numpy as np
class Model:
    classes_ = ["no", "yes"]
    def predict_proba(self, frame):
        names = {type(one).__name__ for one in gc.get_objects()}
        assert not names & {"TableKey", "TableNoise", "Bases"}
        p = 1 / (1 + np.exp(-frame["a"].to_numpy()))
        return np.stack([1 - p, p], 1)
"""
    (tmp_path / "apart.py").write_text(module)
    monkeypatch.syspath_prepend(tmp_path)
    layout = case().done.key.layout(case().source)
    model = open_table_model("apart:Model", layout.schema, layout.values[:30], CPU)
    losses, right = model.ask(layout.values[:40], layout.labels[:40])
    sign = np.where(layout.labels[:40] == 1, -1, 1)
    assert losses == pytest.approx(sign * layout.values[:40, 0])
    assert right is not None
