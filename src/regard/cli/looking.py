"""Commands that look into a backbone: attention, features, embed."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from regard.cli.common import Accelerator
from regard.errors import InputError
from regard.pictures.targets import outputs
from regard.say import console

SCALE_FRAMES = 32  # frames that the colours of an animation are scaled by: evenly spaced, since each costs a forward
EXPLORED = 16  # images in the explorer at most


def attention(
    backbone: str,
    images: list[str],
    out: str = "runs/attention",
    size: int = 224,
    kind: Literal["cls", "pooled", "received", "rollout"] | None = None,
    blocks: Literal["levels", "all"] | list[int] | int = "levels",
    heads: list[int] | int | None = None,
    what: Literal["overlay", "heat", "mask"] = "overlay",
    mass: float = 0.6,
    upsample: Literal["nearest", "bilinear"] = "nearest",
    each: bool = False,
    animate: Literal["gif", "mp4"] | None = None,
    fps: int = 10,
    explorer: bool = False,
    weights: str | None = None,
    pretrained: bool = False,
    backbone_options: dict[str, Any] | None = None,
    accelerator: Accelerator = "auto",
) -> str:
    """Draw what each attention head looks at: one mosaic per image, blocks down and heads across.

    Args:
        backbone: A timm ViT or Swin, or what `regard pretrain` or `regard segment` made (folder).
        images: Files, folders of images at any depth, or video files, of which every frame is drawn.
        out: Folder for the pictures.
        size: Short side that images are brought to, in pixels.
        kind: How attention is read: by the CLS token, by the mean query (pooled), as each patch receives it, or rolled
            out over all blocks; by default the backbone's own.
        blocks: One block per `levels` of the pyramid, `all`, or numbers such as [0,5,-1] or 5.
        heads: Numbers such as [0,2] or 2; by default all.
        what: In the mosaic: heat maps over the grey image, heat maps alone, or the image where the mask of the mass is.
        mass: The share of a head's attention that its mask holds, above 0 and below 1; 0.6 as published for DINO.
        upsample: How heat maps get from patches to pixels; `nearest` as published for DINO.
        each: Also write every head's heat map, overlay and mask as files of their own.
        animate: Instead of one mosaic per image, all of them in order as one attention.gif or .mp4; the colours of a
            head are then scaled by its maximum over (32 evenly spaced) frames.
        fps: Frames of the animation per second.
        explorer: Also write explorer.html, where a pointer shows what each patch attends to: up to 16 images.
        weights: A checkpoint file for the backbone: DINO or timm.
        pretrained: timm's published weights for the backbone.
        backbone_options: Passed to timm, such as {"img_size": 64, "patch_size": 8}; `positions` is timm or dino.
        accelerator: `auto` takes a GPU where there is one.
    """
    from rich.progress import track

    from regard.attention.reading import HeadReader
    from regard.backbones.vit import ViT
    from regard.cli.common import open_backbone
    from regard.pictures.animation import check_animation, write_animation
    from regard.pictures.explorer import write_explorer
    from regard.pictures.panels import Style, head_pictures, heads_mosaic
    from regard.pictures.reading import Picture, as_batch, count_pictures, fed, read_pictures, save_png

    if not 0 < mass < 1:
        raise InputError(f"--mass {mass:g} is no share of the attention: take one between 0 and 1, such as 0.6")
    if explorer and kind == "rollout":
        raise InputError("the explorer shows single blocks, not a rollout: leave out --explorer, or --kind")
    if animate:
        check_animation(animate)
    model = open_backbone(backbone, weights, pretrained, backbone_options, accelerator)
    blocks = [blocks] if isinstance(blocks, int) else blocks
    reader = HeadReader(model, kind, blocks, [heads] if isinstance(heads, int) else heads)
    files = outputs(images, out)
    animation = Path(out) / f"attention.{animate}"
    if animation.resolve() in {file.resolve() for file in files}:
        raise InputError(f"{animation} is one of the videos, and would be written over: choose another --out")
    total = count_pictures(files)
    style = Style(what, mass, upsample)
    if animate:
        for _, read in islice(read_pictures(files), 0, None, -(-total // SCALE_FRAMES)):
            style.scale_by(reader(as_batch(fed(read(), size), model)))
    said = reader.describe() + (f", {model.positions}'s positions" if isinstance(model, ViT) else "")

    def mosaics() -> Iterator[tuple[Path, Picture]]:
        for target, read in track(read_pictures(files), "drawing", total, transient=True, console=console()):
            image = fed(read(), size)
            maps = reader(as_batch(image, model))
            if each:
                for name, picture in head_pictures(image, maps, style):
                    save_png(target.with_suffix("") / f"{name}.png", picture)
            yield target, heads_mosaic(image, maps, style, said)

    beside = ""
    if explorer:  # first, since it may refuse images that are too large
        spaced = islice(read_pictures(files), 0, None, -(-total // EXPLORED))
        named = [
            (target.relative_to(out).with_suffix("").as_posix(), fed(read(), size))
            for target, read in islice(spaced, EXPLORED)
        ]
        page = write_explorer(Path(out) / "explorer.html", model, named, reader.kind, reader.blocks, mass)
        beside = f"; {len(named)} of them in {page}"
    if animate:
        made = write_animation(animation, (picture for _, picture in mosaics()), fps)
        return f"{made} frames in {animation}: {said}{beside}"
    made = 0
    for target, picture in mosaics():
        save_png(target, picture)
        made += 1
    return f"{made} mosaics in {out}: {said}{beside}"


def features(
    backbone: str,
    images: list[str],
    out: str = "runs/features",
    what: Literal["channels", "pca", "receptive_field"] = "pca",
    level: int | None = None,
    size: int = 224,
    foreground: bool = False,
    seed: int = 0,
    weights: str | None = None,
    pretrained: bool = False,
    backbone_options: dict[str, Any] | None = None,
    accelerator: Accelerator = "auto",
) -> str:
    """Draw features: their channels, patches in the colours of principal components, or the effective receptive field.

    Args:
        backbone: A timm model, or what `regard pretrain` made.
        images: Files, folders of images at any depth, or video files, of which every frame is taken.
        out: Folder for the pictures.
        what: `channels`: the first 64, and the 64 that vary most. `pca`: patches in the colours of three principal
            components, the same for all images. `receptive_field`: which pixels move the middle position, on average.
        level: Of the pyramid, 0 for the finest; by default the last, and for the receptive field each of them.
        size: Short side that images are brought to, in pixels; the receptive field takes the middle square.
        foreground: Of `pca`: cut out the background first, along the first component.
        seed: Of the patches that components are fitted on, and of the signs that a receptive field is made with.
        weights: A checkpoint file for the backbone: Barlow Twins, DINO, torchvision or timm.
        pretrained: timm's published weights for the backbone.
        backbone_options: Passed to timm, such as {"img_size": 64, "patch_size": 8}.
        accelerator: `auto` takes a GPU where there is one.
    """
    from regard.cli.common import open_backbone
    from regard.evaluation.receptive_field import check_level
    from regard.pictures.feature_pictures import draw_channels, draw_components, draw_receptive_fields

    model = open_backbone(backbone, weights, pretrained, backbone_options, accelerator)
    check_level(model, -1 if level is None else level)
    files = outputs(images, out)
    last = len(model.strides) - 1
    if what == "receptive_field":
        levels = list(range(last + 1)) if level is None else [level % (last + 1)]
        return draw_receptive_fields(model, files, Path(out), levels, size, seed)
    level = last if level is None else level % (last + 1)
    if what == "channels":
        return draw_channels(model, files, Path(out), level, size)
    return draw_components(model, files, Path(out), level, size, foreground, seed)


def embed(
    backbone: str,
    data: str,
    out: str = "runs/embedding",
    method: Literal["pca", "tsne", "umap"] = "tsne",
    split: str | None = None,
    limit: int = 2000,
    size: int = 224,
    batch_size: int = 32,
    seed: int = 0,
    weights: str | None = None,
    pretrained: bool = False,
    backbone_options: dict[str, Any] | None = None,
    accelerator: Accelerator = "auto",
) -> str:
    """Draw a map of a data set: its images in the plane by their pooled features, coloured by class.

    Args:
        backbone: A timm model, or what `regard pretrain` made.
        data: `scenes`, a path or a pack's URL; classes are those of class folders, or of most pixels of a mask, not
            counting void and, where there is something else, `background`.
        out: Folder for embedding.png and embedding.csv.
        method: pca, tsne or umap (which needs umap-learn: `pip install 'regard[umap]'`).
        split: train, val or test; by default val where there is one, else train.
        limit: Images at most: evenly spaced ones.
        size: Side of the middle squares of the images, in pixels.
        batch_size: Images at a time.
        seed: Of t-SNE and UMAP.
        weights: A checkpoint file for the backbone: Barlow Twins, DINO, torchvision or timm.
        pretrained: timm's published weights for the backbone.
        backbone_options: Passed to timm, such as {"img_size": 64, "patch_size": 8}.
        accelerator: `auto` takes a GPU where there is one.
    """
    import numpy as np
    import torch
    from rich.progress import track

    from regard.backbones import device_of, normalize
    from regard.cli.common import open_backbone
    from regard.data.datasets.base import LabelDataset, MaskDataset
    from regard.data.loading.augment import centre_crop
    from regard.data.source import open_source
    from regard.evaluation.embeddings import check_method, most_frequent, plot, pooled_features, project, write_csv

    source = open_source(data, scenes_size=size)
    split = split or next(name for name in ("val", *source.splits) if name in source.splits)
    dataset = source.split(split)
    chosen = [i * len(dataset) // min(limit, len(dataset)) for i in range(min(limit, len(dataset)))]
    check_method(method, len(chosen))
    model = open_backbone(backbone, weights, pretrained, backbone_options, accelerator)
    device, labels = device_of(model), []

    def batches() -> Iterator[torch.Tensor]:
        starts = range(0, len(chosen), batch_size)
        for start in track(starts, "embedding", transient=True, console=console()):
            numbers = chosen[start : start + batch_size]
            squares = np.stack([centre_crop(dataset.image(i), size).transpose(2, 0, 1) for i in numbers])
            yield normalize(torch.from_numpy(squares).to(device))
            if isinstance(dataset, LabelDataset):
                labels.extend(dataset.label(i) for i in numbers)
            elif isinstance(dataset, MaskDataset):
                labels.extend(most_frequent(dataset.mask(i), dataset.classes) for i in numbers)

    points, how = project(pooled_features(model, batches()), method, seed)
    title = f"{model.name}: {len(points):,} images of {source.root} ({split}), pooled features\n{how}"
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    figure = plot(points, np.array(labels) if labels else None, dataset.classes, title)
    names = [dataset.name(i) for i in chosen]
    write_csv(folder / "embedding.csv", names, points, [dataset.classes[i] if i >= 0 else "" for i in labels] or None)
    partial = folder / "embedding.png.partial"
    figure.savefig(partial, dpi=150, format="png")
    partial.replace(folder / "embedding.png")
    return f"{len(points)} images by {how}: {folder / 'embedding.png'} and embedding.csv"
