"""Keep a finished run's or sweep's rows in this folder, without what no table or figure needs.

python docs/reproduce/keep.py RUN [NAME]
"""

import shutil
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from experiments import HERE, HOW, MARKED, RIVALS, SHORT, TRIALS

from marshtest.experiment.row_file import ATTRS, FILE
from marshtest.plumbing.whole_files import write
from marshtest.results.summary import Results

WITH_SCORES = ("digits-gaussian",)  # of which Figures 6 and 7 are drawn: before NGD, and after
COLUMNS = ["poison_budget", "role", "entry", "unlearner", "hyperparameters", "budget"]
COLUMNS += ["seed", "gus", "gus_fresh"]


def keep(run: Path, name: str) -> None:
    """Copy rows, and the scores that are drawn."""
    folder = HERE / name
    known = {*SHORT, *RIVALS, *TRIALS, *HOW, MARKED}
    if name not in known:
        raise SystemExit(f"{name}: none of {', '.join(known)}")
    if not (run / FILE).exists():
        raise SystemExit(f"{run}: holds no {FILE}")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    copy_small(run / FILE, folder / FILE)
    if name in WITH_SCORES:
        scores = Results.read(run).scores
        drawn = scores["unlearner"].isin(["none", "ngd"])
        write(scores.loc[drawn, COLUMNS].reset_index(drop=True), folder / "scores.parquet")


def copy_small(source: Path, copy: Path) -> None:
    """Copy a Parquet file, packed as tightly as it goes, without the schemas of other libraries."""
    table = pq.read_table(source)
    floats = [field.name for field in table.schema if pa.types.is_floating(field.type)]
    others = [name for name in table.column_names if name not in floats]
    options = {"compression": "zstd", "compression_level": 19, "write_statistics": False}
    options |= {"use_dictionary": others, "use_byte_stream_split": floats, "store_schema": False}
    kept = {key: value for key, value in (table.schema.metadata or {}).items() if key == ATTRS}
    with pq.ParquetWriter(copy, table.schema, **options) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata(kept)


if __name__ == "__main__":
    keep(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else Path(sys.argv[1]).name)
