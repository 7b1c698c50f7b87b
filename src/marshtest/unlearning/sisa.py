"""SISA: retraining of the shards that held the request (Bourtoule et al. 2021, arXiv 1912.03817).

    Training    the samples are divided among S shards by their ids; on each a model is trained by itself;
                the label distributions of the S models are averaged.
    Unlearning  every model whose shard held a sample of the forget set is trained anew on the rest of its
                shard; the others never saw any.

What is left after that cannot depend on the forget set: SISA is exact, and a control that must be REMOVED.
It owns the training, so it needs a recipe with `training.shards`.

| known | paper | authors' repository | here |
| --- | --- | --- | --- |
| shards | 1 to 20 in most experiments | an option | `training.shards` |
| shard of a sample | at random | at random | by its id, evenly |
| aggregation | majority vote, or average of the vectors | majority vote | average |
| slices | each shard's training in R stages, with checkpoints | the same | none |
| retraining | whole | whole | whole, or its schedule compressed into the budget if that is less |

Slices are left out: they save time only if the request holds no sample of a shard's first slices, and a
request of more than a few samples does.
"""

import copy
from contextlib import suppress

from torch import nn

from marshtest.data.samples import Samples
from marshtest.models.sharded import Ensemble, members, shards
from marshtest.plumbing.errors import MarshtestError
from marshtest.plumbing.seeds import derive
from marshtest.training.budget import Budget, BudgetSpent
from marshtest.training.tasks import NewModel, Task
from marshtest.unlearning.base import Unlearner


class Sisa(Unlearner):
    """SISA (Bourtoule et al. 2021): retrain the shards that held the forget set, and no other."""

    name: str = "sisa"

    def check(self, model: nn.Module, new_model: NewModel | None = None) -> None:
        members(model)

    def __call__(
        self,
        model: nn.Module,
        retain: Samples,
        forget: Samples,
        *,
        task: Task,
        budget: Budget,
        seed: int,
    ) -> nn.Module:
        if task.train is None or task.new_model is None:
            raise MarshtestError(
                "sisa: the task has no training pipeline (task.train). Run it through a recipe."
            )
        each, fresh = members(copy.deepcopy(model)), members(task.new_model(seed))
        kept = shards(retain, len(each))
        hit = [k for k, shard in enumerate(shards(forget, len(each))) if len(shard)]
        for done, k in enumerate(hit):
            share = len(kept[k]) / (len(retain) + len(forget))
            each[k] = fresh[k]
            if len(kept[k]) < 2:
                continue  # nothing to train on; a fresh member says nothing of anybody
            # A part that does not afford one step ends its own member's training, and no other's.
            with suppress(BudgetSpent), budget.part(share, 1 / (len(hit) - done)) as part:
                each[k] = task.train(kept[k], derive(seed, "shard", k), part, start=fresh[k])
        return Ensemble(each)
