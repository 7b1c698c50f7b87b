"""What neighbours of marshtest have, and what tests of "no difference" say (docs/compared.md)."""

from functools import cache

import pandas as pd
import yaml
from experiments import HERE
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from marshtest.metrics.binomial import interval_of_share
from marshtest.reporting.figures import BLUE, BROWN, GREEN, GREY, LEGEND, ORANGE
from marshtest.reporting.tables import as_markdown
from marshtest.unlearning import UNLEARNERS

PEERS = HERE / "peers.yaml"
ROWS = HERE / "p-values"  # by benchmarks/p_values.py
OURS = "marshtest"
NO_METHODS = ("elsewhere", "outside", "retrain", "retrain-tuned")  # of UNLEARNERS
MODELS = {  # of p-values, by how they are called in tables
    "simnpo": "SimNPO",
    "shrink-perturb": "shrink and perturb",
    "retrain-tuned": "tuned retraining",
    "another seed": "full retraining, another seed",
}
ANSWERS = {  # columns of the table of answers, and how they look in the figure
    "ks_passes": ("KS: p > 0.05", BLUE, "o", "--"),
    "mia_passes": ("MIA: p > 0.05", BROWN, "^", ":"),
    "REMOVED": ("marshtest: REMOVED", GREEN, "o", "-"),
    "INCONCLUSIVE": ("marshtest: INCONCLUSIVE", GREY, "s", "-"),
    "NOT REMOVED": ("marshtest: NOT REMOVED", ORANGE, "D", "-"),
}


@cache
def read_peers() -> dict[str, dict]:
    """The tools by name, and their answers; all as text, since YAML takes yes and no for truth values."""
    return yaml.load(PEERS.read_text(), Loader=yaml.BaseLoader)


def parts(cell: str) -> tuple[str, str, str]:
    """The answer, the file and the note of a cell."""
    answer, file, note = ([part.strip() for part in cell.split(";", 2)] + ["", ""])[:3]
    count = str(len(UNLEARNERS.keys() - set(NO_METHODS)))
    return answer.replace("{unlearners}", count), file, note


def sources() -> str:
    """Which snapshot of each tool was read."""
    lines = [
        {
            "tool": f"[{name}](https://github.com/{of['repository']})",
            "snapshot read": f"[`{of['commit'][:7]}`]({address(name, '', 'tree')})",
            "last commit": of["date"],
        }
        for name, of in read_peers()["tools"].items()
    ]
    return as_markdown(pd.DataFrame(lines))


def address(tool: str, file: str, kind: str = "blob") -> str:
    """Where a tool's file stands, at the commit that was read."""
    of = read_peers()["tools"][tool]
    return f"https://github.com/{of['repository']}/{kind}/{of['commit'][:10]}/{file}".rstrip("/")


def peers(title: str) -> str:
    """One of the tables of capabilities, a column a tool."""
    read = read_peers()
    lines = []
    for what, cells in read["tables"][title].items():
        told = {tool: shown(tool, cells.get(tool, "no")) for tool in (OURS, *read["tools"])}
        lines.append({"": what, **told})
    return as_markdown(pd.DataFrame(lines))


def shown(tool: str, cell: str) -> str:
    """A cell as a link to where it was seen, and its note."""
    answer, file, note = parts(cell)
    if file:
        answer = f"[{answer}]({file if tool == OURS else address(tool, file)})"
    return f"{answer}: {note}" if note else "–" if answer == "-" else answer


@cache
def rows(name: str) -> pd.DataFrame:
    """Rows of the p-values."""
    return pd.read_csv(ROWS / f"{name}.csv")


def models() -> str:
    """What all the poisons say of each model."""
    lines = rows("models").set_index("model")
    told = [
        {
            "model": title,
            "saw the poison": "no" if "retraining" in title else "yes",
            "accuracy": f"{lines.loc[name, 'accuracy']:.3f}",
            "left": f"{lines.loc[name, 'rank_left']:.0%}",
            "KS, p": number(lines.loc[name, "ks_p"]),
            "MIA, p": number(lines.loc[name, "mia_p"]),
            "marshtest": lines.loc[name, "verdict"],
        }
        for name, title in MODELS.items()
    ]
    return as_markdown(pd.DataFrame(told))


def number(p: float) -> str:
    """A p-value in a table."""
    return f"{p:.2f}" if p >= 0.01 else f"{p:.0e}"


def answers(name: str) -> str:
    """How often each question is answered how of one model, by number of poisons, with exact intervals."""
    of = rows("answers")
    lines = [
        {"poisons": f"{line.poisons}"}
        | {title: share(line[column], line.repetitions) for column, (title, *_) in ANSWERS.items()}
        for _, line in of[of["model"] == name].iterrows()
    ]
    return as_markdown(pd.DataFrame(lines))


def share(count: int, of: int) -> str:
    """A share in per cent, with its exact 95 % interval."""
    low, high = interval_of_share(count / of, of)
    return f"{100 * count / of:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"


def between_seeds() -> str:
    """How often the KS test tells two models apart that differ by their seed alone."""
    of = rows("seeds")
    rejected = (of["rejected"] / of["repetitions"]).groupby(of["images"])
    lines = [
        {
            "images": f"{images:,}",
            "p < 0.05, mean over pairs": f"{shares.mean():.0%}",
            "least": f"{shares.min():.0%}",
            "most": f"{shares.max():.0%}",
        }
        for images, shares in rejected
    ]
    pairs, seeds = len(of[["one", "other"]].drop_duplicates()), {*of["one"], *of["other"]}
    last = of[of["images"] == of["images"].max()]
    right = pd.concat([of["accuracy"], of["other_accuracy"]])
    return (
        f"{as_markdown(pd.DataFrame(lines))}\n\n{pairs} pairs of {len(seeds)} seeds, whose models have an "
        f"accuracy of {right.min():.2f} to {right.max():.2f}. With {last['images'].iloc[0]:,} images "
        f"{last['rejected'].sum()} of the {pairs} pairs have p < 0.05."
    )


def figure() -> Figure:
    """What is said of a model that holds poison and of one that does not, by number of poisons."""
    drawn = Figure(figsize=(7.2, 3.2))
    panels = drawn.subplots(1, 2, sharey=True)
    titles = {
        "shrink-perturb": "holds poison: {:.0%} left",
        "retrain-tuned": "never saw the poison",
    }
    left = rows("models").set_index("model")["rank_left"]
    for panel, (name, title) in zip(panels, titles.items(), strict=True):
        draw_answers(panel, name)
        panel.set_title(f"{MODELS[name]}\n{title.format(left[name])}", fontsize=9)
    panels[0].set_ylabel("share of subsamples")
    drawn.legend(handles=panels[0].get_legend_handles_labels()[0], **LEGEND)
    drawn.tight_layout()
    return drawn


def draw_answers(panel: Axes, name: str) -> None:
    """The answers of one model in a panel."""
    of = rows("answers")
    of = of[of["model"] == name]
    for column, (title, colour, marker, style) in ANSWERS.items():
        shares = of[column] / of["repetitions"]
        panel.plot(of["poisons"], shares, style, marker=marker, color=colour, ms=4, label=title)
    panel.set_xscale("log", base=2)
    panel.set_xticks(of["poisons"], of["poisons"].astype(str))
    panel.minorticks_off()
    panel.set(xlabel="poisons asked about", ylim=(-0.03, 1.03))
