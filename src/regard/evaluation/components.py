"""Patch tokens in colours: their first three principal components as red, green and blue, over many images together, as
the pictures known from DINOv2 (Oquab et al. 2023, https://arxiv.org/abs/2304.07193, figure 1).

Departures from DINOv2's figure and its notebooks:
- Components are those of a random sample of the tokens of all the images, where theirs are of all tokens of a few.
- Values go from 0 to 1 between the 1st and the 99th percentile of the sample, not between minimum and maximum: a single
  strange token does not take the colours from all others.
- The foreground is cut out along the first component as theirs, but by Otsu's threshold instead of one chosen by hand,
  and is the side that has less of the images' borders; then, as theirs, the components are those of the foreground.
"""

from collections.abc import Iterable

import numpy as np
import torch
from jaxtyping import Bool, Float
from sklearn.decomposition import PCA
from torch import Tensor

from regard.errors import InputError

Tokens = Float[np.ndarray, "tokens dim"]


def check_varied(features: Float[np.ndarray, "_ dim"], what: str) -> None:
    """InputError for features that are not finite, and for those that are all one: there is nothing to draw."""
    if not np.isfinite(features).all():
        raise InputError(f"the {what} are not finite: weights of a training that did not diverge would work")
    if np.ptp(features, axis=0).max() <= 1e-6 * np.abs(features).max():
        raise InputError(
            f"the {what} are all one (collapsed): weights of another training, or other images, would work"
        )


class TokenColours:
    """Three components of tokens as RGB in 0..1; fitted once, then used for every image.

    tokens:      a sample of those of all images, such as `sample_rows` gives; at least four.
    on_border:   which of them are at the border of an image; with it, the foreground is cut out.

    `shares`: the share of the (foreground) sample's variance that each component holds, in order.
    """

    def __init__(self, tokens: Tokens, on_border: Bool[np.ndarray, "tokens"] | None = None) -> None:
        check_varied(tokens, "features")
        self._first, self._threshold, self._side = None, 0.0, 1
        if on_border is not None:
            self._first = _fit(tokens, 1)
            values = self._first.transform(tokens)[:, 0]
            self._threshold = otsu(values)
            above = values > self._threshold
            border = on_border.mean() or 1.0  # no border token at all: any side will do
            is_above = (above & on_border).sum() / max(above.sum(), 1) <= border
            self._side = 1 if is_above else -1
            tokens = tokens[above == is_above]
        self._pca = _fit(tokens, 3)
        self.shares: tuple[float, ...] = tuple(float(share) for share in self._pca.explained_variance_ratio_)
        self._low, self._high = np.percentile(self._pca.transform(tokens), (1, 99), axis=0)

    def __call__(self, features: Float[Tensor, "dim h w"]) -> Float[np.ndarray, "h w 3"]:
        """The colours of one image's map of features; black outside the foreground."""
        tokens = features.flatten(1).T.float().cpu().numpy()
        values = (self._pca.transform(tokens) - self._low) / np.maximum(self._high - self._low, 1e-12)
        colours = np.clip(values, 0, 1).astype(np.float32)
        if self._first is not None:
            colours[self._side * (self._first.transform(tokens)[:, 0] - self._threshold) <= 0] = 0
        return colours.reshape(*features.shape[1:], 3)


def sample_rows(batches: Iterable[Float[Tensor, "_ dim"]], at_most: int, seed: int = 0) -> Tokens:
    """`at_most` rows of all batches, drawn evenly without replacement by a seed; all of them where there are fewer.

    Never holds more than `at_most` rows and one batch. InputError for no rows.
    """
    random = np.random.default_rng(seed)
    rows, keys = None, np.empty(0)
    for batch in batches:  # the rows with the least random keys stay
        new = batch.float().cpu().numpy()
        rows = new if rows is None else np.concatenate([rows, new])
        keys = np.concatenate([keys, random.random(len(new))])
        if len(keys) > at_most:
            kept = np.sort(np.argpartition(keys, at_most)[:at_most])
            rows, keys = rows[kept], keys[kept]
    if rows is None:
        raise InputError("there are no images to take tokens from")
    return rows


def border(h: int, w: int) -> Bool[Tensor, "{h}*{w}"]:
    """Which positions of a grid, row by row, are at its border."""
    inside = torch.ones(h, w, dtype=torch.bool)
    inside[1:-1, 1:-1] = False
    return inside.flatten()


def otsu(values: Float[np.ndarray, "n"]) -> float:
    """The threshold between two groups of values with the least variance within (Otsu 1979), exactly, by sorting."""
    ranked = np.sort(values.astype(np.float64))
    count = np.arange(1, len(ranked))
    sums = ranked.cumsum()
    low, high = sums[:-1] / count, (sums[-1] - sums[:-1]) / (len(ranked) - count)
    cut = int(np.argmax(count * (len(ranked) - count) * (high - low) ** 2))
    return float((ranked[cut] + ranked[cut + 1]) / 2)


def _fit(tokens: Tokens, components: int) -> PCA:
    if len(tokens) <= components or tokens.shape[1] < components:
        count, dim = tokens.shape
        raise InputError(f"{count} tokens of {dim} values have not {components} components: take larger images or more")
    return PCA(components, svd_solver="covariance_eigh").fit(tokens)  # exact, and the same whatever their order
