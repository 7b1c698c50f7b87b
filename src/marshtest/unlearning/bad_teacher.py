"""Bad Teacher: obey a competent teacher, but on the forget set an incompetent one (Chundawat et al. 2023).

    L(x) = (1 − l_u) KL(T_s(x) ‖ S(x)) + l_u KL(T_d(x) ‖ S(x)),    l_u = 1 on the forget set, else 0

The student S starts as the competent teacher T_s, which is the initial model. The incompetent teacher T_d
is a freshly initialised one. Labels play no part.

| known | paper (arXiv 2205.08096, §4) | authors' repository | here |
| --- | --- | --- | --- |
| T_d | randomly initialised | the same | `task.new_model` |
| retain set | a part of it is enough | 30 % of it, drawn once | `retain_share` 0.3, drawn once |
| mini-batches | of both sets | of both sets | of one set, in random order |
| KL | at a temperature | at 1, of label distributions | `temperature` 1, times its square |
| its scale | the sum over classes | the mean over classes | the sum over classes |
| optimiser | not given | Adam, rate 1e-4 | `adamw` without decay, which is Adam; 1e-4 |
| batch size | 256 | 256 | 256 |
| epochs | 1 | 1 | what the budget affords |
| mode | not given | student train, teachers eval | the same |

To Adam the scale of the loss does not matter. A factory that loads pretrained weights builds no incompetent
teacher, and is refused. Since nobody looks at labels, the method does not tend to the retrained model: it
keeps what the initial model says of the retain set, and learns noise on the forget set.

What is guessed: the paper's values are taken from its repository.
"""

import copy
from typing import Literal

import torch
from pydantic import Field
from torch import nn

from marshtest.data.samples import Samples
from marshtest.models.state import same_tensors
from marshtest.plumbing.errors import MarshtestError
from marshtest.plumbing.seeds import derive, generator
from marshtest.training.budget import Budget
from marshtest.training.loop import descend
from marshtest.training.tasks import NewModel, Task
from marshtest.unlearning.base import GradientUnlearner
from marshtest.unlearning.passes import mixed_stream
from marshtest.unlearning.scrub import label_divergence


class BadTeacher(GradientUnlearner):
    """Bad Teacher (Chundawat et al. 2023): a student that a random model teaches on the forget set."""

    anytime = True
    name: str = "bad-teacher"
    optimizer: Literal["sgd", "adamw"] = "adamw"
    lr: float = Field(1e-4, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    batch_size: int = Field(256, ge=1)
    retain_share: float = Field(0.3, gt=0, le=1)  # of the retain set, that is gone through
    temperature: float = Field(1.0, gt=0)

    def check(self, model: nn.Module, new_model: NewModel | None = None) -> None:
        if new_model is None:
            raise self.refusal("the task builds no fresh model (task.new_model)")
        one, other = (dict(new_model(seed).named_parameters()) for seed in (0, 1))
        if same_tensors(one, other):
            raise self.refusal("a freshly built model has the same weights each time, loaded ones")

    def refusal(self, reason: str) -> MarshtestError:
        """The error that there is no incompetent teacher."""
        return MarshtestError(
            f"unlearners.{self.name}: {reason}, so no teacher knows nothing. Leave the method out."
        )

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
        if task.new_model is None:
            raise self.refusal("the task builds no fresh model (task.new_model)")
        incompetent = task.new_model(derive(seed, "teacher")).eval()
        competent, student = copy.deepcopy(model).eval(), copy.deepcopy(model).train()
        optimizer = self.optimizer_for(student)
        part = self.part(retain, seed)
        steps = mixed_stream(part, forget, task, budget, self.batch_size, seed)
        for is_forget, batch in steps:
            teacher = incompetent if is_forget else competent
            with torch.no_grad():
                wanted = task.label_logits(task(teacher, batch), batch)
            logits = task.label_logits(task(student, batch), batch)
            descend(optimizer, label_divergence(wanted, logits, self.temperature))
        return student

    def part(self, retain: Samples, seed: int) -> Samples:
        """The share of the retain set that is gone through, drawn at random; one sample or more."""
        order = torch.randperm(len(retain), generator=generator(seed, "part"))
        count = max(1, int(self.retain_share * len(retain)))
        return retain[order[:count].to(retain.y.device)]
