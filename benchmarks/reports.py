"""How long commands take that only read rows, each in a process of its own, and a page in Chromium.

Run: python benchmarks/reports.py [--repeats 3]

The rows are those of a small run on digits, repeated with other seeds, budgets and rates, and a little
noise: 3 poison budgets, 25 seeds, 8 unlearners at 3 rates under 6 compute budgets. Goals for the report
of 10,050 rows and for its page: 10 s and 2 s; for the other commands, on the small run: under 1 s.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import marshtest
from marshtest.experiment.recipe import Recipe, load_recipe
from marshtest.experiment.row_file import write_rows
from marshtest.sweeps.run_folder import describe

SHARES, SEEDS, BUDGETS = (0.1, 0.2, 0.3), 25, (0.02, 0.04, 0.06, 0.08, 0.1, 0.2)
NAMES = ("gd", "ngd", "ga", "euk", "cfk", "scrub", "neggrad+")
SMALL = {
    "name": "reported",
    "data": {"name": "digits", "validation": 0.1},
    "model": {"name": "mlp", "width": 64},
    "training": {"epochs": 10, "lr": 0.1},
    "attack": {"name": "gaussian", "variance": 6.0, "draws": 99},
    "unlearners": ["retrain", *({"name": n, "k": 1} if n in ("euk", "cfk") else n for n in NAMES)],
    "poison_budgets": SHARES[-1],
    "budgets": BUDGETS[-1],
}


def recipe_of_many() -> Recipe:
    rates = {"lr": [0.01, 0.03, 0.1]}
    few = {"euk": {"k": 1}, "cfk": {"k": 1}}
    searched = [{"name": name, **few.get(name, {}), **rates} for name in NAMES]
    varied = {"poison_budgets": SHARES, "seeds": SEEDS, "budgets": BUDGETS}
    return load_recipe({**SMALL, **varied, "unlearners": ["retrain", *searched]})


def many_rows(measured: pd.DataFrame, recipe: Recipe) -> pd.DataFrame:
    lines = {line["unlearner"]: line for line in measured.to_dict("records")}
    draws = np.random.default_rng(0)
    found: list[dict[str, Any]] = []
    for share in SHARES:
        for seed in range(SEEDS):
            size = round(share * 1260)
            of = {"recipe": recipe.hash, "poison_budget": share, "seed": seed, "forget_size": size}
            of |= {"gus_poisons": float(size), "rank_poisons": float(size)}
            found += [{**lines[name], **of} for name in ("none", "retrain (full)")]
            for entry, trials in enumerate(recipe.unlearners):
                for trial in trials:
                    given = json.dumps(trial.hyperparameters, sort_keys=True)
                    for budget in BUDGETS:
                        cell = {"entry": entry, "hyperparameters": given, "budget": budget}
                        found.append({**lines[trial.name], **of, **cell, "spent": budget})
    rows = pd.DataFrame(found)
    for column in ("test_accuracy", "gus_dependence", "rank_dependence"):
        rows[column] += draws.normal(0, 0.003, len(rows))
    return rows


def seconds_of(command: list[str]) -> float:
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return time.perf_counter() - started


def load_seconds(page: Path, repeats: int) -> list[float]:
    """From the navigation until every chart is drawn."""
    from playwright.sync_api import sync_playwright

    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    drawn = "[...document.querySelectorAll('section.results')].every(s => s.dataset.drawn)"
    found = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        for _ in range(repeats):
            tab = browser.new_page()
            started = time.perf_counter()
            tab.goto(page.as_uri())
            tab.wait_for_function(drawn)
            found.append(time.perf_counter() - started)
            tab.close()
        browser.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        recipe = recipe_of_many()
        rows = many_rows(marshtest.run(SMALL, out=folder / "run").rows, recipe)
        write_rows(rows, folder / "rows.parquet", {recipe.hash: describe(recipe, None)})
        cli, run = [sys.executable, "-m", "marshtest"], str(folder / "run")
        for command in (["list"], ["leaderboard", run], ["compare", run, run]):
            took = [seconds_of([*cli, *command]) for _ in range(repeats)]
            print(f"{command[0]:<12} of a small run: {statistics.median(took):.2f} s")
        draw = [*cli, "report", str(folder / "rows.parquet"), "--out"]
        times = [seconds_of([*draw, str(folder / f"out{i}")]) for i in range(repeats)]
        page = folder / "out0" / "report.html"
        size = page.stat().st_size / 1e6
        print(f"report       {len(rows):,} rows: {statistics.median(times):.2f} s, {size:.2f} MB")
        loads = load_seconds(page, repeats)
        print(f"page         drawn in Chromium: {statistics.median(loads):.2f} s")


if __name__ == "__main__":
    main()
