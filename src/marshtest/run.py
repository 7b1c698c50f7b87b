"""Run a recipe: the one function that carries the main job."""

import hashlib
import json
import platform
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from marshtest.data import TEXTS, Dataset, Samples, Trigger, load, load_texts
from marshtest.errors import MarshtestError
from marshtest.features import apart, featured
from marshtest.language import LanguageModel, tokenised
from marshtest.protocol import Report, execute, pick_device, set_up, silent
from marshtest.recipe import DataSettings, Named, Recipe, load_recipe
from marshtest.report import write_report
from marshtest.results import Results
from marshtest.settings import ModelSettings


def run(
    recipe: str | Path | Mapping[str, Any] | Recipe,
    *overrides: str,
    out: str | Path | None = None,
    data: Dataset | None = None,
    unlearners: Sequence[str | Callable[..., Any]] = (),
    report: Report = silent,
) -> Results:
    """Run a recipe and write rows, summary, figures and page into its folder.

    What is finished in the folder already is not done again.

    Args:
        recipe: name of a shipped recipe, path of a YAML file, mapping, or Recipe.
        overrides: "key.sub=value", as on the command line.
        out: the folder; default runs/<recipe name>-<hash>.
        data: a data set in memory instead of the recipe's.
        unlearners: further unlearners beside the recipe's own: names or callables
            (model, retain, forget, *, task, budget, seed) → model.
        report: told each stage that starts and the share of the run that is done.

    Raises:
        MarshtestError: bad input, in one line.
    """
    if not isinstance(recipe, Recipe):
        recipe = load_recipe(recipe, overrides, unlearners=unlearners)
    elif overrides or unlearners:
        raise MarshtestError("run: a Recipe is complete; give changes to load_recipe instead.")
    identity = {"recipe": recipe.hash, "data": content(recipe.data, data)}
    folder = Path(out) if out is not None else Path("runs") / f"{recipe.name}-{recipe.hash}"
    refuse_anothers(folder, recipe, identity)
    if not (folder / "rows.parquet").exists():
        if data is None:
            trigger = recipe.attack.trigger()
            data = data_of(recipe.data, recipe.device, report, recipe.model, trigger)
        pipeline = set_up(recipe, data)
        claim(folder, recipe, identity)
        execute(pipeline, folder, report)
    results = Results.read(folder)
    if not (folder / "report.html").exists():
        write_report(results)
    return results


def samples_of(
    settings: DataSettings, model: ModelSettings | None = None, trigger: Trigger | None = None
) -> tuple[Dataset, Samples]:
    """The data, and the samples that the network of its features is trained on, if it has one.

    Args:
        model: the recipe's, which brings the tokenizer of texts.
        trigger: a word of texts that its attack looks for; texts that hold it are all kept.
    """
    if settings.name in TEXTS:
        if not isinstance(model, LanguageModel):
            raise MarshtestError(
                f"model: {settings.name} is text, for a language model. Use gpt2, or transformer."
            )
        texts = load_texts(
            settings.name,
            settings.path,
            train=settings.train,
            test=settings.test,
            word=None if trigger is None else trigger.word,
        )
        data = tokenised(texts, model, settings.length, trigger)
        return data, data.train
    if isinstance(model, LanguageModel):
        raise MarshtestError(
            f"model: {model.name} is for texts, and {settings.name} is none. Use imdb."
        )
    more = 0 if settings.features is None else settings.features.train or 0
    rows = None if settings.train is None else settings.train + more
    data = load(settings.name, settings.path, train=rows, test=settings.test)
    return apart(data, more) if more else (data, data.train)


def data_of(
    settings: DataSettings,
    device: str,
    report: Report = silent,
    model: ModelSettings | None = None,
    trigger: Trigger | None = None,
) -> Dataset:
    """The data, by features where that is asked for (which trains a network)."""
    data, others = samples_of(settings, model, trigger)
    if settings.features is None:
        return data

    def progress(share: float) -> None:
        report(f"train the network of the features, {share:.0%}", 0.0)

    return featured(data, others, settings.features, pick_device(device), progress)


def content(settings: DataSettings, data: Dataset | None) -> str | None:
    """Digest of data that a recipe does not determine: in memory, or in a file of the user's."""
    if data is None and settings.name == "tensors":
        data = samples_of(settings)[0]
    return None if data is None else digest(data)


def refuse_anothers(folder: Path, recipe: Named, identity: dict[str, Any]) -> None:
    """Raise where the folder holds another recipe's results, or what is no run."""
    about = folder / "run.json"
    if about.exists():
        found = json.loads(about.read_text())
        if {key: found.get(key) for key in identity} != identity:
            raise MarshtestError(
                f"{folder}: holds results of another recipe ({found.get('name')}-"
                f"{found.get('recipe')}; this one is {recipe.name}-{recipe.hash}). "
                "Choose another --out, or remove the folder."
            )
    elif folder.exists() and any(folder.iterdir()):
        raise MarshtestError(f"{folder}: is not empty and holds no run. Choose another --out.")


def claim(folder: Path, recipe: Named, identity: dict[str, Any]) -> None:
    """Make the folder this recipe's own, once."""
    about = folder / "run.json"
    if about.exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.yaml").write_text(recipe.to_yaml())
    values = {
        "name": recipe.name,
        **identity,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "marshtest": version("marshtest"),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {torch.get_num_threads()} threads",
    }
    about.write_text(json.dumps(values, indent=2) + "\n")


def digest(data: Dataset) -> str:
    """Sixteen hex digits of a data set's samples."""
    digested = hashlib.sha256()
    for split in (data.train, data.test):
        for tensor in (split.x, split.y, split.ids):
            digested.update(tensor.cpu().contiguous().numpy().tobytes())
    return digested.hexdigest()[:16]
