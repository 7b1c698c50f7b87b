"""Run a hypothesis of why unlearning fails: settings → rows, curves, figure, and a plain statement."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from marshtest.data import Dataset, load, tensors_of
from marshtest.device import pick_device
from marshtest.documents import read_yaml
from marshtest.errors import MarshtestError, unknown
from marshtest.files import write
from marshtest.hypotheses.given import Given
from marshtest.hypotheses.orthogonality import Orthogonality
from marshtest.hypotheses.shift import Shift
from marshtest.protocol import Report, silent
from marshtest.report.hypotheses import report_hypothesis
from marshtest.runs import claim, refuse_anothers
from marshtest.sources import content, data_of
from marshtest.stages import packed

HYPOTHESES: dict[str, type[Shift] | type[Orthogonality]] = {
    "shift": Shift,
    "orthogonality": Orthogonality,
}


@dataclass(frozen=True)
class Study:
    """A finished study.

    Attributes:
        folder: where it lies.
        settings: what was asked.
        rows: one line a set of samples taken out, and seed (and weight decay).
        curves: one line a set, seed, and step or share taken out.
    """

    folder: Path
    settings: Shift | Orthogonality
    rows: pd.DataFrame
    curves: pd.DataFrame

    @property
    def statement(self) -> str:
        """Whether the hypothesis holds, in plain words and with its tests."""
        return self.settings.statement(self.rows)


def study(
    source: str | Path | Mapping[str, Any],
    *overrides: str,
    out: str | Path | None = None,
    data: Dataset | None = None,
    report: Report = silent,
) -> Study:
    """Run a hypothesis and write rows, curves, summary, figure and page into its folder.

    Args:
        source: name of a shipped hypothesis, path of a YAML file, or a mapping.
        overrides: "key.sub=value".
        out: the folder; default `runs/<name>-<hash>`.
        data: features in memory [N, F], standardised, instead of those that `data` names.
        report: told each stage that starts and the share that is done.

    Raises:
        MarshtestError: bad input, in one line.
    """
    values = read_yaml(source, overrides, "hypotheses")
    kind = values.get("hypothesis")
    if kind not in HYPOTHESES:
        raise MarshtestError(f"hypothesis: {unknown('hypothesis', str(kind), HYPOTHESES)}")
    settings = HYPOTHESES[kind].parse(values, "")
    folder = Path(out) if out is not None else Path("runs") / f"{settings.name}-{settings.hash}"
    identity: dict[str, Any] = {"recipe": settings.hash, "data": None}
    if isinstance(settings, Shift):
        given = {n: s.digest() for n, s in settings.sets.items() if isinstance(s, Given)}
        identity |= {"data": content(settings.data, data), "poisons": given}
    refuse_anothers(folder, settings, identity)
    if not (folder / "rows.parquet").exists():
        claim(folder, settings, identity)
        if isinstance(settings, Shift):
            features = data or _features(settings, folder, report)
            rows, curves = settings.run(report, features.to(pick_device(settings.device)))
        else:
            rows, curves = settings.run(report)
        write(curves, folder / "curves.parquet")
        write(rows, folder / "rows.parquet")
    done = Study(
        folder,
        settings,
        pd.read_parquet(folder / "rows.parquet"),
        pd.read_parquet(folder / "curves.parquet"),
    )
    about = json.loads((folder / "run.json").read_text())
    report_hypothesis(folder, settings, kind, (done.rows, done.curves), done.statement, about)
    return done


def _features(settings: Shift, folder: Path, report: Report) -> Dataset:
    """Of the settings' data; kept in the folder where a network had to be trained for them."""
    if settings.data.features is None:
        return data_of(settings.data, settings.device)
    file = folder / "features.safetensors"
    if not file.exists():

        def progress(share: float) -> None:
            report(f"train the network of the features, {share:.0%}", 0.0)

        data = data_of(settings.data, settings.device, progress)
        write(packed(tensors_of(data)), file)
    return load("tensors", str(file))
