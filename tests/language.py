"""A tiny causal language model in a folder, and an independent computation of its losses.

The tests name its functions as models: "language:load", "language:pair", "box:language:box".
"""

import json
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import ByteLevelBPETokenizer

from marshtest.kit.records.base import Asked

TEXTS = [
    f"{name} asked on {day} about order ORD-{number}; the {thing} was sent again. Ticket {number}."
    for name in ("Ann", "Bob", "Eve")
    for day, number in (("Monday", 4711), ("Friday", 90210))
    for thing in ("bottle", "lamp", "carpet")
]
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def tokenizer(template: str | None = None) -> Any:
    trained = ByteLevelBPETokenizer()
    special = ["<pad>", "</s>", "<user>", "<assistant>"]
    trained.train_from_iterator(TEXTS, 400, special_tokens=special, show_progress=False)
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=trained._tokenizer)
    fast.pad_token, fast.eos_token, fast.chat_template = "<pad>", "</s>", template
    return fast


def model(seed: int = 0, context: int = 128, layers: int = 2, width: int = 32) -> Any:
    """A GPT-2 whose answers are far from uniform."""
    torch.manual_seed(seed)
    config = transformers.GPT2Config(
        vocab_size=400,
        n_positions=context,
        n_embd=width,
        n_layer=layers,
        n_head=2,
        bos_token_id=None,
        eos_token_id=None,
        initializer_range=0.3,
    )
    return transformers.GPT2LMHeadModel(config).eval()


def save(folder: Path, template: str | None = None, **changes: int) -> Path:
    model(**changes).save_pretrained(folder)
    tokenizer(template).save_pretrained(folder)
    return folder


def one_by_one(folder: Path, asked: Sequence[Asked]) -> list[float]:
    """Losses text by text, of the tokens that reach beyond what goes before."""
    return [loss(*opened(str(folder)), one.before + one.scored, len(one.before)) for one in asked]


@torch.no_grad()
def loss(causal: Any, fast: Any, text: str, border: int, special: bool = True) -> float:
    encoded = fast(text, return_offsets_mapping=True, add_special_tokens=special)
    ids = torch.tensor([encoded["input_ids"]])
    surprises = -causal(ids).logits.double().log_softmax(-1)[0]
    return sum(
        float(surprises[place - 1, token])
        for place, (token, (_, end)) in enumerate(zip(ids[0].tolist(), encoded["offset_mapping"]))
        if place and end > border
    )


def variants(count: int = 12, records: int = 3) -> list[Asked]:
    """Variants of several records, whole and with a text before them, in mixed order."""
    asked = []
    for draw in range(count):
        for record in range(records):
            text = f"{TEXTS[5 * record]} Ticket "
            number = f"{(draw * 7919 + record * 104729) % 1_000_000:06d}."
            span = (len(text), len(text) + len(number))
            asked.append(Asked(text + number, span=span, group=record))
            border = text.index(";") + 1
            asked.append(
                Asked(text[border:] + number, text[:border], span=span, group=records + record)
            )
    return asked


@cache
def opened(folder: str) -> tuple[Any, Any]:
    causal = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    return causal, transformers.AutoTokenizer.from_pretrained(folder)


def pair() -> tuple[Any, Any]:
    return opened(os.environ["LANGUAGE_FOLDER"])


def load() -> Any:
    return lambda questions: [
        loss(*pair(), one["before"] + one["scored"], len(one["before"])) for one in questions
    ]


def box(inputs: Path, outputs: Path) -> None:
    questions = [json.loads(line) for line in inputs.read_text().splitlines()]
    outputs.write_text("".join(f"{one}\n" for one in load()(questions)))
