"""What `regard features` draws. Imported when that runs, since it needs torch."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from rich.progress import track
from torch import Tensor

from regard.backbones import Backbone
from regard.data.loading.augment import centre_crop
from regard.evaluation.components import TokenColours, border, sample_rows
from regard.evaluation.receptive_field import (
    area_holding,
    check_level,
    effective_receptive_field,
    middle,
    radius_holding,
)
from regard.files import write_json
from regard.pictures.draw import (
    CHANNEL_COLOURS,
    COLOURS,
    Picture,
    channel_map,
    heat_map,
    mosaic,
    save_png,
    titled,
    with_circles,
)
from regard.pictures.reading import as_batch, count_pictures, fed, read_pictures
from regard.pictures.targets import outputs
from regard.say import console, counted
from regard.settings import FeaturePictures

TOKENS = 50_000  # that components are fitted on: 77 MB of a ViT-S
CHANNELS = 64  # of a level that are drawn, 8 a row
CHANNEL_SIZE = 96  # pixels of a channel's longer side, at least
SHARES = (0.5, 0.95)  # of a receptive field, whose extent is measured
DECADES = 4  # that its logarithms are drawn over


def draw_features(model: Backbone, images: Sequence[str], chosen: FeaturePictures, out: Path) -> str:
    """Write what is chosen into `out`; says what was made. InputError for a level or images that are not there."""
    check_level(model, -1 if chosen.level is None else chosen.level)
    files, count = outputs(images, str(out)), len(model.strides)
    if chosen.what == "receptive_field":
        levels = list(range(count)) if chosen.level is None else [chosen.level % count]
        return draw_receptive_fields(model, files, out, levels, chosen)
    level = count - 1 if chosen.level is None else chosen.level % count
    if chosen.what == "channels":
        return draw_channels(model, files, out, level, chosen)
    return draw_components(model, files, out, level, chosen)


def draw_channels(model: Backbone, files: dict[Path, Path], out: Path, level: int, chosen: FeaturePictures) -> str:
    """NAME.png: the first channels at the left, those that vary most at the right."""
    count = 0
    for target, _, found in _features(model, files, level, chosen, "drawing"):
        factor = -(-CHANNEL_SIZE // max(found.shape[1:]))
        varied = found.var(dim=(-2, -1), correction=0).argsort(descending=True, stable=True).tolist()
        first, most = (
            [titled(channel_map(found[i].numpy(), factor), str(i)) for i in numbers[:CHANNELS]]
            for numbers in (range(len(found)), varied)
        )
        rows = [[*first[i : i + 8], None, *most[i : i + 8]] for i in range(0, len(first), 8)]
        caption = f"{model.name}, level {level}: at the left the first {len(first)} of {len(found)} channels, at the "
        caption += "right those that vary most over the image, in order"
        bar = ("a channel's minimum", CHANNEL_COLOURS, "maximum")
        save_png(target, mosaic(rows, [""] * len(rows), [], caption, bar))
        count += 1
    return f"channels of level {level} of {model.name} for {counted(count, 'image')}, in {out}"


def draw_components(model: Backbone, files: dict[Path, Path], out: Path, level: int, chosen: FeaturePictures) -> str:
    """NAME.png: the image, and its patches in colours."""

    def tokens() -> Iterator[Tensor]:
        for _, _, found in _features(model, files, level, chosen, "reading"):
            at_border = border(*found.shape[1:]).float().unsqueeze(1)
            yield torch.cat([found.flatten(1).T, at_border], dim=1)  # the border goes along, for the sample to keep

    sample = sample_rows(tokens(), TOKENS, chosen.seed)
    colours = TokenColours(sample[:, :-1], sample[:, -1] > 0 if chosen.foreground else None)
    shares = ", ".join(f"{100 * share:.0f}%" for share in colours.shares)
    caption = f"{model.name}, level {level}: principal components as red, green, blue ({shares} of the variance)"
    count = 0
    for target, image, found in _features(model, files, level, chosen, "drawing"):
        cells, stride = (255 * colours(found)).round().astype(np.uint8), model.strides[level]
        painted = cells.repeat(stride, axis=0).repeat(stride, axis=1)[: image.shape[0], : image.shape[1]]
        save_png(target, mosaic([[image, painted]], [""], [], caption))
        count += 1
    return f"{counted(count, 'image')} in the colours of three components ({shares} of the variance), in {out}"


def draw_receptive_fields(
    model: Backbone, files: dict[Path, Path], out: Path, levels: list[int], chosen: FeaturePictures
) -> str:
    """receptive_field.png and .json: each level's field, averaged over the images."""
    count, fields, size = 0, {}, chosen.size
    pictures = read_pictures(files, partial(centre_crop, size=size), chosen.values)
    for _, read in track(pictures, "measuring", count_pictures(files), transient=True, console=console()):
        batch = as_batch(read(), model)
        for level in levels:
            field = effective_receptive_field(model, batch, level, chosen.seed + count)
            fields[level] = fields.get(level, 0) + field
        count += 1
    roots, logarithms, titles, measured = [], [], [], []
    for level, total in fields.items():
        field = total / count
        areas = [area_holding(field, share) for share in SHARES]
        radii = [radius_holding(field, share) for share in SHARES]
        measured.append(
            {"level": level, "stride": model.strides[level], "shares": SHARES, "areas": areas, "radii": radii}
        )
        share = (field / field.max()).numpy()
        root, decades = np.sqrt(share), np.maximum(1 + np.log10(np.maximum(share, 1e-12)) / DECADES, 0)
        roots.append(with_circles(heat_map(root, (size, size), 1, 1.0), middle(field), radii))
        logarithms.append(heat_map(decades, (size, size), 1, 1.0))
        titles.append(f"level {level}: {radii[0]:.0f}, {radii[1]:.0f} px")
    over = f"{counted(count, 'image')} of {size} x {size}"
    caption = f"{model.name}: effective receptive field of the middle position over {over}. Above, square roots, with "
    caption += "circles that hold 50% and 95% and have the radii of the titles; below, "
    caption += "logarithms, from 1/10,000 of the maximum."
    picture = mosaic([roots, logarithms], ["root", "log"], titles, caption, ("0", COLOURS, "maximum"))
    save_png(out / "receptive_field.png", picture)
    write_json(
        out / "receptive_field.json", {"backbone": model.name, "size": size, "images": count, "levels": measured}
    )
    said = "; ".join(
        f"level {m['level']}: radius {m['radii'][0]:.0f} and {m['radii'][1]:.0f} px, "
        f"area {m['areas'][0]:.1%} and {m['areas'][1]:.1%}"
        for m in measured
    )
    return f"receptive fields that hold 50% and 95%: {said}; in {out}"


def _features(
    model: Backbone, files: dict[Path, Path], level: int, chosen: FeaturePictures, doing: str
) -> Iterator[tuple[Path, Picture, Float[Tensor, "channels h w"]]]:
    """For each image: its PNG, the image as fed, and its features at a level of the pyramid."""
    pictures = read_pictures(files, partial(fed, size=chosen.size), chosen.values)
    for target, read in track(pictures, doing, count_pictures(files), transient=True, console=console()):
        image = read()
        with torch.inference_mode():
            found = model(as_batch(image, model)).pyramid[level][0].float().cpu()
        yield target, image, found
