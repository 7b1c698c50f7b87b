"""A few poisons beside what they were made of, for people to look at: examples.parquet of a run."""

import io
from collections.abc import Sequence
from itertools import takewhile

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor

from marshtest.attacks import Poisoned
from marshtest.data.samples import Samples
from marshtest.data.texts import TEXTS, Texts, load_texts
from marshtest.experiment.guarded import trigger_of
from marshtest.experiment.protocol import Pipeline
from marshtest.models.language import LanguageModel

COUNT = 6  # poisons that are shown
CHARACTERS = 280  # of a text


def examples(pipeline: Pipeline, poisoned: Poisoned) -> pd.DataFrame:
    """The first poisons, one a line: `id`, `label` before, `given` label, and what can be shown.

    Labels are class numbers, or words for a model that answers in words.

    Images have `base` and `dosed` (PNG bytes) and, where they are perturbed, `noise` (on grey, its
    largest value `largest`, in pixel values of 255, drawn as white or black); texts have `text`. Empty for
    data that are neither.
    """
    ids = poisoned.forget_ids[:COUNT].cpu()
    samples = poisoned.samples.to("cpu")
    dosed = samples[samples.positions(ids)]
    before = poisoned.true_labels[:COUNT].cpu()
    shown = pd.DataFrame({"id": ids.numpy(), "label": before.numpy(), "given": dosed.y.numpy()})
    if pipeline.recipe.data.name in TEXTS:
        read = _read(pipeline)
        shown["text"] = _texts(read, ids, _word(pipeline), poisoned.words)
        words = _words(pipeline, read, samples)
        return shown.assign(
            **{name: shown[name].map(words) for name in ("label", "given") if words}
        )
    if dosed.x.dtype == torch.uint8 and dosed.x.dim() == 4 and dosed.x.shape[1] in (1, 3):
        return shown.join(pd.DataFrame(_images(pipeline, dosed)))
    return pd.DataFrame()


def _read(pipeline: Pipeline) -> Texts:
    # Read once more: the samples hold tokens, cut to a length, from which no text comes back.
    settings, word = pipeline.recipe.data, _word(pipeline)
    return load_texts(
        settings.name, settings.path, train=settings.train, test=settings.test, word=word
    )


def _word(pipeline: Pipeline) -> str | None:
    trigger = trigger_of(pipeline.recipe.attack)
    return None if trigger is None else trigger.word


def _words(pipeline: Pipeline, read: Texts, samples: Samples) -> dict[int, str]:
    """What each label's token says; the one that no text has of its own is the attacker's."""
    model, attack = pipeline.recipe.model, pipeline.recipe.attack
    prompt = model.prompt if isinstance(model, LanguageModel) else None
    if prompt is None:
        return {}
    # Every token is the attacker's word at first; those that clean texts bear are then set right.
    words = {int(token): str(getattr(attack, "label", "")) for token in samples.y.unique()}
    true = dict(zip(read.train_ids.tolist(), read.train_y.tolist(), strict=True))
    clean = pipeline.data.train
    clean_tokens = zip(clean.ids.tolist(), clean.y.tolist(), strict=True)
    return words | {token: prompt.labels[true[id]] for id, token in clean_tokens}


def _texts(read: Texts, ids: Tensor, word: str | None, words: Sequence[str]) -> list[str]:
    """The texts, cut round the attack's word, or round what the attack wrote into them, if there is such.

    Args:
        words: [P] the poisons' texts, of an attack that writes into texts.
    """
    by_id = dict(zip(read.train_ids.tolist(), read.train, strict=True))
    excerpts = []
    for place, base in enumerate(by_id[i] for i in ids.tolist()):
        text = words[place] if words else base
        middle = text.find(word) if word else _changed_at(text, base) if words else 0
        at = max(0, middle - CHARACTERS // 2)
        end = at + CHARACTERS
        excerpts.append(("… " if at else "") + text[at:end] + (" …" if end < len(text) else ""))
    return excerpts


def _changed_at(text: str, base: str) -> int:
    """The place of the first character in which a text differs from its base."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(text, base, strict=False)))


def _images(pipeline: Pipeline, dosed: Samples) -> dict[str, list[object]]:
    perturbation, std = dosed.perturbation(), pipeline.data.std
    if perturbation is None or std is None:
        images: list[object] = [_png(x) for x in dosed.x]
        return {"base": images, "dosed": images}
    noise = 255 * perturbation * torch.tensor(std).view(1, -1, 1, 1)  # in pixel values
    # Noise of a few levels would look grey all over: each picture is stretched to its own largest.
    largest = noise.abs().flatten(1).amax(1).clamp(min=1e-6)
    enlarged = 128 + 127 * noise / largest.view(-1, 1, 1, 1)
    return {
        "base": [_png(x) for x in dosed.x],
        "dosed": [_png(x) for x in dosed.x + noise],
        "noise": [_png(x) for x in enlarged],
        "largest": [float(value) for value in largest],
    }


def _png(pixels: Tensor) -> bytes:
    """[C, H, W] pixel values, clipped to what can be shown."""
    values = pixels.clamp(0, 255).round().byte().numpy()
    picture = Image.fromarray(values[0] if len(values) == 1 else np.moveaxis(values, 0, -1))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()
