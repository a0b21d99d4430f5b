"""Commands that use what was trained: evaluate, predict, report."""

from pathlib import Path

from regard.cli.common import Accelerator, table
from regard.errors import InputError
from regard.pictures.targets import outputs


def evaluate(
    run: str,
    data: str,
    split: str | None = None,
    window: int | None = None,
    overlap: float = 0.5,
    flip: bool = False,
    scales: list[float] | None = None,
    batch_size: int = 16,
    workers: int = 4,
    accelerator: Accelerator = "auto",
) -> str:
    """Score a trained segmentation: IoU, accuracy, Boundary IoU, calibration, and what is taken for what.

    Scores of other settings, and of other data, are kept: they go into files of their own.

    Args:
        run: Folder of `regard segment`, or a cell of `regard compare`, or what `regard export` made of one.
        data: `scenes`, a path or a pack's URL, with masks of the same classes.
        split: train, val or test; by default test where there is one, else val.
        window: Side of sliding windows, in pixels of the image as it is fed; by default the whole image at once.
        overlap: The share of a window that the next one covers again, from 0 to below 1.
        flip: Also look at the mirror image, and average the probabilities.
        scales: Look at the image at these factors of its size, and average, such as 0.75 1.0 1.25.
        batch_size: Images, or windows of one image, in a forward pass.
        workers: Processes that load images.
        accelerator: `auto` takes a GPU where there is one.
    """
    from dataclasses import asdict

    from regard.cli.segmented import evaluation_file, name_evaluation, save_figure
    from regard.data.source import open_source, require_masks
    from regard.files import write_json
    from regard.pictures.charts import confusion_chart, reliability_chart
    from regard.runs.run import full_summary, load_run
    from regard.segmentation.inference import Inference
    from regard.training.hardware import Hardware

    inference = Inference(window, overlap, flip, tuple(scales or (1.0,)))
    loaded = load_run(run, Hardware(accelerator).device)
    source = open_source(data, scenes_size=loaded.size)
    splits = require_masks(source)
    split = split or ("test" if "test" in splits else "val")
    source.split(split)
    folder = Path(run) if Path(run).is_dir() else Path(run).parent  # of an exported file, beside it
    name = name_evaluation(folder, "-".join(filter(None, (split, inference.label))), source)
    found = loaded.score(splits[split], inference, batch_size, workers)
    result = full_summary(loaded, found)
    table(result, split)
    path = folder / evaluation_file(name)
    asked = {"short_side": loaded.size, **asdict(inference)}
    write_json(path, {"data": source.describe(), "split": split, "inference": asked, **result})
    title = f"{Path(run).name} on {Path(source.root).name} ({split}, {found.images} images)\n{inference.label}".strip()
    save_figure(folder / f"confusion-{name}.png", confusion_chart(found.counts, loaded.classes, title))
    save_figure(folder / f"reliability-{name}.png", reliability_chart(found.bins, title))
    return f"scores in {path}; pictures beside it: confusion-{name}.png, reliability-{name}.png"


def predict(
    run: str,
    images: list[str],
    out: str,
    overlay: bool = False,
    opacity: float = 0.5,
    probabilities: bool = False,
    window: int | None = None,
    overlap: float = 0.5,
    flip: bool = False,
    scales: list[float] | None = None,
    batch_size: int = 16,
    accelerator: Accelerator = "auto",
) -> str:
    """Segment images: an indexed PNG with the classes' colours for each, at the image's own size.

    Images that can't be read are named, and the others done; the exit status is then 2.

    Args:
        run: Folder of `regard segment`, or a cell of `regard compare`, or what `regard export` made of one.
        images: Files, folders of images at any depth, or patterns such as "photos/**/*.jpg".
        out: Folder for the masks.
        overlay: Also write NAME-overlay.png: the colours over the image, and lines between classes.
        opacity: Of these colours, from 0 to 1.
        probabilities: Also write NAME.npz: probabilities, float16 (classes, height, width), and classes, their names.
        window: Side of sliding windows, in pixels of the image as it is fed; by default the whole image at once.
        overlap: The share of a window that the next one covers again, from 0 to below 1.
        flip: Also look at the mirror image, and average the probabilities.
        scales: Look at the image at these factors of its size, and average, such as 0.75 1.0 1.25.
        batch_size: Windows of one image in a forward pass.
        accelerator: `auto` takes a GPU where there is one.
    """
    from regard.cli.segmented import OVERLAY, PROBABILITIES, segment_files
    from regard.runs.run import load_run
    from regard.segmentation.inference import Inference
    from regard.training.hardware import Hardware

    if not 0 <= opacity <= 1:
        raise InputError(f"--opacity {opacity:g} is no share of the colours: take one from 0 to 1, such as 0.5")
    inference = Inference(window, overlap, flip, tuple(scales or (1.0,)))
    loaded = load_run(run, Hardware(accelerator).device)
    also = [ending for ending, wanted in ((OVERLAY, overlay), (PROBABILITIES, probabilities)) if wanted]
    files = outputs(images, out, also, videos=False)
    made = segment_files(loaded, files, inference, also, opacity, batch_size)
    return f"{made} masks in {out}"


def report(directory: str) -> str:
    """Make the report of a comparison, an ablation or a sweep again, from its results.json alone.

    Args:
        directory: Folder of `regard compare`, `regard ablate` (also results.csv, table.tex and figures/) or
            `regard sweep`.
    """
    from regard.reports.report import write_report
    from regard.reports.schema import kind_of
    from regard.reports.sweep_report import write_sweep_report

    folder = Path(directory)
    return f"open {(write_sweep_report if kind_of(folder) == 'sweep' else write_report)(folder)}"
