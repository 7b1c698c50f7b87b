"""Make the rows of a suite's known unlearners, which ship with the package.

python docs/reproduce/suites.py SUITE [--recipes NAME…] [--seeds N] [--runs FOLDER] [--repeats R]

Every recipe of the suite runs with all its unlearners; a run that was stopped goes on, a finished one is
taken. The suite's folder in the package gets its rows. With --repeats three seeds run with R pairs of
models each, for U-LiRA and KLoM, and `keep.py` takes their rows.
"""

import argparse
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

import marshtest
from marshtest.experiment.row_file import write_rows
from marshtest.results.suite import Suite, read_suite
from marshtest.results.summary import Results

# Neither ranks nor verdicts ask for them.
UNASKED = ["data", "model", "attack", "passes", "flops", "epochs", "scoring_seconds"]
ATTRS = "PANDAS_ATTRS"
KEYS = ("poison_budget", "budget", "chance")  # floats by which rows are found again, digit by digit


def kept(rows: pd.DataFrame) -> pd.DataFrame:
    """What a card asks of the known, measures in single precision."""
    asked = rows.drop(columns=UNASKED)
    measures = asked.select_dtypes("float64").columns.difference(KEYS)
    return asked.astype(dict.fromkeys(measures, "float32"))


def make_small(file: Path) -> None:
    """Write a Parquet file again without what takes more room than a few hundred rows do."""
    table = pq.read_table(file)
    texts = [field.name for field in table.schema if pa.types.is_string(field.type)]
    options = {"compression": "zstd", "use_dictionary": texts, "write_statistics": False}
    bare = table.replace_schema_metadata()
    with pq.ParquetWriter(file, bare.schema, store_schema=False, **options) as writer:
        writer.write_table(bare)
        # Where pandas looks for what rows say of themselves; its own part repeats them.
        writer.add_key_value_metadata({ATTRS: table.schema.metadata[ATTRS.encode()].decode()})


def make(suite: Suite, recipe: str, runs: Path, seeds: int | None) -> Path:
    """Run a recipe with all its unlearners, and keep its rows; their file."""
    values = suite.values(recipe) | ({"seeds": seeds} if seeds else {})
    folder = runs / f"{suite.name}-{Path(recipe).stem}-{values['seeds']}"
    results: Results = marshtest.run(values, out=folder, report=False, progress=print)
    file = suite.rows / f"{Path(recipe).stem}.parquet"
    write_rows(kept(results.rows), file, results.runs)
    make_small(file)
    return file


def repeat(suite: Suite, recipe: str, runs: Path, repeats: int) -> Path:
    """Run a recipe with further pairs of models; its folder."""
    values = suite.values(recipe) | {"seeds": 3, "repeats": repeats, "states": []}
    folder = runs / f"repeats-{Path(recipe).stem}"
    marshtest.run(values, out=folder, report=False, progress=print)
    return folder


def main() -> None:
    """Make the rows of the recipes that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("suite")
    parser.add_argument("--recipes", nargs="*")
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--repeats", type=int)
    parser.add_argument("--runs", type=Path, default=Path("runs/suites"))
    given = parser.parse_args()
    suite = read_suite(given.suite)
    for recipe in given.recipes or suite.recipes:
        if given.repeats:
            print(repeat(suite, recipe, given.runs, given.repeats))
            continue
        file = make(suite, recipe, given.runs, given.seeds)
        print(f"{file}: {file.stat().st_size / 1024:.0f} kB")


if __name__ == "__main__":
    main()
