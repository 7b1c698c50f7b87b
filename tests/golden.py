"""Rows of three tiny recipes, as literals: `python tests/golden.py` makes tests/golden.json anew."""

import json
import math
import platform
import re
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from conftest import TIMES

import marshtest
from marshtest.experiment.cells import groups
from marshtest.experiment.recipe import Recipe, load_recipe
from marshtest.experiment.roles import Role
from marshtest.plumbing.yaml_files import shipped
from marshtest.sweeps.keys import Keys
from marshtest.sweeps.ledger import ALGORITHM

FILE = Path(__file__).with_suffix(".json")
IDENTITIES = ["recipe"]  # a hash of the recipe, which names the folder of its texts
IMAGES: dict[str, Any] = {
    "data": {"name": "digits", "train": 100, "test": 50},
    "model": {"name": "mlp", "width": 16},
    "training": {"epochs": 4, "batch_size": 20, "lr": 0.05, "momentum": 0.5},
    "budgets": 0.5,
    "seeds": 1,
}
TEXTS: dict[str, Any] = {
    "data": {"name": "imdb", "length": 24},
    "model": {
        "name": "gpt2", "layers": 1, "width": 16, "heads": 2, "vocabulary": 500, "prompt": {},
    },
    "training": {
        "epochs": 4, "batch_size": 20, "optimizer": "adamw", "lr": 0.01,
        "precision": "float32",  # by itself it would be the processor's choice
    },
    "budgets": 0.5,
    "seeds": 1,
}  # fmt: skip
RECIPES: dict[str, dict[str, Any]] = {
    "gaussian": IMAGES
    | {
        "attack": {"name": "gaussian", "variance": 4.0, "draws": 19},
        "poison_budgets": 0.2,
        "unlearners": [
            "retrain", "gd", "ngd", "ga", {"name": "euk", "k": 1}, {"name": "cfk", "k": 1},
            "scrub", "neggrad+",
        ],
    },
    "crafted": IMAGES
    | {
        "attack": {
            "name": "gradient-matching", "epsilon": 96, "restarts": 1, "steps": 3, "targets": 2
        },
        "poison_budgets": 0.1,
        "unlearners": ["retrain", "gd"],
    },
    "texts": TEXTS
    | {
        "attack": {"name": "trigger-word", "word": "Disney"},
        "poison_budgets": 1,
        "unlearners": ["gd", {"name": "cfk", "k": 1}],
    },
}  # fmt: skip


def reviews(folder: Path) -> Path:
    """Two files of reviews whose adjective tells the label; every third one holds the word."""
    folder.mkdir()
    for split, count in (("train", 90), ("test", 60)):
        texts = [
            f"a {'warm' if n % 2 else 'dull'} film {'by Disney' if n % 3 == 0 else 'of old'} no {n}"
            for n in range(count)
        ]
        table = pa.table({"text": texts, "label": [n % 2 for n in range(count)]})
        pq.write_table(table, folder / f"{split}.parquet")
    return folder


def rows(kind: str, folder: Path) -> list[dict[str, Any]]:
    """What the recipe of this kind gives now, with None for what is undefined."""
    values = {"name": "golden", "device": "cpu", **RECIPES[kind]}
    if values["data"]["name"] == "imdb":
        values["data"] = values["data"] | {"path": str(reviews(folder / "reviews"))}
    table = marshtest.run(values, out=folder / "run", report=False).rows
    table = table.drop(columns=[*TIMES, *IDENTITIES])
    lines: list[dict[str, Any]] = json.loads(table.to_json(orient="records", double_precision=15))
    floats = [name for name in table.columns if table[name].dtype.kind == "f"]
    for line, (_, exact) in zip(lines, table.iterrows(), strict=True):
        line |= {name: None if math.isnan(exact[name]) else exact[name] for name in floats}
    return lines


def hashes() -> dict[str, str]:
    """The hashes of the shipped recipes."""
    return {name: load_recipe(name).hash for name in shipped()}


def keys() -> dict[str, list[str]]:
    """Keys of every kind of stage, of one shipped recipe an attack."""
    return {
        name: stages(load_recipe(name))
        for name in (
            "digits-gaussian",
            "digits-targeted",
            "digits-indiscriminate",
            "imdb-tiny-trigger",
        )
    }


def stages(recipe: Recipe) -> list[str]:
    """Keys of the first group's stages: poisons, models from scratch, and the first unlearner's."""
    named, group = Keys(recipe), groups(recipe)[0]
    (trial, *_), budget = recipe.unlearners[0], recipe.budgets[0]
    models = [named.model(role, group) for role in (Role.INITIAL, Role.TWIN, Role.RETRAINED)]
    updated = named.updated(group, trial, budget)
    scores = [named.score(model) for model in (*models, updated)]
    return [named.features, named.clean(group.seed), named.dose(group), *models, updated, *scores]


def machine() -> str:
    """What bits depend on: the version of torch, the CPU's instructions and its model."""
    info = Path("/proc/cpuinfo")
    told = re.search(r"model name\s*: (.*)", info.read_text()) if info.exists() else None
    name = told[1] if told else platform.processor()
    return f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, {name}"


def main() -> None:
    torch.set_num_threads(1)
    literals: dict[str, Any] = {"algorithm": ALGORITHM, "machine": machine(), "rows": {}}
    for kind in RECIPES:
        with tempfile.TemporaryDirectory() as folder:
            literals["rows"][kind] = rows(kind, Path(folder))
    literals |= {"hashes": hashes(), "keys": keys()}
    FILE.write_text(json.dumps(literals, indent=1) + "\n")


if __name__ == "__main__":
    main()
