"""Commands about data sets: data info, data check, data download, data convert, data pack."""

from pathlib import Path
from typing import Any

from regard.data.datasets import DATASETS
from regard.errors import InputError
from regard.say import console, say, shown
from regard.settings import PackOptions, Reading, SurveyOptions, Values


def info(source: str, survey: SurveyOptions, out: str | None = None) -> str:
    """Say what a path holds: layout, splits, classes and how often they are seen, sizes of images.

    Args:
        source: A path, `scenes`, or the s3://, gs:// or https:// URL of a pack.
        out: Folder for info.json and contact-sheet.png (images of each split, and their masks over them).
    """
    import numpy as np

    from regard.data.source import open_source, unseen, white
    from regard.data.survey import survey as surveyed
    from regard.data.survey import unused_bits
    from regard.files import write_json

    opened = open_source(source).read_as(survey.values)
    found = surveyed(opened, survey.limit)
    broken = sum(split.broken for split in found.values())
    fault = next((split.fault for split in found.values() if split.fault), "")
    if broken and not any(split.read for split in found.values()):
        raise InputError(f"none of {broken:,} images or masks could be read: {fault}")
    _sizes_table(found)
    if opened.classes:
        _classes_table(found, opened.classes, opened.has_masks)
    line = ""
    if opened.has_masks and "train" in found:
        held = np.any([found[split].held for split in opened.given_to_learn], axis=0)
        line = white(opened.classes, held) or unseen(opened.classes, held)
    if line:
        say(line if survey.limit is None else f"of the images looked at: {line}")
    if line := unused_bits(max(split.bits for split in found.values())):
        say(line)
    if broken:
        say(f"{broken:,} images or masks could not be read: regard data check {opened.root} lists them; first, {fault}")
    elif fault:
        say(f"of the images, only the first was read, and could not be: {fault}")
    if out is None:
        return opened.describe()

    from regard.pictures.contact_sheet import contact_sheet
    from regard.pictures.draw import save_png

    save_png(Path(out) / "contact-sheet.png", contact_sheet(opened))
    splits = {name: split.as_dict(opened.classes) for name, split in found.items()}
    described: dict[str, Any] = {"layout": opened.layout, "root": opened.root, "notes": list(opened.notes)}
    write_json(Path(out) / "info.json", described | {"classes": list(opened.classes), "splits": splits})
    say(opened.describe())
    return f"info.json and contact-sheet.png in {out}"


def check(source: str, reading: Reading, values: Values, out: str | None = None) -> str:
    """Read every image and mask, and list all that is wrong; exit status 2 where anything is.

    Of a pack, the sums of its chunks come first, and where one is wrong, its images are not read.

    Args:
        source: A path, `scenes`, or the s3://, gs:// or https:// URL of a pack.
        out: A file for the list, as JSON.
    """
    from dataclasses import asdict

    from rich.table import Table

    from regard.data.check import check
    from regard.files import write_json

    found = check(source, values)
    what = found.unit
    if out:
        listed = [asdict(problem) for problem in found.problems]
        write_json(
            Path(out),
            {"data": found.data, what: found.count, "wrong": found.wrong, "problems": listed, "notes": found.notes},
        )
    for line in found.notes:
        say(line)
    if not found.problems:
        return f"nothing is wrong with the {found.count:,} {what} of {found.data}"
    say(found.data)
    table = Table("split", what.removesuffix("s"), "what is wrong")
    for problem in found.problems:
        table.add_row(problem.split, shown(problem.name), shown(problem.what))
    console().print(table)
    raise InputError(f"{found.wrong:,} of {found.count:,} {what} are wrong" if found.wrong else found.problems[0].what)


