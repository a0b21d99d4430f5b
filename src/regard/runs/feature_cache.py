"""Features of a frozen backbone, computed once and read from a memory-mapped file ever after.

Random crops would never come back, so a cached training goes around a fixed number of crops of each image: those that
the first epochs of an uncached training with the same seed see. Whole images, for validation, are kept as they are.

A folder of caches: KEY/, named by all that the features depend on, holds

    tensors.bin    the tensors of all samples one after the other, as float32 or uint8
    samples.txt    a line each: where a sample starts, the types and shapes of its tensors, and the CRC-32 of its bytes

A cache that is being filled is KEY.partial/: an interrupted one goes on behind its last whole sample, and so does one
that is found damaged when it is opened: then all of it is read once. Caches of no use any more are not removed: delete
the folder at will.
"""

import hashlib
import json
import math
import os
import shutil
import zlib
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import filelock
import msgspec
import numpy as np
import torch
from jaxtyping import Int
from msgspec import Meta
from rich.progress import track
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from regard.backbones import describe, device_of, eval_mode, normalize
from regard.backbones.base import PADDING, weights_digest
from regard.data.datasets.base import MaskDataset
from regard.data.loading.modules import SegmentationData, loading
from regard.data.loading.samples import TrainPairs, WholePairs
from regard.data.loading.wrapped import Fraction
from regard.errors import InputError
from regard.files import on_disk
from regard.results import NO_JSON
from regard.runs.extras import Cache
from regard.runs.run import Run
from regard.say import console, say
from regard.segmentation.inference import BATCH, count_cached
from regard.segmentation.model import SegmentationModel
from regard.settings import Hardware

TENSORS_FILE, SAMPLES_FILE = "tensors.bin", "samples.txt"
Sample = list[np.ndarray]
Side = Annotated[int, Meta(ge=1)]
Line = tuple[int, tuple[tuple[Literal["float32", "int32", "uint8"], tuple[Side, ...]], ...], int]  # of SAMPLES_FILE


class CachedData(SegmentationData):
    """`SegmentationData` whose images are the tensors of their features (`SegmentationModel.to_tensors`).

    crops: of each image; epoch e trains on the crops of epoch e % crops.
    of:    the data set that `train` holds the crops of, `data.train` or what that is a part of.
    """

    def __init__(
        self, data: SegmentationData, crops: int, of: MaskDataset, train: "TensorFile", val: "TensorFile"
    ) -> None:
        super().__init__(
            data.train, data.val, data.transform, data.batch_size, data.workers, data.seed, data.accumulate
        )
        self.crops, self.of, self.train_file, self.val_file = crops, of, train, val

    def train_pairs(self) -> TorchDataset:
        """(epoch, index) -> (tensors, mask)."""
        numbers = range(len(self.of)) if self.of is self.train else cast(Fraction, self.train).numbers
        return _Crops(self.train_file, self.crops, len(self.of), numbers)

    def val_dataloader(self) -> DataLoader:
        """Lists of (tensors, (height, width) of the resized image, mask), in order."""
        return DataLoader(_Whole(self.val_file), self.share, collate_fn=list, **loading(self.workers))


class TensorFile:
    """A finished cache: `file[i]` are the arrays of sample i, copied out of the mapped file.

    The file is mapped when it is first read: a map that is sent to a loading process would go there with its contents.
    Of a sample 12 bytes are in memory: where it starts, and which of the layouts in use it has.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / TENSORS_FILE
        number_of: dict[str, int] = {}
        starts, numbers = array("q"), array("i")
        with (folder / SAMPLES_FILE).open() as lines:
            for line in lines:
                start, layout = line[1:].rpartition(", ")[0].split(", ", 1)
                starts.append(int(start))
                numbers.append(number_of.setdefault(layout, len(number_of)))
        self.starts, self.numbers = np.array(starts), np.array(numbers)
        self.layouts = [json.loads(layout) for layout in number_of]
        self._mapped: np.memmap | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_mapped": None}

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, i: int) -> Sample:
        if self._mapped is None:
            self._mapped = np.memmap(self.path, np.uint8, "r")
        start, layout = int(self.starts[i]), self.layouts[self.numbers[i]]
        arrays = []
        for kind, shape in layout:
            end = start + np.dtype(kind).itemsize * int(np.prod(shape))
            arrays.append(np.array(self._mapped[start:end]).view(kind).reshape(shape))
            start = end
        return arrays


class _Crops(TorchDataset):
    """(epoch, index) -> the tensors of a crop, and its mask."""

    def __init__(self, file: TensorFile, crops: int, images: int, numbers: Sequence[int]) -> None:
        self.file, self.crops, self.images, self.numbers = file, crops, images, numbers

    def __getitem__(self, key: tuple[int, int]) -> tuple[list[Tensor], Tensor]:
        epoch, index = key
        *arrays, mask = self.file[epoch % self.crops * self.images + self.numbers[index]]
        return [torch.from_numpy(array) for array in arrays], torch.from_numpy(mask).long()


class _InTurn(TorchDataset):
    """number -> the sample of (epoch, index), one epoch after the other."""

    def __init__(self, pairs: TorchDataset, images: int) -> None:
        self.pairs, self.images = pairs, images

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        return self.pairs[divmod(number, self.images)]


class _Whole(TorchDataset):
    """index -> the tensors of a whole image, its size, and its mask at the mask's own size."""

    def __init__(self, file: TensorFile) -> None:
        self.file = file

    def __len__(self) -> int:
        return len(self.file)

    def __getitem__(self, index: int) -> tuple[list[Tensor], tuple[int, int], Tensor]:
        *arrays, size, mask = self.file[index]
        height, width = size.tolist()
        return [torch.from_numpy(array) for array in arrays], (height, width), torch.from_numpy(mask).long()


