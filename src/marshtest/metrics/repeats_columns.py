"""The columns of evaluations that need many models of one forget set, without torch."""

from marshtest.metrics.membership_columns import column_of, parts_of
from marshtest.metrics.presentation import Column

FEWEST = 16  # pairs of models; from fewer, neither Gaussians nor errors over pairs can be told

COLUMNS: dict[str, Column] = {
    column_of("ulira", "auc"): Column(
        title="U-LiRA AUC",
        low=0,
        high=1,
        legend="the chance to tell a model from a retrained one by its answer to one forgotten sample",
        room=140,
    ),
    column_of("ulira", "auc_error"): Column(title="", low=0),
    **parts_of("ulira"),
    column_of("klom", "mean"): Column(
        title="KLoM mean",
        low=0,
        legend="divergence of a forgotten sample's margins from those of retrained models, in nats, mean",
        room=140,
    ),
    column_of("klom", "p95"): Column(
        title="KLoM, 95th percentile", low=0, legend="the same, over the samples", room=140
    ),
    column_of("klom", "null"): Column(
        title="KLoM by chance", low=0, legend="its mean with the pairs swapped at random", room=200
    ),
    **parts_of("klom"),
}
