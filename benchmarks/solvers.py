"""Softmax regression to a certificate, beside scikit-learn in one run; and a path of nearby problems.

    python benchmarks/solvers.py [--features FILE] [--weight-decays 1e-3 1e-5]

cold    seconds from zero to ‖∇F‖₂ ≤ 1e-6, 50,000 × 512 and a constant column, ten classes, float64;
        LogisticRegression(solver="lbfgs") of the same objective. Its tol is on max |∇F|: with 1e-6 it
        ends at a ‖∇F‖₂ ten times as large, so it is given 5e-8 as well.
path    the eleven problems of β = 0, 0.1, ..., 1 of 384 samples taken out, each from the last solution,
        the joint factor's making included, in cold solutions.

Without --features (a file that marshtest.data.load.save_dataset wrote) they are those of a random
network of two ReLU layers, for noise round class means.
"""

import argparse
import resource
import time

import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from marshtest.data.load import load
from marshtest.plumbing.seeds import generator
from marshtest.training.solvers import SoftmaxRegression

ROWS, INPUTS, SIZE, CLASSES = 50_000, 64, 512, 10
REMOVED, TOLERANCE = 384, 1e-6


def synthetic() -> tuple[Tensor, Tensor]:
    """Samples [N, F], standardised, and labels."""
    draws = generator(0, "samples")
    y = torch.randint(CLASSES, (ROWS,), generator=draws)
    means = torch.randn(CLASSES, INPUTS, dtype=torch.float64, generator=draws)
    x = means[y] / 2 + torch.randn(ROWS, INPUTS, dtype=torch.float64, generator=draws)
    for size in (SIZE, SIZE):
        weights = torch.randn(x.shape[1], size, dtype=torch.float64, generator=draws)
        x = torch.relu(x @ weights / x.shape[1] ** 0.5)
    return (x - x.mean(0)) / x.std(0), y


def gradient_norm(x: Tensor, y: Tensor, theta: Tensor, weight_decay: float) -> float:
    """‖∇F(θ)‖₂ of mean cross-entropy and ½ λ ‖θ‖², by autograd."""
    theta = theta.clone().requires_grad_()
    loss = torch.nn.functional.cross_entropy(x @ theta.T, y)
    (slope,) = torch.autograd.grad(loss + weight_decay / 2 * theta.square().sum(), theta)
    return float(slope.norm())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--features", help="a safetensors file of features")
    parser.add_argument("--weight-decays", type=float, nargs="+", default=[1e-3, 1e-5])
    given = parser.parse_args()
    if given.features:
        samples = load("tensors", given.features).train
        x, y = samples.x.double(), samples.y
    else:
        x, y = synthetic()
    x = torch.cat([x, torch.ones_like(x[:, :1])], 1)
    print(f"{len(x):,} x {x.shape[1]}, {torch.get_num_threads()} threads")
    for weight_decay in given.weight_decays:
        compare(x, y, weight_decay)
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")


def compare(x: Tensor, y: Tensor, weight_decay: float) -> None:
    """One weight decay."""
    problem = SoftmaxRegression(x, y, int(y.max()) + 1, weight_decay)
    started = time.perf_counter()
    solution = problem.solve(tolerance=TOLERANCE)
    cold = time.perf_counter() - started

    started = time.perf_counter()
    problem.join(solution.theta)
    theta = solution.theta
    for tenths in range(11):
        kept = torch.arange(len(x)) >= REMOVED * tenths // 10
        theta = problem.solve(kept, theta, TOLERANCE).theta
    path = time.perf_counter() - started

    own = gradient_norm(x, y, solution.theta, weight_decay)
    print(
        f"weight decay {weight_decay:g}: cold {cold:.1f} s (gradient {own:.1e}); path of eleven "
        f"{path:.1f} s, {path / cold:.2f} cold solutions"
    )
    for tolerance in (TOLERANCE, TOLERANCE / 20):
        rival = LogisticRegression(
            C=1 / (weight_decay * len(x)), tol=tolerance, max_iter=100_000, fit_intercept=False
        )
        started = time.perf_counter()
        rival.fit(x.numpy(), y.numpy())
        theirs = time.perf_counter() - started
        left = gradient_norm(x, y, torch.from_numpy(rival.coef_), weight_decay)
        print(
            f"    scikit-learn, tol {tolerance:g}: {theirs:.1f} s (gradient {left:.1e}), "
            f"{theirs / cold:.1f} x"
        )


if __name__ == "__main__":
    main()
