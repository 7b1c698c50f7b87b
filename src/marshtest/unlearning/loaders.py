"""Real `DataLoader`s, for a function of somebody else's that knows neither samples nor tasks."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset, default_collate, get_worker_info

from marshtest.data.samples import Samples
from marshtest.data.sealed import Sealed
from marshtest.plumbing.errors import MarshtestError
from marshtest.plumbing.seeds import derive, generator
from marshtest.training.tasks import Task

Batch = tuple[Tensor, ...]  # x [B, ...] in input space, y [B]


def loaders(
    task: Task, retain: Samples, forget: Samples, batch_size: int, seed: int = 0
) -> tuple[DataLoader[Batch], DataLoader[Batch]]:
    """Ordinary `DataLoader`s of pairs (x, y), for an unlearner that takes loaders.

    Each pass over a loader shuffles and augments anew, as the recipe's training does: `x` is what the model
    reads, on its device. `loader.dataset[i]` is a sample's pair without augmentation, so the dataset can
    be wrapped in a loader of one's own. Texts are token ids [B, T], padded on the right. A last batch of a
    single sample is left out if other batches are larger, since BatchNorm cannot take it.

    Args:
        task: the task that the unlearner is called with.
        retain: the samples to be kept, as the unlearner gets them.
        forget: the samples to be unlearned, as the unlearner gets them.
        batch_size: samples of a batch.
        seed: fixes the order and the augmentation.

    Returns:
        The loader of the retain set and the loader of the forget set.

    Raises:
        MarshtestError: the poison of a text is noise on its embeddings, which no pair (x, y) holds; a set
            is empty; or the batch size is no whole number from 1.

    Example:
        Ascent on the forget set by a function that takes any loader:

        >>> import copy, marshtest, torch
        >>> def ascend(model, loader):
        ...     optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        ...     for x, y in loader:
        ...         optimizer.zero_grad()
        ...         (-torch.nn.functional.cross_entropy(model(x), y)).backward()
        ...         optimizer.step()
        ...     return model
        >>> def unlearner(model, retain, forget, *, task, budget, seed):
        ...     _, forget_loader = marshtest.loaders(task, retain, forget, 32, seed)
        ...     return ascend(copy.deepcopy(model), forget_loader)
    """
    if not isinstance(batch_size, int) or batch_size < 1:
        raise MarshtestError(
            f"loaders: batch_size is {batch_size!r}. Give a whole number, 1 or more."
        )
    for name, samples in (("retain", retain), ("forget", forget)):
        if not len(samples):
            raise MarshtestError(
                f"loaders: the {name} set is empty. Ask for it only where it is not."
            )
    return (
        _loader("retain", task, retain, batch_size, seed),
        _loader("forget", task, forget, batch_size, seed),
    )


def _loader(
    name: str, task: Task, samples: Samples, batch_size: int, seed: int
) -> DataLoader[Batch]:
    readable = samples if isinstance(samples.x, Sealed) else task.given(samples)
    if isinstance(readable.x, Sealed):
        raise MarshtestError(
            f"loaders: the poison of the {name} set is noise on embeddings, which no pair (x, y) "
            f"holds. Draw batches by task.batches({name}, size, seed), or take another attack."
        )
    full, rest = divmod(len(samples), batch_size)
    return DataLoader(
        TensorDataset(readable.x, readable.y),
        batch_size,
        shuffle=True,
        collate_fn=_augmenting(task, derive(seed, name, "augmentation")),
        drop_last=full > 0 and rest == 1,
        generator=generator(seed, name, "order"),
    )


def _augmenting(task: Task, seed: int) -> Callable[[list[Batch]], Batch]:
    """A `collate_fn` that makes one batch of pairs and augments it as the training does."""
    rngs: dict[int | None, torch.Generator] = {None: generator(seed, "batches")}

    def collate(pairs: list[Batch]) -> Batch:
        x, y = default_collate(pairs)
        worker = get_worker_info()
        # A worker begins with a copy of all that is here; each pass over the loader has other workers.
        own = None if worker is None else worker.seed
        rng = rngs.setdefault(own, generator(seed, "batches", own))
        batch = task.augmented(Samples(x, y, torch.arange(len(y), device=y.device)), rng)
        return batch.x, batch.y

    return collate
