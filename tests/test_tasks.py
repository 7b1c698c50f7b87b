"""Inputs, augmentation and losses against literal loops."""

import numpy as np
import pytest
import torch
from torch import nn

from marshtest.data.samples import Samples
from marshtest.plumbing.seeds import generator
from marshtest.training.tasks import Classification, LabelWord
from marshtest.unlearning.check import text


def image_samples(count: int = 9) -> Samples:
    draws = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (count, 3, 8, 8), generator=draws, dtype=torch.uint8)
    return Samples(x, torch.arange(count) % 3, torch.arange(count))


TASK = Classification(mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))


def test_pixels_are_normalised_and_the_shift_is_added_after() -> None:
    shift = torch.randn(2, 3, 8, 8)
    samples = image_samples().perturbed(torch.tensor([4, 1]), shift)
    inputs = TASK.inputs(nn.Identity(), samples).numpy()
    mean, std = (np.array(v).reshape(1, 3, 1, 1) for v in (TASK.mean, TASK.std))
    expected = (samples.x.numpy() / 255 - mean) / std
    expected[4] += shift[0].numpy()
    expected[1] += shift[1].numpy()
    np.testing.assert_allclose(inputs, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("augment", [("flip",), ("crop",), ("flip", "crop")])
def test_augmentation_is_a_flip_and_a_shift_of_each_image(augment: tuple[str, ...]) -> None:
    task = Classification(mean=TASK.mean, std=TASK.std, augment=augment)  # type: ignore[arg-type]
    samples = image_samples(200)
    plain = task.inputs(nn.Identity(), samples).numpy()
    made = task.augmented(samples, generator(0)).x.numpy()
    found = set()
    for before, after in zip(plain, made, strict=True):
        possible = {}
        for flipped in (False, True) if "flip" in augment else (False,):
            image = np.pad(before[:, :, ::-1] if flipped else before, ((0, 0), (1, 1), (1, 1)))
            for dy in (0, 1, 2) if "crop" in augment else (1,):
                for dx in (0, 1, 2) if "crop" in augment else (1,):
                    possible[flipped, dy, dx] = image[:, dy : dy + 8, dx : dx + 8]
        matches = [key for key, image in possible.items() if np.array_equal(image, after)]
        assert len(matches) == 1
        found.add(matches[0])
    assert found == set(possible)  # all that can happen does


def test_a_mini_batch_larger_than_any_number_of_samples_is_all_of_them() -> None:
    samples = image_samples(5)
    (batch,) = TASK.epoch(samples, 2**64, torch.Generator().manual_seed(0))
    assert sorted(batch.ids.tolist()) == sorted(samples.ids.tolist())
    assert TASK.batches_per_epoch(samples, 2**64) == 1
    assert list(TASK.epoch(samples[:0], 8, torch.Generator())) == []


def test_an_epoch_holds_every_sample_once_but_for_a_last_batch_of_one() -> None:
    ids = [batch.ids for batch in TASK.epoch(image_samples(9), 4, generator(0))]
    assert [len(i) for i in ids] == [4, 4]
    ids = [batch.ids for batch in TASK.epoch(image_samples(9), 5, generator(0))]
    assert sorted(torch.cat(ids).tolist()) == list(range(9))
    assert [len(batch) for batch in TASK.epoch(image_samples(9), 1, generator(0))] == [1] * 9


def test_batches_go_on_with_a_new_order_and_the_same_seed_repeats_them() -> None:
    def first(seed: int) -> list[list[int]]:
        stream = TASK.batches(image_samples(8), 4, seed)
        return [next(stream).ids.tolist() for _ in range(4)]

    assert first(1) == first(1) != first(2)
    assert sorted(sum(first(1)[:2], [])) == sorted(sum(first(1)[2:], [])) == list(range(8))


def test_label_word_loss_is_the_mean_over_real_tokens_and_its_logits_follow_the_prompt() -> None:
    problem = text()
    task, model, batch = LabelWord(padding=0), problem.model.eval(), problem.retain[:5]
    outputs = task(model, batch)
    losses, label_logits = task.losses(outputs, batch), task.label_logits(outputs, batch)
    for row in range(5):
        prompt = [token for token in batch.x[row].tolist() if token != 0]
        tokens = torch.tensor([*prompt, int(batch.y[row])])
        embedded = model.get_input_embeddings()(tokens[None])  # type: ignore[operator]
        logits = model(inputs_embeds=embedded)[0]
        expected = nn.functional.cross_entropy(logits[:-1], tokens[1:])
        torch.testing.assert_close(losses[row], expected)
        torch.testing.assert_close(label_logits[row], logits[len(prompt) - 1])
