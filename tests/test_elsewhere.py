"""How models that were unlearned elsewhere are told apart: by the distance of their tensors."""

import math

import torch

from marshtest.unlearning.elsewhere import ALIKE, _distance


def test_masks_of_infinities_are_no_distance_and_weights_without_numbers_an_infinite_one() -> None:
    mask = torch.zeros(4, 4).masked_fill(torch.ones(4, 4).triu(1).bool(), -torch.inf)
    mine = {"mask": mask, "weight": torch.ones(100), "steps": torch.tensor(3)}
    near, other = ({**mine, "weight": torch.full((100,), value)} for value in (1.001, 3.0))
    assert _distance(mine, mine) == 0
    assert math.isclose(_distance(mine, near), 0.001, rel_tol=1e-3)
    assert math.isclose(_distance(mine, other), 2, rel_tol=1e-9)
    assert _distance(mine, other) > ALIKE
    assert _distance(mine, {**mine, "weight": torch.full((100,), torch.nan)}) == math.inf
