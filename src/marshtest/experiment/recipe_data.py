"""The data that a recipe names."""

import hashlib
from dataclasses import replace

from marshtest.data.hub import copy_digest
from marshtest.data.load import load
from marshtest.data.samples import Dataset, Samples, Trigger
from marshtest.data.texts import TEXTS, load_texts
from marshtest.experiment.features import apart, featured
from marshtest.experiment.recipe import DataSettings, ForeignData
from marshtest.models.base import ModelSettings
from marshtest.models.language import LanguageModel
from marshtest.models.tokens import tokenised
from marshtest.plumbing.device import pick_device
from marshtest.plumbing.errors import MarshtestError
from marshtest.plumbing.foreign import foreign
from marshtest.plumbing.imports import load_object
from marshtest.plumbing.progress import Progress, silent
from marshtest.plumbing.seeds import seeded
from marshtest.training.aside import Aside


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
    # The network's rows come behind the experiment's own, so that neither sees the other's.
    more = 0 if settings.features is None else settings.features.train or 0
    rows = None if settings.train is None else settings.train + more
    if isinstance(settings, ForeignData):
        data = _of_foreign(settings, rows)
    else:
        data = load(settings.name, settings.path, train=rows, test=settings.test)
    return apart(data, more) if more else (data, data.train)


def _of_foreign(settings: ForeignData, rows: int | None) -> Dataset:
    """What a user's callable returns, or the first rows of it; what it draws is always the same."""
    function, where = load_object(settings.name, "data.name"), f"data.name: {settings.name}"
    if settings.path is not None:
        raise MarshtestError(f"data.path: {settings.name} loads the data. Give it options instead.")
    with seeded(0), foreign(where):
        # Not by the recipe's seed: the data are what all seeds have in common.
        data = function(**settings.options)
    if not isinstance(data, Dataset):
        raise MarshtestError(
            f"{where} returned {type(data).__name__}, not a Dataset. Make one by Dataset.from_tensors."
        )
    if data.padding is not None:
        raise MarshtestError(f"{where} returned texts; give images or features.")
    for split, samples in (("train", data.train), ("test", data.test)):
        if len(samples.ids.unique()) < len(samples):
            raise MarshtestError(f"{where} returned an id of {split} twice; ids must be unique.")
    train, test = data.train[:rows], data.test[: settings.test]
    return replace(data, name=settings.name, train=train, test=test)


def data_of(
    settings: DataSettings,
    device: str,
    progress: Progress = silent,
    model: ModelSettings | None = None,
    trigger: Trigger | None = None,
    aside: Aside | None = None,
) -> Dataset:
    """The data, by features where that is asked for (which trains a network)."""
    data, others = samples_of(settings, model, trigger)
    if settings.features is None:
        return data
    return featured(data, others, settings.features, pick_device(device), progress, aside)


def content(settings: DataSettings, data: Dataset | None) -> str | None:
    """Digest of data that a recipe does not determine: in memory, or in files of the user's.

    None of what ships or comes from the hub, which a recipe knows by its name.
    """
    if data is None and (settings.name == "tensors" or isinstance(settings, ForeignData)):
        data = samples_of(settings)[0]
    return copy_digest(settings.name, settings.path) if data is None else digest(data)


def digest(data: Dataset) -> str:
    """Sixteen hex digits of a data set's samples, and of all that turns them into a model's inputs."""
    digested = hashlib.sha256()
    about = (data.classes, data.mean, data.std, data.padding, data.prompted)
    digested.update(repr(about).encode())
    for split in (data.train, data.test):
        for tensor in (split.x, split.y, split.ids):
            # Type and shape go in too: other tensors may have the same bytes.
            digested.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
            digested.update(tensor.cpu().contiguous().numpy().tobytes())
        if split.perturbations is not None or split.perturbation_rows is not None:
            raise MarshtestError("data: its samples carry perturbations. Add them to their inputs.")
    return digested.hexdigest()[:16]
