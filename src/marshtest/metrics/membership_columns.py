"""The columns of membership inference in rows, without torch.

Each form of attack tells a model by how far it is from what retraining leaves, `left`: its AUC less that of
the retrained model, by the same attack on the same samples. Of `left` a row has the variance, and the
covariance with the initial model's, each in two parts: that of the members, who differ from seed to seed,
and that of the non-members, whom all seeds share.
"""

from marshtest.metrics.presentation import Column

FORMS = {"margin": "margin MIA", "rmia": "RMIA"}
REPEATED = {"ulira": "U-LiRA", "klom": "KLoM"}  # of recipes with `repeats`
EVERY_FORM = FORMS | REPEATED
RATES = {"1": 0.001, "10": 0.01, "50": 0.05}  # FPRs by the ending of their column, in thousandths
WORDS = {"1": "0.1 %", "10": "1 %", "50": "5 %"}
PARTS = ("left", "variance", "shared_variance", "covariance", "shared_covariance")
OF_TPR = "share of the forget set above a threshold that so many non-members exceed, as those that follow"
WIDE = 200  # characters of a terminal that shows TPRs too


def column_of(form: str, part: str) -> str:
    """The name of a form's column."""
    return f"mia_{form}_{part}"


def parts_of(form: str) -> dict[str, Column]:
    """What verdicts take from a row; no table shows it."""
    return {column_of(form, part): Column(title="") for part in PARTS}


def _of(form: str, title: str, legend: str) -> dict[str, Column]:
    columns = {
        column_of(form, "auc"): Column(
            title=f"{title} AUC", low=0, high=1, legend=legend, room=140
        ),
        column_of(form, "auc_error"): Column(title="", low=0),
    }
    for ending, words in WORDS.items():
        columns[column_of(form, f"tpr_{ending}")] = Column(
            title=f"{title} TPR at {words}",
            low=0,
            high=1,
            interval="exact",
            count="mia_members",
            legend=OF_TPR if (form, ending) == ("margin", "1") else "",
            room=WIDE,
        )
    return columns | parts_of(form)


COLUMNS: dict[str, Column] = {
    "mia_members": Column(title="", low=0),
    "mia_others": Column(title="", low=0),
    "mia_dosed": Column(title="", low=0, high=1),  # whether non-members follow the poisons' law
    **_of(
        "margin",
        "margin",
        "the chance that the model is surer of a forgotten sample's label than of a non-member's",
    ),
    **_of("rmia", "RMIA", "the same by RMIA, offline, with a second retrained model as reference"),
}
