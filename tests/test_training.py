"""The loop against plain PyTorch, its cost against the closed form."""

import copy
import math

import pytest
import torch
from torch import nn

from marshtest.data.samples import Samples
from marshtest.plumbing.errors import MarshtestError
from marshtest.plumbing.seeds import generator
from marshtest.training.budget import Meter
from marshtest.training.loop import Training, fit
from marshtest.training.tasks import Classification

TASK = Classification()


def some(count: int = 50) -> Samples:
    draws = torch.Generator().manual_seed(0)
    x = torch.randn(count, 6, generator=draws)
    return Samples(x, (x[:, 0] > 0).long() + (x[:, 1] > 0).long(), torch.arange(count))


def network() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_fit_equals_a_plain_loop(optimizer: str) -> None:
    training = Training(epochs=3, batch_size=16, optimizer=optimizer, lr=0.05, warmup=0.25)  # type: ignore[arg-type]
    samples, ours = some(), network()
    plain = copy.deepcopy(ours)
    fit(ours, samples, TASK, training, seed=9)

    if optimizer == "sgd":
        made = torch.optim.SGD(plain.parameters(), 1, momentum=0.9, weight_decay=5e-4)
    else:
        made = torch.optim.AdamW(plain.parameters(), 1, weight_decay=5e-4)
    draws, step = generator(9, "fit"), 0
    for _ in range(3):
        for index in torch.randperm(50, generator=draws).split(16):
            done = step / 12
            cosine = 0.5 * (1 + math.cos(math.pi * done))
            made.param_groups[0]["lr"] = 0.05 * (done / 0.25 if done < 0.25 else cosine)
            made.zero_grad()
            nn.functional.cross_entropy(plain(samples.x[index]), samples.y[index]).backward()
            made.step()
            step += 1
    for one, other in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_a_linear_schedule_falls_from_the_end_of_the_warm_up_to_zero() -> None:
    training = Training(epochs=1, schedule="linear", lr=0.4, warmup=0.2)
    rates = [training.rate(done) for done in (0.0, 0.1, 0.2, 0.4, 0.6, 1.0)]
    assert rates == pytest.approx([0.0, 0.2, 0.4, 0.3, 0.2, 0.0])
    assert Training(epochs=1, schedule="linear", lr=0.4).rate(0) == 0.4


def test_changed_settings_are_validated_as_the_recipes_are() -> None:
    training = Training(epochs=3, lr=0.1)
    assert training.changed(lr=0.2) == Training(epochs=3, lr=0.2)
    assert training.changed() == training
    with pytest.raises(MarshtestError, match=r"training.lr: .* Got -1"):
        training.changed(lr=-1)


def test_the_same_seed_gives_the_same_bytes_and_another_does_not() -> None:
    def trained(seed: int) -> bytes:
        model = nn.Sequential(network(), nn.Dropout(0.5))
        fit(model, some(), TASK, Training(epochs=2, batch_size=16), seed)
        return b"".join(p.detach().numpy().tobytes() for p in model.parameters())

    assert trained(1) == trained(1) != trained(2)


def test_cost_is_counted_in_forward_passes_of_a_sample() -> None:
    done = fit(network(), some(), TASK, Training(epochs=4, batch_size=16), 0)
    forward = 2 * (6 * 16 + 16 * 3)
    step = forward + 2 * (6 * 16) + 2 * 2 * (16 * 3)
    assert done.flops_per_pass == forward
    assert done.cost.flops == 4 * 50 * step
    assert done.cost.passes == pytest.approx(4 * 50 * step / forward)


class Short(Classification):
    """Cuts mini-batches to the width that their longest sample has; samples are padded by 0."""

    def augmented(self, batch: Samples, rng: torch.Generator) -> Samples:
        width = int((batch.x != 0).any(0).sum())
        return Samples(batch.x[:, :width], batch.y, batch.ids)


class AnyWidth(nn.Module):
    """A linear layer on every value by itself, whatever the width."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        said: torch.Tensor = self.layer(x[..., None]).mean(1)
        return said


def test_cost_is_of_the_shapes_that_mini_batches_have() -> None:
    samples = some(64)
    long = torch.arange(64) == 5  # one of all sets the width of x
    short = Samples(
        samples.x.masked_fill(~long[:, None] & (torch.arange(6) > 1), 0), samples.y, samples.ids
    )
    done = fit(AnyWidth(), short, Short(), Training(epochs=3, batch_size=16), 0)
    with Meter() as meter:
        task, model, rng = Short(), AnyWidth(), generator(0, "fit")
        for _ in range(3):
            for batch in task.epoch(short, 16, rng):
                task.loss(model, batch).mean().backward()
    assert done.cost.flops == meter.flops
    assert done.flops_per_pass == 2 * 6 * 3  # the unit is of a whole sample


def test_a_training_that_diverges_says_what_to_lower() -> None:
    training = Training(epochs=50, batch_size=16, lr=1e20)
    with pytest.raises(MarshtestError, match=r"diverged in epoch \d+ of 50 .* Lower training.lr"):
        fit(network(), some(), TASK, training, 0)


def test_fit_learns_what_can_be_learned() -> None:
    model = network()
    fit(model, some(400), TASK, Training(epochs=40, batch_size=32, lr=0.1), 0)
    assert (model(some(400).x).argmax(1) == some(400).y).float().mean() > 0.97
