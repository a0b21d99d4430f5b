"""Commands that use what was trained: evaluate, predict, export."""

from pathlib import Path
from typing import Literal

from regard.errors import InputError
from regard.files import HUB
from regard.pictures.targets import check_apart, outputs
from regard.runs.exported import find_run, is_backbone
from regard.say import counted, say
from regard.settings import Batches, Device, Inference, LoadedBatches, MaskPictures, OnnxOptions


def evaluate(
    run: str,
    data: str,
    inference: Inference,
    device: Device,
    batches: LoadedBatches,
    split: str | None = None,
) -> str:
    """Score a trained segmentation: IoU, accuracy, Boundary IoU, calibration, and what is taken for what.

    Scores of other settings, and of other data, are kept: they go into files of their own.

    Args:
        run: Folder of `regard segment`, or a cell of `regard compare`, or what `regard export` made of one; or
            OWNER/NAME of one on the Hugging Face hub.
        data: `scenes`, a path or a pack's URL, with masks of the same classes.
        split: train, val or test; by default test where there is one, else val.
    """
    place = find_run(run)
    from regard.cli.common import table
    from regard.data.source import open_source, require_masks
    from regard.pictures.charts import confusion_chart, reliability_chart, save_figure
    from regard.results import EvaluationResult, RunDescription, write_stored
    from regard.runs.masks import evaluation_file, name_evaluation
    from regard.runs.run import full_summary, load_run, name_digests

    loaded = load_run(place, device.device)
    source = open_source(data, scenes_size=loaded.size)
    splits = require_masks(source)
    split = split or ("test" if "test" in splits else "val")
    source.split(split)
    described = loaded.description
    met = set(described.trained_on if isinstance(described, RunDescription) else ()) & {*name_digests(splits[split])}
    if met:
        say(f"{len(met):,} of {len(splits[split]):,} images have names of images that the run was trained on")
    is_file = not place.is_dir()
    folder = place.parent if is_file else Path(run)  # of an exported file, beside it and under its name
    if place not in (folder, Path(run)):  # of one on the hub, which is kept as it came
        folder = Path("runs", *run.removeprefix(HUB).split("/"))
    label = "-".join(filter(None, (place.stem if is_file else "", split, inference.label)))
    name = name_evaluation(folder, label, source)
    found = loaded.score(splits[split], inference, batches.batch_size, batches.workers)
    result = full_summary(loaded, found)
    table(result, split)
    path = folder / evaluation_file(name)
    about = {"data": source.describe(), "split": split, "short_side": loaded.size, "inference": inference}
    write_stored(path, EvaluationResult(**about, **vars(result)))
    title = f"{Path(run).name} on {Path(source.root).name} ({split}, {found.images} images)\n{inference.label}".strip()
    save_figure(folder / f"confusion-{name}.png", confusion_chart(found.counts, loaded.classes, title))
    save_figure(folder / f"reliability-{name}.png", reliability_chart(found.bins, title))
    return f"scores in {path}; pictures beside it: confusion-{name}.png, reliability-{name}.png"


def predict(
    run: str,
    images: list[str],
    out: str,
    drawing: MaskPictures,
    inference: Inference,
    device: Device,
    batches: Batches,
) -> str:
    """Segment images: an indexed PNG with the classes' colours for each, at the image's own size, or a JSON of LabelMe.

    Images that can't be read are named, and the others done; the exit status is then 2.

    Args:
        run: Folder of `regard segment`, or a cell of `regard compare`, or what `regard export` made of one; or
            OWNER/NAME of one on the Hugging Face hub.
        images: Files, folders of images at any depth, or patterns such as "photos/**/*.jpg".
        out: Folder for the masks.
    """
    place = find_run(run)
    from regard.runs.masks import OVERLAY, PROBABILITIES, segment_files
    from regard.runs.outlines import Outlines, not_by_hand
    from regard.runs.run import load_run

    loaded = load_run(place, device.device)
    also = [OVERLAY] * drawing.overlay + [PROBABILITIES] * drawing.probabilities
    ending, what = (".png", ("mask", "masks"))
    if drawing.format == "labelme":
        ending, what = ".json", ("JSON of polygons", "JSONs of polygons")
    files, outlines = outputs(images, out, also, videos=False, ending=ending), None
    if drawing.overlay:
        check_apart(files)
    if drawing.format == "labelme":
        files, outlines = not_by_hand(files), Outlines(loaded.classes)
    made = segment_files(loaded, files, inference, also, drawing.opacity, batches.batch_size, outlines)
    return f"{counted(made, *what)} in {out}"


def export(
    run: str,
    format: Literal["onnx", "safetensors", "hub"],
    out: str,
    onnx: OnnxOptions,
    push: str | None = None,
) -> str:
    """Make a trained segmentation fit for other programs: one ONNX file, safetensors, or a Hugging Face hub folder.

    Args:
        run: Folder of `regard segment`, or a cell of `regard compare`; with format hub, also of `regard pretrain`.
        format: `onnx` takes RGB images, float32 0..255, any size, and is checked against torch before it is kept;
            `safetensors` is weights and config.json; `hub` has a model card too.
        out: The file to make, ending in .onnx, or the folder.
        push: OWNER/NAME on the Hugging Face hub to upload to, with format hub; a new one is private. The token is that
            of HF_TOKEN, or of `hf auth login`.
    """
    if push is not None and format != "hub":
        raise InputError(f"--push goes with --format hub, not {format}")
    if onnx != OnnxOptions() and format != "onnx":
        raise InputError(f"--height, --width and --opset go with --format onnx, not {format}")
    if (onnx.height is None) != (onnx.width is None):
        raise InputError("--height and --width go together")
    is_pretrained = Path(run).is_dir() and is_backbone(Path(run))
    if is_pretrained and format != "hub":
        raise InputError(f"{run} holds a backbone: it is exported with --format hub")
    place = Path(run) if is_pretrained else find_run(run)
    from regard.runs.export import save_onnx, save_pretrained, save_pretrained_backbone, save_safetensors
    from regard.runs.hub import check_push
    from regard.runs.hub import push as upload
    from regard.runs.run import load_run

    if push is not None:
        check_push(push)
    loaded = None if is_pretrained else load_run(place, "cpu")
    if loaded and format == "safetensors":
        save_safetensors(loaded, out)
        return f"weights and config.json in {out}"
    if loaded is None or format == "hub":
        save_pretrained(loaded, out) if loaded else save_pretrained_backbone(place, out)
        if push is None:
            return f"weights, config.json and model card in {out}"
        return f"{out} pushed to {upload(Path(out), push)}"
    say("exporting, then comparing with torch at several sizes: this takes a minute or more")
    fixed = None if onnx.height is None or onnx.width is None else (onnx.height, onnx.width)
    reason = save_onnx(loaded, out, fixed, onnx.opset)
    if reason is None:
        return f"ONNX model for images of any size in {out}"
    rows, columns = fixed or (loaded.size, loaded.size)
    return f"ONNX model in {out}, fixed to images of {rows} x {columns} pixels: {reason}"
