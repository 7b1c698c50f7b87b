"""The roles that models play in an experiment, and the names that rows give to models nobody unlearned."""

from enum import StrEnum


class Role(StrEnum):
    """What a model is in an experiment; the value of a row's `role`."""

    INITIAL = "initial"  # trained on the poisoned data
    TWIN = "twin"  # the same, on the base samples in the poisons' places: the initial model's clean twin
    SHUFFLED = "shuffled"  # the same, on the poisons' perturbations in random order
    RETRAINED = "retrained"  # trained on the retain set: the reference
    REFERENCE = "reference"  # the same, by another seed: the retrained model's clean twin
    UPDATED = "updated"  # after unlearning
    EXACT = (
        "exact"  # trained on all but the poisons asked for: exact unlearning of a partial request
    )
    EXACT_TWIN = "exact-twin"  # the same, on the base samples in the other poisons' places


CLEAN = (Role.TWIN, Role.EXACT_TWIN)  # in whose place poisons are plain base samples
UNTREATED = (Role.INITIAL, Role.TWIN, Role.SHUFFLED)  # from which nothing was taken
TWINS = {
    Role.INITIAL: Role.TWIN,
    Role.SHUFFLED: Role.TWIN,
    Role.RETRAINED: Role.REFERENCE,
    Role.EXACT: Role.EXACT_TWIN,
}  # by role, that of the clean twin
ROW_NAMES = {  # in the rows' column `unlearner`, of models that no unlearner made
    Role.INITIAL: "none",
    Role.SHUFFLED: "shuffled",
    Role.RETRAINED: "retrain (full)",
    Role.REFERENCE: "retrain (full)",
    Role.EXACT: "retrain (asked)",
}
