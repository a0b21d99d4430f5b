"""What the probe knows of a patch: features of each level, maps of every head, where it lies, and controls.

Patches are the positions of one grid, that of the finest level with a stride of at least `LEAST_STRIDE` pixels; other
levels and maps are brought to it bilinearly. Columns stand in named parts:

level 0, 1, ...: the features of a level of the pyramid; of the last one, `x map`: the same, times the mean of the maps
           of its block.
maps:      the salience of every head of every block, see `attention.metrics.salience`.
position:  cosines of the row and the column, up to `WAVES` half waves down and across.
other:     as maps, but of an image of another group, always the same one: what maps that know nothing of this image
           bring.
"""

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from regard.attention.metrics import cell_counts, salience
from regard.backbones import Backbone

LEAST_STRIDE = 8
FOLDS, BLOCKS = 5, 64  # of groups, at most: where penalties are chosen, and what standard errors go over
WAVES = 5  # half waves: 35 columns, as smooth a prior as labels of streets and rooms call for


@dataclass(frozen=True)
class Layout:
    """Where the parts stand among the columns. heads: (block, head) of each column of `maps` and of `other`."""

    parts: dict[str, range]
    heads: tuple[tuple[int, int], ...]
    stride: int

    @property
    def columns(self) -> int:
        """How many columns there are."""
        return sum(len(part) for part in self.parts.values())

    def of(self, *names: str) -> Int[Tensor, "some"]:
        """The numbers of the columns of these parts, in the order of asking."""
        return torch.tensor([column for name in names for column in self.parts[name]], dtype=torch.long)

    @property
    def levels(self) -> tuple[str, ...]:
        """The parts that are features."""
        return tuple(name for name in self.parts if name.startswith("level") and not name.endswith("x map"))


def layout(backbone: Backbone) -> Layout:
    """The columns that a backbone gives; without attention, features and position alone."""
    heads = tuple((block, head) for block, count in enumerate(backbone.block_heads) for head in range(count))
    sizes = {f"level {level}": channels for level, channels in enumerate(backbone.channels)}
    if heads:
        last = f"level {len(backbone.channels) - 1}"
        sizes |= {f"{last} x map": sizes[last], "maps": len(heads), "other": len(heads)}
    sizes["position"] = (WAVES + 1) ** 2 - 1
    parts, first = {}, 0
    for name, size in sizes.items():
        parts[name] = range(first, first + size)
        first += size
    strides = [stride for stride in backbone.strides if stride >= LEAST_STRIDE]
    return Layout(parts, heads, min(strides, default=max(backbone.strides)))


@dataclass(frozen=True)
class Patches:
    """Of one image: the columns of its patches, and the pixels of each class in them; void pixels are in none."""

    columns: Float[Tensor, "patches columns"]
    pixels: Float[Tensor, "patches classes"]


class Reader:
    """Reads the patches of image after image, in a fixed order: the image of another group is one that came before."""

    def __init__(self, backbone: Backbone, classes: int) -> None:
        self.backbone, self.classes, self.layout = backbone, classes, layout(backbone)
        self.before: dict[str, Tensor] = {}  # the salience of the last image of each of the two groups that came last

    @torch.inference_mode()
    def see(self, images: Float[Tensor, "1 3 height width"], group: str) -> None:
        """Remember the maps of an image, as if it had come before."""
        if self.layout.heads:
            self._remember(group, self._maps(images)[1])

    @torch.inference_mode()
    def read(
        self, images: Float[Tensor, "1 3 height width"], labels: Int[Tensor, "1 height width"], group: str
    ) -> Patches:
        """The patches of an image, row by row, on the CPU. group: what it belongs to."""
        pyramid, maps, mean = self._maps(images) if self.layout.heads else (self.backbone(images).pyramid, None, None)
        pixels = cell_counts(labels, self.classes, self.layout.stride)
        grid = pixels.shape[-2:]
        found = list(pyramid)
        if maps is not None and mean is not None:
            other = next((seen for name, seen in reversed(self.before.items()) if name != group), maps)
            found += [pyramid[-1] * mean, maps, other]
            self._remember(group, maps)
        found.append(positions(*grid).to(images))
        rows = torch.cat([_on(grid, part) for part in found], dim=1)
        return Patches(_rows(rows).cpu(), _rows(pixels).cpu())

    def _remember(self, group: str, maps: Tensor) -> None:
        self.before.pop(group, None)
        self.before = dict([*self.before.items()][-1:]) | {group: maps}

    def _maps(self, images: Tensor) -> tuple[tuple[Tensor, ...], Tensor, Tensor]:
        """The pyramid, the salience of all heads, and the mean of the maps of the last level's block, 1 where even."""
        backbone = self.backbone
        features = backbone(images, attention=True, blocks=range(len(backbone.block_heads)))
        finest = max(found.weights.shape[-2:] for found in features.attention)
        maps = torch.cat([_on(finest, salience(found.weights)) for found in features.attention], dim=1)
        last = features.attention[backbone.blocks[-1]].weights
        return features.pyramid, maps, last.mean(dim=1, keepdim=True) * last.shape[-2] * last.shape[-1]


def positions(height: int, width: int) -> Float[Tensor, "1 waves h w"]:
    """Products of cosines of the row and the column, without the constant one."""
    down, across = (torch.cos(torch.pi * torch.outer(torch.arange(WAVES + 1.0), _centres(n))) for n in (height, width))
    return torch.einsum("ih,jw->ijhw", down, across).flatten(0, 1)[None, 1:]


def _centres(count: int) -> Float[Tensor, "count"]:
    return (torch.arange(count) + 0.5) / count


def _on(grid: tuple[int, int] | torch.Size, part: Float[Tensor, "1 c h w"]) -> Float[Tensor, "1 c h2 w2"]:
    """A part on the grid of the patches: as it is, averaged where it is finer, interpolated where it is coarser."""
    if part.shape[-2:] == grid:
        return part
    if part.shape[-2] > grid[0]:
        return F.adaptive_avg_pool2d(part, (grid[0], grid[1]))
    return F.interpolate(part, size=(grid[0], grid[1]), mode="bilinear", align_corners=False)


def _rows(part: Float[Tensor, "1 c h w"]) -> Float[Tensor, "patches c"]:
    return part[0].flatten(1).T


def folds(groups: Sequence[Hashable], count: int) -> Int[Tensor, "images"]:
    """A fold for each image, whole groups together: the largest group first, to the fold with the fewest images."""
    sizes = Counter(groups)
    filled, fold_of = [0] * min(count, len(sizes)), {}
    for group, size in sizes.most_common():  # of equal sizes, in the order of their coming
        fold_of[group] = filled.index(min(filled))
        filled[fold_of[group]] += size
    return torch.tensor([fold_of[group] for group in groups])
