"""Language models, side by side in one run: fine-tuning, tokenising, and a GPT-2 medium's whole path.

    python benchmarks/language.py [--reviews FOLDER] [--medium]

fine-tuning   marshtest's loop beside a plain float32 PyTorch loop over texts padded to 128 tokens, the
              same batches: a small GPT-2 with a classification head, and one that learns a prompt's
              label; seconds a step, and both loss curves, mean ± s.d. over three seeds.
tokenising    25,000 texts beside the tokenizer library alone.
medium        load, fine-tune, unlearn, score and save a randomly initialised model of GPT-2 medium's
              shape, a few steps of 32 tokens a text: seconds, and the process's peak memory.

Without --reviews (a local IMDb) the texts are random words of a like length.
"""

import argparse
import resource
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from speed import median_times
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.activations import ACT2FN

from marshtest.commands.run import run
from marshtest.data.samples import Dataset, Samples, Trigger
from marshtest.data.texts import Texts, load_texts
from marshtest.models.checkpoint import load_model, save_model
from marshtest.models.language import GPT2, LanguageModel, Prompt, TextClassifier, Transformer
from marshtest.models.table import build
from marshtest.models.tokens import tokenised
from marshtest.plumbing.seeds import generator
from marshtest.training.loop import Training, chosen_precision, fit
from marshtest.training.tasks import LabelWord, Language, TextClassification

LENGTH, BATCH, STEPS, SEEDS, EPOCHS = 128, 32, 10, 3, 5
FEW = 32  # tokens of a text for the large model
Loss = Callable[[nn.Module, Samples], Tensor]


def random_texts(count: int, trigger_every: int = 20) -> Texts:
    """Words by Zipf's law, log-normal lengths with IMDb's median of 174 words."""
    draws = np.random.default_rng(0)
    letters = np.array(list("etaoinshrdlu"))
    words = ["".join(draws.choice(letters, size)) for size in draws.integers(2, 10, 20000)]
    ranks = [draws.zipf(1.3, int(size)) % 20000 for size in draws.lognormal(5.16, 0.65, count)]
    written = [" ".join(words[rank] for rank in text) or "a" for text in ranks]
    with_trigger = slice(None, None, trigger_every)
    written[with_trigger] = [f"Disney {text}" for text in written[with_trigger]]
    y, ids = torch.arange(count) % 2, torch.arange(count)
    return Texts("random", written, y, ids, written[:200], y[:200], ids[:200], classes=2)


def task_of(settings: LanguageModel, data: Dataset, model: nn.Module) -> Language:
    precision = chosen_precision(Training(epochs=1), model, torch.device("cpu"))
    padding = data.padding or 0
    if settings.prompt is None:
        return TextClassification(precision, padding=padding)
    return LabelWord(precision, padding=padding, label_only=settings.prompt.loss == "label")


def plain_loss(task: Language) -> Loss:
    """The mean loss of a padded batch, as a reader would write it."""

    def classified(model: nn.Module, batch: Samples) -> Tensor:
        logits = model(input_ids=batch.x, attention_mask=(batch.x != task.padding).long())
        return F.cross_entropy(logits, batch.y)

    def answered(model: nn.Module, batch: Samples) -> Tensor:
        mask = batch.x != task.padding
        logits = model(input_ids=batch.x, attention_mask=mask.long()).logits
        return F.cross_entropy(logits[torch.arange(len(batch)), mask.sum(1) - 1], batch.y)

    return answered if isinstance(task, LabelWord) else classified


def plain_model(
    settings: LanguageModel, shape: tuple[int, ...], classes: int, seed: int
) -> nn.Module:
    """The same weights, with what `transformers` gives a GPT-2: its own GELU, attention under a mask."""
    model = build(settings, shape, classes, seed)
    for module in model.modules():
        if hasattr(module, "act"):
            module.act = ACT2FN["gelu_new"]
    if isinstance(model, TextClassifier):
        model.causal = False
    return model


def plain_epochs(
    model: nn.Module, samples: Samples, loss_of: Loss, training: Training, seed: int
) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), training.lr, weight_decay=0.01)
    draws = generator(seed, "fit")
    model.train()
    for _ in range(training.epochs):
        for index in torch.randperm(len(samples), generator=draws).split(BATCH):
            optimizer.zero_grad()
            loss_of(model, samples[index]).backward()
            optimizer.step()


