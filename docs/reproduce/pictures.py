"""Draw the figures of README.md and docs/results.md from the rows in this folder (`make reproduce`)."""

from pathlib import Path

import compared
import matplotlib
import scale
from experiments import HERE, TRIGGER, results, study, there
from matplotlib.figure import Figure

from marshtest.reporting.figures import STYLE, figures_by_size, figures_of
from marshtest.reporting.hypotheses import SHOWN

PICTURES = {  # the experiment, and the figure of its report
    "demo": ("digits-gaussian", "dependence"),
    "targeted": ("digits-targeted", "dependence"),
    "indiscriminate": ("digits-indiscriminate", "dependence"),
    "figure2a": ("cifar10-small-gaussian", "figure2"),
    "figure3b": (TRIGGER, "figure3"),
    "figure4": ("hypothesis-shift-small", "figure4"),
    "figure8": ("digits-budgets", "figure8"),
    "known": ("digits-known", "left-by-known"),
    "requests": ("digits-requests", "left-by-request"),
}
OTHERS = {"p-values": compared.figure}  # of rows of other kinds
if there(scale.SCALE):
    OTHERS["scale"] = scale.figure


def drawn(name: str) -> Figure:
    """The figure of one of PICTURES or OTHERS."""
    with matplotlib.rc_context(STYLE):
        if name in OTHERS:
            return OTHERS[name]()
        experiment, figure = PICTURES[name]
        if experiment.startswith("hypothesis-"):
            of = study(experiment)
            return SHOWN[of.settings.hypothesis].figure(of.curves)
        rows = results(experiment)
        every = figures_of(rows, rows.poison_budget)
        return every.get(figure) or figures_by_size(rows)[figure]


def draw(name: str, file: Path, dpi: int = 140) -> None:
    """Write one of PICTURES or OTHERS as a PNG."""
    figure = drawn(name)
    with matplotlib.rc_context(STYLE):
        box = figure.get_tightbbox().padded(0.1)
        figure.savefig(file, dpi=dpi, bbox_inches=box, metadata={"Software": None})


def main(docs: Path = HERE.parent) -> None:
    """Draw all that have rows; take away those that have none."""
    for name, (experiment, _) in PICTURES.items():
        file = docs / f"{name}.png"
        if there(experiment):
            draw(name, file)
        else:
            file.unlink(missing_ok=True)
    for name in OTHERS:
        draw(name, docs / f"{name}.png")


if __name__ == "__main__":
    main()
