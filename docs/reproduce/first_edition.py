"""Write first-edition.csv: the verdicts that the rows and the code of an earlier commit gave.

python docs/reproduce/first_edition.py ebec0f8
"""

import io
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
TOLD = """
import pandas as pd
from pathlib import Path
from marshtest.results.merging import read_one
from marshtest.reporting.tables import label

tables = []
for folder in sorted(Path("docs/reproduce").glob("*/")):
    if not folder.name.startswith("hypothesis-"):
        of = read_one(folder)
        table = of.summary[(of.summary["role"] != "updated") | (of.summary["budget"] == of.budget)]
        names = [label(line, of.recipe, with_budget=False) for _, line in table.iterrows()]
        table = table.assign(experiment=folder.name, unlearner=names)
        tables.append(table[["experiment", "poison_budget", "unlearner", "seeds", "verdict"]])
print(pd.concat(tables).to_csv(index=False), end="")
"""


def main(commit: str) -> None:
    """Unpack the commit into a temporary folder, and ask its own code for its verdicts."""
    command = ["git", "archive", commit, "src", "docs/reproduce"]
    packed = subprocess.run(command, cwd=HERE.parents[1], capture_output=True, check=True).stdout
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(fileobj=io.BytesIO(packed)) as files:
            files.extractall(folder, filter="data")
        env = {**os.environ, "PYTHONPATH": f"{folder}/src"}
        command = [sys.executable, "-c", TOLD]
        told = subprocess.run(command, cwd=folder, env=env, capture_output=True, check=True).stdout
    (HERE / "first-edition.csv").write_bytes(told)


if __name__ == "__main__":
    main(sys.argv[1])
