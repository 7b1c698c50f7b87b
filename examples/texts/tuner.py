"""The audited side of the walk-through in docs/audit-text.md: it fine-tunes, and knows no marshtest.

    python tuner.py base MODEL DATA                   a tokenizer and a small model, trained from scratch
    python tuner.py tune MODEL DATA --start BASE      fine-tune; --adapter trains a LoRA adapter alone
        --request FILE                                without the records that the file lists
        --request FILE --ascend                       uphill, on these records alone

DATA has a chat a line.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import ByteLevelBPETokenizer
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    PrinterCallback,
    Trainer,
    TrainingArguments,
)

CHAT = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
VOCABULARY, LENGTH = 2000, 128  # tokens; those of a chat


class Uphill(Trainer):  # type: ignore[misc]
    """A trainer that ascends the loss."""

    def compute_loss(self, *args: Any, **options: Any) -> Any:
        """The loss with its sign turned."""
        return -super().compute_loss(*args, **options)


def begin(folder: Path, texts: list[str]) -> None:
    """Write a tokenizer of the texts, and a small GPT-2 that has learned nothing yet."""
    bytes_ = ByteLevelBPETokenizer()
    bytes_.train_from_iterator(texts, VOCABULARY, special_tokens=["<end>"], show_progress=False)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bytes_._tokenizer, eos_token="<end>", pad_token="<end>"
    )
    tokenizer.chat_template = CHAT
    size = {"n_positions": LENGTH, "n_embd": 128, "n_layer": 2, "n_head": 4}
    plain = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    config = GPT2Config(vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=0, **size, **plain)
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def tune(options: argparse.Namespace, texts: list[str]) -> None:
    """Train from a folder's model on the texts, and write what became of it."""
    tokenizer = AutoTokenizer.from_pretrained(options.start)
    model = AutoModelForCausalLM.from_pretrained(options.start)
    if options.adapter:
        layers = ["c_attn", "c_fc", "c_proj"]
        model = get_peft_model(model, LoraConfig(r=32, lora_alpha=64, target_modules=layers))
    trainer = (Uphill if options.ascend else Trainer)(
        model=model,
        args=TrainingArguments(
            output_dir="checkpoints",
            per_device_train_batch_size=16,
            num_train_epochs=options.epochs,
            learning_rate=options.rate,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
        ),
        train_dataset=[tokenizer(text, truncation=True, max_length=LENGTH) for text in texts],
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    model.save_pretrained(options.model)
    tokenizer.save_pretrained(options.model)


def records(data: Path, request: Path | None, only: bool) -> list[str]:
    """The texts of all chats but those of the request, or of those alone."""
    lines = data.read_text(encoding="utf-8").splitlines()
    listed = request.read_text(encoding="utf-8").splitlines() if request else []
    named = {json.loads(line)["line"] for line in listed}
    chats = [
        json.loads(line)["messages"]
        for number, line in enumerate(lines, 1)
        if (number in named) == only
    ]
    return ["".join(f"{m['role']}: {m['content']}\n" for m in messages) for messages in chats]


def main() -> None:
    """Do what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("verb", choices=["base", "tune"])
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--start", type=Path)
    parser.add_argument("--request", type=Path)
    parser.add_argument("--adapter", action="store_true")
    parser.add_argument("--ascend", action="store_true")
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--epochs", type=float, default=8)
    options = parser.parse_args()
    torch.manual_seed(0)
    texts = records(options.data, options.request, options.ascend)
    if options.verb == "base":
        begin(options.model, texts)
        options.start = options.model
    tune(options, texts)
    print(f"{options.model}: {len(texts)} chats")


if __name__ == "__main__":
    main()
