"""Ridge regression in closed form, from sums that add up: of images, of shards, of any choice among them.

minimise  sum_i w_i |y_i - b - x_i B|^2 / sum_i w_i  +  sum_j penalty_j |B_j|^2,

the columns of x brought to mean 0 and variance 1 under the weights (they should not be far from it, as float32 has few
digits), the intercept b free. scikit-learn's `Ridge(alpha)` on such columns has the same solution where penalty =
alpha / sum w.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from regard.errors import InputError

CONSTANT = 1e-5  # of a column's mean square: where its variance is less, it tells nothing that sums in float32 hold
NONE = torch.empty(0, dtype=torch.long)


@dataclass(frozen=True)
class Sums:
    """What ridge regression needs to know of rows x (with a 1 in front: `terms`), targets y and weights w, in float64.

    xx: sum of w x x^T; xy: sum of w x y^T. Of other columns, `of` takes the part.
    """

    xx: Float[Tensor, "terms terms"]
    xy: Float[Tensor, "terms targets"]

    @classmethod
    def zeros(cls, columns: int, targets: int) -> "Sums":
        """Of no rows."""
        return cls(*(torch.zeros(columns + 1, n, dtype=torch.float64) for n in (columns + 1, targets)))

    def add(
        self, x: Float[Tensor, "rows columns"], y: Float[Tensor, "rows targets"], weights: Float[Tensor, "rows"]
    ) -> None:
        """Add rows. The products are of the type of x: float32 will do for the rows of an image at a time."""
        x = torch.cat([torch.ones_like(x[:, :1]), x], dim=1)
        weighted = x.T * weights.to(x.dtype)
        self.xx.add_((weighted @ x).to(self.xx))
        self.xy.add_((weighted @ y.to(x.dtype)).to(self.xy))

    def without(self, part: "Sums") -> "Sums":
        """Of the rows that are not in this part."""
        return Sums(self.xx - part.xx, self.xy - part.xy)

    def of(self, columns: Int[Tensor, "some"]) -> "Sums":
        """Of these columns alone, by number."""
        chosen = torch.cat([columns.new_zeros(1), columns + 1])
        return Sums(self.xx[chosen][:, chosen], self.xy[chosen])


def total(parts: Iterable[Sums]) -> Sums:
    """Of all their rows."""
    first, *others = parts
    xx, xy = first.xx.clone(), first.xy.clone()
    for other in others:
        xx += other.xx
        xy += other.xy
    return Sums(xx, xy)


class Ridge:
    """Solutions for some columns, of which `base` have fixed penalties, and others may be added at any.

    What the base costs is paid once: beside it, added columns need the Schur complement of their own few.
    """

    def __init__(
        self,
        sums: Sums,
        base: Int[Tensor, "base"],
        penalties: Float[Tensor, "base"],
        added: Int[Tensor, "added"] = NONE,
    ) -> None:
        self.count = len(base)
        sums = sums.of(torch.cat([base, added]))
        weight = sums.xx[0, 0]
        if not weight > 0:
            raise InputError("no pixel is labelled where a fold of the images is held out: label some in other images")
        self.mean, self.mean_y = sums.xx[0, 1:] / weight, sums.xy[0] / weight
        covariance = sums.xx[1:, 1:] / weight - torch.outer(self.mean, self.mean)
        variance = covariance.diagonal().clamp(min=0)
        constant = variance <= CONSTANT * (self.mean.square() + variance)
        self.scale = variance.sqrt().reciprocal().masked_fill(constant, 0)
        correlation = covariance * self.scale * self.scale[:, None]
        with_y = (sums.xy[1:] / weight - torch.outer(self.mean, self.mean_y)) * self.scale[:, None]

        own = correlation[: self.count, : self.count] + penalties.to(correlation).diag()
        self.across = correlation[: self.count, self.count :]
        right = torch.cat([self.across, with_y[: self.count]], dim=1)
        solved = torch.cholesky_solve(right, torch.linalg.cholesky(own))
        self.of_added, self.of_y = solved[:, : len(added)], solved[:, len(added) :]
        self.schur = correlation[self.count :, self.count :] - self.across.T @ self.of_added
        self.left = with_y[self.count :] - self.across.T @ self.of_y

    def solve(self) -> Float[Tensor, "terms targets"]:
        """The coefficients of the base's raw columns, the intercept's first, in float64."""
        return self._raw(torch.arange(self.count), self.of_y[None])[0]

    def beside(
        self, added: Int[Tensor, "some"], penalties: Sequence[float]
    ) -> Float[Tensor, "solutions terms targets"]:
        """The same with some of the added columns, which follow the base's: a solution for each penalty of theirs.

        added: their places among the added columns.
        """
        values, vectors = torch.linalg.eigh(self.schur[added][:, added])
        along = vectors.T @ self.left[added]
        damped = torch.stack([1 / (values.clamp(min=0) + penalty) for penalty in penalties])
        own = vectors @ (damped[..., None] * along)  # (solutions, added, targets)
        base = self.of_y - self.of_added[:, added] @ own
        return self._raw(torch.cat([torch.arange(self.count), self.count + added]), torch.cat([base, own], dim=1))

    def _raw(self, which: Int[Tensor, "some"], slopes: Float[Tensor, "solutions some targets"]) -> Tensor:
        """Coefficients of raw columns from those of standardised ones."""
        slopes = slopes * self.scale[which, None]
        return torch.cat([(self.mean_y - self.mean[which] @ slopes)[:, None], slopes], dim=1)


def answers(
    x: Float[Tensor, "rows columns"], coefficients: Float[Tensor, "terms targets"]
) -> Float[Tensor, "rows targets"]:
    """What a solution says of rows."""
    coefficients = coefficients.to(x.dtype)
    return torch.addmm(coefficients[0], x, coefficients[1:])
