"""What was measured on a GPU (docs/gpu.md), and what the paper's experiment would take by it.

    python docs/reproduce/devices.py    # counts anew what the paper's recipes ask for; needs CIFAR-10, IMDb

gpu/h100.json is what `benchmarks/gpu.py` and a sweep printed on one, gpu/h200.json what two sweeps did.
"""

import json
import re
from typing import Any

import pandas as pd
import torch
from experiments import HERE, HOW, ROWS, hours_of_work, results
from tables import measured as measured_table

from marshtest.commands.footprint import footprint
from marshtest.commands.launches import HOST
from marshtest.experiment.guarded import trigger_of
from marshtest.experiment.protocol import set_up
from marshtest.experiment.recipe_data import samples_of
from marshtest.experiment.row_file import FILE
from marshtest.reporting.tables import as_markdown, explained
from marshtest.sweeps.jobs import passes
from marshtest.sweeps.planned import plan_sweep
from marshtest.sweeps.settings import read_sweep
from marshtest.training.budget import flops_of

FOLDER = HERE / "gpu"
RECIPE, SLICE = "paper-cifar10-gaussian", "gpu-paper-cifar10-gaussian"
# Sample passes of the recipe as it was when its time on a GPU was first estimated, with 16 trials of
# unlearners instead of 20: that came to 24 to 26 hours.
EARLIER = {"train": 6.99e8, "unlearn": 7.55e8, "score": 3.34e8}
KINDS = {"train": "training", "unlearn": "unlearning", "score": "scoring"}
# Of GPT-2 medium the size alone is counted, so one that is not pretrained will do, and needs no download.
GPT2 = "model={name: gpt2, layers: 24, width: 1024, heads: 16, vocabulary: 50257"
FULL = {  # the paper's experiments, and what is changed to count them
    RECIPE: (),
    "paper-cifar10-targeted": (),
    "paper-cifar10-indiscriminate": (),
    "paper-imdb-gaussian": (GPT2 + "}",),
    "paper-imdb-trigger": (GPT2 + ", prompt: {}}",),
}


CORES = {  # experiments between the paper's and the small ones, and rows of networks like theirs
    "cifar10-gaussian": "cifar10-scale",
    "cifar10-targeted": "cifar10-scale",
    "imdb-gaussian": "imdb-tiny-gaussian",
    "imdb-trigger": "imdb-small-trigger",
}
TAKES = re.compile(
    r"A worker takes about ([\d.,]+ GB) of memory, and if it uses a GPU about ([\d.,]+ GB) of the GPU's\. "
    r"A sweep's store comes to .*, ([\d.,]+ GB) in all\."
)


def measured() -> dict[str, Any]:
    """What was printed there."""
    return _read("h100.json")


def _read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FOLDER / name).read_text())
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
    counts, rate = counted()[RECIPE], rates()
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
    counts, found = counted()[RECIPE], measured()["slice"]
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


def counted() -> dict[str, Any]:
    """What each of the paper's experiments asks for."""
    return _read("counts.json")


def at_full_scale() -> str:
    """Hours of each of the paper's experiments on one GPU that is kept busy, by the rates of the slice."""
    counts, rate = counted(), {**rates(), "craft": rates()["unlearn"]}
    lines, every = [], 0.0
    for name in FULL:
        of = counts[name]
        # Another network's pass takes as much longer as it has more operations.
        size = of["flops"] / counts[RECIPE]["flops"]
        hours = {kind: size * of[kind] * rate[kind] / 3600 for kind in (*KINDS, "craft")}
        told = {title: f"{hours[kind]:,.1f}" for kind, title in KINDS.items()}
        crafting = f"{hours['craft']:,.1f}" if hours["craft"] else "–"
        every += sum(hours.values())
        memory, of_gpu, store = _takes(of)
        lines.append(
            {
                "recipe": f"`{name}`",
                "seeds": str(of["seeds"]),
                "crafting": crafting,
                **told,
                "hours": f"{sum(hours.values()):,.0f}",
                "GPU's memory": of_gpu,
                "a worker's memory": memory,
                "store": store,
            }
        )
    lines.append({"recipe": "**in all**", "hours": f"{every:,.0f}"})
    return as_markdown(pd.DataFrame(lines).fillna(""))