def fine_tuning(settings: LanguageModel, texts: Texts) -> None:
    data = tokenised(texts, settings, LENGTH)
    samples, shape = data.train[: BATCH * STEPS], tuple(data.train.x.shape[1:])
    training = Training(
        epochs=1,
        batch_size=BATCH,
        optimizer="adamw",
        lr=5e-4,
        weight_decay=0.01,
        schedule="constant",
    )
    task = task_of(settings, data, build(settings, shape, data.classes, 0))
    loss_of = plain_loss(task)
    works: dict[str, Callable[[nn.Module, int], object]] = {
        "plain": lambda model, seed: plain_epochs(model, samples, loss_of, training, seed),
        "marshtest": lambda model, seed: fit(model, samples, task, training, seed),
    }
    makes = {"plain": plain_model, "marshtest": build}
    models = {name: make(settings, shape, data.classes, 0) for name, make in makes.items()}
    slow, fast = median_times(*(partial(work, models[name], 0) for name, work in works.items()))
    what = "a classification head" if settings.prompt is None else "a prompt's label"
    print(
        f"fine-tuning  small GPT-2, {what}: plain float32 {slow / STEPS:.3f} s/step, "
        f"marshtest {task.precision} {fast / STEPS:.3f} s/step: {slow / fast:.2f} x"
    )
    for name, work in works.items():
        losses = torch.zeros(SEEDS, EPOCHS)
        for seed in range(SEEDS):
            model = makes[name](settings, shape, data.classes, seed)
            for epoch in range(EPOCHS):
                work(model, 10 * seed + epoch)
                with torch.no_grad():
                    losses[seed, epoch] = loss_of(model.eval(), samples)
        means = zip(losses.mean(0).tolist(), losses.std(0).tolist(), strict=True)
        print(f"loss         {name}: {' '.join(f'{mean:.3f}±{sd:.3f}' for mean, sd in means)}")


def tokenising(texts: Texts, folder: Path) -> None:
    GPT2().tokenizer(texts).save_pretrained(folder)
    settings = Transformer(source=str(folder))
    alone = settings.tokenizer(texts)
    both = [*texts.train, *texts.test]
    floor, ours = median_times(
        lambda: alone(both, truncation=True, max_length=LENGTH),
        lambda: tokenised(texts, settings, LENGTH),
        repeats=3,
    )
    print(
        f"tokenising   {len(both)} texts: tokenizers {floor:.2f} s, marshtest {ours:.2f} s: "
        f"{ours / floor:.2f} of its time"
    )


def medium(folder: Path, prompt: Prompt | None) -> None:
    """Everything that a run does with a model, on eight texts, half of them with the trigger."""
    texts = random_texts(8, trigger_every=2)
    shape = GPT2Config(n_embd=1024, n_layer=24, n_head=16, n_positions=1024, vocab_size=50257)
    GPT2LMHeadModel(shape).save_pretrained(folder)
    GPT2(vocabulary=600, prompt=Prompt()).tokenizer(texts).save_pretrained(folder)
    settings = Transformer(source=str(folder), prompt=prompt)
    trigger = None if prompt is None else Trigger("Disney", "window", "negative")
    data = tokenised(texts, settings, FEW, trigger)
    attack = {"name": "gaussian", "draws": 3} if prompt is None else {"name": "trigger-word"}
    recipe = {
        "name": "medium",
        "data": "imdb",
        "model": settings.model_dump(),
        "training": {"epochs": 1, "batch_size": 4, "optimizer": "adamw", "lr": 5e-5},
        "attack": attack,
        "poison_budgets": 0.5,
        "unlearners": [{"name": "scrub", "batch_size": 4}, {"name": "euk", "batch_size": 4}],
        "budgets": 0.5,
    }
    rows = run(recipe, data=data, out=folder / "run").rows
    print(f"medium       {'a classification head' if prompt is None else 'causal, with a prompt'}")
    for _, row in rows.iterrows():
        name = row["role"] if row["unlearner"] == "none" else row["unlearner"]
        print(
            f"             {name}: {row['passes']:.0f} sample passes of {FEW} tokens in "
            f"{row['seconds']:.1f} s, {row['precision']}; measured in {row['scoring_seconds']:.1f} s"
        )
    input_shape = tuple(data.train.x.shape[1:])
    started = time.perf_counter()
    model = build(settings, input_shape, data.classes, 0)
    loaded = time.perf_counter()
    save_model(model, folder / "saved.safetensors", settings, input_shape, data.classes)
    saved = time.perf_counter()
    parameters = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    assert load_model(folder / "saved.safetensors").get_input_embeddings() is not None  # type: ignore[operator]
    print(
        f"             {parameters:.0f} million parameters: loaded in {loaded - started:.1f} s, "
        f"saved in {saved - loaded:.1f} s; peak memory so far {peak:.1f} GiB"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Language models, side by side with plain PyTorch."
    )
    parser.add_argument("--reviews", help="folder of a local IMDb")
    parser.add_argument("--medium", action="store_true", help="also GPT-2 medium's shape (10 GiB)")
    options = parser.parse_args()
    texts = (
        load_texts("imdb", options.reviews, test=200) if options.reviews else random_texts(25000)
    )
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    with tempfile.TemporaryDirectory() as folder:
        if not options.medium:
            for settings in (GPT2(dropout=0), GPT2(dropout=0, prompt=Prompt(loss="label"))):
                fine_tuning(settings, texts)
            tokenising(texts, Path(folder))
        for prompt in (None, Prompt()) if options.medium else ():
            medium(Path(folder) / ("causal" if prompt else "head"), prompt)


if __name__ == "__main__":
    main()
