"""What the control questions of `marshtest audit` say of honest models, and of boxes that cheat.

    python benchmarks/controls.py [--data NAME] [--markdown FILE]

Honest are a model trained on dosed data and one retrained without the dosed samples, of many families, on
four data sets: whatever speaks against one of them is a false alarm. The cheats stand in for the model
after unlearning; most are made of the dosed model itself.
"""

import argparse
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import binomtest, norm
from sklearn.datasets import load_digits
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.ensemble import (
    ExtraTreesClassifier,
    HistGradientBoostingClassifier,
    RandomForestClassifier,
)
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.tree import DecisionTreeClassifier
from torch import nn
from torch.nn import functional as F

from marshtest.kit.controls import agreement
from marshtest.kit.judging import Question, judge
from marshtest.kit.key import Bases
from marshtest.kit.measure import Measured, measure
from marshtest.kit.model import AskedModel
from marshtest.kit.noise import Noise, Scaling

DRAWS = 19
Array = np.ndarray[Any, Any]
Loss = Callable[
    [Array, Array], Array
]  # inputs [M, ...] in the file's values, labels [M] → losses [M]


@dataclass(frozen=True)
class Data:
    """A data set [N, ...] with labels, dosed."""

    name: str
    bases: Bases
    clean: Bases  # 200 samples without a dose
    dosed: tuple[Array, Array]
    retained: tuple[Array, Array]

    @property
    def pixels(self) -> bool:
        return self.bases.noise.pixels


class Box(AskedModel):
    """A function from inputs and labels to losses."""

    def __init__(self, name: str, loss: Loss) -> None:
        self.name, self.loss = name, loss

    def ask(self, values: Array, labels: Array) -> tuple[Array, None]:
        return self.loss(values, labels), None


