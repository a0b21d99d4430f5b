"""Commands that use what was trained: evaluate, predict, report, data."""

from pathlib import Path

from regard.cli.common import console, outputs, table


def evaluate(run: str, data: str, split: str | None = None) -> str:
    """Score a trained segmentation: dataset-level mIoU, pixel accuracy, IoU per class.

    Args:
        run: Folder of `regard segment`, or a cell of `regard compare`.
        data: `scenes`, or a path with masks of the same classes.
        split: train, val or test; by default test where there is one, else val.
    """
    from regard.data.layout import open_source, require_masks
    from regard.studies.folders import write_json
    from regard.studies.runs import load_run, summary

    loaded = load_run(run)
    source = open_source(data, scenes_size=loaded.size)
    splits = require_masks(source)
    split = split or ("test" if "test" in splits else "val")
    source.split(split)
    result = summary(loaded, loaded.evaluate(splits[split]))
    table(result, split)
    path = Path(run) / f"evaluation-{split}.json"
    write_json(path, {"data": source.describe(), "split": split, **result})
    return f"scores in {path}"


def predict(run: str, images: list[str], out: str) -> str:
    """Segment images: an indexed PNG with the classes' colours for each, at the image's own size.

    Args:
        run: Folder of `regard segment`, or a cell of `regard compare`.
        images: Files, or folders of images at any depth.
        out: Folder for the masks.
    """
    from PIL import Image
    from rich.progress import track

    from regard.studies.runs import load_run

    loaded = load_run(run)
    files = outputs(images, out)
    for file, path in track(files.items(), "segmenting", transient=True, console=console()):
        mask = Image.fromarray(loaded.predict(file)).convert("P")
        mask.putpalette(loaded.palette.flatten().tolist())
        path.parent.mkdir(parents=True, exist_ok=True)
        mask.save(path)
    return f"{len(files)} masks in {out}"


def report(directory: str) -> str:
    """Make the report of a comparison again, from its results.json alone.

    Args:
        directory: Folder of `regard compare`.
    """
    from regard.studies.report import write_report

    return f"open {write_report(Path(directory))}"


def info(source: str) -> str:
    """Say what a path holds: layout, images, classes.

    Args:
        source: A path, or `scenes`.
    """
    from regard.data.layout import open_source

    return open_source(source).describe()
