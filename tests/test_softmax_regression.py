"""Softmax regression: against scikit-learn, autograd and itself on fewer samples."""

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from torch.nn import functional as F

from marshtest.plumbing.errors import MarshtestError
from marshtest.training import solvers
from marshtest.training.solvers import SoftmaxRegression

CLASSES = 4


def drawn(n: int = 300, d: int = 6, seed: int = 0) -> tuple[Tensor, Tensor]:
    draws = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, dtype=torch.float64, generator=draws)
    weights = torch.randn(d, CLASSES, dtype=torch.float64, generator=draws)
    noise = torch.randn(n, CLASSES, dtype=torch.float64, generator=draws)
    return x, (x @ weights + 2 * noise).argmax(1)


def objective(x: Tensor, y: Tensor, theta: Tensor, weight_decay: float) -> Tensor:
    return F.cross_entropy(x @ theta.T, y) + weight_decay / 2 * theta.square().sum()


def gradient(x: Tensor, y: Tensor, theta: Tensor, weight_decay: float) -> Tensor:
    theta = theta.clone().requires_grad_()
    return torch.autograd.grad(objective(x, y, theta, weight_decay), theta)[0]


@pytest.mark.parametrize("weight_decay", [1.0, 1e-2, 1e-5])
def test_the_solution_is_scikit_learns(weight_decay: float) -> None:
    x, y = drawn()
    found = SoftmaxRegression(x, y, CLASSES, weight_decay).solve(tolerance=1e-10)
    rival = LogisticRegression(
        C=1 / (weight_decay * len(x)), tol=1e-12, max_iter=100_000, fit_intercept=False
    ).fit(x.numpy(), y.numpy())
    theirs = torch.from_numpy(rival.coef_)
    own = objective(x, y, found.theta, weight_decay)
    assert float(own) <= float(objective(x, y, theirs, weight_decay)) + 1e-12
    torch.testing.assert_close(found.theta, theirs, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("tolerance", [1e-3, 1e-6, 1e-9])
def test_the_certificate_is_the_gradients_norm_and_covers_the_error(tolerance: float) -> None:
    x, y = drawn()
    problem = SoftmaxRegression(x, y, CLASSES, 1e-3)
    found = problem.solve(tolerance=tolerance)
    true = float(gradient(x, y, found.theta, 1e-3).norm())
    assert found.gradient_norm == pytest.approx(true, rel=1e-3, abs=1e-13)
    assert true <= tolerance
    exact = problem.solve(tolerance=1e-12).theta
    assert float((found.theta - exact).norm()) <= found.distance


def test_samples_left_out_are_as_if_never_there() -> None:
    x, y = drawn()
    kept = torch.arange(len(x)) % 3 > 0
    problem = SoftmaxRegression(x, y, CLASSES, 1e-3)
    whole = problem.solve(tolerance=1e-10)
    problem.join(whole.theta)
    warm = problem.solve(kept, whole.theta, 1e-10)
    cold = SoftmaxRegression(x[kept], y[kept], CLASSES, 1e-3).solve(tolerance=1e-10)
    assert float((warm.theta - cold.theta).norm()) <= warm.distance + cold.distance
    assert float((warm.theta - whole.theta).norm()) > 1e-2


def test_the_joint_factor_of_all_samples_is_the_hessians(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = drawn(40, 3)
    theta = torch.randn(CLASSES, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    monkeypatch.setattr(solvers, "SAMPLED", 10**9)
    problem = SoftmaxRegression(x, y, CLASSES, 1e-2)
    problem.join(theta)
    assert problem.factor is not None
    factor = problem.factor.double()
    hessian = torch.autograd.functional.hessian(lambda t: objective(x, y, t, 1e-2), theta)
    flat = hessian.reshape(CLASSES * 3, CLASSES * 3)
    torch.testing.assert_close(factor @ factor.T, flat, rtol=1e-5, atol=1e-6)


def test_the_joint_factor_of_some_samples_is_unbiased(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = drawn(20_000, 3)
    theta = torch.randn(CLASSES, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    problem = SoftmaxRegression(x, y, CLASSES, 1e-2)
    found = []
    for count in (2000, 10**9):
        monkeypatch.setattr(solvers, "SAMPLED", count)
        problem.join(theta)
        assert problem.factor is not None
        found.append(problem.factor.double() @ problem.factor.double().T)
    # each entry's standard error is at most its scale over the square root of 2,000, 0.022
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=5 * 0.022 * float(found[1].max()))


def test_too_large_a_joint_factor_is_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = drawn()
    monkeypatch.setattr(solvers, "JOINT", 10)
    problem = SoftmaxRegression(x, y, CLASSES, 1e-3)
    problem.join(torch.zeros(CLASSES, 6, dtype=torch.float64))
    assert problem.factor is None
    assert problem.solve().gradient_norm <= 1e-6


def test_far_outliers_are_solved_too() -> None:
    x, y = drawn()
    x[:10] *= 300
    found = SoftmaxRegression(x, y, CLASSES, 1e-3).solve(tolerance=1e-8)
    assert float(gradient(x, y, found.theta, 1e-3).norm()) <= 1.001e-8


@pytest.mark.parametrize(
    ("rows", "weight_decay", "said"),
    [
        (299, 1e-3, "300 rows of features and 299 labels"),
        (300, 0.0, "without any, separable samples have no minimum"),
        (300, -1.0, "weight decay is -1"),
    ],
)
def test_bad_problems_are_refused(rows: int, weight_decay: float, said: str) -> None:
    x, y = drawn()
    with pytest.raises(MarshtestError, match=said):
        SoftmaxRegression(x, y[:rows], CLASSES, weight_decay)


def test_a_tolerance_below_rounding_is_said() -> None:
    x, y = drawn()
    with pytest.raises(MarshtestError, match=r"stays at a gradient of .* Raise the tolerance"):
        SoftmaxRegression(x, y, CLASSES, 1e-3).solve(tolerance=1e-30)
