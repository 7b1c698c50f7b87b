"""What was measured on a GPU (docs/gpu.md), and what the paper's experiment would take by it.

    python docs/reproduce/devices.py    # counts anew what paper-cifar10-gaussian asks for; needs CIFAR-10

gpu/h100.json is what `benchmarks/gpu.py` and a sweep printed on one.
"""

import json
from typing import Any

import pandas as pd
from experiments import HERE, HOW, results
from tables import measured as measured_table

from marshtest.commands.explain import explain
from marshtest.reporting.tables import as_markdown, explained

FOLDER = HERE / "gpu"
RECIPE, SLICE = "paper-cifar10-gaussian", "gpu-paper-cifar10-gaussian"
# Sample passes of the recipe as it was when its time on a GPU was first estimated, with 16 trials of
# unlearners instead of 20: that came to 24 to 26 hours.
EARLIER = {"train": 6.99e8, "unlearn": 7.55e8, "score": 3.34e8}
KINDS = {"train": "training", "unlearn": "unlearning", "score": "scoring"}


def measured() -> dict[str, Any]:
    """What was printed there."""
    found: dict[str, Any] = json.loads((FOLDER / "h100.json").read_text())
    return found


def steps() -> str:
    """Milliseconds of a step of each kind."""
    found = measured()
    lines = [
        {
            "a step of": "training" if kind == "fit" else kind,
            "before, ms": f"{found['before'][kind]['ms']:.0f}",
            "each operation counted, ms": f"{of['counted throughout, ms']:.0f}",
            "as it is done, ms": f"{of['ms']:.0f}",
            "the GPU busy, ms": f"{of['the GPU busy, ms']:.1f}",
            "kernels": f"{of['kernels']:.0f}",
        }
        for kind, of in found["steps"].items()
    ]
    return as_markdown(pd.DataFrame(lines))


def graphs() -> str:
    """A training step without a graph and with one, in words."""
    found = measured()["graphs"]
    each = [1000 * found[f"{way}, s"] / found["steps"] for way in ("plain", "recorded")]
    return (
        f"{each[0]:.1f} ms step by step and {each[1]:.1f} ms by a graph's replays; the largest difference "
        f"of a weight after {found['compared after, steps']} steps of another training, in float32 and in "
        f"bfloat16, is {found['largest difference of a weight']:g}."
    )


def scoring() -> str:
    """Seconds in which a model is scored."""
    found = measured()["scoring"]
    lines = [
        {
            "layout": layout,
            **{kind: f"{found[f'{layout}, {kind}, s']:.2f} s" for kind in ("float32", "TF32")},
        }
        for layout in ("contiguous", "channels last")
    ]
    return as_markdown(pd.DataFrame(lines))


def rates() -> dict[str, float]:
    """Seconds of a saturated GPU for one sample pass, by kind of work."""
    found, rows = measured(), results(SLICE).rows
    scored = found["scoring"]
    # Of a poison: its own noise, the fresh ones, and a gradient.
    asked = scored["poisons"] * (scored["draws"] + 4)
    score, tf32 = (scored[f"channels last, {kind}, s"] / asked for kind in ("float32", "TF32"))
    seconds = found["slice"]["seconds"]
    from_scratch = rows["role"].isin(["initial", "retrained"])
    draws = float(rows["draws"].iloc[0]) if "draws" in rows else 99.0
    of_scores = len(rows) * float(rows["gus_poisons"].max()) * (draws + 4) * score
    unlearning = seconds["unlearning and scoring, 6 at once"] - of_scores
    return {
        "train": seconds["training, 2 models at once"] / rows["passes"][from_scratch].sum(),
        "unlearn": unlearning / rows["passes"][~from_scratch].sum(),
        "score": score,
        "tf32": tf32,
    }


def estimate() -> str:
    """Hours of the paper's experiment on one GPU that is kept busy."""
    counts, rate = json.loads((FOLDER / "counts.json").read_text()), rates()
    lines = []
    for kind, title in KINDS.items():
        lines.append(
            {
                "part": title,
                "sample passes": f"{counts[kind]:.2e}",
                "µs a pass": f"{1e6 * rate[kind]:.1f}",
                "hours": counts[kind] * rate[kind] / 3600,
                "hours with tf32": counts[kind] * rate["tf32" if kind == "score" else kind] / 3600,
                "hours, earlier count": EARLIER[kind] * rate[kind] / 3600,
                "with tf32": EARLIER[kind] * rate["tf32" if kind == "score" else kind] / 3600,
            }
        )
    table = pd.DataFrame(lines)
    hours = [name for name in table if table[name].dtype.kind == "f"]
    total = {"part": "**in all**", **{name: table[name].sum() for name in hours}}
    table = pd.concat([table, pd.DataFrame([total])]).fillna("")
    table[hours] = table[hours].map("{:.1f}".format)
    return as_markdown(table)


def slice_rows() -> str:
    """The slice's command, summary, and verdicts in words with reasons."""
    why = "\n".join(f"- {line}" for line in explained(results(SLICE)))
    return f"`{HOW[SLICE]}`\n\n{measured_table(SLICE)}\n\n{why}"


def memory() -> str:
    """What `explain` foretells of the recipe, and what the slice took, in words."""
    counts, found = json.loads((FOLDER / "counts.json").read_text()), measured()["slice"]
    return (
        f"> {counts['takes']}\n\nThe largest of six processes that ran its slice on an H100 took "
        f"{found['largest memory of a worker, GB']:.1f} GB of the GPU's memory."
    )


def slice_seconds() -> str:
    """How long the slice took, in words."""
    start, training, rest = measured()["slice"]["seconds"].values()
    return (
        f"It took {start + training + rest} seconds with six processes: {start} to start them and decode "
        f"the images, {training} for both trainings, {rest} for unlearning and scoring."
    )


if __name__ == "__main__":
    explanation = explain(RECIPE)
    assert explanation.costs is not None
    passes = explanation.costs.set_index("stage")["passes"]
    counts = {kind: float(passes[kind]) for kind in KINDS} | {"takes": explanation.takes[0]}
    FOLDER.joinpath("counts.json").write_text(json.dumps(counts, indent=1) + "\n")
