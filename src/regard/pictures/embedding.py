"""What `regard embed` draws: the images of a data set in the plane."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from rich.progress import track

from regard.backbones import Backbone, device_of, normalize
from regard.data.datasets.base import LabelDataset, MaskDataset
from regard.data.loading.augment import centre_crop
from regard.data.source import open_source
from regard.evaluation.embeddings import check_method, most_frequent, plot, pooled_features, project, write_csv
from regard.pictures.charts import save_figure
from regard.say import console
from regard.settings import EmbeddingPicture


def draw_embedding(open_model: Callable[[], Backbone], data: str, chosen: EmbeddingPicture, out: Path) -> str:
    """Write embedding.png and embedding.csv into `out`; says what was made.

    open_model: gives the backbone, once the data is known to have enough images.

    Raises InputError for data that cannot be opened, and too few images for the method.
    """
    source = open_source(data, scenes_size=chosen.size).read_as(chosen.values)
    split = chosen.split or next(name for name in ("val", *source.splits) if name in source.splits)
    dataset = source.split(split)
    count = min(chosen.limit, len(dataset))
    numbers = [i * len(dataset) // count for i in range(count)]
    check_method(chosen.method, count)
    model = open_model()
    device, labels = device_of(model), []

    def batches() -> Iterator[torch.Tensor]:
        starts = range(0, count, chosen.batch_size)
        for start in track(starts, "embedding", transient=True, console=console()):
            batch = numbers[start : start + chosen.batch_size]
            squares = np.stack([centre_crop(dataset.image(i), chosen.size).transpose(2, 0, 1) for i in batch])
            yield normalize(torch.from_numpy(squares).to(device))
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
    return f"{len(points)} images by {how}: {out / 'embedding.png'} and embedding.csv"
