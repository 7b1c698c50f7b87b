"""Fisher forgetting of `erasus`, judged: pip install erasus, and in this folder

marshtest run digits-gaussian 'unlearners=["from_erasus:fisher_forgetting"]'
"""

import copy

from erasus.strategies.gradient_methods.fisher_forgetting import FisherForgettingStrategy

import marshtest


def fisher_forgetting(model, retain, forget, *, task, budget, seed):
    retain_loader, forget_loader = marshtest.loaders(task, retain, forget, 64, seed)
    theirs = FisherForgettingStrategy()  # with its own rate and penalty
    return theirs.unlearn(copy.deepcopy(model), forget_loader, retain_loader)[0]
