"""Speed of asking a language model, beside bare forward passes over the same tokens in one run.

    python benchmarks/texts.py [--records N]

A GPT-2 of four layers and width 256 with a vocabulary of 8,000; N records of 256 tokens, each with 100
variants of a mark at the end or at the start. Bare: the same ids, in batches of 16, up to the logits.
Questions come in random order, from text to loss.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
import transformers
from tokenizers import ByteLevelBPETokenizer

from marshtest.kit.records.base import Asked
from marshtest.kit.texts.causal import CausalModel
from marshtest.plumbing.malloc import keep_freed_memory

VARIANTS, LENGTH, BATCH, VOCABULARY = 100, 256, 16, 8000
CPU = torch.device("cpu")


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def words(rng: np.random.Generator, count: int) -> list[str]:
    letters = list("etaoinshrdlucmfw")
    return ["".join(rng.choice(letters, rng.integers(2, 9))) for _ in range(count)]


def tokenizer(rng: np.random.Generator, known: list[str]) -> transformers.PreTrainedTokenizerFast:
    trained = ByteLevelBPETokenizer()
    texts = [" ".join(rng.choice(known, 500)) for _ in range(100)]
    trained.train_from_iterator(texts, VOCABULARY, show_progress=False)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=trained._tokenizer)


def questions(
    rng: np.random.Generator,
    fast: transformers.PreTrainedTokenizerFast,
    known: list[str],
    records: int,
) -> dict[str, list[Asked]]:
    """Variants with the mark at the end and at the start, in random order."""
    asked: dict[str, list[Asked]] = {"end": [], "start": []}
    for record in range(records):
        text = fast.decode(fast(" ".join(rng.choice(known, 400)))["input_ids"][: LENGTH - 8])
        for _ in range(VARIANTS):
            mark = f" {rng.integers(10**6):06d}."
            asked["end"].append(
                Asked(text + mark, span=(len(text), len(text + mark)), group=record)
            )
            asked["start"].append(Asked(mark + text, span=(0, len(mark)), group=record))
    order = rng.permutation(records * VARIANTS)
    return {place: [of[row] for row in order] for place, of in asked.items()}


@torch.inference_mode()
def bare(model: torch.nn.Module, ids: list[list[int]]) -> None:
    longest = max(map(len, ids))
    rows = torch.tensor([row + [0] * (longest - len(row)) for row in ids])
    for batch in rows.split(BATCH):
        model(input_ids=batch, use_cache=False)


def main() -> None:
    parser = argparse.ArgumentParser(description="Questions about texts beside bare passes.")
    parser.add_argument("--records", type=int, default=2)
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    keep_freed_memory()
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    known = words(rng, 5000)
    fast = tokenizer(rng, known)
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY, n_positions=2 * LENGTH, n_embd=256, n_layer=4, n_head=4
    )
    model = transformers.GPT2LMHeadModel(config).eval()
    door = CausalModel("model", model, fast, CPU)
    asked = questions(rng, fast, known, options.records)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    for place, these in asked.items():
        ids = fast([one.scored for one in these])["input_ids"]
        tokens = sum(map(len, ids))
        bare_times, our_times = [], []
        for _ in range(3):  # taking turns
            bare_times.append(seconds(lambda ids=ids: bare(model, ids)))
            our_times.append(seconds(lambda these=these: door(these)))
        floor, ours = statistics.median(bare_times), statistics.median(our_times)
        print(
            f"mark at the {place:5}  {len(these)} texts, {tokens:,} tokens: bare passes {floor:.2f} s, "
            f"asked {ours:.2f} s: {floor / ours:.2f} of the bare throughput"
        )


if __name__ == "__main__":
    main()
