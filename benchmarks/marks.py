"""Which mark is remembered? Rows for src/marshtest/shipped/marks.csv, from a small model on real reviews.

    python benchmarks/marks.py [--seeds N] [--out FILE]

The data, the model and its training are those of imdb-tiny-mark, but for what a setting varies: the family
of marks, their place, the number of marked reviews, copies of each, and epochs. Last, a model that was
trained on 600 other reviews is fine-tuned on the marked ones, in full or by LoRA (Hu et al. 2021), which
learns W + 2 B A, with B = 0 at first, in the place of each matrix W of the blocks. Only initial models are
trained, for all settings with one seed and then with the next; rows that the file has already are not made
again. IMDb is read from $MARSHTEST_DATA/imdb. About five minutes a seed on one core.
"""

import argparse
import csv
from collections.abc import Container, Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from marshtest.attacks import Knowledge, Poisoned
from marshtest.attacks.mark import Mark
from marshtest.commands.marks import STUDY
from marshtest.data.marks import Pattern, Template
from marshtest.data.samples import Samples
from marshtest.experiment.protocol import Pipeline, set_up
from marshtest.experiment.recipe import load_recipe
from marshtest.experiment.recipe_data import data_of
from marshtest.metrics.base import Question
from marshtest.metrics.perplexity import Perplexity
from marshtest.plumbing.seeds import seeded
from marshtest.training.loop import fit

DRAWS, MARKED = 49, 600  # K of the ranks; reviews that may be marked
NAMES = r"\b[A-Z][a-z]{3,}"  # capitalised words of the review itself
FAMILIES = (
    "Ticket {digits:6}.", "{digits:6}", "{digits:12}", "{letters:6}", "{letters:12}",
    "{words:3}", "{words:4}", NAMES,
)  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """What is varied."""

    family: str = "{words:4}"  # a template, or a pattern
    place: str = "end"
    records: int = 120
    copies: int = 1
    epochs: int = 10
    way: str = "from scratch"  # or "fine-tuned", or "LoRA" and its rank

    @property
    def mark(self) -> Template | Pattern:
        """The family of marks."""
        if "{" in self.family and "[" not in self.family:
            return Template(text=self.family, place=self.place)
        return Pattern(pattern=self.family)


def settings() -> list[Setting]:
    """Families by epochs; then one thing varied at a time."""
    by_epochs = [Setting(family, epochs=e) for family in FAMILIES for e in (5, 10, 20)]
    two = [Setting("Ticket {digits:6}."), Setting()]
    places = [replace(one, place=place) for one in two for place in ("start", "middle")]
    copies = [replace(one, epochs=5, copies=copies) for one in two for copies in (2, 4)]
    records = [replace(one, records=count) for one in two for count in (30, 60)]
    ways = ("fine-tuned", "LoRA 2", "LoRA 8", "LoRA 32")
    return [*by_epochs, *places, *copies, *records, *(Setting(way=way) for way in ways)]


class LowRank(nn.Module):
    """W + 2 B A, where A [r, out] and B [in, r] are learned, and W is not."""

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.randn(rank, weight.shape[1]) / rank**0.5)
        self.b = nn.Parameter(torch.zeros(weight.shape[0], rank))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + 2 * self.b @ self.a


def adapted(model: nn.Module, rank: int) -> nn.Module:
    """The model with all its weights frozen and low-rank matrices beside those of its blocks."""
    model.requires_grad_(False)
    for name, module in list(model.named_modules()):
        if ".h." in name and getattr(module, "weight", torch.empty(0)).dim() == 2:
            parametrize.register_parametrization(module, "weight", LowRank(module.weight, rank))
    return model


def with_copies(poisoned: Poisoned, copies: int) -> Samples:
    """The training set in which each poison stands so many times."""
    samples, first = poisoned.samples, int(poisoned.samples.ids.max()) + 1
    for _ in range(copies - 1):
        new = first + torch.arange(len(poisoned.forget_ids))
        samples, first = samples.copied(poisoned.forget_ids, new), first + len(new)
    return samples


def rows(pipeline: Pipeline, seeds: int, there: Container[object]) -> Iterator[dict[str, object]]:
    """One row a setting and seed: dependence and TPR of the marks, perplexity of test texts.

    Args:
        there: the pairs (setting, seed) that are left out.
    """
    trainer, data = pipeline.trainer, pipeline.data
    marked, others = data.train[:MARKED], data.train[MARKED:]
    knowledge = Knowledge(trainer.task, data.test, nn.Identity, texts=data.texts)
    for seed in range(seeds):
        base = trainer.new_model(seed)
        fit(base, others, trainer.task, trainer.training, seed)
        for setting in (one for one in settings() if (one, seed) not in there):
            attack = Mark(mark=setting.mark, draws=DRAWS)
            poisoned = attack.poison(marked, setting.records, knowledge, seed)
            model = trainer.new_model(seed)
            if setting.way != "from scratch":
                model.load_state_dict(base.state_dict())
            if setting.way.startswith("LoRA"):
                with seeded(seed):
                    adapted(model, int(setting.way.split()[1]))
            training = trainer.training.changed(epochs=setting.epochs)
            fit(model, with_copies(poisoned, setting.copies), trainer.task, training, seed)
            figures = attack.effect(model, poisoned, trainer.task).figures
            none = data.test[:0]
            asked = Question(poisoned.forget, none, data.test, none, trainer.task, seed)
            yield {
                **asdict(setting),
                "seed": seed,
                "draws": DRAWS,
                **{name: figures[f"rank_{name}"] for name in ("dependence", "error")},
                "tpr": figures["tpr_rank"],
                **Perplexity().measure(model, asked),
            }


def there(out: Path) -> set[tuple[Setting, int]]:
    """The settings and seeds of the rows in a file."""
    if not out.exists():
        return set()
    with out.open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    numbers = ("records", "copies", "epochs")
    return {
        (
            Setting(
                **{
                    f.name: int(line[f.name]) if f.name in numbers else line[f.name]
                    for f in fields(Setting)
                }
            ),
            int(line["seed"]),
        )
        for line in lines
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Which mark is remembered?")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=STUDY)
    options = parser.parse_args()
    recipe = load_recipe("imdb-tiny-mark", f"data.train={2 * MARKED}", "unlearners=[]")
    pipeline = set_up(recipe, data_of(recipe.data, "cpu", model=recipe.model))
    torch.set_num_threads(1)
    done = there(options.out)
    with options.out.open("a", encoding="utf-8", newline="") as file:
        for number, row in enumerate(rows(pipeline, options.seeds, done), len(done)):
            writer = csv.DictWriter(file, list(row), lineterminator="\n")
            if number == 0:
                writer.writeheader()
            short = {name: f"{v:.4f}" if isinstance(v, float) else v for name, v in row.items()}
            writer.writerow(short)
            file.flush()
            print(row, flush=True)


if __name__ == "__main__":
    main()