def between() -> str:
    """What slices of two experiments between took on a GPU that they shared, in words."""
    found = _read("h200.json")
    parts, done = [], 0.0
    for name, of in found["sweeps"].items():
        rows = results(name).rows
        done += rows["flops"].sum() / of["seconds"]
        asking = of["operations asked for"] * HOST / 3600
        parts.append(
            f"`{name}` took {of['seconds'] / 60:.0f} minutes with {of['processes']} processes, "
            f"{hours_of_work(rows):.2f} hours of them in its {len(rows)} rows; for its "
            f"{of['operations asked for']:.1e} operations `explain` foretells {asking:.2f} hours of one "
            "process."
        )
    busy, memory = found["busy once both trained, %"], found["largest memory, MiB"] / 1024
    parts.append(
        f"The GPU was busy {busy} % of the time once both trained, and at most {memory:.0f} of its GiB "
        f"were in use. Training and unlearning came to {done / 1e12:.0f} TFLOP/s in all: operations of "
        "networks this small are over in microseconds, and processes take turns at a GPU."
    )
    return "\n".join(f"- {part}" for part in parts)


def on_cores() -> str:
    """Hours of a core for each experiment between, by the operations a second of other rows' trainings."""
    lines = []
    for name, like in CORES.items():
        of, rows = counted()[name], pd.read_parquet(ROWS / like / FILE)
        trained = rows[rows["role"].isin(["initial", "retrained"])]
        passes = sum(of[kind] for kind in (*KINDS, "craft"))
        told = [
            f"{passes * of['flops'] * own['seconds'].sum() / own['flops'].sum() / of['seeds'] / 3600:,.0f}"
            f" in {precision}"
            for precision, own in trained.groupby("precision")
        ]
        memory, _, store = _takes(of)
        lines.append(
            {
                "recipe": f"`{name}`",
                "hours of a core, a seed": ", ".join(told),
                "by the trainings of": f"`{like}`",
                "a worker's memory": memory,
                "store": store,
            }
        )
    return as_markdown(pd.DataFrame(lines))


def _takes(of: dict[str, Any]) -> tuple[str, ...]:
    """Memory of a worker, and of its GPU, and size of the store, as `explain` tells them."""
    found = TAKES.fullmatch(of["takes"])
    assert found is not None
    return found.groups()


def count(name: str, *changed: str) -> dict[str, Any]:
    """Sample passes of a recipe by kind of work, and operations of a forward pass of one sample."""
    planned = plan_sweep(read_sweep(name, *changed))
    recipe = planned.keys[0].recipe
    data, _ = samples_of(recipe.data, recipe.model, trigger_of(recipe.attack))
    pipeline = set_up(recipe, data)
    total = dict.fromkeys((*KINDS, "craft"), 0.0)
    for job in planned.jobs:
        for kind, needed in passes(job, data).items():
            total[kind] += needed
    few, model = data.train[:2].to(pipeline.device), pipeline.trainer.new_model(0).eval()
    with torch.no_grad():
        flops = flops_of(lambda: pipeline.task.loss(model, few)) / len(few)
    takes = footprint(pipeline, planned.jobs).sentence()
    return {"seeds": recipe.seeds, **total, "flops": flops, "takes": takes}


if __name__ == "__main__":
    every = {**FULL, **dict.fromkeys(CORES, ())}
    counts = {name: count(name, *changed) for name, changed in every.items()}
    FOLDER.joinpath("counts.json").write_text(json.dumps(counts, indent=1) + "\n")
