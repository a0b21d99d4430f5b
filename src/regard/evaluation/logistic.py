"""Multinomial logistic regression, to the minimum: what a linear classifier reaches that is trained to the end.

minimise  sum_i w_i CE(y_i, softmax(b + x_i B)) / sum_i w_i  +  1/2 sum_j penalty_j |B_j|^2,

the columns of x brought to mean 0 and variance 1 under the weights, the intercept b free, y the shares of the classes.
scikit-learn's `LogisticRegression(C)` on such columns has the same solution where penalty = 1 / (C sum w).
"""

from collections.abc import Callable, Iterable

import numpy as np
import torch
from jaxtyping import Float
from scipy.optimize import minimize
from torch import Tensor

from regard.evaluation.ridge import CONSTANT

STEPS = 200  # of L-BFGS at most
Rows = tuple[Float[Tensor, "rows columns"], Float[Tensor, "rows classes"], Float[Tensor, "rows"]]  # x, y, w


def logistic(
    rows: Callable[[], Iterable[Rows]],
    penalties: Float[Tensor, "columns"],
    start: Float[Tensor, "terms classes"] | None = None,
    steps: int = STEPS,
) -> Float[Tensor, "terms classes"]:
    """The coefficients of raw columns, the intercept's first, in float64.

    rows:  gives all rows, in parts, whenever it is called: at each step once, so that they need not be in memory.
    start: coefficients to start from, such as those at another penalty; None for zero.

    L-BFGS over all rows: no rate, no seed. Each step is of 4 rows x columns x classes multiplications, in the type of
    x; sums over parts are in float64.
    """
    mean, scale, classes, total = _standard(rows)
    penalties = penalties.double()[:, None]

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        coefficients = torch.from_numpy(flat).view(-1, classes)
        slopes = coefficients[1:]
        raw = slopes * scale[:, None]
        intercept = coefficients[0] - mean @ raw
        value, of_intercept, of_raw = 0.0, torch.zeros_like(intercept), torch.zeros_like(raw)
        for x, y, w in rows():
            shares = (w / total).to(x.dtype)
            log_shares = torch.addmm(intercept.to(x.dtype), x, raw.to(x.dtype)).log_softmax(dim=1)
            value -= float(shares.double() @ (y * log_shares).sum(dim=1).double())
            wrong = shares[:, None] * (log_shares.exp() * y.sum(dim=1, keepdim=True) - y).to(x.dtype)
            of_intercept += wrong.sum(dim=0).double()
            of_raw += (x.T @ wrong).double()
        gradient = scale[:, None] * (of_raw - mean[:, None] * of_intercept) + penalties * slopes
        value += 0.5 * float((penalties * slopes.square()).sum())
        return value, torch.cat([of_intercept[None], gradient]).flatten().numpy()

    first = torch.zeros(len(mean) + 1, classes, dtype=torch.float64)
    if start is not None:
        first[0] = start[0].double() + mean @ start[1:].double()
        first[1:] = torch.where(scale > 0, 1 / scale, 0)[:, None] * start[1:].double()
    options = {"maxiter": steps, "ftol": 1e-9 if next(iter(rows()))[0].dtype == torch.float32 else 1e-14, "gtol": 1e-8}
    found = torch.from_numpy(minimize(loss, first.flatten().numpy(), jac=True, method="L-BFGS-B", options=options).x)
    slopes = found.view(-1, classes)[1:] * scale[:, None]
    return torch.cat([(found.view(-1, classes)[0] - mean @ slopes)[None], slopes])


def _standard(rows: Callable[[], Iterable[Rows]]) -> tuple[Tensor, Tensor, int, float]:
    """Mean of the columns under the weights, 1 / their deviation (0 of a constant one), classes, sum of the weights."""
    sums = squares = total = torch.zeros((), dtype=torch.float64)
    classes = 0
    for x, y, w in rows():
        sums, squares = sums + (w.to(x.dtype) @ x).double(), squares + (w.to(x.dtype) @ x.square()).double()
        total, classes = total + w.double().sum(), y.shape[1]
    mean, square = sums / total, squares / total
    variance = (square - mean.square()).clamp(min=0)
    constant = variance <= CONSTANT * square
    return mean, variance.sqrt().reciprocal().masked_fill(constant, 0), classes, float(total)