def cached_data(
    folder: Path,
    model: SegmentationModel,
    data: SegmentationData,
    crops: int,
    content: str,
    precision: torch.dtype | None = None,
    bar: bool = True,
) -> CachedData:
    """The same data with features in the place of images, from the cache in `folder`, which is filled where need be. Of
    a `Fraction` with each image once, crops of the whole are kept, for other parts of it too.

    model:     frozen; its backbone computes on the device that it is on.
    content:   changes with the files of the data (`data.source.fingerprint`).
    precision: of autocast while the features are computed; None for float32.
    Raises InputError when the disk has too little room.
    """
    fill = _Filling(model, data.share, data.workers, precision, bar)
    is_part = isinstance(data.train, Fraction) and len(data.train) == len(data.train.numbers)
    of = cast(Fraction, data.train).dataset if is_part else data.train
    of_crops = {"transform": asdict(data.transform), "seed": data.seed, "crops": crops, "images": _names(of)}
    train = _InTurn(TrainPairs(of, data.transform, data.seed), len(of))
    return CachedData(
        data,
        crops,
        of,
        fill(folder, _about(model, content, precision) | of_crops, train, crops * len(of), False),
        cached_whole(folder, fill, data.val, data.transform.whole, content),
    )


def cached_counts(
    folder: Path, run: Run, dataset: MaskDataset, content: str, workers: int = 0, bar: bool = True
) -> Int[np.ndarray, "images classes classes"]:
    """As `Run.evaluate`, with the features from the cache in `folder`: for runs that share a frozen backbone."""
    fill, device = _Filling(run.model, BATCH, workers, None, bar), device_of(run.model)
    file = cached_whole(folder, fill, run.seen(dataset), run.size, content)
    counts = []
    with torch.inference_mode():
        for ((tensors, size, mask),) in DataLoader(_Whole(file), 1, collate_fn=list, **loading(workers)):
            sample = [tensor.to(device) for tensor in tensors], size, mask.to(device)
            counts += count_cached(run.model, [sample], len(run.classes), run.ignore_index)
    return torch.stack(counts).cpu().numpy()


def whole_features(
    cache: Cache, model: SegmentationModel, dataset: MaskDataset, size: int, hardware: Hardware
) -> TorchDataset:
    """index -> the tensors of a whole image, its (height, width) as it was fed, and its mask at the mask's own size."""
    fill = _Filling(model, BATCH, hardware.workers, hardware.autocast, hardware.bar)
    return _Whole(cached_whole(cache.folder, fill, dataset, size, cache.content))


def cached_whole(folder: Path, fill: "_Filling", dataset: MaskDataset, short: int, content: str) -> "TensorFile":
    """The features of whole images, their short side brought to so many pixels."""
    about = _about(fill.model, content, fill.precision) | {"short": short, "images": _names(dataset)}
    return fill(folder, about, WholePairs(dataset, short), len(dataset), True)


def _about(model: SegmentationModel, content: str, precision: torch.dtype | None) -> dict[str, Any]:
    """What features depend on, but for the images."""
    return {
        "regard": version("regard"),
        "timm": version("timm"),
        "backbone": describe(model.backbone),
        "padding": PADDING,
        "weights": weights_digest(model.backbone),
        # of all heads, whichever the fusion sees
        "attention": [model.attention, model.affinity, *(["other"] * (model.planes > 3))],
        "precision": str(precision),
        "content": content,
    } | ({"image": True} if model.refiner.image else {})


