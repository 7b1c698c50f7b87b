"""Unlearners on marks beside other poisons of texts, and which marks a model remembers (docs/marks.md)."""

import pandas as pd
from experiments import MARKED, command, missing, there
from rivals import cells_of
from scipy.stats import norm

from marshtest.commands.marks import NAMES, STUDY, USUAL, pooled
from marshtest.reporting.tables import as_markdown, plus_minus

OTHERS = {  # poisons of the same texts, beside marks
    "imdb-tiny-gaussian": "noise in embeddings",
    "imdb-tiny-trigger": "trigger word",
}


def on_texts() -> str:
    """Each unlearner on marks: what is left, perplexity, the verdict; and its verdicts on other poisons."""
    if not there(MARKED):
        return missing([MARKED])
    others = {title: cells_of(name) for name, title in OTHERS.items() if there(name)}
    lines = []
    for title, of in cells_of(MARKED).items():
        line, dependence = of.line, of.line["rank_dependence"]
        told = {
            "": title,
            "marks": of.verdict,
            "rank score": plus_minus(dependence, line["rank_error"], 2),
            "perplexity": plus_minus(line["perplexity"], line["perplexity_sd"], 1),
        }
        for poison, cells in others.items():
            told[poison] = cells[title].verdict if title in cells else ""
        lines.append(told)
    return f"{command(MARKED)}\n\n{as_markdown(pd.DataFrame(lines))}"


def remembered() -> str:
    """Families by epochs, in each cell the dependence and its standard error."""
    lines = pooled()
    once = lines.query(
        "place == 'end' and records == 120 and copies == 1 and way == 'from scratch'"
    )
    once = once.assign(shown=[_shown(line) for line in once.itertuples()])
    wide = once.pivot(index="family", columns="epochs", values="shown").loc[once["family"].unique()]
    wide = wide.fillna("–")  # not run
    wide.columns = [f"{epochs} epochs" for epochs in wide.columns]
    names = [NAMES.get(family, f"`{family}`") for family in wide.index]
    table = as_markdown(wide.reset_index(drop=True).assign(mark=names)[["mark", *wide.columns]])
    rows = pd.read_csv(STUDY)
    (draws,), seeds = rows["draws"].unique(), rows["seed"].nunique()
    # −E Φ⁻¹(u), u uniform below q = 1 / (K + 1), is φ(Φ⁻¹(q)) / q.
    first = 1 / (draws + 1)
    most = norm.pdf(norm.ppf(first)) / first
    return f"{table}\n\nSeeds: {seeds}. If every mark came first of {draws + 1}, it would be {most:.2f}."


def varied() -> str:
    """One thing varied at a time: place, records, copies, the way of training."""
    titles = {
        "place": ("place: {}", 10),
        "records": ("marked reviews: {}", 10),
        "copies": ("copies of each: {}", 5),
        "way": ("{}", 10),
    }
    usual = USUAL | {"way": "from scratch"}
    lines, told = pooled(), {}
    for key, (title, epochs) in titles.items():
        at = lines["epochs"] == epochs
        for other in usual.keys() - {key}:
            at &= lines[other] == usual[other]
        for line in lines[at].itertuples():
            if line.family in ("Ticket {digits:6}.", "{words:4}"):
                name = f"{title.format(getattr(line, key))}, {epochs} epochs"
                told.setdefault(name, {"": name})[f"`{line.family}`"] = _shown(line)
    return as_markdown(pd.DataFrame(told.values()).fillna("–"))


def _shown(line: tuple) -> str:
    return plus_minus(line.dependence, line.error, 2)
