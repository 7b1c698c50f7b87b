"""Run a hypothesis of why unlearning fails: settings → rows, curves, figure, and a plain statement."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from scipy.stats import ttest_rel

from marshtest.hypotheses.orthogonality import Orthogonality
from marshtest.protocol import Report, silent, write
from marshtest.recipe import read_yaml
from marshtest.report.figures import save
from marshtest.report.hypotheses import figure5, hypothesis_markdown
from marshtest.run import claim, refuse_anothers

ALPHA = 0.05


@dataclass(frozen=True)
class Study:
    """A finished study.

    Attributes:
        folder: where it lies.
        settings: what was asked.
        rows: one line a set of samples taken out, and seed.
        curves: one line a set, curve, seed and step.
    """

    folder: Path
    settings: Orthogonality
    rows: pd.DataFrame
    curves: pd.DataFrame

    @property
    def statement(self) -> str:
        """Whether the hypothesis holds, by one-sided paired t tests over seeds, both at level 0.05.

        It does where the poisons' cosine lies surely below the random samples', and below that of descent
        from a random start; it does not where it lies surely above either.
        """
        of = {name: lines.set_index("seed") for name, lines in self.rows.groupby("set")}
        poison, random = of["poisons"], of["random"]
        own = poison["cosine_corrupted"]
        rivals = (random["cosine_corrupted"], poison["cosine_random"])
        below, above = (
            [ttest_rel(own, rival, alternative=side).pvalue for rival in rivals]
            for side in ("less", "greater")
        )
        answer = "is not settled"
        if max(below) < ALPHA:
            answer = "holds"
        elif min(above) < ALPHA:
            answer = "does not hold"
        return (
            f"Hypothesis 2 {answer} here: the cosine of clean gradients with the way to be unlearned is "
            f"{own.mean():.3f} for poisons, {rivals[0].mean():.3f} for random samples that shift as far, "
            f"{rivals[1].mean():.3f} from a random start (p {max(below):.2g} that the first is no smaller)."
        )


def study(
    source: str | Path | Mapping[str, Any],
    *overrides: str,
    out: str | Path | None = None,
    report: Report = silent,
) -> Study:
    """Run a hypothesis and write rows, curves, summary and figure into its folder.

    Args:
        source: name of a shipped hypothesis, path of a YAML file, or a mapping.
        overrides: "key.sub=value".
        out: the folder; default runs/<name>-<hash>.
        report: told each stage that starts and the share that is done.

    Raises:
        MarshtestError: bad input, in one line.
    """
    settings = Orthogonality.parse(read_yaml(source, overrides, "hypotheses"), "")
    folder = Path(out) if out is not None else Path("runs") / f"{settings.name}-{settings.hash}"
    identity = {"recipe": settings.hash, "data": None}
    refuse_anothers(folder, settings, identity)
    if not (folder / "rows.parquet").exists():
        claim(folder, settings, identity)
        rows, curves = settings.run(report)
        write(curves, folder / "curves.parquet")
        write(rows, folder / "rows.parquet")
    done = Study(
        folder,
        settings,
        pd.read_parquet(folder / "rows.parquet"),
        pd.read_parquet(folder / "curves.parquet"),
    )
    save(figure5(done.curves), folder / "figures" / "figure5")
    text = hypothesis_markdown(settings.name, done.rows, done.statement)
    (folder / "summary.md").write_text(text)
    return done