class _Filling:
    """Fills caches. batch: images in a forward pass."""

    def __init__(
        self, model: SegmentationModel, batch: int, workers: int, precision: torch.dtype | None, bar: bool
    ) -> None:
        self.model, self.precision, self.bar = model, precision, bar
        self.batch, self.workers = batch, workers

    def __call__(
        self, folder: Path, about: dict[str, Any], dataset: TorchDataset, count: int, whole: bool
    ) -> TensorFile:
        """The cache of the first `count` samples; computed where it is not there, or not whole."""
        key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:32]
        done, partial = folder / key, folder / f"{key}.partial"
        folder.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(folder / f"{key}.lock"):  # another process may be filling it
            if done.is_dir() and _whole_samples(done)[0] != count:
                say(f"{done} is damaged: what is not whole is computed again")
                shutil.rmtree(partial, ignore_errors=True)
                done.rename(partial)
            if not done.is_dir():
                partial.mkdir(parents=True, exist_ok=True)
                self._fill(partial, dataset, count, whole)
                partial.rename(done)
        return TensorFile(done)

    @torch.inference_mode()
    def _fill(self, folder: Path, dataset: TorchDataset, count: int, whole: bool) -> None:
        samples, tensors = folder / SAMPLES_FILE, folder / TENSORS_FILE
        before, end = _whole_samples(folder)
        rest = range(before, count)
        loader = DataLoader(dataset, self.batch, sampler=rest, collate_fn=list, **loading(self.workers))
        what = f"features of {'validation images' if whole else 'crops'}"
        batches = track(
            loader, what, -(-len(rest) // self.batch), transient=True, console=console(), disable=not self.bar
        )
        with (
            on_disk(tensors),
            tensors.open("ab") as data,
            samples.open("a", encoding="utf-8") as lines,
            eval_mode(self.model),
        ):
            for pairs in batches:
                for arrays in self._computed(pairs, whole):
                    lengths = [[str(array.dtype), array.shape] for array in arrays]
                    needed = sum(array.nbytes for array in arrays)
                    if data.tell() == 0:
                        _check_room(folder, needed * count)
                    content = b"".join(array.tobytes() for array in arrays)
                    data.write(content)
                    data.flush()
                    lines.write(json.dumps([end, lengths, zlib.crc32(content)]) + "\n")
                    end += needed
                lines.flush()

    def _computed(self, pairs: list[tuple[Tensor, Tensor]], whole: bool) -> Iterator[Sample]:
        device = device_of(self.model)
        stacks = [pairs] if not whole else [[pair] for pair in pairs]  # whole images differ in size
        for stack in stacks:
            images = torch.stack([image for image, _ in stack]).to(device)
            with torch.autocast(device.type, self.precision, enabled=self.precision is not None):
                tensors = self.model.to_tensors(self.model.features(normalize(images)))
            arrays = [(one.float() if one.is_floating_point() else one).cpu().numpy() for one in tensors]
            for i, (image, mask) in enumerate(stack):
                size = [np.array(image.shape[-2:], np.int32)] if whole else []
                yield [*(array[i] for array in arrays), *size, mask.numpy().astype(np.uint8)]


def _whole_samples(folder: Path) -> tuple[int, int]:
    """How many samples have the bytes that they had, up to the first that has not, and where they end.

    What is behind them is cut off.
    """
    count = end = kept = 0
    for name in (SAMPLES_FILE, TENSORS_FILE):
        (folder / name).touch()
    with (folder / SAMPLES_FILE).open("r+b") as lines, (folder / TENSORS_FILE).open("r+b") as data:
        there = os.fstat(data.fileno()).st_size
        for line in lines:
            try:
                start, layout, crc = msgspec.json.decode(line, type=Line)
            except NO_JSON:
                break
            size = sum(np.dtype(kind).itemsize * math.prod(shape) for kind, shape in layout)
            as_written = line == f"{json.dumps([start, layout, crc])}\n".encode()
            if not as_written or start != end or size > there - end:
                break
            if zlib.crc32(data.read(size)) != crc:
                break
            count, end, kept = count + 1, end + size, kept + len(line)
        lines.truncate(kept)
        data.truncate(end)
    return count, end


def _check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        shutil.rmtree(folder)
        raise InputError(
            f"the features would take {needed / 2**30:.1f} GB, and {free / 2**30:.1f} GB are free in {folder.parent}: "
            "take fewer --cache_crops, another --cache, or leave it out"
        )


def _names(dataset: Any) -> str:
    """Changes with the images of a split, and their order."""
    digest = hashlib.sha256()
    for i in range(len(dataset)):
        digest.update(os.fsencode("\n" * (i > 0) + dataset.name(i)))
    return digest.hexdigest()
