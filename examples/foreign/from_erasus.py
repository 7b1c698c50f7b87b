"""Fisher forgetting of `erasus`, judged: pip install erasus, and in this folder

marshtest run digits-gaussian 'unlearners=["from_erasus:fisher"]'
"""

import copy

from erasus.strategies.gradient_methods.fisher_forgetting import FisherForgettingStrategy

import marshtest


def fisher(model, retain, forget, *, task, budget, seed, lr=1e-4):
    retain_loader, forget_loader = marshtest.loaders(task, retain, forget, 64, seed)
    theirs = FisherForgettingStrategy(lr=lr)
    return theirs.unlearn(copy.deepcopy(model), forget_loader, retain_loader)[0]
