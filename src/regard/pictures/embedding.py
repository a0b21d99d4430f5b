"""What `regard embed` draws: the images of a data set in the plane."""

import base64
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from rich.progress import track

from regard.backbones import Backbone, device_of, normalize
from regard.data.datasets.base import LabelDataset, MaskDataset
from regard.data.loading.augment import centre_crop
from regard.data.source import open_source
from regard.evaluation.embeddings import (
    Points,
    check_method,
    class_colours,
    most_frequent,
    plot,
    pooled_features,
    project,
    write_csv,
)
from regard.files import write_whole
from regard.pictures.charts import save_figure
from regard.pictures.draw import Picture
from regard.pictures.pages import JPEG_QUALITY, fill
from regard.say import console, say
from regard.settings import EmbeddingPicture

TEMPLATE = Path(__file__).with_name("embedding.html.jinja")
MOST = 10_000  # images where nothing else is said: features take minutes on a CPU, t-SNE one, and the page 10 MB
THUMBNAIL = 48  # pixels of a side


def draw_embedding(open_model: Callable[[], Backbone], data: str, chosen: EmbeddingPicture, out: Path) -> str:
    """Write embedding.html, which shows the image under the pointer and is left out where there are more than `MOST`,
    embedding.png and embedding.csv into `out`; says what was made.

    open_model: gives the backbone, once the data is known to have enough images.

    Raises InputError for data that cannot be opened, and too few images for the method.
    """
    source = open_source(data, scenes_size=chosen.size).read_as(chosen.values)
    split = chosen.split or next(name for name in ("val", *source.splits) if name in source.splits)
    dataset = source.split(split)
    count = min(chosen.limit or MOST, len(dataset))
    numbers = [i * len(dataset) // count for i in range(count)]
    check_method(chosen.method, count)
    model = open_model()
    if chosen.limit is None and count < len(dataset):
        say(f"{count:,} of {len(dataset):,} images, evenly spaced: more take long, and --limit says how many")
    device, labels = device_of(model), []
    columns = math.ceil(count**0.5) if count <= MOST else 0
    sheet = np.full((columns * THUMBNAIL, columns * THUMBNAIL, 3), 255, np.uint8)  # of all thumbnails, row by row

    def batches() -> Iterator[torch.Tensor]:
        starts = range(0, count, chosen.batch_size)
        for start in track(starts, "embedding", transient=True, console=console()):
            batch = numbers[start : start + chosen.batch_size]
            squares = [centre_crop(dataset.image(i), chosen.size) for i in batch]
            for place, square in enumerate(squares if columns else (), start):
                row, column = (THUMBNAIL * at for at in divmod(place, columns))
                small = cv2.resize(square, (THUMBNAIL, THUMBNAIL), interpolation=cv2.INTER_AREA)
                sheet[row : row + THUMBNAIL, column : column + THUMBNAIL] = small[..., ::-1]  # as OpenCV writes them
            yield normalize(torch.from_numpy(np.stack(squares).transpose(0, 3, 1, 2)).to(device))
            if isinstance(dataset, LabelDataset):
                labels.extend(dataset.label(i) for i in batch)
            elif isinstance(dataset, MaskDataset):
                labels.extend(most_frequent(dataset.mask(i), dataset.classes) for i in batch)

    points, how = project(pooled_features(model, batches()), chosen.method, chosen.seed)
    title = f"{model.name}: {len(points):,} images of {source.root} ({split}), pooled features\n{how}"
    figure = plot(points, np.array(labels) if labels else None, dataset.classes, title)
    names = [dataset.name(i) for i in numbers]
    write_csv(out / "embedding.csv", names, points, [dataset.classes[i] if i >= 0 else "" for i in labels] or None)
    save_figure(out / "embedding.png", figure)
    html = out / "embedding.html"
    if not columns:
        html.unlink(missing_ok=True)  # of other images
        return f"{len(points)} images by {how}: {out / 'embedding.png'} and embedding.csv; too many for a page"
    page = _page(title, names, points, labels, dataset.classes, sheet)
    write_whole(html, lambda file: file.write(page.encode()))
    return f"{len(points)} images by {how}: {html}, embedding.png and embedding.csv"


def _page(
    title: str,
    names: Sequence[str],
    points: Points,
    labels: Sequence[int],
    classes: Sequence[str],
    sheet: Picture,
) -> str:
    """The map as a page; sheet: of the thumbnails, blue, green and red."""
    low, extent = points.min(axis=0), float(np.ptp(points, axis=0).max())
    facts = {
        "points": ((points - low) / (extent or 1.0)).round(4).tolist(),
        "names": [name.encode("utf-8", "replace").decode() for name in names],
        "labels": list(map(int, labels)),
        "classes": list(classes),
        "colours": np.round(255 * class_colours(len(classes))).astype(int).tolist() if labels else [],
        "columns": sheet.shape[1] // THUMBNAIL,
        "side": THUMBNAIL,
    }
    encoded = cv2.imencode(".jpg", sheet, (cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY))[1]  # by Pillow: two copies more
    uri = f"data:image/jpeg;base64,{base64.b64encode(encoded.tobytes()).decode()}"
    return fill(TEMPLATE, {"title": title, "facts": facts, "sheet": uri}, {})