def dosed(name: str, x: Array, y: Array, variance: float) -> Data:
    pixels = x.dtype == np.uint8
    scaling = Scaling.measured(x) if pixels else Scaling()
    noise = Noise(seed=5, variance=variance, scaling=scaling, pixels=pixels)
    rng = np.random.default_rng(0)
    ids = np.sort(rng.choice(len(x), min(360, len(x) * 2 // 5), replace=False))
    others = np.setdiff1d(np.arange(len(x)), ids)
    some = np.sort(rng.choice(others, min(200, len(others)), replace=False))
    bases, clean = (Bases(i, x[i], y[i], noise) for i in (ids, some))
    written = x.copy()
    written[ids] = [noise.written(v, i) for v, i in zip(x[ids], ids.tolist(), strict=True)]
    return Data(name, bases, clean, (written, y), (x[others], y[others]))


def data_sets() -> Iterator[Data]:
    images, y = load_digits(return_X_y=True)
    small = torch.from_numpy(images).view(-1, 1, 8, 8) * (255 / 16)
    x = F.interpolate(small, (16, 16), mode="bilinear").round().byte().numpy()
    yield dosed("digits", x, y, 2.0)
    yield dosed("digits, ε² 0.32", x, y, 0.32)
    three = y < 3
    yield dosed("three digits", x[three], y[three], 2.0)
    rng = np.random.default_rng(1)
    features, weights = rng.standard_normal((1500, 30)).astype(np.float32), rng.standard_normal(30)
    score = features @ weights + 1.5 * rng.standard_normal(1500)
    yield dosed("3 % positives", features, (score > np.quantile(score, 0.97)).astype(np.int64), 1.0)


def flat(x: Array) -> Array:
    scale = 255 if x.dtype == np.uint8 else 1
    return x.reshape(len(x), -1).astype(np.float32) / scale


def own(p: Array, y: Array) -> Array:
    """Cross-entropy of probabilities [M, C]."""
    return -np.log(np.clip(p[np.arange(len(y)), y].astype(float), 1e-30, 1))


def scikit(make: Callable[[int], Any]) -> Callable[[Array, Array, int], Loss]:
    def fit(x: Array, y: Array, seed: int) -> Loss:
        model = make(seed).fit(flat(x), y)
        return lambda x, y: own(model.predict_proba(flat(x)), y)

    return fit


def network(
    make: Callable[[int, int, int], nn.Module],
    after: Callable[[nn.Module], nn.Module] = lambda m: m,
) -> Callable[[Array, Array, int], Loss]:
    def inputs(x: Array) -> torch.Tensor:
        return torch.from_numpy(flat(x).reshape(x.shape))

    def fit(x: Array, y: Array, seed: int) -> Loss:
        torch.manual_seed(seed)
        model = make(x.shape[-1], flat(x[:1]).size, int(y.max()) + 1)
        optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
        known, labels = inputs(x), torch.from_numpy(y)
        for _ in range(12):
            for index in torch.randperm(len(x)).split(64):
                optimizer.zero_grad()
                F.cross_entropy(model(known[index]), labels[index]).backward()
                optimizer.step()
        model = after(model.eval())

        def loss(x: Array, y: Array) -> Array:
            with torch.no_grad():
                logits = model(inputs(x)).double()
            return F.cross_entropy(logits, torch.from_numpy(y), reduction="none").numpy()

        return loss

    return fit


def mlp(_: int, features: int, classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(features, 256), nn.ReLU(), nn.Linear(256, classes))


def cnn(size: int, features: int, classes: int) -> nn.Module:
    if size != 16:  # not of images
        return nn.Sequential(
            mlp(size, features, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, classes)
        )
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        *(nn.Dropout(0.5), nn.Linear(512, classes)),
    )


def quantised(model: nn.Module) -> nn.Module:
    """Weights of 8 bits."""
    with torch.no_grad():
        for weight in model.parameters():
            step = weight.abs().max() / 127
            weight.copy_((weight / step).round() * step)
    return model


def tempered(model: nn.Module) -> nn.Module:
    return nn.Sequential(model, Cooler())


class Cooler(nn.Module):
    def forward(self, logits: torch.Tensor) -> torch.Tensor:
        return logits / 3


FAMILIES: dict[str, Callable[[Array, Array, int], Loss]] = {
    "logistic regression": scikit(lambda s: LogisticRegression(C=10, max_iter=300)),
    "linear discriminants": scikit(
        lambda s: LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.1)
    ),
    "naive Bayes": scikit(lambda s: GaussianNB(var_smoothing=1e-2)),
    "nearest neighbours": scikit(lambda s: KNeighborsClassifier(10, weights="distance")),
    "decision tree": scikit(lambda s: DecisionTreeClassifier(min_samples_leaf=5, random_state=s)),
    "random forest": scikit(lambda s: RandomForestClassifier(100, random_state=s)),
    "extra trees": scikit(lambda s: ExtraTreesClassifier(100, random_state=s)),
    "boosted trees": scikit(
        lambda s: HistGradientBoostingClassifier(max_iter=15, max_leaf_nodes=8, random_state=s)
    ),
    "MLP": scikit(lambda s: MLPClassifier((256,), max_iter=200, random_state=s)),
    "weak MLP": scikit(lambda s: MLPClassifier((8,), max_iter=50, random_state=s)),
    "MLP, PyTorch": network(mlp),
    "MLP, 8 bit": network(mlp, quantised),
    "MLP, tempered": network(mlp, tempered),
    "CNN with dropout": network(cnn),
}


def measured(name: str, loss: Loss, data: Data) -> Measured:
    return measure(Box(name, loss), data.bases, undosed=data.clean, draws=DRAWS)


def line(name: str, data: Data, before: Measured, one: Measured) -> dict[str, Any]:
    """The statistics that are held against the thresholds, and what is said."""
    said, at = one.controls, before.controls
    return {
        "box": name,
        "data": data.name,
        "dependence": one.figures["rank_dependence"],
        "AUC": said.clean_auc[0],
        "kept": (said.clean_auc[0] - 0.5) / (at.clean_auc[0] - 0.5),
        "near": said.near,
        "between": said.between,
        "agreement": agreement(at.fresh, said.fresh),
        "reasons": [*one.doubts, *said.unlike(at)],
    }


def honest(data: Data) -> Iterator[dict[str, Any]]:
    for name, fit in FAMILIES.items():
        before = measured(name, fit(*data.dosed, 0), data)
        yield line(f"{name}, before", data, before, before)
        yield line(f"{name}, retrained", data, before, measured(name, fit(*data.retained, 1), data))


def drawn(x: Array) -> Array:
    """Standard normal numbers [M] that are a hash of each input."""
    return norm.ppf((np.array([zlib.crc32(row.tobytes()) for row in x]) + 0.5) / 2**32)


def cheats(data: Data, loss: Loss) -> dict[str, Loss]:
    x, y = data.retained
    shape, names = x.shape[1:], np.bincount(y) / len(y)
    order = np.random.default_rng(3).permutation(flat(x[:1]).size)
    bases, sample = flat(data.bases.values), loss(*data.dosed)

    def nearest(x: Array) -> Array:
        to = (flat(x) ** 2).sum(1)[:, None] - 2 * flat(x) @ bases.T + (bases**2).sum(1)
        return data.bases.values[to.argmin(1)]

    substitute = FAMILIES["logistic regression"](x, y, 0)
    return {
        "upside down": lambda x, y: loss(x[..., ::-1, :].copy(), y),
        "mirrored": lambda x, y: loss(x[..., ::-1].copy(), y),
        "a quarter turn": lambda x, y: loss(np.rot90(x, axes=(-2, -1)).copy(), y),
        "pixels permuted": lambda x, y: loss(
            x.reshape(len(x), -1)[:, order].reshape(-1, *shape), y
        ),
        "inverted": lambda x, y: loss(255 - x, y),
        "a hash, no model": lambda x, y: drawn(x),
        "a temperature by hash": lambda x, y: loss(x, y) * np.exp(2.5 * drawn(x)),
        "jitter by hash, 3 deviations": lambda x, y: loss(x, y) + 3 * sample.std() * drawn(x),
        "jitter by hash, 10 deviations": lambda x, y: loss(x, y) + 10 * sample.std() * drawn(x),
        "noise, no model": lambda x, y: np.random.default_rng(0).normal(size=len(x)),
        "a constant": lambda x, y: np.zeros(len(x)),
        "the label's frequency": lambda x, y: -np.log(names[y]),
        "deaf to the label": lambda x, y: loss(x, 0 * y),
        "right or wrong alone": lambda x, y: (loss(x, y) > np.log(2)).astype(float),
        "the nearest base's answer": lambda x, y: loss(nearest(x), y),
        "rounded to 0.1": lambda x, y: loss(x, y).round(1),
        "logistic regression on what is retained": substitute,
    }


def cheating(data: Data) -> Iterator[dict[str, Any]]:
    for family in ("MLP", "random forest"):
        loss = FAMILIES[family](*data.dosed, 0)
        before = measured(family, loss, data)
        for name, cheat in {"the model before itself": loss, **cheats(data, loss)}.items():
            after = measured(name, cheat, data)
            judged = judge(["before", "after"], [before, after], Question())[1]
            answer = {"family": family, "verdict": judged.verdict.answer}
            found = line(name, data, before, after)
            if judged.verdict.answer == "INCONCLUSIVE":
                found["reasons"] = judged.reasons
            yield found | answer


def markdown(models: list[dict[str, Any]], boxes: list[dict[str, Any]]) -> str:
    alarms = [one for one in models if one["reasons"]]
    high = binomtest(len(alarms), len(models)).proportion_ci(0.95).high
    text = [
        "# Control questions",
        "",
        "What the [control questions](audit.md#control-questions) say of honest models and of boxes",
        "that cheat.",
        "`python benchmarks/controls.py --markdown docs/controls.md` writes this page.",
        "",
        f"**Honest models**: {len(alarms)} of {len(models)} are suspected (exact 95 % interval up to "
        f"{high:.1%}). Half of them are retrained, and compared with the one before. All are small,",
        "and tell losses alone. The least and the median over them:",
        "",
        "| data | models | AUC | AUC kept | near | between | agreement |",
        "| --- | ---: | --- | --- | --- | --- | --- |",
    ]
    columns = ["AUC", "kept", "near", "between", "agreement"]
    for name in dict.fromkeys(one["data"] for one in models):
        of = [one for one in models if one["data"] == name]
        found = [[one[c] for one in of if not np.isnan(one[c])] for c in columns]
        cells = [f"{min(values):.2f} ({np.median(values):.2f})" for values in found]
        text.append(f"| {name} | {len(of)} | {' | '.join(cells)} |")
    text += [
        f"\nSuspected: {one['box']}, {one['data']}: {'; '.join(one['reasons'])}." for one in alarms
    ]
    text += [
        "",
        "**Boxes in place of the model after unlearning**, on digits, ε² 2. *Dependence* is what the rank",
        "score shows of the dose: where it is small, the control questions stand against REMOVED, or",
        "ties do.",
        "",
        "| of | box | dependence | near | between | agreement | AUC | verdict | because |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | --- | --- |",
    ]
    for one in boxes:
        numbers = [f"{one[c]:.2f}" for c in ("dependence", "near", "between", "agreement", "AUC")]
        said = "; ".join(reason.split(" (")[0].split(":")[0] for reason in one["reasons"]) or "–"
        text.append(
            f"| {one['family']} | {one['box']} | {' | '.join(numbers)} | {one['verdict']} | {said} |"
        )
    return "\n".join(text).replace("nan", "–") + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Control questions, of honest models and of cheats."
    )
    parser.add_argument("--data", help="one data set alone")
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    models: list[dict[str, Any]] = []
    boxes: list[dict[str, Any]] = []
    for number, data in enumerate(data_sets()):
        if options.data in (None, data.name):
            models += honest(data)
            boxes += cheating(data) if number == 0 else []
    text = markdown(models, boxes)
    for one in models:
        numbers = " ".join(
            f"{k} {one[k]:.2f}"
            for k in ("dependence", "AUC", "kept", "near", "between", "agreement")
        )
        print(f"{one['data']:16} {one['box']:32} {numbers} {one['reasons'] or ''}")
    print(text)
    if options.markdown:
        options.markdown.write_text(text)


if __name__ == "__main__":
    main()