def download(name: str, out: str | None = None, keep_archives: bool = False) -> str:
    """Download a published data set, or go on with that, check it, and unpack it.

    Args:
        name: One of DATASETS; sbd goes into the folder of voc2012, as its augmented training set.
        out: Folder for it; by default data/NAME.
        keep_archives: Leave the archives there when they are unpacked.
    """
    from regard.data.datasets.published import published
    from regard.data.source import open_source
    from regard.download.dataset import download

    data = published(name)
    folder = Path(out or f"data/{name}")
    say(f"{name}: who made it, and the terms of its use: {data.home}")
    done = download(data, folder, keep_archives)
    line = f"{name} {'is in' if done.new else 'was there already, and whole, in'} {folder}"
    try:
        opened = open_source(done.root)
    except InputError as error:
        say(f"{done.root} can't be opened as it is: {error}")
        return line
    say(opened.describe())
    return f"{line}: regard {'segment' if opened.has_masks else 'pretrain'} --data {done.root} ..."


download.__doc__ = str(download.__doc__).replace("DATASETS", ", ".join(DATASETS))


def convert(source: str, to: str, reading: Reading, values: Values) -> str:
    """Write images and their masks, of any layout that is read, as images/SPLIT, masks/SPLIT and classes.txt.

    Images stay the files that they are, or become PNGs of 8 bits, where --channels or --range is said.

    Args:
        source: A path with masks, `scenes`, or the s3://, gs:// or https:// URL of a pack.
        to: A folder that is not there yet.
    """
    from regard.data.convert import convert
    from regard.data.source import open_source

    opened = open_source(source).read_as(values)
    say(opened.describe())
    images, masks = convert(opened, to)
    return f"{images:,} images and {masks:,} masks in {to}: regard segment --data {to} ..."


def pack(source: str, to: str, packing: PackOptions) -> str:
    """Pack images, and masks or labels, into a few large files, for `--data` to read them from a disk or a bucket.

    Args:
        source: A path, or `scenes`.
        to: A folder, or s3://BUCKET/FOLDER or gs://BUCKET/FOLDER; where it holds a part of the same pack, goes on.
    """
    from regard.data.packs.packing import pack
    from regard.data.packs.store import is_remote
    from regard.data.source import open_source

    opened = open_source(source).read_as(packing.values)
    say(opened.describe())
    where, made, new = pack(opened, to, packing.chunk_mb, packing.on_bad_image)
    chunks = [chunk for of in made.splits.values() for chunk in of]
    images, size = sum(chunk.images for chunk in chunks), sum(chunk.bytes for chunk in chunks)
    if left_out := sum(map(len, opened.splits.values())) - images:
        say(f"{left_out:,} images are left out, since they or their masks can't be used")
    as_seen = "all of the right size" if is_remote(where) else "and whole"  # a bucket's are not fetched to be summed
    state = f"packed in {where}" if new else f"were there already, {as_seen}, in {where}"
    packed = f"{images:,} images, {size / 1e6:,.1f} MB in {len(chunks):,} chunks"
    return f"{packed}, {state}: regard {'segment' if opened.has_masks else 'pretrain'} --data {where} ..."


def _sizes_table(found: dict[str, Any]) -> None:
    from rich.table import Table

    table = Table("split", title="sizes of images, width x height")
    for column in ("images", "looked at", "smallest", "median", "largest", "distinct"):
        table.add_column(column, justify="right")
    for name, split in found.items():
        sizes = [f"{width} x {height}" for height, width in split.extremes] or ["-"] * 3
        table.add_row(name, f"{split.images:,}", f"{split.read:,}", *sizes, f"{len(split.dimensions):,}")
    console().print(table)


def _classes_table(found: dict[str, Any], classes: tuple[str, ...], has_masks: bool) -> None:
    """A column for each split: of the labelled pixels, those of the class; and the images that hold it."""
    from rich.table import Table

    table = Table("class", title="share of the labelled pixels, and images that hold the class" if has_masks else None)
    for name in found:
        for column in (f"{name} %", "images") if has_masks else (f"{name} images",):
            table.add_column(column, justify="right")
    for number, label in enumerate(classes):
        cells = []
        for split in found.values():
            share, holders = f"{100 * split.shares[number]:.2f}", f"{split.holders[number]:,}"
            cells += [share, holders] if has_masks else [holders]
        table.add_row(shown(label), *cells)
    if has_masks:
        table.add_section()
        voids = [cell for split in found.values() for cell in (f"{100 * split.void_share:.2f}", "")]
        table.add_row("void, of all pixels", *voids)
    console().print(table)
