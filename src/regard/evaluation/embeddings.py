"""A map in the plane of what a backbone makes of a data set: its pooled features by PCA, t-SNE or UMAP."""

import csv
import importlib.util
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from matplotlib import colormaps
from matplotlib.colors import hsv_to_rgb
from matplotlib.figure import Figure
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from torch import Tensor

from regard.backbones.base import Backbone, eval_mode
from regard.errors import InputError
from regard.evaluation.components import check_varied
from regard.files import write_whole

Method = Literal["pca", "tsne", "umap"]
Points = Float[np.ndarray, "images 2"]

BEFORE_TSNE = 50  # components kept before t-SNE, as its authors advise: less noise, less time
GOLDEN = (5**0.5 - 1) / 2  # of a turn around the hues: any run of such steps is spread evenly
LEGEND = 20  # classes named in the legend: the largest ones


@torch.inference_mode()
def pooled_features(
    backbone: Backbone, batches: Iterable[Float[Tensor, "_ 3 height width"]]
) -> Float[np.ndarray, "images dim"]:
    """The pooled vectors of all images of the batches, in order; in eval mode whatever the backbone's. One batch of
    images is in memory at a time. Raises InputError for no batches.
    """
    with eval_mode(backbone):
        found = [backbone(batch).pooled.float().cpu().numpy() for batch in batches]
    if not found:
        raise InputError("there are no images to embed")
    return np.concatenate(found)


def check_method(method: Method, images: int) -> None:
    """InputError for too few images, and for UMAP where umap-learn is not installed."""
    if images < 3:
        raise InputError(f"{images} images make no map: 3 or more would")
    if method == "umap" and importlib.util.find_spec("umap") is None:
        raise InputError("umap needs umap-learn: pip install 'regard[umap]', or take --method tsne")


def project(features: Float[np.ndarray, "images dim"], method: Method = "tsne", seed: int = 0) -> tuple[Points, str]:
    """Coordinates in the plane, and in a few words how they were made; the same for the same seed.

    pca:  the first two principal components.
    tsne: t-SNE (van der Maaten and Hinton 2008) of the first 50 principal components; it starts from the first two. Its
          perplexity is 30, or a third of the images where they are few. Distances between far groups mean nothing.
    umap: UMAP (McInnes et al. 2018) with its own settings, and fewer neighbours where there are few images.

    Raises InputError as `check_method`, and for features that are all one.
    """
    check_method(method, len(features))
    check_varied(features, "embeddings")
    if method == "pca":
        pca = PCA(2, svd_solver="full").fit(features)
        shares = " and ".join(f"{share:.0%}" for share in pca.explained_variance_ratio_)
        return pca.transform(features).astype(np.float64), f"PCA: {shares} of the variance"
    if method == "umap":
        umap: Any = importlib.import_module("umap")
        neighbours = min(15, len(features) - 1)  # 15 is its own
        points = umap.UMAP(n_neighbors=neighbours, n_jobs=1, random_state=seed).fit_transform(features)
        return np.asarray(points, dtype=np.float64), "UMAP"
    kept = min(BEFORE_TSNE, *features.shape)
    components = PCA(kept, svd_solver="full").fit_transform(features)
    perplexity = min(30.0, (len(features) - 1) / 3)
    points = TSNE(2, perplexity=perplexity, init="pca", random_state=seed).fit_transform(components)
    words = f"t-SNE of {kept} principal components, perplexity {perplexity:.0f}"
    return np.asarray(points, dtype=np.float64), words


def class_colours(count: int) -> Float[np.ndarray, "count 3"]:
    """RGB in 0..1: up to 20 of matplotlib's `tab20`, strong ones first; above that, hues in three shades, with
    those of neighbours far apart."""
    if count <= 20:
        strong_first = [*range(0, 20, 2), *range(1, 20, 2)]
        return np.asarray(colormaps["tab20"].colors)[strong_first[:count]]  # type: ignore[attr-defined]
    number = np.arange(count)
    saturation, value = np.array([[1.0, 0.9], [0.5, 0.95], [0.9, 0.5]])[number % 3].T
    return hsv_to_rgb(np.stack([number * GOLDEN % 1, saturation, value], axis=1))


def plot(points: Points, labels: Int[np.ndarray, "images"] | None, classes: Sequence[str], title: str) -> Figure:
    """The points, in the colours of their classes; -1 is no class, and grey. Without labels all are of one colour.

    The legend names the 20 classes with the most points at most, and says how many are left out.
    """
    figure = Figure(figsize=(10, 7.5), layout="constrained")
    axes = figure.add_subplot()
    size = float(np.clip(4000 / len(points), 4, 40))
    axes.set_title(title, fontsize=10, wrap=True)
    axes.set(xticks=[], yticks=[], aspect="equal")
    axes.set_adjustable("datalim")
    if labels is None:
        axes.scatter(*points.T, s=size, color="tab:blue", alpha=0.8, linewidths=0)
        return figure
    colours = class_colours(len(classes))
    shown = np.where((labels >= 0)[:, None], colours[labels], 0.7)
    order = np.random.default_rng(0).permutation(len(points))  # so that no class lies on top of all others
    axes.scatter(*points[order].T, s=size, c=shown[order], alpha=0.8, linewidths=0)
    counts = np.bincount(labels[labels >= 0], minlength=len(classes))
    named = [int(i) for i in np.argsort(-counts, kind="stable")[:LEGEND] if counts[i]]
    for i in named:
        axes.scatter([], [], s=40, color=colours[i], label=f"{classes[i]} ({counts[i]:,})", linewidths=0)
    if (labels < 0).any():
        axes.scatter([], [], s=40, color="0.7", label=f"no class ({(labels < 0).sum():,})", linewidths=0)
    left_out = int((counts > 0).sum()) - len(named)
    heading = "class (images)" + (f"\n{left_out} more, not named" if left_out else "")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=9, title=heading, frameon=False)
    return figure


def write_csv(path: Path, names: Sequence[str], points: Points, classes: Sequence[str] | None) -> None:
    """One row per image: its name, its class where there are any, and its coordinates."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["name", "class", "x", "y"])
    for i, name in enumerate(names):
        writer.writerow([name, classes[i] if classes else "", *(f"{value:.6g}" for value in points[i])])
    write_whole(path, lambda file: file.write(text.getvalue().encode()))


def most_frequent(mask: UInt8[np.ndarray, "h w"], classes: Sequence[str]) -> int:
    """The class of most pixels: `background` only where there is no other; -1 where all are void."""
    counts = np.bincount(mask[mask < len(classes)], minlength=len(classes))
    if not counts.any():
        return -1
    others = [0 if name == "background" else int(count) for name, count in zip(classes, counts, strict=True)]
    return int(np.argmax(others if any(others) else counts))
