"""SSD of `supreme-unlearning`, judged. Its pins are old and not needed: install it without them,

pip install lightning wandb && pip install --no-deps supreme-unlearning

and in this folder: marshtest run digits-gaussian 'unlearners=["from_supreme:ssd"]'
"""

import copy

from lightning.fabric import Fabric
from supreme.methods.unlearning_methods import ssd as theirs
from torch.utils.data import ConcatDataset, DataLoader

import marshtest


def ssd(model, retain, forget, *, task, budget, seed, alpha=10):
    retain_loader, forget_loader = marshtest.loaders(task, retain, forget, 64, seed)
    model, fabric = copy.deepcopy(model), Fabric(accelerator=forget.x.device.type, devices=1)
    few, whole = indexed(forget_loader), indexed(retain_loader, forget_loader)
    theirs.ssd(fabric, 1, False, model, few, whole, dampening_constant=1, selection_weighting=alpha)
    return model  # changed in place; what their function returns is wrapped


def indexed(*loaders):
    """A loader of (x, index, y), in which form the package reads all samples; it looks at no index."""

    def collate(pairs):
        x, y = loaders[0].collate_fn(pairs)
        return x, None, y

    dataset = ConcatDataset([loader.dataset for loader in loaders])
    return DataLoader(dataset, loaders[0].batch_size, shuffle=True, collate_fn=collate)
