"""Unlearners of other packages, called through loaders and judged; `make rivals` installs them."""

import copy
from typing import Any

import pytest
import torch
from conftest import TINY
from from_erasus import fisher
from from_supreme import indexed, ssd
from lightning.fabric import Fabric
from supreme.methods.unlearning_methods.ssd import ssd as theirs
from torch import nn

import marshtest
from marshtest.results.summary import Results
from marshtest.unlearning.base import Custom
from marshtest.unlearning.check import NEARS, check_unlearner, images
from marshtest.unlearning.ssd import SSD

# Of 160 retained and 40 poisoned samples, how many are read: SSD looks at all and at the poisons; Fisher
# forgetting at those retained, and five times at the poisons.
READ = {ssd: 200 + 40, fisher: 160 + 5 * 40}
# Passes of a gradient in a network 64 → 32 → 10: forward, backward to the weights, and to the hidden layer.
GRADIENT = 2 + 32 * 10 / (64 * 32 + 32 * 10)


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Results:
    recipe = {**TINY, "seeds": 3, "unlearners": list(READ)}
    return marshtest.run(recipe, out=tmp_path_factory.mktemp("runs") / "rivals", report=False)


@pytest.mark.parametrize("function", READ)
def test_each_seed_has_a_row_of_its_name_and_there_is_a_verdict(
    function: Any, judged: Results
) -> None:
    name = f"{function.__module__}:{function.__name__}"
    rows = judged.rows[judged.rows["unlearner"] == name]
    assert sorted(rows["seed"]) == [0, 1, 2]
    assert set(rows["note"]) == {""}
    assert list(rows["passes"]) == pytest.approx([READ[function] * GRADIENT] * 3)
    verdict = judged.summary.set_index("unlearner").loc[name, "verdict"]
    assert verdict in ("REMOVED", "NOT REMOVED", "INCONCLUSIVE")


@pytest.mark.parametrize("function", READ)
def test_each_is_called_soundly(function: Any) -> None:
    """The seed fixes it, the budget holds, and model and samples passed in stay as they were."""
    facts = check_unlearner(function, ["images", "features"])
    assert {fact.name for fact in facts if not fact.holds} <= {
        NEARS
    }  # their methods, not the calls


def test_dampening_multiplies_what_matters_more_to_the_forget_set() -> None:
    """Foster et al. 2024: where I_f > 10 I_D, θ becomes min(I_D / I_f, 1) θ; I is a squared gradient."""
    problem = images()  # of 64 samples, all of which are one batch
    updated = problem.run(Custom.wrap(ssd), 10.0).model
    assert updated is not None
    model = problem.model.eval()
    x, y = (torch.cat([getattr(s, of) for s in (problem.retain, problem.forget)]) for of in "xy")
    after = dict(updated.named_parameters())
    dampened = 0
    for name, weight in model.named_parameters():
        if not weight.requires_grad:
            assert torch.equal(after[name], weight)
            continue
        importance = [
            torch.autograd.grad(nn.functional.cross_entropy(model(x), y), weight)[0] ** 2
            for x, y in ((x, y), (problem.forget.x, problem.forget.y))
        ]
        chosen = importance[1] > 10 * importance[0]
        expected = torch.where(chosen, weight * importance[0] / importance[1], weight)
        torch.testing.assert_close(after[name], expected, rtol=1e-3, atol=1e-5)
        dampened += int(chosen.sum())
    assert dampened > 100


def test_our_ssd_is_theirs_where_a_batch_is_one_sample() -> None:
    """Both then take the mean of each sample's squared gradient; larger batches are where they part."""
    problem, alpha = images(), 2.0
    updated = problem.run(SSD(alpha=alpha), 10.0).model
    assert updated is not None
    model, fabric = copy.deepcopy(problem.model), Fabric(accelerator="cpu", devices=1)
    loaders = marshtest.loaders(problem.task, problem.retain, problem.forget, 1)
    theirs(fabric, 1, False, model, indexed(loaders[1]), indexed(*loaders), 1, alpha)
    before, ours = (dict(m.named_parameters()) for m in (problem.model, updated))
    changed = 0
    for name, weight in model.named_parameters():
        torch.testing.assert_close(ours[name], weight, rtol=1e-3, atol=1e-5)
        changed += int((weight != before[name]).sum())
    assert changed > 100
