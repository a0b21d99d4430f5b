"""Multinomial logistic regression, to the minimum: what a linear classifier reaches that is trained to the end.

minimise  sum_i w_i CE(y_i, softmax(b + x_i B)) / sum_i w_i  +  1/2 sum_j penalty_j |B_j|^2,

the columns of x brought to mean 0 and variance 1 under the weights, the intercept b free, y the shares of the classes.
scikit-learn's `LogisticRegression(C)` on such columns has the same solution where penalty = 1 / (C sum w).
"""

import numpy as np
import torch
from jaxtyping import Float
from scipy.optimize import minimize
from torch import Tensor

STEPS = 200  # of L-BFGS at most


def logistic(
    x: Float[Tensor, "rows columns"],
    y: Float[Tensor, "rows classes"],
    weights: Float[Tensor, "rows"],
    penalties: Float[Tensor, "columns"],
    steps: int = STEPS,
) -> Float[Tensor, "terms classes"]:
    """The coefficients of raw columns, the intercept's first; of the type of x, which float32 may be.

    Full batches and L-BFGS, from zero: no rate, no seed. Each step is of 4 rows x columns x classes multiplications.
    """
    share = (weights / weights.sum()).to(x.dtype)
    mean = share @ x
    centred = x - mean
    deviation = (share @ centred.square()).sqrt()
    scale = torch.where(deviation > 1e-6, 1 / deviation, 0.0)
    centred *= scale
    columns, classes = x.shape[1], y.shape[1]
    penalties = penalties.to(x.dtype)[:, None]

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        coefficients = torch.from_numpy(flat).to(x.dtype).view(columns + 1, classes)
        slopes = coefficients[1:]
        logits = torch.addmm(coefficients[0], centred, slopes)
        log_shares = logits.log_softmax(dim=1)
        value = -(share @ (y * log_shares).sum(dim=1)) + 0.5 * (penalties * slopes.square()).sum()
        wrong = share[:, None] * (log_shares.exp() * y.sum(dim=1, keepdim=True) - y)
        gradient = torch.cat([wrong.sum(dim=0, keepdim=True), centred.T @ wrong + penalties * slopes])
        return float(value), gradient.flatten().double().numpy()

    options = {"maxiter": steps, "ftol": 1e-9 if x.dtype == torch.float32 else 1e-14, "gtol": 1e-8}
    start = np.zeros((columns + 1) * classes)
    found = minimize(loss, start, jac=True, method="L-BFGS-B", options=options).x
    solved = torch.from_numpy(found).to(x.dtype).view(columns + 1, classes)
    slopes = solved[1:] * scale[:, None]
    return torch.cat([(solved[0] - mean @ slopes)[None], slopes])
