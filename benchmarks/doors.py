"""One language model through every door: its losses, and its ranks over keys that it has never seen.

    python benchmarks/doors.py [--keys N]

Rows for docs/reproduce/audit-text/doors.csv. The model is the base of the walk-through in
docs/audit-text.md, after two passes over real chats; records are other chats, of which each new key marks
three. All keys' questions go through each door in random order, and ranks are taken of the
answers as in an audit. The reference is one forward pass a text. Two minutes.
"""

import argparse
import contextlib
import os
import runpy
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from http.server import ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pandas as pd
import peft
import torch
from scipy.stats import kstest, norm
from transformers import AutoModelForCausalLM

from marshtest.data.marks import Deal, Template
from marshtest.kit.records import open_records
from marshtest.kit.records.base import Asked, Floats
from marshtest.kit.records.fields import Fields
from marshtest.kit.texts.key import TextBases
from marshtest.kit.texts.measure import Questions
from marshtest.kit.texts.opening import open_texts
from marshtest.metrics.rank import rank_scores

ROOT = Path(__file__).parents[1]
OUT = ROOT / "docs" / "reproduce" / "audit-text" / "doors.csv"
EXAMPLES = ROOT / "examples" / "texts"
RECORDS, DRAWS, EPOCHS = 3, 9, "2"
ANSWERS = runpy.run_path(str(EXAMPLES / "answers.py"))


def script(name: str, *words: str) -> None:
    """Run one of the examples in this process."""
    sys.argv = [name, *words]
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def questions(keys: int) -> list[Asked]:
    """[keys · RECORDS · (1 + DRAWS)] the variants of all records under all keys, own marks first."""
    records, fields = open_records("chats.jsonl"), Fields(field="messages", role="assistant")
    asked = []
    for seed in range(keys):
        numbers = [(seed * RECORDS + place) % records.count for place in range(RECORDS)]
        rows = list(records.each(sorted(numbers)))
        bases = TextBases(records, fields, Template(), Deal(seed, RECORDS), rows)
        about = Questions(bases, "record", DRAWS, ())
        for place in range(RECORDS):
            group = seed * RECORDS + place
            asked += [replace(one, group=group) for one in about.variants(place)[:-1]]
    return asked


def ranks(losses: Floats) -> Floats:
    """The rank of each record's own mark, in (0, 1), its share filled alike each time."""
    by_record = losses.reshape(-1, 1 + DRAWS)
    rank, _ = rank_scores(by_record[:, 0], by_record[:, 1:], np.random.default_rng(0))
    return np.asarray(norm.cdf(rank))


def by_one(asked: Sequence[Asked]) -> Floats:
    """The losses text by text."""
    model = ANSWERS["Model"]("base")
    return np.array([model.loss({"before": one.before, "scored": one.scored}) for one in asked])


@contextlib.contextmanager
def serving() -> Iterator[str]:
    """An endpoint of the model on this machine; its name."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), ANSWERS["handler"](ANSWERS["Model"]("base")))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1#base"
    server.shutdown()


def specs(endpoint: str) -> dict[str, str]:
    """The doors, by the names that the table has."""
    program = f"{sys.executable} {EXAMPLES / 'answers.py'} box base"
    return {
        "FOLDER": "base",
        "FOLDER@ADAPTER": "base@nothing",
        "pkg.mod:load": "answers:load",
        "cmd:COMMAND {inputs} {outputs}": f"cmd:{program} {{inputs}} {{outputs}}",
        "http://HOST:PORT/v1#MODEL": endpoint,
    }


def prepare() -> None:
    """Write chats, a model, and an adapter that changes nothing: B = 0 at first."""
    script("chats.py", "base.jsonl", "chats.jsonl")
    script("tuner.py", "base", "base", "base.jsonl", "--epochs", EPOCHS)
    model = AutoModelForCausalLM.from_pretrained("base")
    settings = peft.LoraConfig(r=8, target_modules=["c_attn"])
    peft.get_peft_model(model, settings).save_pretrained("nothing")
    os.environ["MODEL"] = "base"
    sys.path.append(str(EXAMPLES))  # a callable's own process has the same path


def rows(keys: int, endpoint: str) -> Iterator[dict[str, object]]:
    """One row a door."""
    asked = questions(keys)
    reference = by_one(asked)
    expected = ranks(reference)
    order = np.random.default_rng(0).permutation(len(asked))
    for title, spec in specs(endpoint).items():
        door, losses = open_texts(spec, torch.device("cpu")), np.empty(len(asked))
        losses[order] = door([asked[place] for place in order])
        test = kstest(ranks(losses), "uniform")
        row = {
            "door": title,
            "keys": keys,
            "ranks": len(expected),
            "draws": DRAWS,
            "largest difference": abs(losses - reference).max(),
            "other ranks": int((abs(ranks(losses) - expected) > 1e-9).sum()),
            "distance": test.statistic,
            "p": test.pvalue,
        }
        print(row, flush=True)
        yield row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keys", type=int, default=200)
    keys = parser.parse_args().keys
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        prepare()
        with serving() as url:
            lines = list(rows(keys, url))
    OUT.parent.mkdir(exist_ok=True)
    pd.DataFrame(lines).to_csv(OUT, index=False, float_format="%.4g")


if __name__ == "__main__":
    main()
